"""What requests say of how long their model is to stay: `keep_alive`, as Ollama has it. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Collection

from shoal.messages import MAX_DEMAND, Demand

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|[smhd])"
_SPAN = re.compile(rf"\s*([+-]?)((?:{_PART})+)\s*")
_NUMBER = re.compile(r"\s*[+-]?\d+(?:\.\d*)?\s*")
_PARTS = re.compile(_PART)


def seconds_of(said: str | float | None) -> float | None:
    """Seconds of a `keep_alive`: a number, or a duration as Go writes it (`5m`, `1h30m`, `-1s`; days too).

    Negative: for ever. None for what is neither, which counts as not said.
    """
    if said is None or isinstance(said, bool):
        return None
    if isinstance(said, str):
        if _NUMBER.fullmatch(said):
            value = float(said)
        elif match := _SPAN.fullmatch(said):
            value = sum(float(number) * _UNITS[unit] for number, unit in _PARTS.findall(match[2]))
            value = -value if match[1] == "-" else value
        else:
            return None
    else:
        value = float(said)
    return value if math.isfinite(value) else None


class Keeping:
    """What the last request for each model said. Only models of which something is said are kept."""

    def __init__(self) -> None:
        self._said: dict[str, Demand] = {}  # the most lately used last

    def ended(self, model: str, keep_alive: str | float | None, now: float) -> None:
        """A request for `model` has ended, at `now` (Unix seconds)."""
        self._said.pop(model, None)
        seconds = seconds_of(keep_alive)
        if seconds is not None:
            self._said[model] = Demand(model, now, seconds)
            if len(self._said) > MAX_DEMAND:
                del self._said[next(iter(self._said))]

    def forget(self, models: Collection[str]) -> None:
        """Models that have left the table."""
        for model in models:
            self._said.pop(model, None)

    def demand(self) -> tuple[Demand, ...]:
        """What is said, for the report."""
        return tuple(reversed(self._said.values()))
