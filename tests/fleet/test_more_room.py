"""A start that runs out of memory beside others: it is tried again with more room, for which others give way."""

from __future__ import annotations

from shoal.fleet import facts
from shoal.fleet.endings import OUT_OF_MEMORY, STARTS_WITH_MORE
from shoal.fleet.room import MORE
from shoal.fleet.state import Exit, Failure
from shoal.fleet.state import InstanceState as S
from tests.fleet.fakes import GIB
from tests.fleet.residing import Fleet


def runs_out(world: Fleet, id: str) -> None:
    """Its engine ends for want of memory."""
    world.effects.alive.discard(id)
    world.tell(facts.Exited(id, Exit(code=1), Failure(OUT_OF_MEMORY, "vLLM ran out of memory.")))
    world.read()


def begun(world: Fleet, name: str, size: int | None) -> str:
    """Add a model that is thought to need `size` GiB (None: unknown), ask for it, and see its engine run."""
    world.add(name)
    world.wanted(name)
    needs = None if size is None else size * GIB
    waiting, world.effects.prepared = world.effects.prepared, []
    for instance in waiting:
        world.tell(facts.Prepared(instance, needs, ("cuda",), weights=needs, kv=0))
    id = world.only(name).id
    assert world.get(id).state is S.STARTING, world.get(id).reason
    world.spawned(id)
    return id


def test_others_give_way_for_its_next_start() -> None:
    for size in (19, None):  # also where nothing was known of it
        world = Fleet(80)
        a = world.come("a", 60)
        world.after(100)
        b = begun(world, "b", size)
        runs_out(world, b)
        assert world.get(a).retires, "20 GiB were not enough for b, so a gives way"
        (text,) = world.said("a: gives way")
        assert "b needs 20.5 GiB" in text
        assert world.get(b).state is S.QUEUED
        assert world.said("b: ran out of memory at its start; it is started again with more room")
        world.falls_asleep(a)
        assert world.get(b).state is S.STARTING
        world.spawned(b)
        world.healthy(b)
        assert (world.get(b).state, world.get(b).failure) == (S.READY, None)
        assert MORE == GIB // 2


def test_alone_on_its_device_it_fails_at_once() -> None:
    world = Fleet(80)
    b = begun(world, "b", 19)
    runs_out(world, b)
    failure = world.get(b).failure
    assert world.get(b).state is S.FAILED
    assert failure is not None
    assert failure.code == OUT_OF_MEMORY


def test_one_that_had_far_more_than_it_needs_sends_nobody_away() -> None:
    world = Fleet(80)
    a = world.come("a", 40)
    world.after(100)
    b = begun(world, "b", 20)
    runs_out(world, b)
    assert (world.get(b).state, world.get(a).state) == (S.FAILED, S.READY)


def test_where_it_had_all_that_there_is_it_fails_with_its_own_words() -> None:
    world = Fleet(80)
    begun(world, "a", None)  # nothing is known of what it takes
    world.healthy(world.only("a").id)
    b = begun(world, "b", None)
    runs_out(world, b)
    assert (world.get(b).state, world.get(b).reason) == (S.FAILED, "vLLM ran out of memory.")


def test_it_is_not_tried_for_ever() -> None:
    world = Fleet(200)
    names = [f"a{number}" for number in range(20)]
    for name in names:
        world.come(name, 8)
    world.after(100)
    b = begun(world, "b", 38)
    for _ in range(STARTS_WITH_MORE):
        runs_out(world, b)
        for name in names:
            if world.only(name).retires:
                world.falls_asleep(world.only(name).id, 8)
        assert world.get(b).state is S.STARTING, world.get(b).reason
        world.spawned(b)
    for _ in range(6):  # by now it counts as one that crashed
        runs_out(world, b)
        world.after(20)
        if world.get(b).state is S.STARTING:
            world.spawned(b)
    assert world.get(b).state is S.FAILED


def test_other_failures_are_not_about_room() -> None:
    world = Fleet(80)
    a = world.come("a", 60)
    world.after(100)
    b = begun(world, "b", 19)
    world.exit(b)
    world.read()
    assert (world.get(b).state, world.get(a).state) == (S.FAILED, S.READY)
