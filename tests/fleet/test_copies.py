"""Which weights are copied to the host, and which copies go: the decision, and the loop that carries it out."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.engines.base import CopyAction, Engine, EngineMetrics, HostCopy, KeepsCopies
from shoal.engines.environments import Environments
from shoal.engines.simulated.adapter import SimulatedEngine
from shoal.engines.vllm.adapter import VllmEngine
from shoal.fleet.copies import GIVEN_BACK, IDLE, REST, AskOverHttp, Candidate, Copies, Drop, Take, next_step
from shoal.fleet.snapshot import Fleet
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Device, Instance, Rest
from shoal.fleet.state import InstanceState as S
from shoal.memory.sizes import Amount
from tests.engines.simulated_process import Process
from tests.fleet.fakes import gpu

GIB = 2**30
NOW = 1000.0
NONE, WHOLE = HostCopy(size=10), HostCopy(size=10, held=10, taken=10)


def one(id: str, copy: HostCopy = NONE, last_use: float = 900.0, **more: Any) -> Candidate:
    return Candidate(id, copy, last_use, **more)


def test_the_one_used_last_is_copied_first() -> None:
    assert next_step(NOW, [one("a"), one("b", last_use=950.0)], 100) == Take("b")
    assert next_step(NOW, [one("a"), one("b", WHOLE, 950.0)], 100) == Take("a")
    assert next_step(NOW, [one("a", WHOLE), one("b", WHOLE)], 100) is None


@pytest.mark.parametrize(
    "more",
    [
        {"busy": True},
        {"asleep": True},
        {"spared": True},
        {"last_use": NOW - IDLE + 0.1},
        {"rests_until": NOW + 1},
        {"copy": HostCopy()},
        {"copy": WHOLE},
    ],
)
def test_who_is_not_copied(more: dict[str, Any]) -> None:
    assert next_step(NOW, [one("a", **more)], 100) is None


def test_one_at_a_time() -> None:
    assert next_step(NOW, [one("a", HostCopy(size=10, held=2, taken=4, taking=True)), one("b")], 100) is None


def test_the_least_recently_used_gives_its_place_up_and_only_to_one_used_later() -> None:
    older, newer = one("a", WHOLE, 800.0), one("b", WHOLE, 850.0)
    assert next_step(NOW, [older, newer, one("c", last_use=900.0)], 25) == Drop("a")
    assert next_step(NOW, [older, newer, one("c", last_use=700.0)], 25) is None
    assert next_step(NOW, [older, one("c", HostCopy(size=40), 900.0)], 25) is None, "it would not fit all the same"
    assert next_step(NOW, [older, one("c", HostCopy(size=40), 900.0), one("d", last_use=10.0)], 25) == Take("d")


def test_what_sleeps_keeps_its_copy_and_what_never_sleeps_needs_none() -> None:
    asleep = one("a", WHOLE, 100.0, asleep=True)
    assert next_step(NOW, [asleep, one("b", last_use=900.0)], 15) is None
    assert next_step(NOW, [asleep], 5) is None
    assert next_step(NOW, [asleep, one("b", WHOLE, 900.0)], 15) == Drop("b")
    assert next_step(NOW, [one("a", WHOLE, spared=True)], 100) == Drop("a")


copies = st.builds(
    lambda size, part, taking: HostCopy(size, size * part // 2, size * part // 2, taking and part == 1),
    st.integers(0, 50),
    st.integers(0, 2),
    st.booleans(),
)
fleets = st.lists(
    st.builds(one, st.text("abc", min_size=3), copies, st.floats(0, NOW), busy=st.booleans(), asleep=st.booleans()),
    max_size=8,
    unique_by=lambda candidate: candidate.id,
)


@given(fleets, st.integers(0, 200))
def test_it_comes_to_an_end_within_the_budget(fleet: list[Candidate], budget: int) -> None:
    """Steps carried out one after another never take more than the budget, never touch what sleeps, and stop."""
    known = {candidate.id: candidate for candidate in fleet}
    for _ in range(4 * len(fleet) + 1):
        step = next_step(NOW, known.values(), budget)
        if step is None:
            break
        before = known[step.id]
        assert not before.asleep
        if isinstance(step, Take):
            copy = HostCopy(before.copy.size, before.copy.size, before.copy.size)
        else:
            copy = HostCopy(before.copy.size)
        known[step.id] = dataclasses.replace(before, copy=copy)
        if isinstance(step, Take):
            assert sum(each.copy.taken for each in known.values()) <= budget
    else:
        pytest.fail("it goes on for ever")


class Engines:
    """Instances that answer about their copies."""

    def __init__(self) -> None:
        self.copies: dict[str, HostCopy] = {}
        self.asked: list[tuple[str, CopyAction]] = []
        self.silent: set[str] = set()

    async def __call__(self, instance: Instance, action: CopyAction) -> HostCopy | None:
        self.asked.append((instance.id, action))
        if instance.id in self.silent:
            return None
        copy = self.copies.setdefault(instance.id, HostCopy(size=10))
        if action == "take" and not copy.reason:
            copy = HostCopy(10, 5, 10, taking=True)
        elif action == "forget":
            copy = HostCopy(size=10)
        self.copies[instance.id] = copy
        return copy


class Bed:
    """A fleet of ready instances on a host of 100 bytes, and its clock."""

    def __init__(self, *ids: str, budget: int = 100) -> None:
        self.now = NOW
        self.fleet = Fleet(engines={})
        self.fleet.devices = (Device("host", "host", "RAM", 100, 0),)
        for id in ids:
            spec = ModelSpec(name=id, source="x", engine="simulated")
            self.put(Instance(id, id, "simulated", S.READY, ("cuda:0",), 0, 0, spec=spec, can_sleep=True, ready_at=0))
        self.engines = Engines()
        self.copies = Copies(self.fleet, self.engines, Amount(budget), lambda: self.now)

    def put(self, instance: Instance) -> None:
        self.fleet.instances[instance.id] = instance

    def change(self, id: str, **fields: Any) -> None:
        self.put(dataclasses.replace(self.fleet.instances[id], **fields))

    def done(self, id: str) -> None:
        self.engines.copies[id] = WHOLE

    async def looks(self, times: int = 1) -> list[tuple[str, CopyAction]]:
        """What was asked of whom meanwhile."""
        before = len(self.engines.asked)
        for _ in range(times):
            await self.copies.look()
            await asyncio.sleep(0)
        return self.engines.asked[before:]


async def test_an_idle_instance_is_copied_and_then_left_alone() -> None:
    bed = Bed("a")
    assert await bed.looks() == [("a", "look"), ("a", "take")]
    assert bed.copies.held("a") == 10
    assert await bed.looks() == [("a", "look")], "followed while it is taken"
    bed.done("a")
    assert await bed.looks(3) == [("a", "look")], "then not asked any more"
    bed.change("a", state=S.SLEEPING, rest=Rest(level=1), changed_at=5)
    assert await bed.looks(2) == [("a", "look")], "but after it has slept"
    assert bed.copies.held("a") == 10


async def test_use_is_seen_in_what_runs_and_in_what_was_made() -> None:
    bed = Bed("a")
    bed.fleet.metrics["a"] = EngineMetrics(generation_tokens_total=5)
    bed.engines.copies["a"] = HostCopy()
    await bed.looks()
    bed.engines.copies["a"] = HostCopy(size=10)
    bed.change("a", changed_at=1)
    bed.fleet.metrics["a"] = EngineMetrics(generation_tokens_total=6)
    assert await bed.looks(2) == [("a", "look")]
    bed.now += IDLE
    assert await bed.looks() == [("a", "take")]


async def test_one_that_woke_was_used_just_now() -> None:
    bed = Bed("a")
    bed.done("a")
    await bed.looks()
    bed.change("a", state=S.WAKING, changed_at=bed.now - 2)
    await bed.looks()
    bed.change("a", state=S.READY, changed_at=bed.now - 1)
    bed.engines.copies["a"] = HostCopy(size=10)
    assert await bed.looks() == [("a", "look")], "it is not idle yet"
    bed.now += IDLE
    assert await bed.looks() == [("a", "take")]


async def test_forgotten_copies_rest() -> None:
    bed = Bed("a")
    await bed.looks()
    bed.done("a")
    await bed.looks()
    bed.copies.forget("a")
    assert bed.copies.held("a") == 0, "at once"
    assert await bed.looks(2) == [("a", "forget")]
    bed.now += REST
    assert await bed.looks() == [("a", "take")]
    bed.copies.forget("nobody")
    await bed.copies.close()


async def test_one_that_cannot_be_copied_is_not_asked_again_for_a_while() -> None:
    bed = Bed("a", "b")
    bed.engines.copies["b"] = HostCopy(size=10, reason="no room")
    assert ("b", "take") in await bed.looks()
    assert await bed.looks() == [("a", "take")]
    bed.done("a")
    assert ("b", "take") not in await bed.looks(2)
    bed.now += REST
    assert ("b", "take") in await bed.looks(2)


async def test_who_does_not_answer_is_asked_again() -> None:
    bed = Bed("a")
    bed.engines.silent.add("a")
    assert await bed.looks(2) == [("a", "look"), ("a", "look")]
    bed.engines.silent.clear()
    assert await bed.looks() == [("a", "look"), ("a", "take")]


async def test_those_that_cannot_sleep_or_are_gone_are_no_matter() -> None:
    bed = Bed("a", "b")
    bed.change("a", can_sleep=False)
    bed.done("b")
    assert await bed.looks(2) == [("b", "look")]
    bed.change("b", state=S.STOPPED)
    await bed.looks()
    assert bed.copies.held("b") == 0


async def test_what_the_host_has_free_bounds_it() -> None:
    bed = Bed("a")
    bed.fleet.devices = (Device("host", "host", "RAM", 100, 95),)
    assert await bed.looks() == [("a", "look")]
    assert bed.copies.budget() == 5
    bed.fleet.devices = ()
    assert bed.copies.budget() == 100


async def test_no_second_copy_is_dropped_before_the_first_has_come_back() -> None:
    bed = Bed("a", "b", "c")
    bed.done("a")
    bed.done("b")
    bed.change("c", changed_at=5)
    bed.fleet.devices = (Device("host", "host", "RAM", 100, 100),)
    assert ("a", "forget") in await bed.looks(2)
    assert bed.copies.unsettled()
    await bed.looks(3)
    assert bed.copies.held("b") == 10
    bed.fleet.devices = (Device("host", "host", "RAM", 100, 90),)
    assert not bed.copies.unsettled()
    assert await bed.looks() == [("c", "take")]
    assert bed.copies.held("b") == 10


async def test_readings_that_never_show_what_came_back_are_believed_in_the_end() -> None:
    bed = Bed("a")
    bed.done("a")
    bed.fleet.devices = (Device("host", "host", "RAM", 100, 100),)
    await bed.looks()
    bed.copies.forget("a")
    bed.now += GIVEN_BACK - 0.1
    assert bed.copies.unsettled()
    bed.now += 0.2
    assert not bed.copies.unsettled()
    await bed.copies.close()


async def test_what_is_promised_to_one_on_its_way_to_sleep_bounds_it_too() -> None:
    bed = Bed("a", "b")
    bed.fleet.devices = (Device("host", "host", "RAM", 100, 85), gpu(0))
    bed.fleet.weights["b"] = 10
    bed.change("b", state=S.DRAINING, rest=Rest(level=1))
    assert bed.copies.budget() == 5
    assert ("a", "take") not in await bed.looks()
    bed.change("b", state=S.READY, rest=Rest())
    assert [action for _, action in await bed.looks()][-1] == "take"


KINDS: dict[str, Engine] = {"simulated": SimulatedEngine(), "vllm": VllmEngine(Environments(Path("/nonexistent")))}


async def test_a_real_engine_is_asked_over_its_own_http() -> None:
    ask = AskOverHttp(KINDS)
    with Process(("--enable-sleep-mode", "--device-memory", "3GiB", "--copy-seconds", "0.05")) as process:
        await process.ready()
        base = Instance("a", "a", "simulated", S.READY, (), 0, 0, address=f"unix:{process.socket}")
        assert await ask(base, "look") == HostCopy(size=3 * GIB)
        taking = await ask(base, "take")
        assert taking is not None
        assert taking.taken == 3 * GIB
        while not ((found := await ask(base, "look")) and found.whole):
            await asyncio.sleep(0.01)
        assert await ask(base, "forget") == HostCopy(size=3 * GIB)
        nowhere = dataclasses.replace(base, address="unix:/nonexistent/socket")
        assert await ask(nowhere, "look") is None
    with Process() as process:  # without sleep it has no such path
        await process.ready()
        assert await ask(dataclasses.replace(base, address=f"unix:{process.socket}"), "look") == HostCopy()


@pytest.mark.parametrize("text", ["", "{}", '{"results": [null]}', '{"results": ["True"]}'])
def test_answers_that_are_none_are_told(text: str) -> None:
    for kind in KINDS.values():
        assert isinstance(kind, KeepsCopies)
        with pytest.raises(ValueError, match="no answer about copies"):
            kind.read_copy(text)


def rank(size: int = 8, held: int = 6, *, taking: bool = False, reason: str = "") -> dict[str, Any]:
    return {"size": size, "held": held, "reserved": size, "taking": taking, "reason": reason}


def test_ranks_are_added_up() -> None:
    kind = KINDS["vllm"]
    assert isinstance(kind, KeepsCopies)
    found = kind.read_copy(json.dumps({"results": [rank(), rank(taking=True, reason="late")]}))
    assert found == HostCopy(16, 12, 16, taking=True, reason="late")
    none = kind.read_copy(json.dumps({"results": [rank(), rank(0, 0, reason="off")]}))
    assert (none.size, none.reason) == (0, "off"), "a rank without a copy makes all of them useless"
