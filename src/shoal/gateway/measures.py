"""What the relay counts: how requests ended, how long their parts took, what went through. Pure, and cheap: each of
these is called for every request or even every chunk."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection

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


class Histogram:
    """Values by bucket. `add` takes one value, in seconds; values are sorted into buckets many at a time, by `fold`,
    which costs a tenth of doing so one by one. What it looked like last is kept: most are as they were at the last
    report."""

    __slots__ = ("_values", "add", "bounds", "counts", "seen", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self.seen: Distribution | None = None
        self._values: list[float] = []
        self.add: Callable[[float], None] = self._values.append

    def fold(self) -> None:
        """Sort what was added into its buckets."""
        values = self._values
        if not values:
            return
        self.total += sum(values)
        self.seen = None
        values.sort()
        before = 0
        for place, bound in enumerate(self.bounds):
            upto = bisect_right(values, bound, before)
            if upto > before:
                self.counts[place] += upto - before
                before = upto
                if upto == len(values):
                    break
        self.counts[-1] += len(values) - before
        values.clear()


class Books:
    """What is counted of one model and priority class."""

    __slots__ = (*BOUNDS, "bytes_in", "bytes_out", "completion_tokens", "forgotten", "outcomes", "prompt_tokens")
    queue: Histogram
    first_byte: Histogram
    duration: Histogram
    inter_chunk: Histogram
    overhead: Histogram

    def __init__(self) -> None:
        for name, bounds in BOUNDS.items():
            setattr(self, name, Histogram(bounds))
        self.forgotten = False
        """Whether its model has left the table: whoever writes here writes for nobody."""
        self.outcomes: dict[Outcome, int] = {}
        self.bytes_in = 0
        self.bytes_out = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0

    def ended(self, outcome: Outcome) -> None:
        """A request has ended."""
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def took(self, outcome: Outcome, queue: float, duration: float, overhead: float) -> None:
        """A request has ended that had its turn: seconds that it waited, lasted, and cost here; no overhead, if it was
        never sent on."""
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        self.queue.add(queue)
        self.duration.add(duration)
        if overhead:
            self.overhead.add(overhead)

    def fold(self) -> None:
        """Sort all values that were added into their buckets."""
        for name in BOUNDS:
            histogram: Histogram = getattr(self, name)
            histogram.fold()


class Measures:
    """Books since the start, by model and priority class. Models that left the table have to be forgotten."""

    def __init__(self) -> None:
        self._books: dict[tuple[str, Priority], Books] = {}

    def of(self, model: str, priority: Priority) -> Books:
        """The books of a model and class. Whoever keeps them has to look whether they are forgotten."""
        books = self._books.get((model, priority))
        if books is None:
            books = self._books[model, priority] = Books()
        return books

    def forget(self, models: Collection[str]) -> None:
        """Drop all that was counted of these models."""
        gone = frozenset(models)
        for (model, _), books in self._books.items():
            books.forgotten = books.forgotten or model in gone
        self._books = {key: books for key, books in self._books.items() if key[0] not in gone}

    def fold(self) -> None:
        """To be called now and then, so that values do not pile up while nobody asks for `distributions`."""
        for books in self._books.values():
            books.fold()

    def distributions(self) -> tuple[Distribution, ...]:
        """Every distribution that has a value."""
        found = []
        for (model, priority), books in self._books.items():
            for name in BOUNDS:
                histogram: Histogram = getattr(books, name)
                histogram.fold()
                if histogram.seen is None and any(histogram.counts):
                    histogram.seen = Distribution(model, priority, name, tuple(histogram.counts), histogram.total)
                if histogram.seen is not None:
                    found.append(histogram.seen)
        return tuple(found)

    def counts(self) -> tuple[ModelCount, ...]:
        """Requests that ended."""
        return tuple(
            ModelCount(model, outcome, requests, priority)
            for (model, priority), books in self._books.items()
            for outcome, requests in books.outcomes.items()
        )

    def traffic(self) -> tuple[Traffic, ...]:
        """What went through, by model."""
        sums: dict[str, list[int]] = {}
        for (model, _), books in self._books.items():
            numbers = (books.bytes_in, books.bytes_out, books.prompt_tokens, books.completion_tokens)
            if any(numbers):
                before = sums.get(model, [0, 0, 0, 0])
                sums[model] = [a + b for a, b in zip(before, numbers, strict=True)]
        return tuple(Traffic(model, *numbers) for model, numbers in sums.items())
