"""Rates and percentiles of a stretch of time, out of counts of relays that only grow. Pure.

Each relay's counts are compared with its own of before: those of one that starts anew count from nothing, and must not
hide what the others counted meanwhile.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from shoal.histograms import quantile
from shoal.messages import RelayReport

RELAYS = 64
"""As many relays that were heard are remembered, for those that are away for a moment."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What a model was asked: requests that ended and tokens that it wrote, a second; seconds to the first byte, NaN
    without an answer."""

    requests: float
    tokens: float
    p50: float
    p95: float


IDLE = Rate(0.0, 0.0, math.nan, math.nan)


@dataclass(slots=True)
class _Counts:
    """What a relay counted, by model. `first`: answers by the bucket of the time to their first byte."""

    requests: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[int]] = field(default_factory=dict)


class Rates:
    """`bounds` are the upper bounds of the buckets of `first_byte`, ascending, in seconds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._at: float | None = None
        self._before: dict[str, _Counts] = {}

    def take(self, at: float, reports: Iterable[RelayReport]) -> dict[str, Rate]:
        """Rates since the last call, of models that were asked something; those that are not here were idle. `at` in
        seconds. What a relay had counted before it was first heard belongs to no time and does not count."""
        seconds = math.inf if self._at is None else at - self._at
        self._at = at
        sum_ = _Counts()
        for report in reports:
            now = _counted(report, len(self._bounds) + 1)
            before = self._before.pop(report.relay, None)
            self._before[report.relay] = now
            if before is not None:
                _add(sum_, before, now)
        while len(self._before) > RELAYS:
            del self._before[next(iter(self._before))]
        if seconds <= 0:
            return {}
        return {
            model: Rate(
                sum_.requests[model] / seconds,
                sum_.tokens[model] / seconds,
                self._quantile(sum_.first.get(model, ()), 0.5),
                self._quantile(sum_.first.get(model, ()), 0.95),
            )
            for model in sum_.requests.keys() | sum_.tokens.keys() | sum_.first.keys()
        }

    def _quantile(self, counts: Sequence[int], q: float) -> float:
        found = quantile(counts, self._bounds, q)
        return math.nan if found is None else found


def _counted(report: RelayReport, buckets: int) -> _Counts:
    counts = _Counts()
    for ended in report.counts:
        counts.requests[ended.model] += ended.requests
    for carried in report.traffic:
        counts.tokens[carried.model] += carried.completion_tokens
    for item in report.distributions:
        # Those of a relay of another version may have other buckets.
        if item.name == "first_byte" and len(item.counts) == buckets:
            known = counts.first.get(item.model)
            counts.first[item.model] = (
                list(item.counts) if known is None else [a + b for a, b in zip(known, item.counts, strict=True)]
            )
    return counts


def _add(sum_: _Counts, before: _Counts, now: _Counts) -> None:
    """Add what a relay has counted more than before; one that counts less has begun anew, or forgot the model."""
    for into, old, new in ((sum_.requests, before.requests, now.requests), (sum_.tokens, before.tokens, now.tokens)):
        for model, count in new.items():
            if more := count - old[model] if count >= old[model] else count:
                into[model] += more
    for model, counts in now.first.items():
        past = before.first.get(model)
        if past is None or any(b < a for a, b in zip(past, counts, strict=True)):
            past = [0] * len(counts)
        if past != counts:
            known = sum_.first.get(model, [0] * len(counts))
            sum_.first[model] = [a + c - b for a, b, c in zip(known, past, counts, strict=True)]
