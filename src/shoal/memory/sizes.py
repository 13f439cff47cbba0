"""Bytes and parts of a whole, read from and written for people. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "k": 2**10,
    "m": 2**20,
    "g": 2**30,
    "t": 2**40,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SIZE = re.compile(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([a-z]*)\s*", re.IGNORECASE)
_PERCENT = re.compile(r"\s*(\d{1,3}(?:\.\d{1,6})?)\s*%\s*")


def parse_bytes(value: Any) -> int:
    """Bytes from ``4096``, ``"512MiB"``, ``"1.5 GiB"`` or ``"80GB"``. Raises ValueError with an example otherwise."""
    if isinstance(value, bool):
        raise ValueError("give a size such as 512MiB or 1.5GiB")
    if isinstance(value, int):
        if value < 0:
            raise ValueError("a size cannot be negative")
        return value
    match = _SIZE.fullmatch(str(value))
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError(f"{value!r} is not a size; give one such as 512MiB or 1.5GiB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def format_bytes(n: float) -> str:
    """``1610612736`` → ``"1.5 GiB"``."""
    size = abs(n)
    if size >= 2**40:
        return f"{n / 2**40:.2f} TiB"
    if size >= 2**30:
        return f"{n / 2**30:.1f} GiB"
    if size >= 2**20:
        return f"{n / 2**20:.1f} MiB"
    return f"{n / 2**10:.0f} KiB" if size >= 2**10 else f"{n:.0f} B"


@dataclass(frozen=True, slots=True)
class Amount:
    """Bytes, or a part of a device whose size may not be known yet."""

    size: int = 0
    share: float | None = None
    """From 0 to 1; goes before `size`."""

    @classmethod
    def parse(cls, text: str) -> Amount:
        """From ``"8GiB"`` or ``"80%"``. Raises ValueError with an example otherwise."""
        percent = _PERCENT.fullmatch(text)
        if percent is not None:
            if float(percent[1]) > 100:
                raise ValueError(f"{text!r} is more than the whole device; give at most 100%")
            return cls(share=float(percent[1]) / 100)
        try:
            return cls(parse_bytes(text))
        except ValueError:
            raise ValueError(f"{text!r} is not a size; give one such as 512MiB, 1.5GiB or 80%") from None

    def of(self, whole: int) -> int:
        """The bytes that this is, for a device of `whole` bytes."""
        return self.size if self.share is None else int(whole * self.share)

    def __str__(self) -> str:
        return format_bytes(self.size) if self.share is None else f"{self.share * 100:g}%"
