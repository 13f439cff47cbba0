"""The phases of the burst benchmark, as they are named on its command line. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAME = re.compile(r"(\d{1,4})(?:x(\d{1,5}))?(\+?)")


@dataclass(frozen=True, slots=True)
class Phase:
    """Ramps to `peak` requests a second and back, each answer of `tokens` tokens, all models `together` or in turn."""

    peak: int
    tokens: int = 256
    together: bool = False

    def __str__(self) -> str:
        return f"{self.peak}x{self.tokens}{'+' if self.together else ''}"


def parse(text: str, tokens: int = 256) -> Phase:
    """``56`` (peak), ``24x1024`` (and tokens in each answer), ``24+`` (all models at once). Raises ValueError."""
    found = _NAME.fullmatch(text.strip())
    if found is None or int(found[1]) < 1 or (found[2] is not None and int(found[2]) < 1):
        raise ValueError(f"{text!r} is no phase; give PEAK or PEAKxTOKENS, with a + for all models at once")
    return Phase(int(found[1]), int(found[2] or tokens), bool(found[3]))
