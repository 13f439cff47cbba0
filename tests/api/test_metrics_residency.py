"""The metrics of residency, read back by Prometheus's own parser."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from shoal.api.metrics_residency import residency_families
from shoal.fleet import facts
from tests.fleet.fakes import World
from tests.fleet.moving import a_world, answer, begin, cancel, drained, loads


class _Residency(Collector):
    def __init__(self, world: World) -> None:
        self._world = world

    def collect(self) -> list[Metric]:
        return list(residency_families(self._world.manager, self._world.effects.clock))


def scrape(world: World) -> dict[tuple[str, tuple[str, ...]], float]:
    """The value of each series, by its name and the values of its labels in the order of their names."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Residency(world))
    series = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            key = (sample.name, tuple(value for _, value in sorted(sample.labels.items())))
            assert key not in series, "a series twice fails the whole scrape"
            series[key] = sample.value
    return series


def test_a_model_is_in_one_place_and_what_it_took_is_counted() -> None:
    world = World()
    world.add()
    assert scrape(world)[("shoal_residency_state", ("m", "disk"))] == 1
    world.tell(facts.RelayWants(1, "m"))
    world.effects.clock += 2.0
    assert scrape(world)[("shoal_model_awaited_seconds_total", ("m",))] == pytest.approx(2.0)
    world.prepare()
    id = world.only().id
    world.spawned(id)
    world.effects.clock += 5.0
    world.healthy(id)
    series = scrape(world)
    states = {state: series[("shoal_residency_state", ("m", state))] for state in ("gpu", "host", "disk")}
    assert states == {"gpu": 1, "host": 0, "disk": 0}
    assert series[("shoal_model_awaited_seconds_total", ("m",))] == pytest.approx(7.0)
    assert series[("shoal_model_wait_seconds_count", ("m", "ready"))] == 1
    assert series[("shoal_load_seconds_sum", ("m",))] == pytest.approx(5.0)
    assert series[("shoal_load_seconds_bucket", ("5.0", "m"))] == 1
    assert series[("shoal_load_seconds_bucket", ("2.5", "m"))] == 0


def test_evictions_are_counted_by_what_they_were_for_and_go_with_the_model() -> None:
    world = World()
    world.ready()
    evictions = world.manager._life.residing.left
    evictions[("m", "sleep", "idle")] += 2
    evictions[("gone", "unload", "gave_way")] += 1
    series = scrape(world)
    assert series[("shoal_residency_evictions_total", ("sleep", "m", "idle"))] == 2
    assert not any("gone" in labels for _, labels in series)
    world.unload(force=True)
    world.exit(world.only().id)
    world.manager.handle(lambda: void(world.manager.remove_model("m")))
    assert not {name for name, _ in scrape(world)} - {"shoal_moves_active"}


def test_moves_are_counted_by_how_they_ended_with_what_they_took() -> None:
    world, old = a_world()
    series = scrape(world)
    assert series[("shoal_moves_active", ("running",))] == series[("shoal_moves_active", ("waiting",))] == 0
    begin(world, "m", "cuda:1")
    assert scrape(world)[("shoal_moves_active", ("running",))] == 1
    world.effects.clock += 1.0
    answer(world)
    world.effects.clock += 3.0
    loads(world)
    answer(world)
    world.effects.clock += 50.0
    drained(world, old)
    cancel(world, begin(world, "m", "cuda:2"))
    series = scrape(world)
    assert series[("shoal_moves_active", ("running",))] == 0
    assert series[("shoal_moves_total", ("m", "done"))] == series[("shoal_moves_total", ("m", "cancelled"))] == 1
    assert series[("shoal_move_seconds_sum", ("m", "done"))] == pytest.approx(54.0)
    assert series[("shoal_move_seconds_count", ("m", "done"))] == 1
    assert series[("shoal_move_switch_seconds_sum", ("m",))] == pytest.approx(4.0)
    assert series[("shoal_move_switch_seconds_count", ("m",))] == 1, "what was cancelled switched nothing"


def void(_: object) -> None:
    """Commands of the manager return what tests do not need."""
