"""Runs of presets on a manager with fake effects: what a failure holds up, and what a cancelled run leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import pytest

from shoal.fleet import facts
from shoal.fleet.hub import Hub
from shoal.fleet.manager import Manager, Outcome
from shoal.fleet.preset_plan import compare
from shoal.fleet.preset_runs import PresetRun, RunView, StepFailedError, fell_asleep, serves, woke
from shoal.fleet.presets import Preset, PresetEntry
from shoal.fleet.spec import ModelSpec
from tests.fleet.fakes import GIB, World, gpu, spec
from tests.fleet.moving import a_world, answer, begin, drained, loads, move

T = TypeVar("T")


class Pretended:
    """What a run needs of the controller, over a world that tests move."""

    def __init__(self, world: World) -> None:
        self.manager: Manager = world.manager
        self.hub = Hub(dict)

    async def do(self, command: Callable[[], T]) -> T:
        found: list[T] = []
        faults: list[Exception] = []

        def run() -> None:
            try:
                found.append(command())
            except Exception as error:
                faults.append(error)

        self.manager.handle(run)
        if faults:
            raise faults[0]
        self.hub.publish("changed", {})
        return found[0]

    async def change_model(self, name: str, make: Callable[[ModelSpec], ModelSpec]) -> Outcome:
        return await self.do(lambda: self.manager.change_model(name, make))


def on(name: str, device: str, *, asleep: bool = False) -> PresetEntry:
    return PresetEntry(spec=spec(name, devices=(device,)), awake=int(not asleep), asleep=int(asleep))


def began(world: World, *entries: PresetEntry, exclusive: bool = True) -> tuple[PresetRun, Pretended]:
    controller = Pretended(world)
    preset = Preset(name="p", models=entries)
    plan = compare(preset, world.manager.fleet, exclusive=exclusive)
    return PresetRun(controller, preset, plan, lambda _: None, lambda: None, world.effects.now), controller


async def settled(controller: Pretended, look: Callable[[], bool]) -> None:
    """Until `look` is true; the run gets its turns meanwhile."""
    for _ in range(1000):
        controller.hub.publish("changed", {})
        await asyncio.sleep(0)
        if look():
            return
    raise AssertionError("it never came")


def states(view: RunView) -> dict[str, str]:
    return {f"{one.step.action} {one.step.model}": one.state for one in view.steps}


def loaded(world: World, name: str, device: str, *, can_sleep: bool = True) -> str:
    """A model that serves on a device."""
    world.add(name, devices=(device,))
    world.load(name)
    world.prepare()
    id = world.only(name).id
    world.spawned(id, can_sleep=can_sleep)
    world.healthy(id)
    return id


async def comes(world: World, controller: Pretended, name: str) -> None:
    """A model that is being loaded serves in the end."""
    await settled(controller, lambda: bool(world.effects.prepared))
    world.prepare(GIB)
    id = world.only(name).id
    world.spawned(id)
    world.healthy(id)


async def test_memory_that_does_not_come_free_holds_up_its_devices_and_no_others() -> None:
    world = World(gpu(0), gpu(1))
    loaded(world, "stays", "cuda:0", can_sleep=False)
    run, controller = began(world, on("stays", "cuda:0", asleep=True), on("waits", "cuda:0"), on("apart", "cuda:1"))
    task = asyncio.create_task(run.run())
    await comes(world, controller, "apart")
    await settled(controller, task.done)
    assert states(run.view) == {"sleep stays": "failed", "start waits": "skipped", "start apart": "done"}
    assert run.view.state == "failed"
    assert [one.model for one in run.view.missing] == ["stays", "waits"]
    why = {one.step.model: one.message for one in run.view.steps}
    assert "cannot sleep: it was built so" in why["stays"]
    assert "memory that it needs did not come free" in why["waits"]
    assert "waits" not in world.manager.fleet.models


async def test_cancelled_once_the_step_under_way_ends_and_twice_nobody_waits() -> None:
    world = World(gpu(0))
    run, controller = began(world, on("a", "cuda:0"), on("b", "cuda:0"))
    task = asyncio.create_task(run.run())
    await settled(controller, lambda: bool(world.effects.prepared))
    run.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not task.done(), "the first start is under way"
    run.cancel()
    await settled(controller, task.done)
    assert states(run.view) == {"start a": "failed", "start b": "skipped"}
    assert run.view.state == "cancelled"
    assert "goes on" in run.view.steps[0].message
    assert world.manager.fleet.comes_by_itself("a"), "what was asked for is left alone"
    assert "b" not in world.manager.fleet.models


async def test_what_somebody_else_stops_meanwhile_is_said() -> None:
    world = World(gpu(0))
    run, controller = began(world, on("a", "cuda:0"))
    task = asyncio.create_task(run.run())
    await settled(controller, lambda: bool(world.effects.prepared))
    world.unload("a")
    await settled(controller, task.done)
    assert run.view.state == "failed"
    assert "somebody else stopped it" in run.view.missing[0].message


async def test_what_a_move_brought_is_in_place_once_the_move_has_ended() -> None:
    world, old = a_world()
    id = begin(world, "m", "cuda:1")
    answer(world)
    loads(world)
    answer(world)
    world.report({old: 1})
    run, controller = began(world, on("m", "cuda:1"))
    task = asyncio.create_task(run.run())
    await settled(controller, lambda: states(run.view) == {"keep m": "running"})
    for _ in range(20):
        await asyncio.sleep(0)
    assert not task.done(), "requests still run where it was"
    drained(world, old)
    await settled(controller, task.done)
    assert move(world, id).state == run.view.state == "done"


async def test_sleepers_are_woken_and_put_to_sleep_again() -> None:
    world = World(gpu(0), gpu(1))
    id = loaded(world, "b", "cuda:1")
    run, controller = began(world, on("b", "cuda:1", asleep=True))
    task = asyncio.create_task(run.run())
    await settled(controller, lambda: world.get(id).retires)
    world.report()
    world.tell(facts.Weighed(id, 2 * GIB, 0, "text: Paris"))
    assert not task.done()
    world.tell(facts.Asleep(id, GIB, 0))
    await settled(controller, task.done)
    assert run.view.state == "done"
    assert fell_asleep(world.manager.fleet, [id])
    run, controller = began(world, on("b", "cuda:1"))
    task = asyncio.create_task(run.run())
    await settled(controller, lambda: bool(world.effects.resumed))
    with pytest.raises(StepFailedError, match="does not sleep"):
        fell_asleep(world.manager.fleet, [id])
    assert not woke(world.manager.fleet, [id])
    world.tell(facts.Awake(id))
    await settled(controller, task.done)
    assert run.view.state == "done"
    with pytest.raises(StepFailedError, match="1 of 2 serve"):
        serves(world.manager.fleet, "b", 2)
