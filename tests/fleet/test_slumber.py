"""Sleep and wake, row by row of the lifecycle, on a manager with fake effects."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shoal.errors import NotFoundError, ShoalError
from shoal.fleet import facts
from shoal.fleet.state import Device, Exit, Failure, Rest
from shoal.fleet.state import InstanceState as S
from tests.fleet.fakes import GIB, World, gpu, void

CANARY = "text:  Paris"


def refused(world: World, command: Callable[[], object]) -> ShoalError:
    """The error that a command ends with."""
    found: list[ShoalError] = []

    def run() -> None:
        try:
            command()
        except ShoalError as error:
            found.append(error)

    world.manager.handle(run)
    (error,) = found
    return error


def last(world: World, kind: str) -> str:
    """What was said last of one kind of event."""
    return [event.message for event in world.effects.events if event.kind == kind][-1]


def test_a_sleep_drains_first_then_weighs_then_suspends() -> None:
    world = World()
    id = world.ready()
    world.report({id: 2})
    world.sleep()
    assert world.get(id).state is S.DRAINING
    assert world.targets() == []
    assert world.effects.weighed == []
    world.report({id: 1})
    assert world.effects.weighed == []
    world.report({})
    assert world.effects.weighed == [id]
    assert world.effects.suspended == []
    world.tell(facts.Weighed(id, 3 * GIB, GIB, CANARY))
    assert world.effects.suspended == [id]
    assert world.get(id).rest == Rest(1, CANARY, 3 * GIB, GIB)
    world.effects.clock += 0.3
    world.tell(facts.Asleep(id, int(2.5 * GIB), GIB))
    instance = world.get(id)
    assert instance.state is S.SLEEPING
    assert instance.rest.freed == int(1.5 * GIB), "leased KV cache is taken again as it is needed"
    assert instance.reason == "slept after 0.3 s, 2.5 GiB came back (level 1)"
    assert world.manager.fleet.model_view("m").state == "sleeping"
    assert world.manager.fleet.naps[("m", "slept")][0] == 1
    assert world.effects.alive == {id}


def test_requests_that_run_too_long_are_ended_by_the_sleep() -> None:
    world = World()
    id = world.ready()
    world.report({id: 1})
    world.sleep()
    world.after(29)
    assert world.effects.weighed == []
    world.after(2)
    assert world.effects.weighed == [id]


def test_a_forced_sleep_waits_for_nobody_also_when_it_is_forced_later() -> None:
    world = World()
    id = world.ready()
    world.report({id: 1})
    world.sleep()
    world.sleep(force=True)
    assert world.effects.weighed == [id]


def test_a_wake_resumes_and_routes_again_once_it_answers_as_before() -> None:
    world = World()
    id = world.asleep()
    assert world.targets() == []
    world.wake()
    assert world.get(id).state is S.WAKING
    assert world.effects.resumed == [id]
    assert world.route().comes
    world.effects.clock += 0.5
    world.tell(facts.Awake(id))
    assert world.get(id).state is S.READY
    assert world.get(id).reason == "awake after 0.5 s and answers as before"
    assert [target.instance for target in world.targets()] == [id]
    assert world.get(id).rest.level is None
    assert world.get(id).rest.canary, "it is asked once only"


def test_a_request_wakes_what_sleeps_and_loads_nothing() -> None:
    world = World()
    id = world.asleep()
    assert world.route().comes
    assert "wake it with `shoal wake m`" in world.route().detail
    world.wanted()
    world.wanted()
    assert world.get(id).state is S.WAKING
    assert world.effects.resumed == [id]
    assert len(world.manager.fleet.of_model("m")) == 1


def test_a_model_that_requests_may_not_load_they_may_not_wake() -> None:
    world = World()
    id = world.asleep()
    change = {"on_request": False}
    world.manager.handle(lambda: void(world.manager.change_model("m", lambda old: old.model_copy(update=change))))
    assert not world.route().comes
    world.wanted()
    assert world.get(id).state is S.SLEEPING
    world.wake()
    assert world.get(id).state is S.WAKING


def test_a_load_wakes_what_sleeps_before_it_starts_others() -> None:
    world = World(gpu(0), gpu(1))
    id = world.asleep()
    world.load(instances=2)
    states = {instance.id: instance.state for instance in world.manager.fleet.of_model("m")}
    assert states.pop(id) is S.WAKING
    assert list(states.values()) == [S.QUEUED]


def test_asked_again_before_it_slept_it_serves_on() -> None:
    world = World()
    id = world.ready()
    world.report({id: 1})
    world.sleep()
    world.wanted()
    assert world.get(id).state is S.READY
    assert world.get(id).rest.level is None
    assert "a request asks for it" in world.get(id).reason
    world.report({})
    world.after(60)
    assert world.effects.weighed == []


def test_asked_for_while_it_falls_asleep_it_is_woken_as_soon_as_it_sleeps() -> None:
    world = World()
    id = world.ready()
    world.sleep(force=True)
    world.wanted()
    assert world.get(id).state is S.DRAINING
    assert world.route().comes
    world.tell(facts.Weighed(id, GIB, 0, CANARY))
    world.tell(facts.Asleep(id, GIB, 0))
    assert world.get(id).state is S.WAKING
    assert world.effects.resumed == [id]


def test_a_sleep_takes_an_earlier_wish_to_wake_back() -> None:
    world = World()
    id = world.ready()
    world.sleep(force=True)
    world.wake()
    world.sleep()
    world.tell(facts.Weighed(id, GIB, 0, CANARY))
    world.tell(facts.Asleep(id, GIB, 0))
    assert world.get(id).state is S.SLEEPING


def test_a_sleep_that_is_none_is_undone() -> None:
    world = World()
    id = world.ready()
    world.sleep(force=True)
    world.tell(facts.Weighed(id, GIB, 0, CANARY))
    world.tell(facts.NotAsleep(id, "it says that it sleeps, but 0 B came back"))
    assert world.get(id).state is S.WAKING
    assert "did not sleep: it says that it sleeps, but 0 B came back" in last(world, "waking")
    assert world.effects.resumed == [id]
    world.tell(facts.Awake(id))
    assert world.get(id).state is S.READY
    assert [target.instance for target in world.targets()] == [id]


def test_a_wake_that_is_none_ends_in_a_restart_with_its_reason() -> None:
    world = World()
    id = world.asleep()
    world.wake()
    world.tell(facts.NotAwake(id, Failure("canary_differs", "it answers otherwise than before")))
    assert world.get(id).state is S.STOPPING
    assert world.effects.killed == [id]
    assert world.route().comes
    assert "it answers otherwise than before; it is started again" in last(world, "stopping")
    world.exit(id, Exit(signal=9))
    assert world.get(id).state is S.QUEUED
    world.after(2)
    assert world.get(id).state is S.STARTING
    assert world.get(id).rest == Rest(), "another process answers for itself"


def test_one_that_wakes_again_and_again_in_vain_is_given_up() -> None:
    world = World()
    id = world.asleep()
    for _ in range(4):
        world.wake()
        world.tell(facts.NotAwake(id, Failure("wake_failed", "no memory")))
        world.exit(id)
        if world.get(id).state is S.FAILED:
            break
        world.after(20)
        world.spawned(id)
        world.healthy(id)
        world.sleep(force=True)
        world.tell(facts.Weighed(id, GIB, 0, CANARY))
        world.tell(facts.Asleep(id, GIB, 0))
    assert world.get(id).state is S.FAILED
    assert "after 3 restart(s)" in world.get(id).reason


@pytest.mark.parametrize("when", ["drains", "falls asleep", "sleeps"])
def test_one_that_dies_on_its_way_to_sleep_is_unloaded_and_comes_with_the_next_request(when: str) -> None:
    world = World()
    id = world.asleep() if when == "sleeps" else world.ready()
    if when != "sleeps":
        world.report({id: 1})
        world.sleep(force=when == "falls asleep")
    world.exit(id, Exit(signal=9))
    assert world.get(id).state is S.STOPPED
    assert "while it slept: the engine crashed" in world.get(id).reason
    assert world.route().comes
    world.wanted()
    (new,) = world.manager.fleet.of_model("m")
    assert (new.state, new.id != id) == (S.QUEUED, True)


def test_one_that_dies_while_it_wakes_is_started_again() -> None:
    world = World()
    id = world.asleep()
    world.wake()
    world.exit(id)
    assert world.get(id).state is S.QUEUED
    assert world.get(id).restarts == 1


@pytest.mark.parametrize(("when", "after"), [("sleeps", S.STOPPED), ("falls asleep", S.STOPPED), ("wakes", S.QUEUED)])
def test_one_that_hangs_is_ended(when: str, after: S) -> None:
    world = World()
    id = world.ready() if when == "falls asleep" else world.asleep()
    if when == "falls asleep":
        world.sleep(force=True)
    elif when == "wakes":
        world.wake()
    world.tell(facts.Hung(id, "no answer for 2 min"))
    assert world.get(id).state is S.STOPPING
    assert world.effects.killed == [id]
    world.exit(id, Exit(signal=9))
    assert world.get(id).state is after


@pytest.mark.parametrize("when", ["drains", "falls asleep", "sleeps", "wakes"])
def test_an_unload_ends_it_wherever_it_is(when: str) -> None:
    world = World()
    id = world.asleep() if when in ("sleeps", "wakes") else world.ready()
    if when in ("drains", "falls asleep"):
        world.report({id: 1})
        world.sleep(force=when == "falls asleep")
    elif when == "wakes":
        world.wake()
    world.unload()
    if when == "drains":
        assert world.get(id).state is S.DRAINING
        world.report({})
    assert world.get(id).state is S.STOPPING
    assert world.effects.terminated == [id]
    for late in (facts.Asleep(id, GIB, 0), facts.NotAsleep(id, "x"), facts.Awake(id)):
        world.tell(late)
    assert world.get(id).state is S.STOPPING
    world.exit(id, Exit(signal=15))
    assert world.get(id).state is S.STOPPED
    assert world.effects.killed == []


def test_what_cannot_sleep_is_refused_with_what_to_do_instead() -> None:
    world = World()
    world.add()
    world.load()
    world.prepare()
    id = world.only().id
    world.spawned(id, can_sleep=False)
    world.healthy(id)
    error = refused(world, lambda: world.manager.sleep("m"))
    assert error.code == "cannot_sleep"
    assert error.status == 409
    assert error.message == "m cannot sleep: it was built so; unload it instead with `shoal unload m`"
    assert world.get(id).state is S.READY


def beside_a_full_host() -> tuple[World, str]:
    """An instance with 5 GiB of weights on a GPU, and 4 GiB free on the host."""
    world = World(gpu(0), Device("host", "host", "memory", 64 * GIB, 60 * GIB))
    world.add()
    world.load()
    for id in world.effects.prepared:
        world.tell(facts.Prepared(id, GIB, ("cuda", "host"), weights=5 * GIB))
    id = world.only().id
    world.spawned(id)
    world.healthy(id)
    return world, id


def test_weights_for_which_the_host_has_no_room_are_not_put_there() -> None:
    world, id = beside_a_full_host()
    assert world.get(id).devices == ("cuda:0",)
    error = refused(world, lambda: world.manager.sleep("m"))
    assert error.code == "too_little_memory"
    assert "its weights need 5.0 GiB of host memory, which has 4.0 GiB free" in error.message
    world.sleep(level=2)
    assert world.get(id).state is S.DRAINING


def test_weights_that_the_host_holds_already_need_no_more_room() -> None:
    world, id = beside_a_full_host()
    world.manager.keep_copies(Held({id: 2 * GIB}))
    world.sleep()
    assert world.get(id).state is S.DRAINING


class Held:
    """Copies of weights."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self._sizes = sizes

    def held(self, instance: str) -> int:
        return self._sizes.get(instance, 0)

    def forget(self, instance: str) -> None:
        self._sizes.pop(instance, None)

    def unsettled(self) -> bool:
        return False


def test_commands_that_make_no_sense_now_are_refused() -> None:
    world = World()
    world.add()
    assert isinstance(refused(world, lambda: world.manager.sleep("x")), NotFoundError)
    assert refused(world, lambda: world.manager.sleep("m")).code == "not_loaded"
    assert refused(world, lambda: world.manager.wake("m")).code == "not_loaded"
    world.load()
    assert "m is queued; put it to sleep once it is ready" in refused(world, lambda: world.manager.sleep("m")).message
    world.prepare()
    id = world.only().id
    world.wake()  # it comes by itself
    world.spawned(id)
    world.healthy(id)
    assert refused(world, lambda: world.manager.sleep("m", 3)).param == "level"
    world.wake()
    assert world.get(id).state is S.READY
    world.sleep(force=True)
    assert "wake it first" in refused(world, lambda: world.manager.sleep("m", 2)).message
    world.tell(facts.Weighed(id, GIB, 0, CANARY))
    world.tell(facts.Asleep(id, GIB, 0))
    assert "sleeps at level 1" in refused(world, lambda: world.manager.sleep("m", 2)).message
    world.sleep()
    assert world.get(id).state is S.SLEEPING
    world.wake()
    assert refused(world, lambda: world.manager.sleep("m")).code == "wrong_state"
    world.unload()
    assert refused(world, lambda: world.manager.wake_instance(id)).code == "wrong_state"
    assert refused(world, lambda: world.manager.sleep_instance(id)).code == "wrong_state"


def test_one_instance_may_sleep_while_others_serve() -> None:
    world = World(gpu(0), gpu(1))
    world.add()
    world.load(instances=2)
    world.prepare()
    first, second = [instance.id for instance in world.manager.fleet.of_model("m")]
    for id in (first, second):
        world.spawned(id)
        world.healthy(id)
    world.manager.handle(lambda: void(world.manager.sleep_instance(first, 2, force=True)))
    world.tell(facts.Weighed(first, GIB, 0, CANARY))
    world.tell(facts.Asleep(first, GIB, 0))
    assert world.get(first).rest.level == 2
    assert [target.instance for target in world.targets()] == [second]
    assert world.manager.fleet.model_view("m").state == "ready"
    world.wanted()
    assert world.get(first).state is S.SLEEPING, "the model serves"
    world.manager.handle(lambda: void(world.manager.wake_instance(first)))
    assert world.get(first).state is S.WAKING


def test_a_wake_for_which_nobody_can_give_way_is_refused_with_the_numbers_and_so_is_a_request_in_the_end() -> None:
    world = World(gpu(0, free=GIB))
    id = world.asleep(freed=20 * GIB)
    world.tell(facts.DevicesRead((gpu(0, free=GIB),), {}))
    world.tell(facts.DevicesRead((gpu(0, free=GIB),), {}))
    error = refused(world, lambda: world.manager.wake("m"))
    assert error.code == "too_little_memory"
    assert "m needs 20.0 GiB on cuda:0; cuda:0 has 80.0 GiB, of which 79.0 GiB are in other use" in error.message
    world.wanted()
    assert world.get(id).state is S.SLEEPING
    assert world.route().comes
    assert "waits for room: m needs 20.0 GiB on cuda:0" in world.route().detail
    world.after(5)
    assert not world.route().comes, "what is held is refused"
    assert "cannot wake: m needs 20.0 GiB" in world.route().detail
    world.wanted()
    assert not world.manager.fleet.rouse
    world.tell(facts.DevicesRead((gpu(0, free=30 * GIB),), {}))
    assert world.route().comes
    world.wanted()
    assert world.get(id).state is S.WAKING


def test_a_sleep_while_it_waits_for_room_has_relays_ask_again_for_what_they_hold() -> None:
    world = World(gpu(0, free=GIB))
    id = world.asleep(freed=20 * GIB)
    world.wanted()
    assert "waits for room" in world.route().detail
    before = world.effects.tables[-1].version
    world.sleep()
    assert world.get(id).state is S.SLEEPING
    assert not world.manager.fleet.rouse
    assert world.effects.tables[-1].version > before, "relays ask once for each table"
    assert world.route().comes
    assert "was to wake, and is to sleep on" in world.route().detail
    tables = len(world.effects.tables)
    world.sleep()
    assert len(world.effects.tables) == tables, "nothing is new"
    world.wanted()
    assert world.manager.fleet.rouse == {id}


def test_what_a_sleep_gave_back_is_waited_for_until_it_was_read() -> None:
    world = World(gpu(0, free=GIB))
    id = world.asleep(freed=20 * GIB)
    world.wake()
    assert world.manager.fleet.instance_view(world.get(id)).wanted_awake
    world.tell(facts.DevicesRead((gpu(0, free=21 * GIB),), {}))
    assert world.get(id).state is S.WAKING


def test_one_for_which_no_room_came_free_sleeps_on_and_may_be_asked_for_again() -> None:
    world = World()
    id = world.asleep(level=2)
    world.wake()
    world.tell(facts.NoRoom(id, "m needs 4.0 GiB on host, but after 1 min 1.0 GiB of 64 GiB are free"))
    assert world.get(id).state is S.SLEEPING
    assert world.get(id).rest.level == 2
    assert "sleeps on: m needs 4.0 GiB" in world.route().detail
    assert world.effects.killed == []
    world.wanted()
    assert world.get(id).state is S.WAKING


def test_what_wakes_counts_as_taken() -> None:
    world = World(gpu(0, free=30 * GIB))
    world.asleep("a", freed=20 * GIB)
    id = world.asleep("b", freed=20 * GIB)
    world.wake("a")
    world.wake("b")
    assert world.get(id).state is S.SLEEPING
    world.tell(facts.DevicesRead((gpu(0, free=30 * GIB),), {}))
    assert world.get(id).state is S.SLEEPING, "a has not taken it yet"


def test_what_sleeps_makes_room_on_a_pretended_device() -> None:
    device = Device("simulated:0", "simulated", "pretended", 10 * GIB, 0)
    world = World(device)
    world.add("a", devices=("simulated:0",))
    world.add("b", devices=("simulated:0",))
    world.load("a")
    world.prepare(8 * GIB, ("simulated",))
    a = world.only("a").id
    world.spawned(a)
    world.healthy(a)
    world.sleep("a", force=True)
    world.tell(facts.Weighed(a, 8 * GIB, 0, CANARY))
    world.tell(facts.Asleep(a, 8 * GIB, 0))
    for _ in range(3):
        world.tell(facts.DevicesRead((device,), {}))
    assert world.manager.fleet.devices[0].memory_used == 0
    world.load("b")
    world.prepare(8 * GIB, ("simulated",))
    assert world.only("b").state is S.STARTING
    world.tell(facts.DevicesRead((device,), {}))
    world.wake("a")
    assert world.get(a).state is S.SLEEPING
    assert "waits for room" in world.get(a).reason, "b stays for a while now that it came, and then gives way"


@pytest.mark.parametrize("state", [S.READY, S.DRAINING, S.SLEEPING, S.WAKING])
@pytest.mark.parametrize("asleep", [True, False, None])
def test_after_a_restart_of_the_controller_it_goes_on_where_it_was(state: S, asleep: bool | None) -> None:
    before = World()
    id = before.ready() if state in (S.READY, S.DRAINING) else before.asleep()
    if state is S.DRAINING:
        before.report({id: 1})
        before.sleep()
    if state is S.WAKING:
        before.wake()
    saved = before.get(id)
    assert saved.state is state
    world = World()
    world.effects.alive.add(id)
    world.effects.instances[id] = saved
    world.manager.handle(lambda: world.manager.recover(before.effects.models.values(), [saved], {id}, []))
    world.report({})
    assert world.effects.looked_at == [id]
    world.tell(facts.LookedAt(id, asleep))
    found = world.get(id).state
    if state is S.READY:
        assert found is (S.WAKING if asleep else S.READY)
    elif state is S.SLEEPING:
        assert found is (S.WAKING if asleep is False else S.SLEEPING)
    elif state is S.WAKING:
        assert found is S.WAKING
    else:
        assert world.effects.weighed == [id], "it goes on to sleep"
        world.tell(facts.Weighed(id, None if asleep else GIB, 0, None if asleep else CANARY))
        world.tell(facts.Asleep(id, GIB, 0))
        assert world.get(id).state is S.SLEEPING
    if world.get(id).state is S.WAKING:
        assert world.effects.resumed == [id]
        world.tell(facts.Awake(id))
        assert world.get(id).state is S.READY


def test_what_a_lost_controller_knew_of_the_memory_is_kept_when_it_is_found_asleep() -> None:
    world = World()
    id = world.ready()
    world.sleep(force=True)
    world.tell(facts.Weighed(id, 5 * GIB, GIB, CANARY))
    world.effects.weighed.clear()
    world.tell(facts.Weighed(id))
    assert world.get(id).rest == Rest(1, CANARY, 5 * GIB, GIB)


def test_a_request_that_reached_an_engine_on_its_way_to_sleep_wakes_it() -> None:
    world = World()
    id = world.ready()
    world.report({id: 1})
    world.sleep(force=True)
    world.tell(facts.Weighed(id, GIB, 0, CANARY))
    world.tell(facts.Asleep(id, GIB, 0))
    world.report({id: 1})
    assert world.get(id).state is S.SLEEPING, "it may be one that the sleep ended"
    world.after(3)
    assert world.get(id).state is S.WAKING
    assert world.get(id).reason == "is woken: a request reached it on its way to sleep"


def test_requests_that_the_sleep_ended_wake_nobody() -> None:
    world = World()
    id = world.ready()
    world.report({id: 1})
    world.sleep(force=True)
    world.tell(facts.Weighed(id, GIB, 0, CANARY))
    world.tell(facts.Asleep(id, GIB, 0))
    world.report({})
    world.after(30)
    assert world.get(id).state is S.SLEEPING


def test_facts_that_come_too_late_change_nothing() -> None:
    world = World()
    id = world.ready()
    late = (
        facts.Weighed(id, 1, 0, "x"),
        facts.Asleep(id, 1, 0),
        facts.NotAsleep(id, "x"),
        facts.Awake(id),
        facts.NotAwake(id, Failure("x", "x")),
        facts.LookedAt(id, asleep=False),
        facts.Awake("nobody"),
    )
    before = world.get(id)
    for fact in late:
        world.tell(fact)
    assert world.get(id) == before


def test_starts_wait_for_one_that_wakes_on_their_device() -> None:
    world = World(gpu(0))
    world.asleep("a")
    world.wake("a")
    world.add("b")
    world.load("b")
    world.prepare()
    assert world.only("b").state is S.QUEUED
    assert world.only("b").reason == "waits for a to wake on cuda:0"
    world.tell(facts.Awake(world.only("a").id))
    assert world.only("b").state is S.STARTING
