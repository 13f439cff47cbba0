"""Rates and percentiles of the last minute, out of counts that only grow. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.histograms import quantile

WINDOW = 60.0
"""Seconds."""

Traffic = Mapping[str, Any]
"""What `GET /api/v1/traffic` answers."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What a model is asked and answers: per second, and in seconds to the first byte; None: nothing was answered."""

    requests: float = 0.0
    tokens: float = 0.0
    p50: float | None = None
    p95: float | None = None
    running: int = 0
    waiting: int = 0


NONE = Rates()


def keep(kept: Sequence[Traffic], following: Traffic) -> list[Traffic]:
    """A reading with those of the window before it, the oldest first."""
    latest = following["at"]
    return [*(one for one in kept if latest - WINDOW <= one["at"] < latest), following]


def rates(kept: Sequence[Traffic]) -> dict[str, Rates]:
    """Of each model, from the oldest reading that is kept to the newest."""
    if not kept:
        return {}
    first, last = kept[0], kept[-1]
    before = {one["model"]: one for one in first["models"]}
    seconds = last["at"] - first["at"]
    return {one["model"]: _between(before.get(one["model"]), one, seconds, last["bounds"]) for one in last["models"]}


def _between(
    before: Mapping[str, Any] | None, after: Mapping[str, Any], seconds: float, bounds: Sequence[float]
) -> Rates:
    # Relays that start anew count from nothing again.
    if before is not None and any(after[key] < before[key] for key in ("requests", "completion_tokens")):
        before = None

    def per_second(key: str) -> float:
        return 0.0 if before is None or seconds <= 0 else float(after[key] - before[key]) / seconds

    earlier = [0] * len(after["first_byte"]) if before is None else before["first_byte"]
    counts = [max(0, now - then) for now, then in zip(after["first_byte"], earlier, strict=False)]
    return Rates(
        requests=per_second("requests"),
        tokens=per_second("completion_tokens"),
        p50=quantile(counts, bounds, 0.5),
        p95=quantile(counts, bounds, 0.95),
        running=after["running"],
        waiting=after["queued"] + after["held"],
    )
