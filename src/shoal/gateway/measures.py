"""What the relay counts: how requests ended, how long their parts took, what went through. Pure, and cheap: each of
these is called for every request or even every chunk."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection

from shoal.messages import Distribution, DistributionName, ModelCount, Outcome, Priority, Traffic

_LONG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_CHUNK = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0)
_OVERHEAD = (1e-5, 2e-5, 5e-5, 1e-4, 1.5e-4, 2e-4, 3e-4, 5e-4, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
BOUNDS: dict[DistributionName, tuple[float, ...]] = {
    "queue": _LONG,
    "first_byte": _LONG,
    "duration": _LONG,
    "inter_chunk": _CHUNK,
    "overhead": _OVERHEAD,
}
"""Upper bounds of the buckets of each distribution, in seconds, ascending; a value on a bound is within it. Values
beyond the last one have a bucket of their own."""


class _Histogram:
    """Values by bucket. What it looked like last is kept: most of them are as they were at the last report."""

    __slots__ = ("bounds", "counts", "seen", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self.seen: Distribution | None = None


class Measures:
    """Counts since the start, by model and priority class. Models that left the table have to be forgotten."""

    def __init__(self) -> None:
        self._histograms: dict[tuple[DistributionName, str, Priority], _Histogram] = {}
        self._counts: dict[tuple[str, Priority, Outcome], int] = {}
        self._traffic: dict[str, list[int]] = {}

    def observe(self, name: DistributionName, model: str, priority: Priority, seconds: float) -> None:
        """One value of a distribution."""
        histogram = self._histograms.get((name, model, priority))
        if histogram is None:
            histogram = self._histograms[name, model, priority] = _Histogram(BOUNDS[name])
        histogram.counts[bisect_left(histogram.bounds, seconds)] += 1
        histogram.total += seconds
        histogram.seen = None

    def count(self, model: str, priority: Priority, outcome: Outcome) -> None:
        """A request has ended."""
        key = (model, priority, outcome)
        self._counts[key] = self._counts.get(key, 0) + 1

    def carried(self, model: str, bytes_in: int, bytes_out: int) -> None:
        """So many bytes of bodies came from clients, and went to them."""
        sums = self._sums(model)
        sums[0] += bytes_in
        sums[1] += bytes_out

    def tokens(self, model: str, prompt: int, completion: int) -> None:
        """An engine reported so many tokens."""
        sums = self._sums(model)
        sums[2] += prompt
        sums[3] += completion

    def forget(self, models: Collection[str]) -> None:
        """Drop all that was counted of these models."""
        gone = frozenset(models)
        self._histograms = {key: value for key, value in self._histograms.items() if key[1] not in gone}
        self._counts = {key: value for key, value in self._counts.items() if key[0] not in gone}
        self._traffic = {key: value for key, value in self._traffic.items() if key not in gone}

    def distributions(self) -> tuple[Distribution, ...]:
        """Every distribution that has a value."""
        found = []
        for (name, model, priority), histogram in self._histograms.items():
            if histogram.seen is None:
                histogram.seen = Distribution(model, priority, name, tuple(histogram.counts), histogram.total)
            found.append(histogram.seen)
        return tuple(found)

    def counts(self) -> tuple[ModelCount, ...]:
        """Requests that ended."""
        return tuple(
            ModelCount(model, outcome, requests, priority)
            for (model, priority, outcome), requests in self._counts.items()
        )

    def traffic(self) -> tuple[Traffic, ...]:
        """What went through."""
        return tuple(Traffic(model, *sums) for model, sums in self._traffic.items())

    def _sums(self, model: str) -> list[int]:
        sums = self._traffic.get(model)
        if sums is None:
            sums = self._traffic[model] = [0, 0, 0, 0]
        return sums
