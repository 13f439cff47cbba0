"""Moves on a manager with fake effects, step by step."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import strategies as st

from shoal.errors import ShoalError
from shoal.fleet import facts
from shoal.fleet.move_fit import Asked
from shoal.fleet.move_plan import Wanted
from shoal.fleet.moves import Move
from shoal.fleet.room import Wants
from shoal.fleet.state import InstanceState as S
from tests.fleet.fakes import GIB, World, gpu, void

PARIS = "text: Paris"
HAPPENS = st.lists(
    st.tuples(
        st.sampled_from(
            ["move", "change", "cancel", "answer", "prepare", "spawn", "healthy", "fail", "report", "end", "tick"]
        ),
        st.integers(0, 5),
    ),
    max_size=40,
)
"""What may happen, and how; see `happen`."""


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
    return begun(world, Wanted(name, to, **fields)).id


def begun(world: World, wanted: Wanted, asked: Asked | None = None) -> Move:
    found: list[Move] = []
    world.manager.handle(lambda: found.append(world.manager.moves.begin(wanted, asked)))
    return found[0]


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
    world.add(name, **{"devices": ["cuda:0"], **settings})
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


def asked(needs: int, *devices: str) -> Asked:
    return {devices: Wants(devices, 1, needs)}


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
