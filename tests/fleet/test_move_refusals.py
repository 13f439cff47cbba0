"""Moves that cannot be, that do not fit, or that have to wait for others: what is said, and that nothing is changed."""

from __future__ import annotations

import dataclasses

import pytest

from shoal.errors import ShoalError
from shoal.fleet import facts
from shoal.fleet.move_plan import Wanted
from shoal.fleet.moves import Step
from tests.fleet.fakes import GIB, gpu, spec, void
from tests.fleet.moving import (
    a_world,
    answer,
    asked,
    begin,
    begun,
    cancel,
    drained,
    loads,
    move,
    read,
    refused,
    serving,
)


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
        cancel(world, begun(world, wanted, wants).id)


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
    cancel(world, begun(world, to, asked(40 * GIB, "cuda:1")).id)
    # What others than models hold does not leave for it.
    elsewhere = refused(world, Wanted("m", ("cuda:2",)), asked(70 * GIB, "cuda:2"))
    assert "15.0 GiB are in other use" in elsewhere.message
    # Also what another move works with stays only until that has ended.
    begin(world, "other", "cuda:2")
    waits = begun(world, to, asked(40 * GIB, "cuda:1"))
    assert waits.state == "waiting"
    cancel(world, waits.id)
    world.manager.handle(
        lambda: void(world.manager.change_model("other", lambda s: s.model_copy(update={"pin": True})))
    )
    assert "60.0 GiB are pinned" in refused(world, to, asked(40 * GIB, "cuda:1")).message


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
