"""Virtual memory on an NVIDIA GPU, through the driver API.

A page is one physical allocation. What the driver leaves in fresh memory is documented nowhere, so pages are zeroed
when they are backed: nothing of another process is ever seen, and no stale NaN reaches an attention kernel.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeGuard

from shoal.memory.vmm.base import AddressRange, OutOfMemory, VmmError, check_pages
from shoal.memory.vmm.held import PAGES_HELD, HeldCalls

KEEP_BYTES = 32 << 20
"""Memory that a process keeps ready for its next page, if not said otherwise."""


class CudaVmm:
    """GPU ``ordinal`` as the process sees it, in pages of ``page_size`` bytes (the driver's granularity, if not said).

    Shares the device's primary context with torch and makes no other; callable from any thread, whatever context is
    current there, also while another thread captures a CUDA graph. ``keep_bytes`` bounds the memory kept for reuse in
    this process. ``zero="reused"`` zeroes only memory that was kept and trusts the driver for new memory, which
    spares a wait of up to milliseconds behind a busy GPU's kernels; ``False`` zeroes nothing. ``driver`` stands in
    for the module ``cuda.bindings.driver``. Raises VmmError if there is no driver or no such GPU.
    """

    def __init__(
        self,
        ordinal: int = 0,
        *,
        page_size: int | None = None,
        keep_bytes: int = KEEP_BYTES,
        zero: Literal["reused"] | bool = True,
        driver: Any = None,
    ) -> None:
        self._cu = cu = _load() if driver is None else driver
        self._pages: dict[AddressRange, dict[int, Any]] = {}  # page → handle of its memory
        self._kept: deque[Any] = deque()  # without a lock: a finalizer may free a range anywhere, at any time
        self._keep_bytes = keep_bytes
        self._zero = zero
        self._closed = False
        try:
            self._call(cu.cuInit, 0)
        except VmmError:
            raise
        except RuntimeError as error:
            raise VmmError("cuInit", "no CUDA driver", str(error)) from error
        self._device = self._call(cu.cuDeviceGet, ordinal)
        self._prop, self._access = self._describe(int(self._device))
        granularity = int(
            self._call(
                cu.cuMemGetAllocationGranularity,
                self._prop,
                cu.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM,
            )
        )
        self._page_size = granularity if page_size is None else page_size
        if self._page_size < 1 or self._page_size % granularity:
            raise ValueError(f"page_size is {page_size}; it has to be a multiple of the device's {granularity}")
        self._context = self._call(cu.cuDevicePrimaryCtxRetain, self._device)
        self._held: HeldCalls | None = None
        self._stream: Any = None
        try:
            if driver is None:
                self._held = HeldCalls(self._prop, self._page_size, self._context)
            with self._current():
                # Its own stream, ahead of the engine's kernels, and never in their graphs.
                _, urgent = self._call(cu.cuCtxGetStreamPriorityRange)
                self._stream = self._call(
                    cu.cuStreamCreateWithPriority, int(cu.CUstream_flags.CU_STREAM_NON_BLOCKING), int(urgent)
                )
        except BaseException:
            self._call(cu.cuDevicePrimaryCtxRelease, self._device)
            raise

    @property
    def device(self) -> str:
        """Torch's name for the device."""
        return f"cuda:{int(self._device)}"

    @property
    def page_size(self) -> int:
        """Bytes of a page."""
        return self._page_size

    @property
    def kept_bytes(self) -> int:
        """Device memory held for reuse that backs nothing."""
        return len(self._kept) * self._page_size

    def memory(self) -> tuple[int, int]:
        """Bytes of the device that are free and that there are. Raises VmmError."""
        with self._current():
            free, total = self._call(self._cu.cuMemGetInfo)
        return int(free), int(total)

    def reserve(self, size: int) -> AddressRange:
        """Addresses that fault when touched. Raises VmmError."""
        size = -(-size // self._page_size) * self._page_size
        with self._current():
            address = int(self._call(self._cu.cuMemAddressReserve, size, 0, 0, 0))
        addresses = AddressRange(address, size)
        self._pages[addresses] = {}
        return addresses

    def back(self, addresses: AddressRange, first: int, count: int) -> None:
        """Back pages with zeroed memory; returns when any stream may use them. Raises OutOfMemory, VmmError."""
        address, size = check_pages(addresses, self._page_size, first, count)
        pages = self._range(addresses)
        wanted = range(first, first + count)
        if any(page in pages for page in wanted):
            raise ValueError(f"some of the pages {first} to {first + count - 1} are backed already")
        with self._current():
            handles, reused = self._take(count)
            mapped = 0
            try:
                while mapped < count:
                    done, error = self._map(address + mapped * self._page_size, handles[mapped : mapped + PAGES_HELD])
                    mapped += done
                    if error is not None:
                        raise error
                self._call(self._cu.cuMemSetAccess, address, size, [self._access], 1)
                dirty = reused if self._zero == "reused" else count if self._zero else 0
                if dirty:
                    # Both let go of the interpreter: beside a busy engine, even beginning to zero may take 4 ms.
                    self._call(self._cu.cuMemsetD8Async, address, 0, dirty * self._page_size, self._stream)
                    self._call(self._cu.cuStreamSynchronize, self._stream)
            except BaseException as error:
                try:
                    if mapped:
                        self._call(self._cu.cuMemUnmap, address, mapped * self._page_size)
                except VmmError:
                    pages.update(zip(wanted, handles[:mapped], strict=False))  # for `free` to try again
                    self._kept.extend(handles[mapped:])
                    raise
                self._kept.extend(handles)
                if _is_out_of_memory(error):  # page tables are memory too
                    fit = min(mapped, count - 1)
                    raise OutOfMemory(error.operation, error.name, wanted=count, pages=fit) from error
                raise
        pages.update(zip(wanted, handles, strict=True))

    def unback(self, addresses: AddressRange, first: int, count: int) -> None:
        """Unmap pages and keep their memory until `trim`. Raises VmmError."""
        address, size = check_pages(addresses, self._page_size, first, count)
        pages = self._range(addresses)
        wanted = range(first, first + count)
        if not all(page in pages for page in wanted):
            raise ValueError(f"some of the pages {first} to {first + count - 1} are not backed")
        with self._current():
            self._call(self._cu.cuMemUnmap, address, size)
        self._kept.extend([pages.pop(page) for page in wanted])

    def trim(self, keep: int | None = None) -> int:
        """Release kept memory down to ``keep`` bytes, or to the bound; answers how many went. Raises VmmError."""
        most = (self._keep_bytes if keep is None else keep) // self._page_size
        if len(self._kept) <= most:
            return 0
        released = 0
        with self._current():
            while (left := len(self._kept) - most) > 0 and (handles := self._reuse_many(min(left, PAGES_HELD))):
                done, error = self._release(handles)
                released += done
                if error is not None:
                    self._kept.extend(handles[done:])  # still held, so still counted
                    raise error
        return released * self._page_size

    def free(self, addresses: AddressRange) -> None:
        """Unmap and release what backs a range, and give up its addresses. Raises VmmError."""
        pages = self._range(addresses)
        with self._current():
            for page in sorted(pages):
                self._call(self._cu.cuMemUnmap, addresses.address + page * self._page_size, self._page_size)
                self._kept.append(pages.pop(page))
            self._call(self._cu.cuMemAddressFree, addresses.address, addresses.size)
        del self._pages[addresses]
        self.trim()

    def close(self) -> None:
        """Free every range, all memory and the hold on the primary context. Raises VmmError."""
        if self._closed:
            return
        for addresses in list(self._pages):
            self.free(addresses)
        self.trim(0)
        with self._current():
            self._call(self._cu.cuStreamDestroy, self._stream)
        self._closed = True
        self._call(self._cu.cuDevicePrimaryCtxRelease, self._device)

    def _range(self, addresses: AddressRange) -> dict[int, Any]:
        try:
            return self._pages[addresses]
        except KeyError:
            raise ValueError("these addresses are not reserved here, or were freed") from None

    def _reuse(self) -> Any:
        """A kept handle, or None."""
        try:
            return self._kept.pop()
        except IndexError:
            return None

    def _reuse_many(self, count: int) -> list[Any]:
        """Up to ``count`` kept handles."""
        handles: list[Any] = []
        while len(handles) < count and (handle := self._reuse()) is not None:
            handles.append(handle)
        return handles

    def _take(self, count: int) -> tuple[list[Any], int]:
        """Memory for ``count`` pages, kept before new, and how many were kept."""
        handles = self._reuse_many(count)
        reused = len(handles)
        while len(handles) < count:
            made, error = self._create(min(PAGES_HELD, count - len(handles)))
            handles.extend(made)
            if error is not None:
                self._kept.extend(handles)
                if _is_out_of_memory(error):
                    raise OutOfMemory(error.operation, error.name, wanted=count, pages=len(handles)) from error
                raise error
        return handles, reused

    def _create(self, count: int) -> tuple[list[Any], VmmError | None]:
        """Memory for up to ``count`` pages, and why not for more."""
        if self._held is not None:
            handles, code = self._held.create(count)
            return handles, self._error("cuMemCreate", self._cu.CUresult(code)) if code else None
        handles = []
        try:
            for _ in range(count):
                handles.append(self._call(self._cu.cuMemCreate, self._page_size, self._prop, 0))
        except VmmError as error:
            return handles, error
        return handles, None

    def _map(self, address: int, handles: list[Any]) -> tuple[int, VmmError | None]:
        """Map pages from ``address`` on: how many were, and why not more."""
        if self._held is not None:
            done, code = self._held.map(address, handles)
            return done, self._error("cuMemMap", self._cu.CUresult(code)) if code else None
        for index, handle in enumerate(handles):
            try:
                self._call(self._cu.cuMemMap, address + index * self._page_size, self._page_size, 0, handle, 0)
            except VmmError as error:
                return index, error
        return len(handles), None

    def _release(self, handles: list[Any]) -> tuple[int, VmmError | None]:
        """Give pages' memory back: how many were, and why not more."""
        if self._held is not None:
            done, code = self._held.release(handles)
            return done, self._error("cuMemRelease", self._cu.CUresult(code)) if code else None
        for index, handle in enumerate(handles):
            try:
                self._call(self._cu.cuMemRelease, handle)
            except VmmError as error:
                return index, error
        return len(handles), None

    @contextmanager
    def _current(self) -> Iterator[None]:
        """The primary context, current on this thread, where calls are allowed that could disturb a graph's capture."""
        if self._closed:
            raise ValueError("this device was closed")
        self._push()
        try:
            before = self._exchange(self._cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED)
            try:
                yield
            finally:
                self._exchange(before)
        finally:
            self._pop()

    def _push(self) -> None:
        if self._held is not None:
            self._check("cuCtxPushCurrent", self._held.push())
        else:
            self._call(self._cu.cuCtxPushCurrent, self._context)

    def _pop(self) -> None:
        if self._held is not None:
            self._check("cuCtxPopCurrent", self._held.pop())
        else:
            self._call(self._cu.cuCtxPopCurrent)

    def _exchange(self, mode: Any) -> Any:
        """Set what this thread may call while another captures, and say what it was."""
        if self._held is None:
            return self._call(self._cu.cuThreadExchangeStreamCaptureMode, mode)
        code, before = self._held.exchange(int(mode))
        self._check("cuThreadExchangeStreamCaptureMode", code)
        return before

    def _describe(self, device: int) -> tuple[Any, Any]:
        """The driver's words for pinned memory of this device, and for reading and writing it there."""
        cu = self._cu
        prop = cu.CUmemAllocationProp()
        prop.type = cu.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        prop.location.type = cu.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        prop.location.id = device
        access = cu.CUmemAccessDesc()
        access.location = prop.location
        access.flags = cu.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        return prop, access

    def _call(self, function: Any, *arguments: Any) -> Any:
        """The result of a driver call: nothing, a value or a tuple. Raises VmmError with the driver's name for it."""
        code, *values = function(*arguments)
        if code != self._cu.CUresult.CUDA_SUCCESS:
            raise self._error(function.__name__, code)
        return values[0] if len(values) == 1 else tuple(values)

    def _check(self, operation: str, code: int) -> None:
        """Raises VmmError unless ``code``, a held call's, says success."""
        if code:
            raise self._error(operation, self._cu.CUresult(code))

    @staticmethod
    def _error(operation: str, code: Any) -> VmmError:
        return VmmError(operation, getattr(code, "name", str(code)))


def _load() -> Any:
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise VmmError(
            "import", "no cuda-bindings", "install cuda-bindings in the engine's environment, as torch for CUDA does"
        ) from error


def _is_out_of_memory(error: BaseException) -> TypeGuard[VmmError]:
    return isinstance(error, VmmError) and error.name == "CUDA_ERROR_OUT_OF_MEMORY"
