"""What models are asked for, out of the relays' reports: when last, how often, who waits since when. Pure.

Reports hold counts since a relay's start; what is new in one is its difference to the one before it on the same
connection. So a connection's first report says what runs and waits, but not how often anything was asked for: after a
restart of the controller, rates begin anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from math import exp

from shoal.messages import RelayReport

RATE_WINDOW = 300.0
"""Seconds over which a model's request rate is averaged, with weights that fall exponentially."""


@dataclass(slots=True)
class Use:
    """What is known of a model's requests. Times in Unix seconds; `last_use` None: not used since this was begun.

    `rate` is in requests a second, as of `rate_at`; `keep_alive` what the last request said, None: nothing.
    """

    last_use: float | None = None
    rate: float = 0.0
    rate_at: float = 0.0
    keep_alive: float | None = None
    running: int = 0
    waiting: int = 0
    waiting_since: float | None = None

    def came(self, requests: int, now: float) -> None:
        """So many requests have ended since the last look."""
        self.rate = self.rate * exp(min(0.0, (self.rate_at - now) / RATE_WINDOW)) + requests / RATE_WINDOW
        self.rate_at = self.last_use = now


class Uses:
    """The use of every model that relays have spoken of."""

    def __init__(self) -> None:
        self._models: dict[str, Use] = {}
        self._reports: dict[int, RelayReport] = {}
        self._ended: dict[int, Counter[str]] = {}
        self._busy: frozenset[str] = frozenset()

    def of(self, model: str) -> Use:
        """The use of a model."""
        return self._models.get(model, _NONE)

    @property
    def said(self) -> bool:
        """Whether requests have said of some model how long it is to stay."""
        return any(use.keep_alive is not None for use in self._models.values())

    def take(self, relays: Mapping[int, RelayReport], model_of: Callable[[str], str | None], now: float) -> bool:
        """What the relays say now; whether they say anything new. `model_of`: the model of an instance, by id."""
        changed = [number for number, report in relays.items() if self._reports.get(number) is not report]
        gone = self._reports.keys() - relays.keys()
        if not changed and not gone:
            return False
        for number in gone:
            del self._reports[number], self._ended[number]
        for number in changed:
            self._read(number, relays[number], now)
        self._count(relays, model_of, now)
        return True

    def forget_but(self, models: Collection[str]) -> None:
        """Keep nothing of other models than these."""
        for model in self._models.keys() - set(models):
            del self._models[model]

    def _read(self, number: int, report: RelayReport, now: float) -> None:
        before = self._reports.get(number)
        ended: Counter[str] = Counter()
        for count in report.counts:
            if count.outcome != "refused":
                ended[count.model] += count.requests
        known = self._ended.get(number)
        self._reports[number], self._ended[number] = report, ended
        said = {demand.model: demand for demand in report.demand}
        if known is None or before is None or before.relay != report.relay:
            for demand in report.demand:
                use = self._use(demand.model)
                if use.last_use is None or demand.last_use > use.last_use:
                    use.last_use, use.keep_alive = min(now, demand.last_use), demand.keep_alive
            return
        for model, requests in ended.items():
            if requests > known[model]:
                use = self._use(model)
                use.came(requests - known[model], now)
                use.keep_alive = said[model].keep_alive if model in said else None

    def _count(self, relays: Mapping[int, RelayReport], model_of: Callable[[str], str | None], now: float) -> None:
        running: Counter[str] = Counter()
        waiting: Counter[str] = Counter()
        for report in relays.values():
            for instance, count in report.outstanding.items():
                if (model := model_of(instance)) is not None:
                    running[model] += count
            for one in report.waiting:
                waiting[one.model] += one.queued + one.held
        busy = running.keys() | waiting.keys()
        for model in busy | self._busy:
            use = self._use(model)
            use.running, use.waiting = running[model], waiting[model]
            if running[model] or model in self._busy:
                use.last_use = now
            if not use.waiting:
                use.waiting_since = None
            elif use.waiting_since is None:
                use.waiting_since = now
        self._busy = frozenset(busy)

    def _use(self, model: str) -> Use:
        return self._models.setdefault(model, Use())


_NONE = Use()
