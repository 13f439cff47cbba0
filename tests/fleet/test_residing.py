"""The residency policy at work on a manager with fake effects: who gives way, who waits, who leaves."""

from __future__ import annotations

import pytest

from shoal.fleet import facts
from shoal.fleet.manager import Manager
from shoal.fleet.state import Exit
from shoal.fleet.state import InstanceState as S
from shoal.messages import Demand, ModelCount, RelayReport
from tests.fleet.fakes import GIB, World, void
from tests.fleet.residing import Copies, Fleet, limits


def test_the_least_recently_used_model_gives_way_and_comes_back_when_it_is_asked_for() -> None:
    world = Fleet(130)
    a, b = world.come("a"), world.come("b")
    world.say()
    world.after(100)
    world.say(a=1)
    world.add("c")
    world.wanted("c")
    world.files()
    assert world.state("c") == "queued"
    assert (world.get(a).state, world.get(b).state) == (S.READY, S.DRAINING)
    assert world.get(b).retires
    assert world.only("c").reason == "waits for b to give its memory back"
    (text,) = world.said("b: gives way")
    assert text.startswith("b: gives way: c needs 60.0 GiB on cuda:0, b has priority 100 and was last used 1 min ")
    world.falls_asleep(b)
    assert world.get(b).state is S.SLEEPING
    c = world.start("c")
    world.wanted("b")
    assert world.get(b).id in world.manager.fleet.rouse
    assert "waits for room" in world.get(b).reason
    world.after(100)
    assert world.get(a).retires, "c came last"
    world.falls_asleep(a)
    assert world.get(b).state is S.WAKING
    world.wakes(b)
    assert (world.get(b).state, world.get(c).state) == (S.READY, S.READY)
    assert world.manager._life.residing.left == {("b", "sleep", "gave_way"): 1, ("a", "sleep", "gave_way"): 1}


def test_one_that_makes_room_sleeps_although_it_is_asked_for_and_is_woken_afterwards() -> None:
    world = Fleet()
    a = world.come("a")
    world.after(100)
    world.report({a: 1})
    world.add("b")
    world.wanted("b")
    world.files()
    assert world.get(a).state is S.READY, "it is in use"
    world.after(10)
    assert world.get(a).retires, "b has waited long enough"
    assert world.said("a: gives way", "has requests; b has waited 10 s or more")
    world.wanted("a")
    assert world.get(a).retires
    assert a in world.manager.fleet.rouse
    world.falls_asleep(a)
    b = world.start("b")
    world.report({})
    assert world.get(a).state is S.SLEEPING
    world.after(100)
    world.report({})
    assert world.get(b).retires, "now it is a's turn"


def test_one_that_idles_its_way_to_sleep_serves_on_when_it_is_asked_for() -> None:
    world = Fleet()
    a = world.come("a", sleep_after=30)
    world.report({a: 1})
    world.report({a: 1})
    world.after(40)
    assert world.get(a).state is S.READY, "it is in use"
    world.report({})
    world.after(29)
    assert world.get(a).state is S.READY
    world.after(2)
    assert world.get(a).retires
    assert world.said("a: sleeps: idle 3")
    world.wanted("a")
    assert world.get(a).state is S.READY
    assert world.said("serves on before it slept")


def test_what_cannot_sleep_is_unloaded_and_is_not_wanted_any_more() -> None:
    world = Fleet()
    a = world.come("a", can_sleep=False)
    world.after(200)
    world.report({})
    world.add("b")
    world.wanted("b")
    world.files()
    world.report({})
    assert world.get(a).state is S.STOPPING
    assert world.manager.fleet.models["a"].desired == 0
    assert world.effects.models["a"].desired == 0
    world.exit(a, Exit(signal=15))
    world.read()
    world.start("b")


def test_what_would_not_sleep_is_unloaded_instead() -> None:
    world = Fleet()
    a = world.come("a")
    world.after(100)
    world.report({})
    world.add("b")
    world.wanted("b")
    world.files()
    world.report({})
    world.tell(facts.NotAsleep(a, "it kept its memory"))
    assert world.get(a).state is S.WAKING
    world.wakes(a)
    world.after(100)
    assert world.get(a).state in (S.DRAINING, S.STOPPING)
    assert not world.get(a).retires
    assert world.get(a).reason != "unloaded"


def test_what_once_would_not_sleep_is_told_to_again_after_a_while() -> None:
    world = Fleet()
    a = world.come("a", sleep_after=900)
    world.report({})
    world.sleep("a")
    world.report({})
    world.tell(facts.NotAsleep(a, "another program took memory just then"))
    world.wakes(a)
    world.after(910)
    assert world.get(a).retires
    world.falls_asleep(a)
    assert not world.manager._life.slumber.sleepless


def test_one_that_slept_when_people_told_it_to_is_known_to_sleep() -> None:
    world = Fleet()
    a = world.come("a", sleep_after=100)
    for sleeps in (False, True):
        world.sleep("a", force=True)
        if sleeps:
            world.falls_asleep(a)
            world.wake("a")
        else:
            world.tell(facts.NotAsleep(a, "it had no memory for the copy"))
        world.wakes(a)
    world.report({})
    world.after(110)
    assert world.get(a).retires


def test_weights_for_which_the_host_has_no_room_are_not_kept() -> None:
    world = Fleet(130, host="70GiB")
    a, b = world.come("a"), world.come("b")
    world.report({})
    for _ in range(2):
        world.after(100)
    world.add("c")
    world.wanted("c")
    world.files(120)
    states = sorted([world.get(a).state.value, world.get(b).state.value])
    assert states == ["draining", "draining"]
    assert sorted([world.get(a).retires, world.get(b).retires]) == [False, True], "one copy fits, the other is unloaded"
    assert world.said("the host's 70.0 GiB for sleeping models have no room for its 60.0 GiB")


@pytest.mark.parametrize("how", [{"pin": True}, {"on_request": False}])
def test_who_is_pinned_or_could_not_come_back_never_gives_way(how: dict[str, bool]) -> None:
    world = Fleet()
    world.add("a", sleep_after=1, **how)
    world.load("a")
    a = world.start("a")
    world.report({})
    world.after(1000)
    world.report({})
    world.add("b")
    world.wanted("b")
    world.files()
    world.after(10)
    assert world.get(a).state is S.READY
    failure = world.only("b").failure
    assert failure is not None
    assert failure.code == "too_little_memory"
    assert "b needs 60.0 GiB on cuda:0; cuda:0 has 80.0 GiB, of which 60.0 GiB are pinned" in failure.message


def test_something_that_is_being_done_with_an_instance_is_not_disturbed() -> None:
    world = Fleet()
    a = world.come("a")
    world.after(500)
    world.manager._life.residing.held.add(a)
    world.add("b")
    world.wanted("b")
    world.files()
    assert world.get(a).state is S.READY
    world.after(5)
    assert world.only("b").state is S.FAILED, "as beside a pinned one"
    world.manager._life.residing.held.discard(a)
    world.load("b")
    world.files()
    assert world.get(a).retires


def test_no_model_gives_way_before_it_has_been_there_for_a_while() -> None:
    world = Fleet(min_awake=20)
    a = world.come("a")
    world.report({})
    world.add("b")
    world.wanted("b")
    world.files()
    for _ in range(18):
        world.after(1)
        assert world.get(a).state is S.READY
    world.after(2)
    assert world.get(a).retires


def test_requests_say_how_long_their_model_stays() -> None:
    world = Fleet()
    a = world.come("a", sleep_after=1000)
    world.say(a=1)
    world.tell(facts.RelayReported(1, _said(world, 2, keep_alive=0)))
    world.after(0.3)
    assert world.get(a).retires
    world.falls_asleep(a)
    world.wanted("a")
    world.wakes(a)
    world.after(10)
    assert world.get(a).state is S.READY, "that was said of its last stay"
    world.tell(facts.RelayReported(1, _said(world, 3, keep_alive=-1)))
    world.after(5000)
    assert world.get(a).state is S.READY
    world.tell(facts.RelayReported(1, _said(world, 4)))
    world.after(999)
    assert world.get(a).state is S.READY
    world.after(2)
    assert world.get(a).retires, "its settings hold again"


def _said(world: World, ended: int, keep_alive: float | None = None) -> RelayReport:
    table = world.effects.tables[-1]
    demand = () if keep_alive is None else (Demand("a", world.effects.clock, keep_alive),)
    return RelayReport("relay", table.epoch, table.version, {}, (ModelCount("a", "ok", ended),), demand=demand)


def test_idle_models_sleep_and_are_then_unloaded() -> None:
    world = Fleet()
    a = world.come("a", sleep_after=60, unload_after=300)
    world.say()
    world.say(a=1)
    world.after(59)
    assert world.get(a).state is S.READY
    world.after(2)
    world.falls_asleep(a)
    world.after(230)
    assert world.get(a).state is S.SLEEPING
    world.after(10)
    assert world.get(a).state is S.STOPPING
    assert world.said("a: is unloaded: idle 5 min ")


def test_copies_of_models_that_are_awake_are_dropped_before_a_model_is_unloaded_for_want_of_host_memory() -> None:
    world = Fleet(130, host="100GiB")
    a, b = world.come("a"), world.come("b", sleep_after=300)
    world.manager._life.residing.copies = copies = Copies(a=60 * GIB)
    world.report({})
    world.after(301)
    assert not copies.of
    assert world.said("the host copy of a is dropped: the host's memory is full, b goes to sleep")
    assert (world.get(a).state, world.get(b).retires) == (S.READY, True)


def test_a_new_controller_goes_on_from_the_states_of_the_instances() -> None:
    world = Fleet()
    a = world.come("a")
    world.after(100)
    world.add("b")
    world.wanted("b")
    world.files()
    assert world.get(a).retires
    effects = world.effects
    manager = Manager(effects, limits())
    world.manager = manager
    world.tell(facts.DevicesRead(world._devices({"cuda:0": 60 * GIB}), {}))
    manager.handle(lambda: manager.recover(list(effects.models.values()), list(effects.instances.values()), {a}, []))
    world.files()
    assert world.get(a).retires
    assert world.only("b").reason == "waits for a to give its memory back"
    world.falls_asleep(a)
    b = world.start("b")
    world.wanted("a")
    world.after(100)
    assert world.get(b).retires
    assert len(manager.fleet.instances) == 2, "nothing doubled"


def test_nothing_is_begun_while_shoal_stops() -> None:
    world = Fleet()
    a = world.come("a", sleep_after=1)
    world.manager.handle(lambda: void(world.manager.stop_all()))
    world.after(100)
    assert not world.get(a).retires
