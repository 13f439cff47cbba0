"""The host's memory, as the residency policy gives it out: what is promised, what comes back, what readings show."""

from __future__ import annotations

import pytest

from shoal.errors import ShoalError
from shoal.fleet import facts
from shoal.fleet.state import Exit
from shoal.fleet.state import InstanceState as S
from tests.fleet.fakes import GIB, void
from tests.fleet.residing import Copies, Fleet


def test_one_that_a_dropped_copy_makes_room_for_sleeps_once_readings_show_the_room() -> None:
    world = Fleet(130, host="500GiB")
    a, b = world.come("a"), world.come("b", sleep_after=300)
    world.manager._life.residing.copies = copies = Copies(a=60 * GIB)
    world.host_free, copies.slow = 30, True
    world.read()
    world.report({})
    world.after(301)
    assert not copies.of
    world.read()
    assert (world.get(a).state, world.get(b).state) == (S.READY, S.READY), "unpinning takes a while"
    world.host_free, copies.late = 90, False
    world.read()
    assert world.get(b).retires


def test_one_that_waits_for_the_host_in_vain_is_unloaded_in_the_end() -> None:
    world = Fleet(130, host="500GiB")
    world.come("a")
    b = world.come("b", sleep_after=300)
    world.manager._life.residing.copies = copies = Copies()
    world.host_free, copies.late = 30, True
    world.read()
    world.report({})
    world.after(301)
    assert world.get(b).state is S.READY
    world.after(9)
    world.read(0.1)
    assert world.get(b).state is S.READY
    world.after(1)
    world.read(0.1)
    assert (world.get(b).state, world.get(b).retires) == (S.DRAINING, False)


def test_no_second_sleeper_is_unloaded_before_readings_show_what_the_first_gave_back() -> None:
    world = Fleet(200, host="500GiB")
    sleepers = [world.come("u1"), world.come("u2")]
    for name, id in zip(("u1", "u2"), sleepers, strict=True):
        world.effects.clock += 1
        world.sleep(name)
        world.falls_asleep(id)
    b = world.come("b", sleep_after=300)
    world.host_free = 30
    world.read()
    world.after(301)
    states = [world.get(id).state for id in sleepers]
    assert states == [S.STOPPING, S.SLEEPING]
    world.exit(sleepers[0], Exit(signal=15))
    assert world.get(sleepers[1]).state is S.SLEEPING
    assert world.get(b).state is S.READY
    world.host_free = 90
    world.read()
    assert world.get(b).retires
    assert world.get(sleepers[1]).state is S.SLEEPING


def test_memory_that_is_promised_to_one_on_its_way_to_sleep_is_promised_to_no_other() -> None:
    world = Fleet(130)
    a, b = world.come("a"), world.come("b", sleep_after=300)
    world.report({a: 1})
    world.after(290)
    world.host_free = 70
    world.read()
    world.manager.handle(lambda: void(world.manager.sleep("a")))
    world.after(15)  # it drains, and readings still show 70 GiB
    world.read()
    assert (world.get(a).retires, world.get(b).retires) == (True, False)
    assert world.said("b: is unloaded: idle 5 min", "have no room for its 60.0 GiB")


def test_memory_that_one_has_taken_since_the_last_reading_is_given_to_no_other() -> None:
    world = Fleet(130)
    a, b = world.come("a", sleep_after=1000), world.come("b", sleep_after=1000)
    world.host_free = 70
    world.read()
    world.manager.handle(lambda: void(world.manager.sleep("a")))
    world.report({})
    world.tell(facts.Weighed(a, 60 * GIB, 0, "text: x"))
    world.tell(facts.Asleep(a, 60 * GIB, 0))
    with pytest.raises(ShoalError, match=r"70\.0 GiB free, of which 60\.0 GiB are for models on their way to sleep"):
        world.manager.sleep("b")
    assert world.manager._life.residing._host_budget(()) == 10 * GIB
    assert world.get(b).state is S.READY


def test_a_copy_of_one_that_sleeps_at_level_2_is_dropped_and_it_sleeps_on() -> None:
    world = Fleet(130, host="500GiB")
    a, b = world.come("a"), world.come("b", sleep_after=300)
    world.manager._life.residing.copies = copies = Copies(a=60 * GIB)
    world.sleep("a", level=2)
    world.falls_asleep(a)
    world.host_free = 70
    world.read()
    assert world.manager._life.residing._snapshot(world.manager._life.residing._view({}, 0), 0).host_budget == 130 * GIB
    world.host_free, copies.slow = 30, True
    world.read()
    world.report({})
    world.after(301)
    assert not copies.of
    assert world.said("the host copy of a is dropped: the host's memory is full, b goes to sleep")
    world.host_free, copies.late = 90, False
    world.read()
    assert (world.get(a).state, world.get(b).retires) == (S.SLEEPING, True)
