"""Sleep and wake carried out on simulated engines, and each way in which they turn out not to have happened."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from shoal.engines.base import EngineMetrics
from shoal.engines.simulated.adapter import SimulatedEngine
from shoal.errors import ShoalError
from shoal.fleet import canary, facts, sleeper
from shoal.fleet.footprint import Ask, Footprint, Footprints, Way
from shoal.fleet.sleeper import Sleeper, resume_calls
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Device, Instance, InstanceState, Rest
from tests.engines.simulated_process import Process

MIB = 2**20
MEMORY = ("--memory", "64MiB")


def _open() -> asyncio.Event:
    door = asyncio.Event()
    door.set()
    return door


class Bed:
    """One engine, a sleeper that looks after it, and the facts that it tells."""

    def __init__(self, engine: Process, *args: str) -> None:
        self.engine = engine
        self.facts: asyncio.Queue[facts.Fact] = asyncio.Queue()
        self.full: ShoalError | None = None
        self.entered: list[str] = []
        self.doors: defaultdict[tuple[str, ...], asyncio.Event] = defaultdict(_open)
        self.flushed = 0
        spec = ModelSpec(name="fish", source="any", engine="simulated", args=args)
        self.instance = Instance(
            "i", "fish", "simulated", InstanceState.DRAINING, ("host",), 0.0, 0.0,
            address=f"unix:{engine.socket}", spec=spec, rest=Rest(level=1),
        )  # fmt: skip
        footprints = Footprints(
            Path("/nowhere"), self._devices, lambda: {"i": self._resident()}, lambda _: engine.popen.pid, tuple
        )
        self.sleeper = Sleeper(
            {"simulated": SimulatedEngine()}, footprints, self.facts.put_nowait, self._flush, self._room
        )

    async def _devices(self) -> Sequence[Device]:
        return [Device("host", "host", "RAM", 2**40, 0)]

    def _resident(self) -> int:
        return int(psutil.Process(self.engine.popen.pid).memory_info().rss)

    async def _flush(self) -> None:
        self.flushed += 1

    async def _room(self, instance: Instance) -> None:
        self.entered.append(instance.id)
        await self.doors[instance.devices].wait()
        if self.full is not None:
            raise self.full

    async def seen(self, id: str) -> None:
        """Until it is asked whether there is room for this one."""
        while id not in self.entered:
            await asyncio.sleep(0.001)

    async def said(self) -> facts.Fact:
        return await asyncio.wait_for(self.facts.get(), 30)

    async def weigh(self) -> facts.Fact:
        self.sleeper.weigh(self.instance)
        fact = await self.said()
        if isinstance(fact, facts.Weighed) and fact.held is not None:
            known = self.instance.rest
            rest = replace(known, held=fact.held, kv=fact.kv, canary=fact.canary or known.canary)
            self.instance = replace(self.instance, rest=rest)
        return fact

    async def suspend(self) -> facts.Fact:
        self.sleeper.suspend(self.instance)
        return await self.said()

    async def resume(self) -> facts.Fact:
        self.sleeper.resume(self.instance)
        return await self.said()


@asynccontextmanager
async def bed(*args: str) -> AsyncIterator[Bed]:
    arguments = ("--enable-sleep-mode", *MEMORY, *args)
    with Process(arguments) as engine:
        await engine.ready()
        made = Bed(engine, *arguments)
        try:
            yield made
        finally:
            await made.sleeper.close()


@pytest.mark.parametrize("level", [1, 2])
async def test_a_sleep_and_a_wake(level: int) -> None:
    async with bed() as one:
        one.instance = replace(one.instance, rest=Rest(level=level))
        weighed = await one.weigh()
        assert isinstance(weighed, facts.Weighed)
        assert weighed.held is not None
        assert weighed.held > 64 * MIB
        assert weighed.canary is not None
        assert weighed.canary.startswith("text: ")
        asleep = await one.suspend()
        assert isinstance(asleep, facts.Asleep)
        assert asleep.freed > 60 * MIB
        assert one.flushed == 1, "what is known is saved before"
        assert await one.resume() == facts.Awake("i")
        again = await one.weigh()
        assert isinstance(again, facts.Weighed)
        assert again.canary is None, "it is asked once only"


async def test_what_is_asleep_or_awake_already_is_left_so() -> None:
    async with bed() as one:
        assert await one.resume() == facts.Awake("i")
        await one.weigh()
        await one.engine.post("/sleep?level=1")
        assert await one.weigh() == facts.Weighed("i"), "the canary would wait for the waking"
        assert isinstance(await one.suspend(), facts.Asleep)
        one.sleeper.look(one.instance)
        assert await one.said() == facts.LookedAt("i", asleep=True)
        await one.engine.post("/wake_up")
        one.sleeper.look(one.instance)
        assert await one.said() == facts.LookedAt("i", asleep=False)


async def test_found_asleep_without_knowing_what_it_held_is_no_proof() -> None:
    async with bed() as one:
        await one.engine.post("/sleep")
        fact = await one.suspend()
        assert fact == facts.NotAsleep("i", "what it held before is not known any more")


async def test_an_engine_that_keeps_its_memory_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sleeper, "PATIENCE", 0.2)
    async with bed("--fail", "sleep-keeps-memory") as one:
        await one.weigh()
        fact = await one.suspend()
        assert isinstance(fact, facts.NotAsleep)
        assert "it says that it sleeps, but" in fact.reason
        assert "57.6 MiB at least" in fact.reason


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ("wake-fails", "wake_failed", "it answered /wake_up with 500"),
        ("wake-oom", "wake_failed", "out of memory"),
        ("canary-differs", "canary_differs", "it answers the canary with"),
    ],
)
async def test_a_wake_that_is_none_says_why(fault: str, code: str, said: str) -> None:
    async with bed("--fail", fault) as one:
        await one.weigh()
        await one.suspend()
        fact = await one.resume()
        assert isinstance(fact, facts.NotAwake)
        assert fact.failure.code == code
        assert said in fact.failure.message


async def test_an_engine_that_refuses_to_sleep_or_is_gone_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sleeper, "LOOKS", 2)
    async with bed("--fail", "sleep-fails") as one:
        await one.weigh()
        fact = await one.suspend()
        assert isinstance(fact, facts.NotAsleep)
        assert "it answered /sleep with 500" in fact.reason
        one.engine.popen.kill()
        one.engine.popen.wait()
        assert await one.suspend() == facts.NotAsleep("i", "it did not answer /sleep")
        fresh = replace(one.instance, rest=Rest(level=1))
        one.sleeper.weigh(fresh)
        assert await one.said() == facts.NotAsleep("i", "it did not answer the canary")
        gone = await one.resume()
        assert isinstance(gone, facts.NotAwake)
        assert "does not say whether it sleeps" in gone.failure.message
        one.sleeper.look(one.instance)
        assert await one.said() == facts.LookedAt("i", None)


async def test_without_room_it_is_not_woken() -> None:
    async with bed() as one:
        await one.weigh()
        await one.suspend()
        one.full = ShoalError("m needs 4.0 GiB on host", status=409, code="too_little_memory")
        assert await one.resume() == facts.NoRoom("i", "m needs 4.0 GiB on host")
        assert (await one.engine.get("/is_sleeping")).json == {"is_sleeping": True}
        one.full = None
        assert await one.resume() == facts.Awake("i")


async def test_two_wakes_on_a_device_take_turns_so_that_what_is_free_is_not_given_twice() -> None:
    async with bed() as one:
        await one.weigh()
        await one.suspend()
        door = one.doors[("host",)] = asyncio.Event()
        one.sleeper.resume(one.instance)
        await one.seen("i")
        one.sleeper.resume(replace(one.instance, id="j", devices=("gpu", "host")))
        one.sleeper.resume(replace(one.instance, id="k", devices=("another",)))
        await one.seen("k")
        assert one.entered == ["i", "k"], "who shares a device with one that wakes waits"
        door.set()
        found = {await one.said() for _ in range(3)}
        assert found == {facts.Awake("i"), facts.Awake("j"), facts.Awake("k")}
        assert one.entered in (["i", "k", "j"], ["i", "k"]), "j may find the engine awake by then"


async def test_a_model_that_completes_no_text_has_no_canary() -> None:
    async with bed("--task", "embed") as one:
        weighed = await one.weigh()
        assert isinstance(weighed, facts.Weighed)
        assert weighed.canary == canary.NONE
        assert isinstance(await one.suspend(), facts.Asleep)
        assert await one.resume() == facts.Awake("i")


async def test_a_fault_of_its_own_leaves_nothing_between_two_states() -> None:
    async with bed() as one:
        one.instance = replace(one.instance, engine="unknown")
        one.sleeper.weigh(one.instance)
        told = [type(await one.said()) for _ in range(2)]
        assert told == [facts.NotAsleep, facts.NotAwake]


async def test_what_is_stopped_tells_nothing() -> None:
    async with bed("--sleep-seconds", "1") as one:
        await one.weigh()
        one.sleeper.suspend(one.instance)
        await asyncio.sleep(0)
        one.sleeper.stop("i")
        one.sleeper.stop("nobody")
        await one.sleeper.close()
        assert one.facts.empty()


class Scripted(Footprints):
    """Readings that the test gives, and in which way which instance was read."""

    def __init__(self, way: Way) -> None:
        async def none() -> Sequence[Device]:
            return []

        super().__init__(Path("/nowhere"), none, dict, lambda _: None, tuple)
        self.way = way
        self.reads: list[tuple[str, Way | None, bool]] = []
        self.answers: list[tuple[int, str] | None] = []

    async def read(
        self,
        instance: Instance,
        metrics: EngineMetrics | None,
        ask: Ask,
        *,
        falling: Collection[str] = (),
        way: Way | None = None,
    ) -> Footprint | None:
        self.reads.append((instance.id, way, instance.id in falling))
        if way is None:
            self.answers.append(await ask())
        if way not in (None, self.way):
            return None
        return Footprint(MIB if way is not None else 100 * MIB, 0, self.way)


@pytest.mark.parametrize("way", [Way.PROCESSES, Way.WORKERS])
async def test_a_sleep_is_read_as_what_was_there_before_it(way: Way) -> None:
    async with bed() as one:
        one.sleeper._footprints = readings = Scripted(way)
        await one.weigh()
        assert await one.suspend() == facts.Asleep("i", 99 * MIB, 0)
        assert readings.reads == [("i", None, False), ("i", way, True)]
        (answer,) = readings.answers
        assert answer is not None
        assert "no 'shoal_holds'" in answer[1], "its workers were asked"
        await one.resume()
        await one.weigh()
        assert readings.reads[2:] == [("i", None, False)], "it does not fall asleep any more"


async def test_what_can_be_read_otherwise_only_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sleeper, "PATIENCE", 0.0)
    async with bed() as one:
        one.sleeper._footprints = readings = Scripted(Way.WORKERS)
        await one.weigh()
        readings.way = Way.DEVICES
        fact = await one.suspend()
        assert isinstance(fact, facts.NotAsleep)
        assert "cannot be read any more as it was before" in fact.reason


async def test_what_an_earlier_controller_read_is_read_again_unless_it_sleeps_already() -> None:
    async with bed() as one:
        one.sleeper._footprints = readings = Scripted(Way.WORKERS)
        one.instance = replace(one.instance, rest=Rest(level=1, held=7 * MIB))
        assert await one.suspend() == facts.Asleep("i", 99 * MIB, 0)
        assert readings.reads == [("i", None, False), ("i", Way.WORKERS, True)]
        one.sleeper.stop("i")
        readings.reads.clear()
        one.instance = replace(one.instance, rest=Rest(level=1, held=200 * MIB))
        assert await one.suspend() == facts.Asleep("i", 100 * MIB, 0)
        assert readings.reads == [("i", None, False)], "in the first way there is: nothing says how it was read before"


async def test_sleeps_that_only_the_device_shows_come_one_after_the_other() -> None:
    async with bed("--sleep-seconds", "0.3") as one, bed("--sleep-seconds", "0.3") as two:
        one.sleeper._footprints = readings = Scripted(Way.DEVICES)
        both = [one.instance, replace(two.instance, id="j")]
        for instance in both:
            one.sleeper.weigh(instance)
            await one.said()
        readings.reads.clear()
        for instance in both:
            one.sleeper.suspend(instance)
        told = [await one.said() for _ in both]
        assert told == [facts.Asleep(id, 99 * MIB, 0) for id in ("i", "j")]
        assert readings.reads == [(id, way, way is not None) for id in ("i", "j") for way in (None, Way.DEVICES)], (
            "each is read before and after, with nothing of the other between"
        )


async def test_one_that_fell_asleep_since_it_was_weighed_is_compared_with_that() -> None:
    async with bed() as one:
        one.sleeper._footprints = readings = Scripted(Way.DEVICES)
        await one.weigh()
        await one.engine.post("/sleep")
        assert await one.suspend() == facts.Asleep("i", 99 * MIB, 0)
        assert readings.reads == [("i", None, False), ("i", Way.DEVICES, False)]


def test_dropped_weights_are_read_again_before_there_is_a_cache() -> None:
    assert [path for _, path, _ in resume_calls(1)] == ["/wake_up"]
    assert [path for _, path, _ in resume_calls(2)] == [
        "/wake_up?tags=weights",
        "/collective_rpc",
        "/wake_up?tags=kv_cache",
    ]
