"""Moves on a manager with fake effects: what requests meet meanwhile, and what becomes of the fleet."""

from __future__ import annotations

import dataclasses

import pytest

from shoal.fleet import facts
from shoal.fleet.move_plan import Wanted
from shoal.fleet.move_runs import KEPT
from shoal.fleet.moves import Step
from shoal.fleet.presets import capture
from shoal.fleet.state import InstanceState as S
from tests.fleet.fakes import World, gpu, void
from tests.fleet.moving import (
    PARIS,
    a_world,
    answer,
    begin,
    cancel,
    drained,
    kinds,
    loads,
    move,
    refused,
    serving,
)


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
