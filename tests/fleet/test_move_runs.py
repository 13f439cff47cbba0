"""Moves on a manager with fake effects: what requests meet meanwhile, and what becomes of the fleet."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import ShoalError
from shoal.fleet import facts
from shoal.fleet.move_fit import Asked
from shoal.fleet.move_plan import Wanted
from shoal.fleet.move_runs import KEPT
from shoal.fleet.moves import Move, Step
from shoal.fleet.presets import capture
from shoal.fleet.room import Wants
from shoal.fleet.state import InstanceState as S
from tests.fleet.fakes import GIB, World, gpu, spec, void

PARIS = "text: Paris"


def refused(world: World, wanted: Wanted, asked: Asked | None = None) -> ShoalError:
    """Why a move cannot be."""
    found: list[ShoalError] = []

    def ask() -> None:
        with pytest.raises(ShoalError) as caught:
            world.manager.moves.begin(wanted, asked)
        found.append(caught.value)

    before = dict(world.effects.moves)
    world.manager.handle(ask)
    assert world.effects.moves == before, "a refusal changes nothing"
    return found[0]


def begin(world: World, name: str = "m", *to: str, **fields: Any) -> str:
    found: list[Move] = []
    world.manager.handle(lambda: found.append(world.manager.moves.begin(Wanted(name, to, **fields))))
    return found[0].id


def cancel(world: World, id: str) -> None:
    world.manager.handle(lambda: void(world.manager.moves.cancel(id)))


def move(world: World, id: str) -> Move:
    found = world.manager.moves.find(id)
    assert world.effects.moves[id] == found, "what is known is kept"
    return found


def answer(world: World, text: str | None = PARIS) -> None:
    """Whoever was asked the canary answers."""
    asked, world.effects.asked = world.effects.asked, []
    assert asked
    for id in asked:
        world.tell(facts.CanaryAnswered(id, text))


def loads(world: World, needs: int | None = GIB) -> str:
    """The new one is there, and healthy."""
    world.prepare(needs)
    (id,) = [i.id for i in world.manager.fleet.instances.values() if i.state is S.STARTING]
    world.spawned(id)
    world.healthy(id)
    return id


def drained(world: World, id: str) -> None:
    """No request runs on it any more, and its process ends."""
    world.report()
    assert world.get(id).state is S.STOPPING
    world.exit(id)


def a_world(name: str = "m", needs: int = GIB, **settings: object) -> tuple[World, str]:
    """A model that serves on the first of three GPUs."""
    world = World(gpu(0), gpu(1), gpu(2))
    world.add(name, devices=["cuda:0"], **settings) if "devices" not in settings else world.add(name, **settings)
    world.load(name)
    world.prepare(needs)
    id = world.only(name).id
    world.spawned(id)
    world.healthy(id)
    world.report()
    return world, id


def read(world: World, free: int) -> None:
    """Some readings of the devices, the first of which has so much free."""
    for _ in range(8):
        world.after(1)
        world.tell(facts.DevicesRead((gpu(0, free=free), gpu(1), gpu(2)), {}))


def serving(world: World, name: str = "m") -> list[str]:
    return [target.instance for target in world.route(name).targets]


def kinds(world: World) -> list[str]:
    return [event.kind for event in world.effects.events if event.kind.startswith("move_")]


def test_requests_go_to_one_copy_at_every_moment_and_what_is_wanted_stays_the_same() -> None:
    world, old = a_world(devices="auto")
    there = world.get(old).devices[0]
    to = "cuda:1" if there != "cuda:1" else "cuda:2"
    id = begin(world, "m", to)
    assert world.manager.moves.touching() == {old}
    answer(world)
    assert move(world, id).leg.step is Step.LOADING
    new = loads(world)
    assert world.get(new).devices == (to,)
    assert world.get(new).state is S.READY
    assert "takes no requests yet" in world.get(new).reason
    assert world.manager.moves.touching() == {old, new}
    assert serving(world) == [old], "it has not proved itself"
    world.load()
    assert len(world.manager.fleet.of_model("m")) == 2, "a load counts one of the two"
    assert capture(world.manager.fleet, "p").models[0].total == 1
    answer(world)
    assert serving(world) == [new], "in one table"
    assert world.get(old).state is S.DRAINING
    world.report({old: 1})
    assert world.get(old).state is S.DRAINING, "its requests end first"
    drained(world, old)
    assert move(world, id).state == "done"
    assert world.manager.fleet.models["m"].desired == 1
    assert world.only().id == new
    assert not world.manager.fleet.model_view("m").instances[0].outdated
    assert world.get(new).spec == world.manager.fleet.models["m"].spec
    assert kinds(world) == ["move_asked", "move_loading", "move_switched", "move_done"]
    assert all(len(route.targets) == 1 for table in world.effects.tables[4:] for route in table.routes)


def test_settings_that_name_devices_name_the_new_ones_from_the_switch_on() -> None:
    world, old = a_world()
    id = begin(world, "m", "cuda:1")
    answer(world)
    loads(world)
    assert world.manager.fleet.models["m"].spec.devices == ("cuda:0",)
    answer(world)
    assert world.manager.fleet.models["m"].spec.devices == ("cuda:1",)
    drained(world, old)
    assert move(world, id).state == "done"
    assert not world.manager.fleet.model_view("m").instances[0].outdated


def test_other_settings_beside_the_old_ones() -> None:
    world, old = a_world()
    id = begin(world, changes={"context_length": 4096, "priority": 7})
    answer(world)
    new = loads(world)
    assert world.get(new).devices == ("cuda:0",)
    answer(world)
    drained(world, old)
    assert move(world, id).message == "m was replaced on cuda:0"
    model = world.manager.fleet.models["m"]
    assert (model.spec.context_length, model.spec.priority, model.desired) == (4096, 7, 1)
    assert not world.manager.fleet.model_view("m").instances[0].outdated
    # And settings that were changed before are rolled out.
    world.manager.handle(
        lambda: void(world.manager.change_model("m", lambda s: s.model_copy(update={"dtype": "float16"})))
    )
    id = begin(world)
    answer(world)
    loads(world)
    answer(world, "text: London")
    drained(world, new)
    assert "only that the new one answers was checked" in move(world, id).leg.note
    assert move(world, id).state == "done"


def test_without_room_for_both_it_is_refused_with_the_numbers_unless_the_old_one_ends_first() -> None:
    world, old = a_world(needs=50 * GIB)
    read(world, free=30 * GIB)
    id = begin(world, changes={"context_length": 4096})
    answer(world)
    world.prepare(60 * GIB)
    read(world, free=30 * GIB)  # some seconds in which something might come free
    assert move(world, id).state == "failed"
    assert "needs 60.0 GiB on cuda:0" in move(world, id).message
    assert "--stop-first" in move(world, id).message
    assert serving(world) == [old]
    assert world.only().id == old, "what failed is not left behind"
    id = begin(world, changes={"context_length": 4096}, stop_first=True)
    answer(world)
    assert serving(world) == []
    assert world.route().comes, "requests are held"
    world.prepare(60 * GIB)
    assert move(world, id).leg.step is Step.LOADING
    world.load()
    assert len(world.manager.fleet.of_model("m")) == 2, "a load finds that one comes"
    drained(world, old)
    read(world, free=80 * GIB)
    new = loads(world)
    assert serving(world) == []
    assert world.route().comes
    answer(world)
    assert serving(world) == [new]
    assert move(world, id).state == "done"
    assert world.manager.fleet.models["m"].desired == 1


def asked(needs: int, *devices: str) -> Asked:
    return {devices: Wants(devices, 1, needs)}


def test_what_can_never_fit_beside_what_stays_is_refused_before_anything_begins() -> None:
    world, old = a_world(needs=50 * GIB)
    read(world, free=30 * GIB)
    change = Wanted("m", changes={"context_length": 4096})
    error = refused(world, change, asked(60 * GIB, "cuda:0"))
    assert (error.status, error.code) == (409, "too_little_memory")
    for part in ("m needs 60.0 GiB on cuda:0", "80.0 GiB", "50.0 GiB are pinned", "--stop-first"):
        assert part in error.message
    assert serving(world) == [old]
    assert not world.effects.asked, "the canary was not asked either"
    # The hint would not help elsewhere.
    error = refused(world, Wanted("m", ("cuda:1",)), asked(81 * GIB, "cuda:1"))
    assert "m needs 81.0 GiB on cuda:1" in error.message
    assert "--stop-first" not in error.message
    # Without the old one it fits, beside it something smaller does, and what is not known is tried.
    for wanted, wants in (
        (dataclasses.replace(change, stop_first=True), asked(60 * GIB, "cuda:0")),
        (change, asked(30 * GIB, "cuda:0")),
        (change, {}),
    ):
        begun: list[Move] = []
        world.manager.handle(lambda w=wanted, a=wants, b=begun: b.append(world.manager.moves.begin(w, a)))  # type: ignore[misc]
        cancel(world, begun[0].id)


def test_what_could_fit_once_others_leave_is_not_refused() -> None:
    world, _ = a_world(needs=10 * GIB)
    world.add("other", devices=["cuda:1"])
    world.load("other")
    world.prepare(60 * GIB)
    other = world.only("other").id
    world.spawned(other)
    world.healthy(other)
    world.report()
    devices = (gpu(0, free=70 * GIB), gpu(1, free=20 * GIB), gpu(2, free=65 * GIB))
    for _ in range(3):
        world.after(1)
        world.tell(facts.DevicesRead(devices, {}))
    to = Wanted("m", ("cuda:1",))
    begun: list[Move] = []
    world.manager.handle(lambda: begun.append(world.manager.moves.begin(to, asked(40 * GIB, "cuda:1"))))
    cancel(world, begun[0].id)
    # What others than models hold does not leave for it.
    elsewhere = refused(world, Wanted("m", ("cuda:2",)), asked(70 * GIB, "cuda:2"))
    assert "15.0 GiB are in other use" in elsewhere.message
    # Also what another move works with stays only until that has ended.
    begin(world, "other", "cuda:2")
    world.manager.handle(lambda: begun.append(world.manager.moves.begin(to, asked(40 * GIB, "cuda:1"))))
    assert begun[1].state == "waiting"
    cancel(world, begun[1].id)
    world.manager.handle(
        lambda: void(world.manager.change_model("other", lambda s: s.model_copy(update={"pin": True})))
    )
    assert "60.0 GiB are pinned" in refused(world, to, asked(40 * GIB, "cuda:1")).message


def test_stopped_first_a_start_that_fails_brings_the_old_one_back() -> None:
    world, old = a_world()
    id = begin(world, changes={"args": ["--odd"]}, stop_first=True)
    answer(world)
    drained(world, old)
    world.prepare()
    (new,) = [i.id for i in world.manager.fleet.instances.values() if i.state is S.STARTING]
    world.spawned(new)
    world.exit(new)
    assert move(world, id).leg.step is Step.RESTORING
    assert world.get(new).state is S.STOPPED
    assert all(route.comes for table in world.effects.tables for route in table.routes), "no request is ever refused"
    again = loads(world)
    assert serving(world) == [again]
    assert move(world, id).state == "failed"
    assert "the engine crashed" in move(world, id).message
    assert world.manager.fleet.models["m"].spec.args == ()
    assert world.manager.fleet.models["m"].desired == 1
    assert not world.manager.fleet.model_view("m").instances[0].outdated


@pytest.mark.parametrize("step", ["asking", "loading", "starting", "checking"])
def test_cancelled_at_any_step_the_old_one_serves_on_alone(step: str) -> None:
    world, old = a_world()
    id = begin(world, "m", "cuda:1")
    if step != "asking":
        answer(world)
    if step == "starting":
        world.prepare()
    if step == "checking":
        loads(world)
    cancel(world, id)
    assert serving(world) == [old]
    for instance in [i for i in world.manager.fleet.of_model("m") if i.id != old]:
        if instance.state is S.DRAINING:
            world.report()
        world.exit(instance.id)
    assert move(world, id).state == "cancelled"
    assert world.only().id == old
    assert world.manager.fleet.models["m"].desired == 1
    assert not world.manager.moves.touching()
    world.tell(facts.CanaryAnswered(old, PARIS))  # late
    assert world.only().id == old


@pytest.mark.parametrize("restart", [False, True])
def test_a_canary_that_differs_leaves_the_old_one_serving(restart: bool) -> None:
    world, old = a_world()
    id = begin(world, "m", "cuda:1")
    answer(world)
    new = loads(world)
    if restart:  # the controller was killed: whatever it had asked is asked again
        kept = list(world.effects.moves.values())
        again = World(gpu(0), gpu(1), gpu(2))
        again.effects = dataclasses.replace(world.effects, asked=[])
        again.manager = type(world.manager)(again.effects, world.manager._life._limits)
        again.manager.moves.restore(kept)
        instances, models = list(world.effects.instances.values()), list(world.effects.models.values())
        devices = world.manager.fleet.devices
        world = again
        world.manager.handle(lambda: None)
        assert not world.effects.tables or not world.effects.tables[-1].routes or serving(world) != [new]
        world.tell(facts.DevicesRead(devices, {}))
        world.manager.handle(lambda: world.manager.recover(models, instances, {old, new}, []))
        assert serving(world) == [old]
    answer(world, "text: London")
    assert serving(world) == [old]
    drained(world, new)
    assert move(world, id).state == "failed"
    assert "'text: London', not with 'text: Paris'" in move(world, id).message
    assert world.only().id == old
    assert kinds(world)[-2:] == ["move_undone", "move_failed"]


def test_a_target_that_disappears_ends_the_move() -> None:
    for late in (False, True):
        world, old = a_world()
        id = begin(world, "m", "cuda:1")
        answer(world)
        if late:
            loads(world)
        world.tell(facts.DevicesRead((gpu(0), gpu(2)), {}))
        world.prepare()
        new = next((i.id for i in world.manager.fleet.of_model("m") if i.id != old), None)
        if new is not None:
            drained(world, new)
        assert move(world, id).state == "failed"
        assert "cuda:1" in move(world, id).message
        assert serving(world) == [old]


def test_the_opposite_command_wins_and_leaves_nothing() -> None:
    world, old = a_world()
    id = begin(world, "m", "cuda:1")
    answer(world)
    new = loads(world)
    world.unload()
    drained(world, old)
    world.exit(new)
    assert move(world, id).state == "failed"
    assert "was unloaded meanwhile" in move(world, id).message
    assert world.manager.fleet.model_state("m") == "unloaded"
    assert world.manager.fleet.models["m"].desired == 0
    # Only the new one is stopped: the old one is left alone, and so is what is wanted.
    world, old = a_world()
    id = begin(world, "m", "cuda:1")
    answer(world)
    new = loads(world)
    world.manager.handle(lambda: void(world.manager.stop_instance(new)))
    drained(world, new)
    assert move(world, id).state == "failed"
    assert serving(world) == [old]
    assert world.manager.fleet.models["m"].desired == 1
    # The model is removed with all that runs.
    world, old = a_world()
    id = begin(world, "m", "cuda:1")
    answer(world)
    new = loads(world)
    world.manager.handle(lambda: void(world.manager.remove_model("m", unload=True, force=True)))
    for instance in (old, new):
        world.report()
        world.after(1)
        world.exit(instance)
    world.manager.handle(lambda: void(world.manager.remove_model("m")))
    assert move(world, id).state == "failed"


def test_moves_wait_for_those_that_touch_their_devices() -> None:
    world, old = a_world("a")
    world.add("b", devices=["cuda:2"])
    world.load("b")
    world.prepare()
    other = world.only("b").id
    world.spawned(other)
    world.healthy(other)
    first, second = begin(world, "a", "cuda:1"), begin(world, "b", "cuda:1")
    assert (move(world, first).state, move(world, second).state) == ("running", "waiting")
    assert f"waits for the move {first} of a" in move(world, second).message
    again = refused(world, Wanted("a", ("cuda:0",)))
    assert (again.code, again.status) == ("model_moving", 409)
    assert "shoal moves cancel" in again.message
    cancel(world, first)
    assert move(world, second).state == "running"
    assert move(world, second).message == ""
    assert world.effects.asked[-1] == other
    assert old


def test_what_cannot_be_is_refused_with_its_reason() -> None:
    world, old = a_world()
    world.add("two", devices="auto", instances=2)
    world.add("away")
    world.add("filed")
    world.manager.handle(lambda: void(world.manager.declare({"filed": spec("filed", devices=["cuda:0"])}, "file")))
    for wanted, code, words in (
        (Wanted("nobody", ("cuda:1",)), "model_not_found", "there is no model nobody"),
        (Wanted("m", ("cuda:9",)), "no_such_device", "there is no device cuda:9; this machine has cuda:0"),
        (Wanted("m", ("cuda:0",)), "nothing_to_move", "m runs on cuda:0 already"),
        (Wanted("m", changes={"priority": 3}), "nothing_to_move", "without a new start"),
        (Wanted("m", ("cuda:1", "cuda:2")), "invalid_request", "name 1 for all, or up to 1"),
        (Wanted("m", ("cuda:1", "cuda:1")), "invalid_request", "stands twice"),
        (Wanted("m", changes={"name": "x"}), "immutable", "cannot be renamed"),
        (Wanted("m", changes={"flor": 1}), "invalid_config", "did you mean floor"),
        (Wanted("m", ("cuda:1",), instance="x"), "instance_not_found", "has no instance x"),
        (Wanted("away", ("cuda:1",)), "not_loaded", "shoal load away"),
        (Wanted("filed", ("cuda:1",)), "declared_in_file", "configuration file"),
    ):
        error = refused(world, wanted)
        assert words in error.message, error.message
        assert error.code == code or code == "invalid_config"
    world.load("away")
    assert refused(world, Wanted("away", ("cuda:1",))).code == "wrong_state"
    world.sleep("m", force=True)
    error = refused(world, Wanted("m", ("cuda:1",)))
    assert error.code == "wrong_state"
    assert "wake it with" in error.message
    assert old
    with pytest.raises(ShoalError, match="there is no move"):
        world.manager.moves.find("move-x")


def test_a_fixed_port_serves_one_copy_only() -> None:
    world, _ = a_world(port=4711)
    assert refused(world, Wanted("m", ("cuda:1",))).code == "fixed_port"
    id = begin(world, "m", "cuda:1", stop_first=True)
    assert move(world, id).state == "running"


def test_requests_of_the_old_one_may_take_long_but_not_when_shoal_stops() -> None:
    for drain, limit in ((None, 3600), (100.0, 100)):
        world, old = a_world()
        id = begin(world, "m", "cuda:1", drain=drain)
        answer(world)
        loads(world)
        answer(world)
        world.report({old: 1})
        world.after(limit - 1)
        assert world.get(old).state is S.DRAINING
        world.after(2)
        assert world.get(old).state is S.STOPPING
        assert move(world, id).leg.step is Step.DRAINING
    world, old = a_world()
    begin(world, "m", "cuda:1")
    answer(world)
    loads(world)
    answer(world)
    world.manager.handle(lambda: void(world.manager.stop_all()))
    world.report({old: 1})
    world.after(29)
    assert world.get(old).state is S.DRAINING
    world.after(2)
    assert world.get(old).state is S.STOPPING


def test_several_instances_spread_over_the_devices_one_after_the_other() -> None:
    world = World(gpu(0), gpu(1), gpu(2))
    world.add(devices="auto")
    world.load(instances=2)
    world.prepare()
    while starting := [i.id for i in world.manager.fleet.of_model("m") if i.state is S.STARTING]:
        for id in starting:
            world.spawned(id)
            world.healthy(id)
    world.report()
    first, second = (i.id for i in world.manager.fleet.of_model("m"))
    where = {world.get(first).devices[0], world.get(second).devices[0]}
    to = sorted({"cuda:0", "cuda:1", "cuda:2"} - {world.get(first).devices[0]})[:1]
    id = begin(world, "m", *to)
    legs = move(world, id).legs
    assert {leg.source for leg in legs} == {i for i in (first, second) if world.get(i).devices != tuple(to)}
    for leg in legs:
        answer(world)
        new = loads(world)
        assert len(serving(world)) == 2
        answer(world)
        assert len(serving(world)) == 2
        assert new in serving(world)
        drained(world, leg.source)
    assert move(world, id).state == "done"
    assert {i.devices for i in world.manager.fleet.of_model("m")} == {tuple(to)}
    assert world.manager.fleet.models["m"].desired == 2
    assert where


def test_an_old_one_that_crashes_meanwhile_is_replaced() -> None:
    world, old = a_world()
    id = begin(world, "m", "cuda:1")
    answer(world)
    world.exit(old)
    assert world.get(old).state is S.QUEUED
    new = loads(world)
    answer(world)
    assert serving(world) == [new]
    assert world.get(old).state is S.STOPPED
    assert move(world, id).state == "done"


def test_while_shoal_stops_moves_stand_still_and_no_new_one_begins() -> None:
    world, old = a_world()
    id = begin(world, "m", "cuda:1")
    answer(world)
    new = loads(world)
    world.manager.handle(lambda: void(world.manager.stop_all()))
    drained(world, old)
    world.exit(new)
    assert move(world, id).leg.step is Step.CHECKING
    assert refused(world, Wanted("m", ("cuda:1",))).code == "stopping"
    world.manager.fleet.closing = False  # the next start finds it so
    world.after(1)
    assert move(world, id).state == "failed"


def test_a_fault_in_a_move_holds_up_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    world, old = a_world()
    world.add("other", devices=["cuda:1"])

    def broken(_: object) -> None:
        raise RuntimeError("a fault")

    with monkeypatch.context() as patch:
        patch.setattr(world.effects, "ask", broken)
        id = begin(world, "m", "cuda:2")
        world.load("other")
        world.prepare()
        assert world.only("other").state is S.STARTING
    assert serving(world) == [old]
    cancel(world, id)
    assert move(world, id).state == "cancelled"


def test_only_the_last_hundred_are_remembered() -> None:
    world, _ = a_world()
    ids = []
    for _ in range(KEPT + 3):
        world.effects.clock += 1
        ids.append(begin(world, "m", "cuda:1"))
        cancel(world, ids[-1])
        world.effects.asked.clear()
    assert len(world.manager.moves.records) == len(world.effects.moves) == KEPT
    assert ids[-1] in world.effects.moves
    assert ids[0] not in world.effects.moves


HAPPENS = st.lists(
    st.tuples(
        st.sampled_from(
            ["move", "change", "cancel", "answer", "prepare", "spawn", "healthy", "fail", "report", "end", "tick"]
        ),
        st.integers(0, 5),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(HAPPENS)
def test_whatever_happens_every_table_has_one_copy_and_every_move_ends(happens: list[tuple[str, int]]) -> None:
    world, _ = a_world()
    before = len(world.effects.tables)
    for what, n in happens:
        happen(world, what, n)
    for _ in range(60):  # everything that is on its way arrives
        for what in ("prepare", "spawn", "healthy", "answer", "report", "end", "tick"):
            happen(world, what, 0)
    assert all(m.ended for m in world.manager.moves.records.values())
    assert world.only().state is S.READY
    assert world.effects.alive == {world.only().id}, "nothing is left behind"
    assert world.manager.fleet.models["m"].desired == 1
    assert not world.manager.fleet.model_view("m").instances[0].outdated
    assert not world.manager.fleet.apart
    assert not world.manager._life.residing.held
    for table in world.effects.tables[before:]:
        assert len(table.routes[0].targets) == 1


def happen(world: World, what: str, n: int, *, stop_first: bool = False) -> None:
    """One of the things that may happen to a fleet in which no process dies by itself but such as start."""
    found = list(world.manager.fleet.instances.values())
    match what:
        case "move" | "change" | "cancel":
            there, changes = ((f"cuda:{n % 3}",), {}) if what == "move" else ((), {"context_length": 100 + n})
            wanted = Wanted("m", there, changes, stop_first=stop_first)

            def command() -> None:
                with contextlib.suppress(ShoalError):
                    if what != "cancel":
                        world.manager.moves.begin(wanted)
                    elif ids := list(world.manager.moves.records):
                        world.manager.moves.cancel(ids[n % len(ids)])

            world.manager.handle(command)
        case "answer":
            asked, world.effects.asked = world.effects.asked, []
            for id in asked:
                text = None if n == 4 else "text: London" if n == 5 else PARIS
                world.tell(facts.CanaryAnswered(id, text))
        case "prepare":
            world.prepare()
        case "spawn":
            for one in [i for i in found if i.state is S.STARTING and not i.address]:
                world.spawned(one.id)
        case "healthy":
            for one in [i for i in found if i.state is S.STARTING and i.address]:
                world.healthy(one.id)
        case "fail":
            for one in [i for i in found if i.state is S.STARTING]:
                world.exit(one.id)
        case "report":
            world.report()
        case "end":
            for one in [i for i in found if i.state is S.STOPPING]:
                world.exit(one.id)
        case _:
            world.after(1)
