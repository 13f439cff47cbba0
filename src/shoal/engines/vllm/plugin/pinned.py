"""Host memory that the GPU reads and writes by itself, and the copies between the two.

It is taken from the system page by page and then registered with the driver, so that it can be given back for good:
torch's own pinned memory grows to powers of two and is never returned.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from .checksum import ROW, marks, marks_of_all
from .copies import Buffer, Go, Mark

POPULATED = 64 << 20
"""Bytes made ready by one call."""

CHECKED = 64 << 20
"""Bytes of the host looked at by one call: a whole number of rows."""

_MADV_POPULATE_WRITE = 23  # Linux 5.14; Python has no name for it
_PORTABLE = 1  # CU_MEMHOSTREGISTER_PORTABLE: pinned for every context of the process


class PinnedBuffer:
    """Pinned memory of the host."""

    def __init__(self, mover: CudaMover, size: int) -> None:
        try:
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(f"the host has no {size >> 20} MiB for a copy of weights: {error}") from error
        self._mover = mover
        # The tensor keeps the mapping: it ends when both are gone.
        self._tensor: torch.Tensor | None = torch.frombuffer(memory, dtype=torch.uint8)
        _populate(memory, self.address, size)
        mover.register(self.address, size)

    @property
    def tensor(self) -> torch.Tensor:
        if self._tensor is None:
            raise ValueError("this memory was given back")
        return self._tensor

    @property
    def address(self) -> int:
        """Where it lies."""
        return int(self.tensor.data_ptr())

    def close(self) -> None:
        """Unpin it and let go of it. May be called more than once."""
        if self._tensor is not None:
            self._mover.unregister(self.address)
            self._tensor = None


class CudaMover:
    """Between the host and one GPU: a `copies.Mover`. On a stream of its own, of the lowest priority."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cu = cu = importlib.import_module("cuda.bindings.driver")
        ordinal = torch.cuda.current_device() if device.index is None else device.index
        self._call(cu.cuInit, 0)
        self._context = self._call(cu.cuDevicePrimaryCtxRetain, self._call(cu.cuDeviceGet, ordinal))
        with self._current():
            least, _ = self._call(cu.cuCtxGetStreamPriorityRange)
            self._stream = self._call(
                cu.cuStreamCreateWithPriority, int(cu.CUstream_flags.CU_STREAM_NON_BLOCKING), int(least)
            )

    def reserve(self, size: int) -> PinnedBuffer:
        return PinnedBuffer(self, size)

    def fetch(self, buffer: Buffer, source: int, offset: int, size: int) -> None:
        with self._current():
            to = int(buffer.tensor.data_ptr()) + offset
            self._call(self._cu.cuMemcpyDtoHAsync, to, source + offset, size, self._stream)

    def wait(self) -> None:
        with self._current():
            self._call(self._cu.cuStreamSynchronize, self._stream)

    def mark(self, buffer: Buffer, go: Go) -> Mark | None:
        data, found = buffer.tensor, torch.zeros(2, dtype=torch.int64)
        for offset in range(0, len(data), CHECKED):
            if not go():
                return None
            found += marks(data[offset : offset + CHECKED], offset // (8 * ROW))
        return int(found[0]), int(found[1])

    def begin_marks(self, allocations: Sequence[tuple[int, int]]) -> torch.Tensor:
        torch.cuda.synchronize(self._device)
        return marks_of_all([self._at(pointer, size) for pointer, size in allocations])

    def read_marks(self, begun: torch.Tensor) -> list[Mark]:
        return [(int(a), int(b)) for a, b in begun.tolist()]

    def register(self, address: int, size: int) -> None:
        """Pin host memory. Raises RuntimeError."""
        with self._current():
            self._call(self._cu.cuMemHostRegister, address, size, _PORTABLE)

    def unregister(self, address: int) -> None:
        """Unpin it. Raises RuntimeError."""
        with self._current():
            self._call(self._cu.cuMemHostUnregister, address)

    def _at(self, pointer: int, size: int) -> torch.Tensor:
        """The device's memory there, as bytes."""
        storage = torch._C._construct_storage_from_data_pointer(  # noqa: SLF001 - there is no public way
            pointer, self._device, size
        )
        return torch.empty(0, dtype=torch.uint8, device=self._device).set_(storage, 0, (size,))

    @contextmanager
    def _current(self) -> Iterator[None]:
        self._call(self._cu.cuCtxPushCurrent, self._context)
        try:
            yield
        finally:
            self._call(self._cu.cuCtxPopCurrent)

    def _call(self, function: Any, *arguments: Any) -> Any:
        code, *values = function(*arguments)
        if code != self._cu.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"{function.__name__} failed with {getattr(code, 'name', code)}")
        return values[0] if len(values) == 1 else tuple(values)


def _populate(memory: mmap.mmap, address: int, size: int) -> None:
    """Have every page there, in large ones where the system has them, without holding up other threads.

    Raises MemoryError.
    """
    with contextlib.suppress(OSError):  # a kernel without large pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for offset in range(0, size, POPULATED):
        part = min(POPULATED, size - offset)
        if not madvise(address + offset, part, _MADV_POPULATE_WRITE):
            continue
        if ctypes.get_errno() != errno.EINVAL:
            raise MemoryError(f"the host has no {size >> 20} MiB for a copy of weights")
        ctypes.memset(address + offset, 0, part)  # an older kernel
