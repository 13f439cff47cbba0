"""What sleeps and wakes have shown is kept, and the next controller goes by it."""

from __future__ import annotations

import dataclasses

import pytest

from shoal.fleet import facts
from shoal.fleet.host_room import copy_size
from shoal.fleet.profiles import Profile, device_word, find_profile, merged, profile_id, settings_hash
from shoal.fleet.residing_use import Uses
from shoal.fleet.residing_view import Learned, View
from shoal.fleet.state import InstanceState as S
from tests.fleet.fakes import GIB, World, gpu, spec

COPY = 30 * GIB


def of(world: World) -> Profile:
    """The profile of the model, as it was kept."""
    (found,) = world.effects.profiles.values()
    assert world.manager.fleet.profiles[found.id] == found
    return found


def costs(world: World, id: str) -> tuple[float, float]:
    """What the policy believes that a sleep and a wake cost."""
    fleet, room = world.manager.fleet, world.manager._life._room
    view = View(fleet, room, Uses(), Learned(), {}, world.effects.clock)
    (one,) = [resident for resident in view.residents if resident.name == id]
    return one.sleep_cost, one.wake_cost


def nap(world: World, id: str, level: int = 1) -> None:
    """A sleep of 0.3 s and a wake of 0.7 s."""
    world.report()
    world.sleep(level=level, force=True)
    world.tell(facts.Weighed(id, 3 * GIB, GIB, "text: Paris"))
    world.effects.clock += 0.3
    world.tell(facts.Asleep(id, int(2.5 * GIB), GIB))
    world.wake()
    world.effects.clock += 0.7
    world.tell(facts.Awake(id))


def test_a_sleep_and_a_wake_are_in_the_profile_also_before_a_load_was_measured() -> None:
    world = World(gpu(0))
    id = world.ready()
    world.manager._life.slumber.copied = lambda _: COPY
    nap(world, id)
    found = of(world)
    assert found.id == profile_id("m", settings_hash(spec()), device_word(gpu(0)))
    assert found.sleep_seconds == pytest.approx(0.3)
    assert found.wake_seconds == pytest.approx(0.7)
    assert (found.asleep, found.host_copy, found.loads) == (GIB // 2, COPY, 0)
    assert copy_size(world.manager.fleet, world.get(id)) == COPY
    # A load after it adds to that, and takes nothing away.
    load = Profile("m", found.settings, found.device, GIB, 5.0, load_seconds=4.0)
    after = merged(found, load)
    assert (after.loads, after.wake_seconds, after.host_copy, after.load_seconds) == (1, found.wake_seconds, COPY, 4.0)


def test_the_next_controller_knows_what_a_wake_costs_before_it_has_seen_one() -> None:
    first = World(gpu(0))
    id = first.ready()
    unseen = costs(first, id)
    nap(first, id)
    kept = dict(first.effects.profiles)

    world = World(gpu(0))
    world.manager.fleet.profiles.update(kept)
    id = world.ready()
    assert costs(world, id) == pytest.approx((0.3, 0.7))
    assert unseen != pytest.approx((0.3, 0.7))
    # With other settings, or elsewhere, nothing is known of it.
    other = World(gpu(0))
    other.manager.fleet.profiles.update(kept)
    other.add("m", context_length=77)
    other.load("m")
    other.prepare()
    other.spawned(other.only().id)
    other.healthy(other.only().id)
    assert costs(other, other.only().id) == unseen


def test_what_this_controller_has_seen_counts_more_than_the_last_time_before_it() -> None:
    world = World(gpu(0))
    id = world.ready()
    nap(world, id)
    world.manager.fleet.naps[("m", "woke")] = (4, 8.0)
    assert costs(world, id)[1] == 2.0


def test_a_wake_from_level_2_is_no_measure_of_one_from_level_1() -> None:
    world = World(gpu(0))
    id = world.ready()
    nap(world, id, level=2)
    assert world.get(id).state is S.READY
    assert not world.effects.profiles


def test_a_wake_that_began_under_another_controller_is_not_measured() -> None:
    world = World(gpu(0))
    id = world.ready()
    nap(world, id)
    kept = of(world)
    waking = dataclasses.replace(
        world.get(id), state=S.WAKING, rest=dataclasses.replace(world.get(id).rest, level=1), changed_at=1.0
    )
    world.manager.handle(lambda: world.manager._life.adopt(waking))
    world.effects.clock += 50.0
    world.tell(facts.Awake(id))
    assert world.get(id).state is S.READY
    found = find_profile(world.manager.fleet.profiles, spec(), gpu(0))
    assert found is not None
    assert found.wake_seconds == kept.wake_seconds
