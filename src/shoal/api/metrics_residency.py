"""Metrics of residency: where models are, what bringing them there took, how long they were waited for, and moves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from shoal.fleet.manager import Manager
from shoal.fleet.measures import BOUNDS, Histogram, Residence, Step, residence

_STEPS: dict[Step, str] = {
    "load": "Time of starts, until the engine answered",
    "sleep": "Time of falling asleep, until the memory had come back, without draining",
    "wake": "Time of waking, until the model answered as before",
}
_BOUNDS = [*map(floatToGoString, BOUNDS), "+Inf"]


def residency_families(manager: Manager, now: float) -> Iterator[Metric]:
    """The families of this moment (Unix seconds)."""
    fleet, measures = manager.fleet, manager.measures
    measures.forget_but(fleet.models)
    states = GaugeMetricFamily(
        "shoal_residency_state", "1 where a model's weights are: gpu, host (asleep), disk", labels=["model", "state"]
    )
    awaited = CounterMetricFamily(
        "shoal_model_awaited_seconds", "Time that a model was asked for and did not serve", labels=["model"]
    )
    for name in fleet.models:
        there = residence(fleet.of_model(name))
        for state in get_args(Residence):
            states.add_metric([name, state], float(state == there))
        awaited.add_metric([name], measures.awaited_until(name, now))
    yield states
    yield awaited

    left = CounterMetricFamily(
        "shoal_residency_evictions",
        "Times that the policy had a model leave its devices: by sleep or unload, and why",
        labels=["model", "kind", "reason"],
    )
    for (model, kind, cause), count in manager.evictions.items():
        if model in fleet.models:
            left.add_metric([model, kind, cause], count)
    yield left

    for step, text in _STEPS.items():
        family = HistogramMetricFamily(f"shoal_{step}_seconds", text, labels=["model"])
        for model, histogram in measures.of_step(step):
            _add(family, [model], histogram)
        yield family
    waits = HistogramMetricFamily(
        "shoal_model_wait_seconds",
        "Time from the first request held for a model until it served, or nobody asked any more",
        labels=["model", "outcome"],
    )
    for (model, outcome), histogram in measures.waits.items():
        _add(waits, [model, outcome], histogram)
    yield waits
    yield from _moves(manager)


def _moves(manager: Manager) -> Iterator[Metric]:
    measures = manager.measures
    active = GaugeMetricFamily("shoal_moves_active", "Moves that wait or are under way", labels=["state"])
    for state in ("waiting", "running"):
        active.add_metric([state], float(sum(move.state == state for move in manager.moves.records.values())))
    yield active
    ended = CounterMetricFamily(
        "shoal_moves", "Moves and rolling changes that ended: done, failed or cancelled", labels=["model", "outcome"]
    )
    for (model, outcome), count in measures.moves.items():
        ended.add_metric([model, outcome], count)
    yield ended
    whole = HistogramMetricFamily(
        "shoal_move_seconds", "Time of moves from their turn until the last old one had ended, or all was undone",
        labels=["model", "outcome"],
    )  # fmt: skip
    for (model, outcome), histogram in measures.moved.items():
        _add(whole, [model, outcome], histogram)
    yield whole
    switched = HistogramMetricFamily(
        "shoal_move_switch_seconds", "Time until another instance served in the place of one", labels=["model"]
    )
    for model, histogram in measures.switched.items():
        _add(switched, [model], histogram)
    yield switched


def _add(family: HistogramMetricFamily, labels: list[str], histogram: Histogram) -> None:
    sums = map(float, itertools.accumulate(histogram.counts))
    family.add_metric(labels, list(zip(_BOUNDS, sums, strict=True)), histogram.total)
