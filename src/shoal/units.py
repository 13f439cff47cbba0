"""Bytes and seconds, read from and written for people."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

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


ByteSize = Annotated[int, BeforeValidator(parse_bytes)]
"""A pydantic field of bytes that also takes ``"1.5GiB"``."""


def format_bytes(n: float) -> str:
    """``1610612736`` → ``"1.5 GiB"``."""
    sign = "-" if n < 0 else ""
    n = abs(n)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024:
            return f"{sign}{n:.0f} {unit}" if unit in ("B", "KiB") else f"{sign}{n:.1f} {unit}"
        n /= 1024
    return f"{sign}{n:.2f} TiB"


def format_seconds(seconds: float) -> str:
    """``95`` → ``"1 min 35 s"``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
