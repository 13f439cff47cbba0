"""Bytes and seconds, read from and written for people."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator

from shoal.memory.sizes import format_bytes, parse_bytes

__all__ = ["ByteSize", "format_bytes", "format_seconds", "parse_bytes"]

ByteSize = Annotated[int, BeforeValidator(parse_bytes)]
"""A pydantic field of bytes that also takes ``"1.5GiB"``."""


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
