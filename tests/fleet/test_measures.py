"""How long models take, and how long they are waited for, out of what the fleet does."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.fleet import facts
from shoal.fleet.measures import BOUNDS, FORGOTTEN_AFTER, Histogram, residence
from shoal.fleet.state import Instance, Rest
from shoal.fleet.state import InstanceState as S
from shoal.messages import RelayReport, Waiting
from tests.fleet.fakes import World


@given(st.lists(st.floats(0, 10_000)))
def test_every_value_is_in_the_bucket_whose_bound_it_does_not_pass(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    upto = 0
    for bound, count in zip((*BOUNDS, float("inf")), histogram.counts, strict=True):
        upto += count
        assert upto == sum(value <= bound for value in values)
    assert histogram.total == pytest.approx(sum(values))


def instance(state: S, level: int | None = None) -> Instance:
    return Instance("i", "m", "simulated", state, ("cuda:0",), 0.0, 0.0, rest=Rest(level))


@pytest.mark.parametrize(
    ("there", "where"),
    [
        ([], "disk"),
        ([instance(S.STARTING)], "disk"),
        ([instance(S.QUEUED), instance(S.SLEEPING, 1)], "host"),
        ([instance(S.SLEEPING, 2)], "disk"),
        ([instance(S.WAKING, 1)], "host"),
        ([instance(S.SLEEPING, 1), instance(S.READY)], "gpu"),
        ([instance(S.DRAINING, 1)], "gpu"),
        ([instance(S.STOPPING)], "gpu"),
        ([instance(S.FAILED), instance(S.STOPPED)], "disk"),
    ],
)
def test_where_the_weights_are(there: list[Instance], where: str) -> None:
    assert residence(there) == where


def held(world: World, *models: str, connection: int = 1) -> None:
    """A relay says that it holds requests for these models."""
    waiting = tuple(Waiting(model, held=2) for model in models)
    world.tell(facts.RelayReported(connection, RelayReport("r", "", 0, {}, waiting=waiting)))


def test_a_wait_is_from_the_first_request_until_the_model_serves() -> None:
    world = World()
    world.add()
    world.tell(facts.RelayWants(1, "m"))
    assert world.manager.fleet.model_state("m") == "queued"
    world.effects.clock += 0.5
    held(world, "m")
    world.prepare()
    id = world.only().id
    world.spawned(id)
    world.effects.clock += 4.0
    measures = world.manager.measures
    assert measures.awaited_until("m", world.effects.clock) == pytest.approx(4.5)
    world.healthy(id)
    assert measures.awaited_until("m", world.effects.clock + 100) == pytest.approx(4.5)
    assert measures.waits[("m", "ready")].total == pytest.approx(4.5)
    assert measures.steps[("load", "m")].total == pytest.approx(4.0)
    held(world, "m")
    world.effects.clock += 10
    held(world)
    assert set(measures.waits) == {("m", "ready")}, "it serves: nobody waits for it"


def test_a_wait_that_everybody_gives_up_ends_too() -> None:
    world = World()
    world.add(on_request=False)
    held(world, "m")
    world.effects.clock += 1.0
    held(world)
    measures = world.manager.measures
    assert not measures.waits, "a report may be older than what was asked"
    world.effects.clock += FORGOTTEN_AFTER
    world.tell(facts.RelayGone(1))
    assert measures.waits[("m", "given_up")].total == pytest.approx(1.0 + FORGOTTEN_AFTER)
    world.tell(facts.RelayWants(1, "nobody knows it"))
    assert measures.awaited_until("nobody knows it", 1e9) == 0.0
    measures.forget_but(())
    assert not measures.waits
    assert not measures.awaited


def test_sleeps_and_wakes_are_counted_by_what_they_took() -> None:
    world = World()
    id = world.ready()
    measures = world.manager.measures
    world.sleep()
    world.tell(facts.Weighed(id, held=10, kv=2, canary="c"))
    world.effects.clock += 0.3
    world.tell(facts.Asleep(id, freed=8, kv=2))
    world.wake()
    world.effects.clock += 2.0
    world.tell(facts.Awake(id))
    assert measures.steps[("wake", "m")].total == pytest.approx(2.0)
    assert measures.steps[("sleep", "m")].total == pytest.approx(0.3)
    assert sum(measures.steps[("sleep", "m")].counts) == 1
    assert [name for name, _ in measures.of_step("wake")] == ["m"]


def test_events_of_states_say_how_long_the_state_before_took() -> None:
    world = World()
    id = world.ready()
    world.effects.clock += 7.0
    world.unload(force=True)
    world.exit(id)
    took = {event.kind: event.seconds for event in world.effects.events}
    assert took["draining"] == pytest.approx(7.0)
    assert took["queued"] is None
    assert dataclasses.replace(world.effects.events[0], id=5) == world.effects.events[0]
