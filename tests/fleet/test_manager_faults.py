"""What must not stop the fleet: events it cannot tell, wishes it cannot fulfil, ends that nobody saw."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from shoal.fleet.state import Exit, Instance
from shoal.fleet.state import InstanceState as S
from tests.fleet.fakes import World, spec, void


async def test_what_cannot_be_published_does_not_end_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()

    def refuse(_event: str, _data: object) -> None:
        raise TypeError("it has no JSON form")

    loop = asyncio.create_task(world.manager.run())
    monkeypatch.setattr(world.effects, "publish", refuse)
    with pytest.raises(TypeError):
        await world.manager.do(lambda: world.manager.add_model(spec("m")))
    monkeypatch.undo()
    assert await asyncio.wait_for(world.manager.do(lambda: "still there"), 10) == "still there"
    loop.cancel()


def end(world: World, instance: Instance) -> None:
    world.manager._life.unload(instance)


def test_one_model_that_cannot_be_restored_does_not_keep_the_others_from_it() -> None:
    world = World()
    for name in ("a", "b"):
        world.add(name)
        world.load(name, 2)
    world.unload("a")
    world.load("a", 2)
    world.manager.handle(lambda: void(world.manager.change_model("a", lambda s: s.model_copy(update={"port": 9000}))))
    for instance in world.manager.fleet.of_model("b"):
        world.manager.handle(partial(end, world, instance))  # ended, but still wanted
    world.manager.handle(lambda: world.manager.restore(remembered=True))
    assert len([i for i in world.manager.fleet.of_model("b") if i.state is S.QUEUED]) == 2
    assert any(event.kind == "not_restored" and "port" in event.message for event in world.effects.events)


def test_a_start_whose_end_nobody_saw_is_tried_again_but_not_for_ever() -> None:
    world = World()
    world.add()
    world.load()
    world.prepare()
    id = world.only().id
    for _ in range(3):
        world.spawned(id)
        world.exit(id, Exit())
        assert world.only().state is S.QUEUED
        world.after(60)
        assert world.only().state is S.STARTING
    world.exit(id, Exit())
    assert world.only().state is S.FAILED


def test_what_is_known_of_an_instance_goes_with_it() -> None:
    world = World()
    world.add()
    for _ in range(10):
        world.load()
        world.prepare()
        id = world.only().id
        world.spawned(id)
        world.healthy(id)
        world.report()
        world.unload()
        world.report()
        world.exit(id, Exit(code=0))
    kept = set(world.manager.fleet.instances)
    assert len(kept) == 5
    assert set(world.manager.fleet.needs) <= kept
    assert set(world.manager.fleet.metrics) <= kept
    assert world.manager.fleet.after == {}
