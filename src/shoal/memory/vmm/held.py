"""Short driver calls that keep the interpreter's lock.

`cuda.bindings` gives the lock up around every call. For one of a few microseconds that is a bad bargain beside a busy
thread: the call is over long before the lock comes back, and growing by a page takes 200 µs instead of 40; and that
thread pays for the lock's way to and fro as well. So pages are made and mapped some at a time with the lock held, for
less than a millisecond, and it is given up only for the calls that take longer.
"""

from __future__ import annotations

import ctypes
from typing import Any

PAGES_HELD = 32
"""Pages made and mapped, or released, in one go: about 13 µs each, twice as much where they are of 4 MiB."""


class HeldCalls:
    """Calls of libcuda, and the codes that they answer with. Raises OSError if there is none."""

    def __init__(self, prop: Any, page_size: int, context: Any) -> None:
        library = ctypes.PyDLL("libcuda.so.1")
        self._push = library.cuCtxPushCurrent_v2
        self._push.argtypes = [ctypes.c_void_p]
        self._pop = library.cuCtxPopCurrent_v2
        self._pop.argtypes = [ctypes.c_void_p]
        self._exchange = library.cuThreadExchangeStreamCaptureMode
        self._exchange.argtypes = [ctypes.c_void_p]
        self._context = int(context)
        self._release = library.cuMemRelease
        self._release.argtypes = [ctypes.c_ulonglong]
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

    def push(self) -> int:
        """Make the context current on this thread."""
        return int(self._push(self._context))

    def pop(self) -> int:
        """Make that current again which was before `push`."""
        return int(self._pop(ctypes.byref(ctypes.c_void_p())))

    def exchange(self, mode: int) -> tuple[int, int]:
        """Set this thread's mode for calls beside a capture: the code, and the mode that was before."""
        value = ctypes.c_int(mode)
        code = int(self._exchange(ctypes.byref(value)))
        return code, value.value

    def release(self, handles: list[Any]) -> tuple[int, int]:
        """Give memory back: that of how many was, and the code of the call that failed, or 0."""
        for index, handle in enumerate(handles):
            code = self._release(int(handle))
            if code:
                return index, int(code)
        return len(handles), 0

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
