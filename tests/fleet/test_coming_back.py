"""What the next start of Shoal loads: what served, not what slept."""

from __future__ import annotations

import pytest

from shoal.fleet import facts
from shoal.fleet.state import Exit, Failure, Instance, InstanceState, Model, Rest
from tests.fleet.fakes import World, spec


def asleep(world: World, name: str = "m") -> str:
    """Load a model and put it to sleep; the instance's id."""
    id = world.ready(name)
    world.sleep(name)
    world.tell(facts.Weighed(id, held=10, kv=2, canary="c"))
    world.tell(facts.Asleep(id, freed=8, kv=2))
    assert world.only(name).state is InstanceState.SLEEPING
    return id


def desired(world: World, name: str = "m") -> int:
    return world.effects.models[name].desired


def test_what_sleeps_when_shoal_stops_is_not_wanted_at_the_next_start() -> None:
    world = World()
    id = asleep(world)
    serving = world.ready("other")
    for force in (False, True):
        world.manager.handle(lambda force=force: void(world.manager.stop_all(force=force)))  # type: ignore[misc]
    for instance in (id, serving):
        world.exit(instance)
    assert (desired(world), desired(world, "other")) == (0, 1)


def test_what_was_wanted_awake_as_shoal_stopped_is() -> None:
    world = World()
    id = asleep(world)
    world.manager.fleet.rouse.add(id)
    world.manager.handle(lambda: void(world.manager.stop_all()))
    assert desired(world) == 1


def test_what_dies_asleep_is_loaded_when_it_is_asked_for_also_after_a_restart() -> None:
    world = World()
    id = asleep(world)
    world.exit(id)
    assert desired(world) == 0
    assert world.manager.fleet.may_be_asked_for("m")


@pytest.mark.parametrize(
    ("state", "level", "wanted"),
    [
        (InstanceState.SLEEPING, 1, 0),
        (InstanceState.DRAINING, 2, 0),
        (InstanceState.WAKING, 1, 1),
        (InstanceState.READY, None, 1),
    ],
)
def test_after_a_power_cut_what_slept_stays_unloaded(state: InstanceState, level: int | None, wanted: int) -> None:
    world = World()
    model = Model(spec("m"), "api", 0.0, desired=1)
    instance = Instance(
        "m-1", "m", "simulated", state, ("host",), 0.0, 0.0, spec=model.spec, ready_at=1.0, rest=Rest(level)
    )
    lost = facts.Exited("m-1", Exit(), Failure("engine_ended", "ended unseen"))

    def start() -> None:
        world.manager.recover([model], [instance], set(), [lost])
        world.manager.restore(remembered=True)

    world.manager.handle(start)
    assert world.manager.fleet.models["m"].desired == wanted
    live = [i for i in world.manager.fleet.instances.values() if not i.state.ended]
    assert len(live) == wanted


def void(_: object) -> None:
    """Commands of the manager return what tests do not need."""
