"""Virtual memory on the host: anonymous mappings, so that CPU engines are elastic as GPU engines are.

Backed pages are resident (they are touched on the way in), so the process's resident size is what is backed.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import threading
from functools import cache

from shoal.memory.vmm.base import AddressRange, OutOfMemory, VmmError, check_pages

_PROT_NONE = 0
_PROT_RW = 1 | 2
_MAP_RESERVED = 0x02 | 0x20 | 0x4000  # private, anonymous, no swap reserved
_MAP_FIXED = 0x10
_MAP_FAILED = ctypes.c_void_p(-1).value
_MADV_NOHUGEPAGE = 15
_MADV_POPULATE_WRITE = 23
_HUGE_PAGE = 2 << 20


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    size, address, number = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int
    libc.mmap.restype, libc.mmap.argtypes = address, [address, size, number, number, number, ctypes.c_long]
    libc.munmap.argtypes = [address, size]
    libc.mprotect.argtypes = [address, size, number]
    libc.madvise.argtypes = [address, size, number]
    return libc


class HostVmm:
    """The process's own memory, in pages of ``page_size`` bytes (the system's, if not said).

    ``limit`` bounds the bytes backed at once over all ranges; without one the system's memory does.
    """

    def __init__(self, *, page_size: int = mmap.PAGESIZE, limit: int | None = None) -> None:
        if page_size < 1 or page_size % mmap.PAGESIZE:
            raise ValueError(f"page_size is {page_size}; it has to be a multiple of the system's {mmap.PAGESIZE}")
        self._page_size = page_size
        self._limit = limit
        self._lock = threading.RLock()  # a finalizer may free a range anywhere, at any time
        self._backed: dict[AddressRange, bytearray] = {}  # one byte a page
        self._pages = 0

    @property
    def device(self) -> str:
        """Torch's name for the host."""
        return "cpu"

    @property
    def page_size(self) -> int:
        """Bytes of a page."""
        return self._page_size

    @property
    def kept_bytes(self) -> int:
        """Always 0: unbacked memory is the system's at once."""
        return 0

    def reserve(self, size: int) -> AddressRange:
        """Addresses that fault when touched. Raises VmmError."""
        size = -(-size // self._page_size) * self._page_size
        addresses = AddressRange(self._map(0, size, _MAP_RESERVED), size)
        with self._lock:
            self._backed[addresses] = bytearray(size // self._page_size)
        return addresses

    def back(self, addresses: AddressRange, first: int, count: int) -> None:
        """Make pages usable: zeros, and resident. Raises OutOfMemory, VmmError."""
        address, size = check_pages(addresses, self._page_size, first, count)
        pages = slice(first, first + count)
        with self._lock:
            backed = self._range(addresses)
            if any(backed[pages]):
                raise ValueError(f"some of the pages {first} to {first + count - 1} are backed already")
            if self._limit is not None and (self._pages + count) * self._page_size > self._limit:
                fit = max(0, self._limit // self._page_size - self._pages)
                raise OutOfMemory("back", "the limit is reached", wanted=count, pages=fit)
            backed[pages] = b"\1" * count
            self._pages += count
        try:
            self._populate(address, size, count)
        except BaseException:
            try:
                self._map(address, size, _MAP_RESERVED | _MAP_FIXED)
            finally:
                self._forget(backed, first, count)
            raise

    def unback(self, addresses: AddressRange, first: int, count: int) -> None:
        """Give the pages' memory to the system at once; their addresses fault again. Raises VmmError."""
        address, size = check_pages(addresses, self._page_size, first, count)
        with self._lock:
            backed = self._range(addresses)
            if not all(backed[first : first + count]):
                raise ValueError(f"some of the pages {first} to {first + count - 1} are not backed")
        # A fresh mapping over the old one drops the pages and forbids access in one step.
        self._map(address, size, _MAP_RESERVED | _MAP_FIXED)
        self._forget(backed, first, count)

    def trim(self, keep: int | None = None) -> int:  # noqa: ARG002 - nothing is ever kept
        """Nothing to do: answers 0."""
        return 0

    def free(self, addresses: AddressRange) -> None:
        """Give up a range and what backs it. Raises VmmError."""
        with self._lock:
            self._pages -= sum(self._range(addresses))
            del self._backed[addresses]
        if _libc().munmap(addresses.address, addresses.size):
            raise _error("munmap")

    def close(self) -> None:
        """Free every range. Raises VmmError."""
        for addresses in list(self._backed):
            self.free(addresses)

    def _range(self, addresses: AddressRange) -> bytearray:
        try:
            return self._backed[addresses]
        except KeyError:
            raise ValueError("these addresses are not reserved here, or were freed") from None

    def _forget(self, backed: bytearray, first: int, count: int) -> None:
        with self._lock:
            backed[first : first + count] = bytes(count)
            self._pages -= count

    @staticmethod
    def _map(address: int, size: int, flags: int) -> int:
        found = _libc().mmap(address or None, size, _PROT_NONE, flags, -1, 0)
        if found == _MAP_FAILED or found is None:
            raise _error("mmap")
        return int(found)

    def _populate(self, address: int, size: int, count: int) -> None:
        libc = _libc()
        if libc.mprotect(address, size, _PROT_RW):
            number = ctypes.get_errno()
            if number == errno.ENOMEM:  # also the answer when the process has too many separate mappings
                raise OutOfMemory("mprotect", "ENOMEM", wanted=count, pages=0)
            raise _error("mprotect")
        if self._page_size % _HUGE_PAGE:
            # A huge page stays in memory until all of it is unbacked. A kernel without them refuses, which is as good.
            libc.madvise(address, size, _MADV_NOHUGEPAGE)
        if libc.madvise(address, size, _MADV_POPULATE_WRITE) == 0:
            return
        number = ctypes.get_errno()
        if number == errno.EINVAL:  # before Linux 5.14
            ctypes.memset(address, 0, size)
        elif number in (errno.ENOMEM, errno.EFAULT, errno.EAGAIN):
            raise OutOfMemory("madvise", errno.errorcode[number], wanted=count, pages=0)
        else:
            raise _error("madvise")


def _error(operation: str) -> VmmError:
    number = ctypes.get_errno()
    hint = "too many mappings? see /proc/sys/vm/max_map_count" if number == errno.ENOMEM else ""
    return VmmError(operation, errno.errorcode.get(number, str(number)), hint)
