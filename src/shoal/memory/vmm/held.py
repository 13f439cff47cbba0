"""Short driver calls that keep the interpreter's lock.

`cuda.bindings` gives the lock up around every call. For one of a few microseconds that is a bad bargain beside a busy
thread: the call is over long before the lock comes back, and growing by a page takes 200 µs instead of 40. So where
somebody waits for the pages, they are made and mapped a few at a time with the lock held, for less than 0.2 ms, and
only then is it given up. Where nobody does, the busy thread goes first: each page would cost its steps 13 µs.
"""

from __future__ import annotations

import ctypes
from typing import Any

PAGES_HELD = 8
"""Pages made and mapped in one go: about 13 µs each."""


class HeldCalls:
    """`cuMemCreate` and `cuMemMap` of libcuda, and the code that each answers with. Raises OSError if there is none."""

    def __init__(self, prop: Any, page_size: int) -> None:
        library = ctypes.PyDLL("libcuda.so.1")
        self._create = library.cuMemCreate
        self._create.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_ulonglong]
        self._map = library.cuMemMap
        self._map.argtypes = [
            ctypes.c_ulonglong,
            ctypes.c_size_t,
            ctypes.c_size_t,
            ctypes.c_ulonglong,
            ctypes.c_ulonglong,
        ]
        self._prop = prop  # keeps what the pointer leads to
        self._prop_pointer = int(prop.getPtr())
        self._page_size = page_size

    def create(self, count: int) -> tuple[list[int], int]:
        """Handles of up to `count` pages, and the code of the call that failed, or 0."""
        handles: list[int] = []
        handle = ctypes.c_ulonglong()
        for _ in range(count):
            code = self._create(ctypes.byref(handle), self._page_size, self._prop_pointer, 0)
            if code:
                return handles, int(code)
            handles.append(handle.value)
        return handles, 0

    def map(self, address: int, handles: list[Any]) -> tuple[int, int]:
        """Map pages one after another from `address`: how many were mapped, and the code of the call that failed."""
        for index, handle in enumerate(handles):
            code = self._map(address + index * self._page_size, self._page_size, 0, int(handle), 0)
            if code:
                return index, int(code)
        return len(handles), 0
