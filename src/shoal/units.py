"""Bytes and seconds, read from and written for people."""

from __future__ import annotations

import math
import re
from typing import Annotated

from pydantic import BeforeValidator

from shoal.memory.sizes import format_bytes, parse_bytes

__all__ = ["ByteSize", "Duration", "format_bytes", "format_seconds", "parse_bytes", "parse_seconds"]

_UNITS = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(-?\d+(?:\.\d+)?)\s*(ms|[smhd]?)")

ByteSize = Annotated[int, BeforeValidator(parse_bytes)]
"""A pydantic field of bytes that also takes ``"1.5GiB"``."""


def parse_seconds(text: str | float) -> float:
    """Seconds from a number, or from such as ``"5m"``, ``"1.5h"``, ``"7d"``. Raises ValueError."""
    if isinstance(text, int | float) and not isinstance(text, bool):
        value = float(text)
    else:
        match = _DURATION.fullmatch(str(text).strip())
        if match is None:
            raise ValueError(f"{text!r} is not a duration; give seconds, or such as 30s, 5m, 2h, 7d")
        value = float(match[1]) * _UNITS[match[2]]
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not a duration: it has to be finite")
    return value


Duration = Annotated[float, BeforeValidator(parse_seconds)]
"""A pydantic field of seconds that also takes ``"5m"``."""


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
