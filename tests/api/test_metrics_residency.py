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
    assert not scrape(world)


def void(_: object) -> None:
    """Commands of the manager return what tests do not need."""
