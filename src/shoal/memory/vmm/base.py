"""What a device's virtual memory can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class AddressRange:
    """Reserved addresses, in bytes. Those that are not backed fault when touched."""

    address: int
    size: int


class VmmError(RuntimeError):
    """The driver refused something that should have worked. ``name`` is its own name for the error."""

    def __init__(self, operation: str, name: str, detail: str = "") -> None:
        super().__init__(f"{operation} failed: {name}{f' ({detail})' if detail else ''}")
        self.operation = operation
        self.name = name


class OutOfMemory(Exception):  # noqa: N818 - an ordinary answer, not a fault
    """The device has no memory left for this. Nothing changed; ``pages`` would have fitted a moment ago."""

    def __init__(self, operation: str, name: str, *, wanted: int, pages: int) -> None:
        super().__init__(f"out of memory: {operation} of {wanted} pages failed after {pages} ({name})")
        self.operation = operation
        self.name = name
        self.pages = pages


class Vmm(Protocol):
    """One device's virtual memory. Calls on different pages may come from different threads at once.

    Whoever unbacks pages answers for it that nothing, on the device or here, still uses them.
    """

    @property
    def device(self) -> str:
        """The device as torch names it: ``"cpu"`` or one such as ``"cuda:0"``."""
        ...

    @property
    def page_size(self) -> int:
        """Bytes of a page: what is backed or not as one."""
        ...

    @property
    def kept_bytes(self) -> int:
        """Physical memory that is held, but backs nothing."""
        ...

    def reserve(self, size: int) -> AddressRange:
        """Reserve at least ``size`` bytes of addresses, none of them backed. Raises VmmError."""
        ...

    def back(self, addresses: AddressRange, first: int, count: int) -> None:
        """Back ``count`` pages, now unbacked, from page ``first``: they read as zeros.

        All or nothing. Raises OutOfMemory or VmmError.
        """
        ...

    def unback(self, addresses: AddressRange, first: int, count: int) -> None:
        """Take the memory of ``count`` backed pages from page ``first`` away.

        Raises VmmError, and then nothing changed. An implementation may keep the memory for the next `back`, until
        `trim`.
        """
        ...

    def trim(self, keep: int | None = None) -> int:
        """Give kept memory back to the device until at most ``keep`` bytes are left; answers how many bytes went.

        Without ``keep`` the implementation's own bound holds. To be called after `unback`, and after a `back` that
        failed. Raises VmmError.
        """
        ...

    def free(self, addresses: AddressRange) -> None:
        """Give up a range; what is still backed goes back to the device. Raises VmmError."""
        ...

    def close(self) -> None:
        """Free every range and all kept memory. Raises VmmError."""
        ...


def check_pages(addresses: AddressRange, page_size: int, first: int, count: int) -> tuple[int, int]:
    """The address and the bytes of ``count`` pages from ``first``. Raises ValueError if they are not in the range."""
    if first < 0 or count < 1 or (first + count) * page_size > addresses.size:
        raise ValueError(f"pages {first} to {first + count - 1} are not in a range of {addresses.size} bytes")
    return addresses.address + first * page_size, count * page_size
