"""A strict model of the part of the CUDA driver that `CudaVmm` calls: what the real one would refuse, it refuses."""

# ruff: noqa: N802 - the driver names its functions

from __future__ import annotations

import threading
from enum import Enum, IntEnum
from types import SimpleNamespace
from typing import Any

GRANULARITY = 2 << 20


class CUresult(Enum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_INVALID_DEVICE = 101
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_ILLEGAL_ADDRESS = 700


class CUstreamCaptureMode(IntEnum):
    CU_STREAM_CAPTURE_MODE_GLOBAL = 0
    CU_STREAM_CAPTURE_MODE_RELAXED = 2


OK = CUresult.CUDA_SUCCESS
INVALID = CUresult.CUDA_ERROR_INVALID_VALUE
OUT_OF_MEMORY = CUresult.CUDA_ERROR_OUT_OF_MEMORY


class FakeDriver:
    """A device of ``pages`` pages. ``fail[name] = n`` makes the n-th next call of that function fail with ``error``."""

    CUresult = CUresult
    CUstreamCaptureMode = CUstreamCaptureMode
    CUmemAllocationGranularity_flags = SimpleNamespace(CU_MEM_ALLOC_GRANULARITY_MINIMUM=0)
    CUmemAllocationType = SimpleNamespace(CU_MEM_ALLOCATION_TYPE_PINNED=1)
    CUmemLocationType = SimpleNamespace(CU_MEM_LOCATION_TYPE_DEVICE=1)
    CUmemAccess_flags = SimpleNamespace(CU_MEM_ACCESS_FLAGS_PROT_READWRITE=3)
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)

    def __init__(self, pages: int) -> None:
        self.capacity = pages * GRANULARITY
        self.fail: dict[str, int] = {}
        self.error = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
        self.calls: list[str] = []
        self.handles: dict[int, int] = {}  # handle → bytes
        self.reserved: dict[int, int] = {}
        self.mapped: dict[int, int] = {}  # address → handle
        self.accessible: set[int] = set()
        self.dirty: set[int] = set()  # addresses that were not zeroed since they were mapped
        self.retained = 0
        self.streams = 0
        self.threads = threading.local()
        self._lock = threading.RLock()
        self._next = 0x7000_0000_0000
        for name in dir(self):
            if name.startswith("_cu"):
                setattr(self, name[1:], self._wrap(name[1:], getattr(self, name)))

    def CUmemAllocationProp(self) -> Any:
        return SimpleNamespace(type=None, location=SimpleNamespace(type=None, id=None))

    def CUmemAccessDesc(self) -> Any:
        return SimpleNamespace(location=None, flags=None)

    @property
    def used(self) -> int:
        return sum(self.handles.values())

    def _wrap(self, name: str, function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            with self._lock:
                self.calls.append(name)
                if name in self.fail:
                    self.fail[name] -= 1
                    if self.fail[name] == 0:
                        del self.fail[name]
                        return (self.error, *[None] * (name in ("cuMemCreate", "cuMemAddressReserve")))
                return function(*arguments)

        call.__name__ = name
        return call

    def _stack(self) -> list[Any]:
        if not hasattr(self.threads, "stack"):
            self.threads.stack, self.threads.mode = [], CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
        stack: list[Any] = self.threads.stack
        return stack

    def _usable(self) -> bool:
        """Whether this thread may make calls that could disturb a capture, in the right context."""
        relaxed = CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        return bool(self._stack()) and self._stack()[-1] == "primary" and self.threads.mode is relaxed

    def _pages(self, address: int, size: int) -> range | None:
        inside = any(at <= address and address + size <= at + length for at, length in self.reserved.items())
        return range(address, address + size, GRANULARITY) if inside and address % GRANULARITY == 0 else None

    def _cuInit(self, flags: int) -> Any:
        return (OK,)

    def _cuDeviceGet(self, ordinal: int) -> Any:
        return (OK, ordinal) if ordinal == 0 else (CUresult.CUDA_ERROR_INVALID_DEVICE, None)

    def _cuMemGetAllocationGranularity(self, prop: Any, flag: int) -> Any:
        return (OK, GRANULARITY)

    def _cuDevicePrimaryCtxRetain(self, device: int) -> Any:
        self.retained += 1
        return (OK, "primary")

    def _cuDevicePrimaryCtxRelease(self, device: int) -> Any:
        self.retained -= 1
        return (OK,)

    def _cuCtxPushCurrent(self, context: Any) -> Any:
        self._stack().append(context)
        return (OK,)

    def _cuCtxPopCurrent(self) -> Any:
        return (OK, self._stack().pop())

    def _cuThreadExchangeStreamCaptureMode(self, mode: int) -> Any:
        self._stack()
        before, self.threads.mode = self.threads.mode, mode
        return (OK, before)

    def _cuCtxGetStreamPriorityRange(self) -> Any:
        return (OK, 0, -5)

    def _cuStreamCreateWithPriority(self, flags: int, priority: int) -> Any:
        assert (flags, priority) == (1, -5)
        self.streams += 1
        return (OK, "stream")

    def _cuStreamDestroy(self, stream: Any) -> Any:
        self.streams -= 1
        return (OK,)

    def _cuStreamSynchronize(self, stream: Any) -> Any:
        return (OK,)

    def _cuMemGetInfo(self) -> Any:
        return (OK, self.capacity - self.used, self.capacity)

    def _cuMemAddressReserve(self, size: int, alignment: int, address: int, flags: int) -> Any:
        if size % GRANULARITY or not self._usable():
            return (INVALID, None)
        at, self._next = self._next, self._next + size + GRANULARITY
        self.reserved[at] = size
        return (OK, at)

    def _cuMemAddressFree(self, address: int, size: int) -> Any:
        if self.reserved.get(address) != size or any(address <= at < address + size for at in self.mapped):
            return (INVALID,)
        del self.reserved[address]
        return (OK,)

    def _cuMemCreate(self, size: int, prop: Any, flags: int) -> Any:
        if size % GRANULARITY or not self._usable() or (prop.type, prop.location.type, prop.location.id) != (1, 1, 0):
            return (INVALID, None)
        if self.used + size > self.capacity:
            return (OUT_OF_MEMORY, None)
        self._next += 1 << 40
        self.handles[self._next] = size
        return (OK, self._next)

    def _cuMemRelease(self, handle: int) -> Any:
        if handle not in self.handles or handle in self.mapped.values() or not self._usable():
            return (INVALID,)
        del self.handles[handle]
        return (OK,)

    def _cuMemMap(self, address: int, size: int, offset: int, handle: int, flags: int) -> Any:
        pages = self._pages(address, size)
        if pages is None or handle in self.mapped.values() or self.handles.get(handle) != size or offset:
            return (INVALID,)
        if any(at in self.mapped for at in pages) or not self._usable():
            return (INVALID,)
        self.mapped.update(dict.fromkeys(pages, handle))
        self.dirty.update(pages)
        return (OK,)

    def _cuMemSetAccess(self, address: int, size: int, access: list[Any], count: int) -> Any:
        pages = self._pages(address, size)
        if pages is None or any(at not in self.mapped for at in pages) or access[0].flags != 3 or count != 1:
            return (INVALID,)
        self.accessible.update(pages)
        return (OK,)

    def _cuMemUnmap(self, address: int, size: int) -> Any:
        pages = self._pages(address, size)
        if pages is None or any(at not in self.mapped for at in pages) or not self._usable():
            return (INVALID,)
        for at in pages:
            del self.mapped[at]
        self.accessible.difference_update(pages)
        self.dirty.difference_update(pages)
        return (OK,)

    def _cuMemsetD8Async(self, address: int, value: int, size: int, stream: Any) -> Any:
        pages = self._pages(address, size)
        if pages is None or any(at not in self.accessible for at in pages) or stream != "stream" or value:
            return (INVALID,)
        self.dirty.difference_update(pages)
        return (OK,)
