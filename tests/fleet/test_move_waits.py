"""Who waits for whom in a move: the new one for the old one's end, other models for its memory."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings

from shoal.fleet import facts
from shoal.fleet.state import Exit, Failure
from shoal.fleet.state import InstanceState as S
from tests.fleet.fakes import GIB, World, gpu, void
from tests.fleet.moving import (
    HAPPENS,
    a_world,
    answer,
    begin,
    cancel,
    drained,
    happen,
    kinds,
    loads,
    move,
    read,
    serving,
)


def another(world: World, name: str, needs: int) -> str:
    """One more model on the first device, asked for; its instance."""
    world.add(name, devices=["cuda:0"])
    world.load(name)
    world.prepare(needs)
    return world.only(name).id


@pytest.mark.parametrize("drain", [None, 10.0, 1000.0])
def test_requests_of_the_old_one_get_the_usual_time_once_another_model_waits_for_its_memory(
    drain: float | None,
) -> None:
    world, old = a_world(needs=50 * GIB)
    read(world, free=30 * GIB)
    small = another(world, "small", 20 * GIB)
    world.spawned(small)
    world.healthy(small)
    read(world, free=10 * GIB)
    begin(world, "m", "cuda:1", drain=drain)
    answer(world)
    loads(world, 50 * GIB)
    answer(world)
    world.report({old: 1})
    if drain != 10:
        world.after(300)
    assert world.get(old).state is S.DRAINING, "nobody waits"
    other = another(world, "other", 40 * GIB)
    assert world.get(other).reason == "waits for m to give its memory back"
    assert ("move_hurried" in kinds(world)) == (drain != 10)
    limit = min(30, drain or 30)
    world.after(limit - 1)
    assert world.get(old).state is S.DRAINING
    world.after(0.5)
    world.after(1)
    assert world.get(old).state is S.STOPPING
    world.exit(old)
    read(world, free=60 * GIB)
    assert world.get(other).state is S.STARTING
    assert kinds(world).count("move_hurried") == (drain != 10), "said once"


def test_shoal_that_stops_gives_requests_that_are_hurried_no_more_time() -> None:
    world, old = a_world(needs=50 * GIB)
    read(world, free=30 * GIB)
    begin(world, "m", "cuda:1")
    answer(world)
    loads(world, 50 * GIB)
    answer(world)
    world.report({old: 1})
    another(world, "other", 40 * GIB)
    world.after(20)
    world.manager.handle(lambda: void(world.manager.stop_all()))
    world.after(9)
    assert world.get(old).state is S.DRAINING
    world.after(2)
    assert world.get(old).state is S.STOPPING


@pytest.mark.parametrize("port", [None, 4711])
def test_stopped_first_the_new_one_starts_once_the_old_one_has_ended(port: int | None) -> None:
    world, old = a_world(port=port)
    id = begin(world, "m", "cuda:1", stop_first=True)
    answer(world)
    world.prepare()
    new = move(world, id).leg.target
    assert new is not None
    world.report({old: 1})
    world.after(20)
    for state in (S.DRAINING, S.STOPPING):
        assert world.get(old).state is state
        assert world.get(new).state is S.QUEUED, "there is room for it, but the old one would answer in its place"
        assert world.get(new).reason == f"waits for {old} to end"
        assert world.effects.alive == {old}
        assert world.route().comes, "requests are held"
        world.wanted()
        assert len(world.manager.fleet.of_model("m")) == 2, "it is the one that they wait for"
        world.after(25)  # the requests' time is up; then, an end may take long too
        world.after(25)
    world.exit(old)
    assert world.get(new).state is S.STARTING
    assert world.get(new).restart_at is None
    world.spawned(new)
    world.healthy(new)
    answer(world)
    assert serving(world) == [new]
    assert move(world, id).state == "done"


@pytest.mark.parametrize("ready", [False, True])
def test_stopped_first_and_undone_the_old_one_starts_once_both_have_ended(ready: bool) -> None:
    world, old = a_world(port=4711)
    id = begin(world, "m", "cuda:1", stop_first=True)
    answer(world)
    new = None
    if ready:
        drained(world, old)
        new = loads(world)
    cancel(world, id)
    world.prepare()
    again = move(world, id).leg.former
    assert again is not None
    assert world.get(again).state is S.QUEUED
    if new is not None:
        assert world.get(again).reason == f"waits for {new} to end"
        drained(world, new)
    else:
        drained(world, old)
    assert world.get(again).state is S.STARTING
    world.spawned(again)
    world.healthy(again)
    assert serving(world) == [again]
    assert move(world, id).state == "cancelled"


@pytest.mark.parametrize("ended", [False, True])
def test_stopped_first_the_next_controller_waits_for_the_old_one_too(ended: bool) -> None:
    world, old = a_world(port=4711)
    id = begin(world, "m", "cuda:1", stop_first=True)
    answer(world)
    world.prepare()
    new = move(world, id).leg.target
    assert new is not None
    again = World(gpu(0), gpu(1), gpu(2))
    again.effects = dataclasses.replace(world.effects, clock=world.effects.clock + 1000, prepared=[])
    again.manager = type(world.manager)(again.effects, world.manager._life._limits)
    again.manager.moves.restore(list(world.effects.moves.values()))
    again.tell(facts.DevicesRead(world.manager.fleet.devices, {}))
    instances, models = list(world.effects.instances.values()), list(world.effects.models.values())
    running = set() if ended else {old}
    gone = [facts.Exited(old, Exit(code=0), Failure("gone", "gone"))] if ended else []
    if ended:
        world.effects.alive.discard(old)
    again.manager.handle(lambda: again.manager.recover(models, instances, running, gone))
    again.prepare()
    assert again.get(new).state is (S.STARTING if ended else S.QUEUED)
    if not ended:
        drained(again, old)
        assert again.get(new).state is S.STARTING


@settings(max_examples=150, deadline=None)
@given(HAPPENS)
def test_stopped_first_no_two_engines_of_it_run_at_any_moment(happens: list[tuple[str, int]]) -> None:
    world, _ = a_world(port=4711)
    for what, n in happens:
        happen(world, what, n, stop_first=True)
        assert len(world.effects.alive) <= 1
        assert len(world.route().targets) <= 1
    for _ in range(60):
        for what in ("prepare", "spawn", "healthy", "answer", "report", "end", "tick"):
            happen(world, what, 0)
            assert len(world.effects.alive) <= 1
    assert all(m.ended for m in world.manager.moves.records.values())
    assert world.only().state in (S.READY, S.FAILED), "what is loaded again may fail too"
    assert not world.manager.fleet.apart
