"""The residency policy at work on a manager with fake effects: who gives way, who waits, who is refused, who leaves."""

from __future__ import annotations

import dataclasses

import pytest

from shoal.errors import ShoalError
from shoal.fleet import facts
from shoal.fleet.life import Limits
from shoal.fleet.lifecycle import RestartPolicy
from shoal.fleet.manager import Manager
from shoal.fleet.residency import Rules
from shoal.fleet.state import Device, Exit
from shoal.fleet.state import InstanceState as S
from shoal.memory.sizes import Amount
from shoal.messages import Demand, ModelCount, RelayReport, Waiting
from tests.fleet.fakes import GIB, World, gpu, void

RULES = Rules(patience=10, min_awake=5, payback=1)
TOTAL = 80 * GIB


def limits(host: str = "50%", **rules: float) -> Limits:
    chosen = dataclasses.replace(RULES, **rules)  # type: ignore[arg-type]
    return Limits(RestartPolicy(3, 1, 10, 60), 30, 5, chosen, Amount.parse(host))


class Fleet(World):
    """A manager whose devices show what its instances hold, as real ones do once they are read."""

    def __init__(self, *sizes: int, host: str = "200GiB", **rules: float) -> None:
        self._sizes = sizes or (80,)
        self._ended = 0
        super().__init__(*self._devices({}), limits=limits(host, **rules))

    host_free = 496

    def _devices(self, held: dict[str, int]) -> tuple[Device, ...]:
        gpus = tuple(
            dataclasses.replace(gpu(n), memory_total=size * GIB, memory_used=held.get(f"cuda:{n}", 0))
            for n, size in enumerate(self._sizes)
        )
        return (*gpus, Device("host", "host", "memory", 500 * GIB, (500 - self.host_free) * GIB))

    def read(self, seconds: float = 1.0) -> None:
        """Time passes, and the devices are read twice: nothing is in doubt any more."""
        held: dict[str, int] = {}
        for instance in self.manager.fleet.instances.values():
            takes = instance.state in (S.STARTING, S.READY, S.DRAINING, S.WAKING, S.STOPPING)
            for device in instance.devices if takes else ():
                held[device] = held.get(device, 0) + (self.manager.fleet.needs.get(instance.id) or 0)
        for _ in range(2):
            self.effects.clock += seconds / 2
            self.tell(facts.DevicesRead(self._devices(held), {}))

    def come(self, name: str, size: int = 60, *, can_sleep: bool = True, **settings: object) -> str:
        """Add a model, ask for it, and see it through its start."""
        self.add(name, **settings)
        self.wanted(name)
        return self.start(name, size, can_sleep=can_sleep)

    def start(self, name: str, size: int = 60, *, can_sleep: bool = True) -> str:
        """See a model that is queued through its start, if it has devices."""
        self.files(size)
        id = self.only(name).id
        assert self.get(id).state is S.STARTING, self.get(id).reason
        self.spawned(id, can_sleep=can_sleep)
        self.healthy(id)
        self.read()
        return id

    def files(self, size: int = 60) -> None:
        """The files of whoever is new are looked at: all of what it takes is weights."""
        waiting, self.effects.prepared = self.effects.prepared, []
        for instance in waiting:
            self.tell(facts.Prepared(instance, size * GIB, ("cuda",), weights=size * GIB, kv=0))

    def falls_asleep(self, id: str, freed: int = 60) -> None:
        """An instance that drains is quiet, and sleeps."""
        self.report({})
        self.tell(facts.Weighed(id, freed * GIB, 0, "text: x"))
        self.tell(facts.Asleep(id, freed * GIB, 0))
        self.read()

    def wakes(self, id: str) -> None:
        self.tell(facts.Awake(id))
        self.read()

    def say(self, *, held: str = "", outstanding: dict[str, int] | None = None, **ended: int) -> None:
        """The relay's numbers: a request is held for `held`; so many of each model have ended since it started."""
        table = self.effects.tables[-1]
        counts = tuple(ModelCount(name, "ok", count) for name, count in ended.items())
        waiting = (Waiting(held, held=1),) if held else ()
        report = RelayReport("relay", table.epoch, table.version, outstanding or {}, counts, waiting)
        self.tell(facts.RelayReported(1, report))

    def change(self, name: str, **settings: object) -> None:
        """Give a model other settings."""
        self.manager.handle(lambda: void(self.manager.change_model(name, lambda old: old.model_copy(update=settings))))

    def state(self, name: str) -> str:
        return self.manager.fleet.model_state(name)

    def said(self, *words: str) -> list[str]:
        return [event.message for event in self.effects.events if all(word in event.message for word in words)]


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


def test_what_is_too_large_for_any_device_is_refused_at_once_with_the_numbers() -> None:
    world = Fleet()
    a = world.come("a")
    world.after(500)
    world.add("b")
    world.wanted("b")
    world.files(90)
    failure = world.only("b").failure
    assert failure is not None
    assert failure.message == "b needs 90.0 GiB on cuda:0; cuda:0 has 80.0 GiB; give it less memory or more devices"
    assert not world.route("b").comes
    assert world.get(a).state is S.READY, "nobody gives way for nothing"


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


def test_one_that_sleeps_beside_a_pin_says_so_and_wakes_once_the_pin_is_gone() -> None:
    world = Fleet()
    a = world.come("a")
    world.after(100)
    world.sleep("a", force=True)
    world.falls_asleep(a)
    world.come("b", pin=True)
    world.wanted("a")
    assert "cannot wake: a needs 60.0 GiB on cuda:0; cuda:0 has 80.0 GiB, of which 60.0 GiB are pinned" in (
        world.route("a").detail
    )
    assert not world.route("a").comes
    with pytest.raises(ShoalError, match="unpin a model"):
        world.manager.wake("a")
    world.change("b", pin=False)
    assert world.route("a").comes
    world.after(100)
    world.wanted("a")
    assert world.only("b").retires


def test_one_that_was_refused_beside_a_pin_may_be_asked_for_again_once_the_pin_is_gone() -> None:
    world = Fleet()
    a = world.come("a", pin=True)
    world.add("b")
    world.wanted("b")
    world.files()
    assert world.state("b") == "failed"
    world.after(100)
    assert not world.route("b").comes
    world.change("a", pin=False)
    assert (world.state("b"), world.route("b").comes) == ("unloaded", True)
    world.wanted("b")
    world.files()
    assert world.get(a).retires


def test_one_that_was_refused_may_be_asked_for_again_also_by_the_next_controller() -> None:
    world = Fleet()
    a = world.come("a", pin=True)
    world.add("b")
    world.wanted("b")
    world.files()
    world.after(6)
    assert world.only("b").state is S.FAILED
    effects = world.effects
    world.manager = manager = Manager(effects, limits())
    world.tell(facts.DevicesRead(world._devices({"cuda:0": 60 * GIB}), {}))
    manager.handle(lambda: manager.recover(list(effects.models.values()), list(effects.instances.values()), {a}, []))
    world.files()
    world.read()
    assert world.only("b").state is S.FAILED, "a is pinned still"
    assert not world.route("b").comes
    world.change("a", pin=False)
    assert world.route("b").comes
    world.after(100)
    world.wanted("b")
    world.files()
    world.report({})
    assert world.get(a).retires


def test_a_sleeping_model_is_loaded_elsewhere_where_it_can_never_wake() -> None:
    world = Fleet(80, 80)
    a = world.come("a")
    world.after(100)
    world.sleep("a", force=True)
    world.falls_asleep(a)
    world.come("b", pin=True, devices=("cuda:0",) if world.get(a).devices == ("cuda:0",) else ("cuda:1",))
    world.wanted("a")
    assert world.get(a).state is S.STOPPING
    assert world.said("a: is unloaded and loads elsewhere")
    world.exit(a, Exit(signal=15))
    world.read()
    again = world.start("a")
    assert again != a
    assert world.get(again).devices != world.only("b").devices


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


class Copies:
    """Copies of weights that are dropped when they are told to."""

    def __init__(self, **held: int) -> None:
        self.of = held
        self.slow = self.late = False

    def held(self, instance: str) -> int:
        return self.of.get(instance.rsplit("-", 1)[0], 0)

    def forget(self, instance: str) -> None:
        self.of.pop(instance.rsplit("-", 1)[0], None)
        self.late = self.slow

    def unsettled(self) -> bool:
        return self.late


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
