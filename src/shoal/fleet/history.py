"""What devices held and models did: every 5 s of the last ten minutes, and every minute of the last day.

In memory alone, and bounded: a controller that starts anew begins anew.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from shoal.fleet.history_rates import IDLE, Rate, Rates
from shoal.fleet.history_table import Row, Table
from shoal.fleet.snapshot import UNLOADED, Fleet
from shoal.fleet.state import Device, InstanceState
from shoal.messages import RelayReport

Span = Literal["10m", "24h"]
STATES = (UNLOADED, *(state.value for state in InstanceState))
"""What the numbers in the column `state` stand for."""
DEVICE = ("memory_used", "kv_backed", "kv_used", "kv_cached", "utilization", "temperature", "power")
# The first four are of the time since the moment before, the others of the moment.
MODEL = (
    "requests",
    "tokens",
    "first_byte_p50",
    "first_byte_p95",
    "running",
    "waiting",
    "kv_used",
    "kv_cached",
    "state",
)
NO_DEVICE = (math.nan,) * len(DEVICE)
NO_MODEL = (0.0, 0.0, math.nan, math.nan, 0.0, 0.0, 0.0, 0.0, 0.0)
DEVICES_KEPT, MODELS_KEPT = 64, 200
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Tier:
    """Moments `every` so many seconds. `due`: when the next one is."""

    every: float
    length: int
    rates: Rates
    due: float = -math.inf
    devices: Table = field(init=False)
    models: Table = field(init=False)

    def __post_init__(self) -> None:
        self.devices = Table(self.length, NO_DEVICE, DEVICES_KEPT)
        self.models = Table(self.length, NO_MODEL, MODELS_KEPT)


class History:
    """What is kept. Pure but for `run`. `bounds`: of the relays' buckets of times to the first byte, in seconds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._begin()

    def _begin(self) -> None:
        self._at = -math.inf
        self._tiers: dict[Span, _Tier] = {
            "10m": _Tier(5.0, 121, Rates(self._bounds)),
            "24h": _Tier(60.0, 24 * 60 + 1, Rates(self._bounds)),
        }
        self._since: list[tuple[dict[str, Row], dict[str, Row]]] = []

    @property
    def size(self) -> int:
        """Bytes that the values take."""
        return sum(tier.devices.size + tier.models.size for tier in self._tiers.values())

    def sample(self, fleet: Fleet, at: float) -> None:
        """Keep how things are now, `at` in Unix seconds; every minute also how they were in it on the whole. A clock
        that was set back has everything begin anew, for times are to ascend."""
        if at <= self._at:
            self._begin()
        self._at = at
        reports = list({report.relay: report for report in fleet.relays.values()}.values())
        devices, models = _devices(fleet), _models(fleet, reports)
        self._since.append((devices, models))
        short, long = self._tiers.values()
        _add(short, at, devices, models, reports)
        if long.due == -math.inf:
            long.rates.take(at, reports)
            long.due = at + long.every
        elif at >= long.due - short.every / 2:
            _add(long, at, _mean([d for d, _ in self._since], 0), _mean([m for _, m in self._since], 1), reports)
            long.due = max(long.due + long.every, at + long.every / 2)
            self._since.clear()

    def every(self, span: Span) -> float:
        """Seconds between two moments."""
        return self._tiers[span].every

    def times(self, span: Span) -> list[float]:
        """Unix seconds, ascending."""
        return self._tiers[span].devices.times()

    def device(self, span: Span, name: str) -> dict[str, list[float]]:
        """A device's values by column of `DEVICE`, for each of `times`. NaN: not known."""
        return dict(zip(DEVICE, self._tiers[span].devices.columns(name), strict=True))

    def model(self, span: Span, name: str) -> dict[str, list[float]]:
        """A model's values by column of `MODEL`, for each of `times`."""
        return dict(zip(MODEL, self._tiers[span].models.columns(name), strict=True))

    async def run(self, fleet: Fleet, clock: Callable[[], float] = time.time) -> None:
        """Sample for ever."""
        while True:
            try:
                self.sample(fleet, clock())
            except Exception:  # one sample that fails must not be the last
                _log.exception("while sampling for the history")
            await asyncio.sleep(self._tiers["10m"].every)


def _add(
    tier: _Tier, at: float, devices: Mapping[str, Row], models: Mapping[str, Row], reports: list[RelayReport]
) -> None:
    rates = tier.rates.take(at, reports)
    tier.devices.add(at, devices)
    tier.models.add(at, {name: (*_row(rates.get(name, IDLE)), *row) for name, row in models.items()})


def _row(rate: Rate) -> Row:
    return (round(rate.requests, 4), round(rate.tokens, 3), round(rate.p50, 6), round(rate.p95, 6))


def _devices(fleet: Fleet) -> dict[str, Row]:
    return {device.id: _device(fleet, device) for device in fleet.devices}


def _device(fleet: Fleet, device: Device) -> Row:
    pool = fleet.ledger.pool(device)
    kv = (math.nan,) * 3 if pool is None else (pool.backed, pool.used, pool.cached)
    readings = (device.utilization, device.temperature, device.power)
    return (device.memory_used, *kv, *(math.nan if one is None else round(one, 4) for one in readings))


def _models(fleet: Fleet, reports: list[RelayReport]) -> dict[str, Row]:
    """A model's row without its rates."""
    sums: Counter[tuple[str, str]] = Counter()
    for report in reports:
        for id, running in report.outstanding.items():
            if (known := fleet.instances.get(id)) is not None:
                sums[known.model, "running"] += running
        for waiting in report.waiting:
            sums[waiting.model, "waiting"] += waiting.queued + waiting.held
    there = set()
    for instance in fleet.instances.values():
        if instance.state is InstanceState.STOPPED:
            continue
        there.add(instance.model)
        view = fleet.memory_view(instance)
        sums[instance.model, "used"] += view.used or 0
        sums[instance.model, "cached"] += view.cached or 0
    return {
        name: (
            *(sums[name, what] for what in ("running", "waiting", "used", "cached")),
            STATES.index(fleet.model_state(name)) if name in there else 0,
        )
        for name in fleet.models
    }


def _mean(moments: Sequence[Mapping[str, Row]], words: int) -> dict[str, Row]:
    """Of each thing that is there now, the mean of each column over the moments that have a value. The last columns, so
    many as there are `words`, have no mean, but the last value."""
    means: dict[str, Row] = {}
    for name, last in moments[-1].items():
        rows = [row[: len(row) - words] for moment in moments if (row := moment.get(name)) is not None]
        means[name] = (*(_mean_of(column) for column in zip(*rows, strict=True)), *last[len(last) - words :])
    return means


def _mean_of(values: Sequence[float]) -> float:
    known = [value for value in values if value == value]
    return round(sum(known) / len(known), 4) if known else math.nan
