"""Room for a start, held back and waited for, with a real broker and an engine that leases from it."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shoal.errors import ShoalError
from shoal.fleet import broker as fleet_broker
from shoal.fleet import facts
from shoal.fleet.memory import Terms
from shoal.fleet.state import Device
from shoal.memory import messages as m
from shoal.memory.broker import Broker
from shoal.memory.measuring import Reading
from tests.fleet.fakes import GIB, spec

SIZE = 10 * GIB
PATIENCE = 40.0


@dataclass
class Rig:
    """A broker, the fleet's side of it, and a device that tests fill."""

    path: Path
    device: Device = field(default_factory=lambda: Device("cuda:0", "cuda", "GPU", SIZE, 0, uuid="GPU-1"))
    told: list[facts.Fact] = field(default_factory=list)
    wanted: bool = True
    patience: float = PATIENCE
    engines: list[Engine] = field(default_factory=list)
    fleet: fleet_broker.Broker = field(init=False)

    def __post_init__(self) -> None:
        self.fleet = fleet_broker.Broker(self.path, self.told.append, self.read, self.patience)

    async def read(self) -> Sequence[Device]:
        return [self.device]

    def measure(self) -> dict[str, Reading]:
        return {"GPU-1": Reading(SIZE, self.device.memory_free)}

    def use(self, used: int) -> None:
        self.device = Device("cuda:0", "cuda", "GPU", SIZE, used, uuid="GPU-1")

    async def make_room(self, needs: int, kv: int | None = None) -> Sequence[Device]:
        return await self.fleet.make_room("i", spec("big"), [self.device], needs, kv=kv, wanted=lambda: self.wanted)

    async def engine(self, leased: int) -> Engine:
        """One that has leased so much, all of it for requests that run."""
        engine = await Engine.join(self.path, leased)
        self.engines.append(engine)
        await until_leased(self, leased)
        return engine

    async def held(self) -> int:
        books = await self.fleet._tool.list()
        return books["GPU-1"].device.held_back if books else 0


@contextlib.asynccontextmanager
async def rig(*, broker: bool = True, patience: float = PATIENCE, headroom: float = 0.0) -> AsyncIterator[Rig]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        path = Path(folder, "memory.sock")
        made = Rig(path, patience=patience)
        server = Broker(path, measure=made.measure, interval=0.01, headroom=headroom)
        if broker:
            await server.start()
        try:
            yield made
        finally:
            for engine in made.engines:
                await engine.close()
            await made.fleet.close()
            if broker:
                await server.stop()


class Engine:
    """An engine that leases what it asks for, and gives nothing back unless told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def join(cls, path: Path, need: int) -> Engine:
        engine = cls(*await asyncio.open_unix_connection(path))
        engine.say(m.Hello(engine="e", device="GPU-1", device_size=SIZE))
        engine.say(m.Ask(need=need, want=need))
        engine.say(m.Report(used=need, backed=need))
        return engine

    def say(self, message: m.ToBroker) -> None:
        self._writer.write(m.frame(message))

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


async def until(made: Rig, so: Callable[[m.DeviceState], bool]) -> None:
    """Wait until the broker's books of the device are so."""
    async with asyncio.timeout(PATIENCE):
        while not ((books := await made.fleet._tool.list()) and so(books["GPU-1"].device)):
            await asyncio.sleep(0.01)


async def until_leased(made: Rig, size: int) -> None:
    await until(made, lambda device: device.leased == size)


async def until_held(made: Rig, size: int) -> None:
    await until(made, lambda device: device.held_back == size)


async def test_what_is_free_is_held_back_until_it_is_let_go() -> None:
    async with rig() as made:
        assert await made.make_room(4 * GIB) == [made.device]
        assert await made.held() == 4 * GIB
        await made.fleet.let_go("other")
        assert await made.held() == 4 * GIB
        await made.fleet.let_go("i")
        await until_held(made, 0)
        assert made.told == []


async def test_a_start_waits_for_what_an_engine_gives_back() -> None:
    async with rig() as made:
        engine = await made.engine(8 * GIB)
        made.use(8 * GIB)
        start = asyncio.create_task(made.make_room(4 * GIB))
        async with asyncio.timeout(PATIENCE):
            while not made.told:
                await asyncio.sleep(0.01)
        (fact,) = made.told
        assert isinstance(fact, facts.Progressed)
        assert fact.progress.phase == "waiting for memory"
        assert not start.done()
        made.use(5 * GIB)
        engine.say(m.Ask(need=5 * GIB, want=5 * GIB))
        engine.say(m.Release(size=3 * GIB))
        assert (await asyncio.wait_for(start, PATIENCE))[0].memory_used == 5 * GIB


async def test_who_came_first_goes_first_though_both_do_not_fit() -> None:
    async with rig() as made:
        await made.engine(3 * GIB)
        made.use(9 * GIB)
        first = asyncio.create_task(made.make_room(4 * GIB))
        await until_held(made, 4 * GIB)
        room = made.fleet.make_room("j", spec("other"), [made.device], 4 * GIB, kv=None, wanted=lambda: True)
        second = asyncio.create_task(room)
        await until_held(made, 8 * GIB)
        assert not first.done()
        made.use(5 * GIB)  # another model has gone to sleep; the engine keeps what its requests need
        assert (await asyncio.wait_for(first, PATIENCE))[0].memory_used == 5 * GIB
        assert not second.done()
        await made.fleet.let_go("i")
        await asyncio.wait_for(second, PATIENCE)


async def test_a_start_that_waits_too_long_says_who_has_the_memory() -> None:
    async with rig(patience=0.3) as made:
        await made.engine(8 * GIB)
        made.use(8 * GIB)
        with pytest.raises(ShoalError) as refused:
            await made.make_room(4 * GIB)
        assert refused.value.code == "too_little_memory"
        for part in ("needs 4.0 GiB on cuda:0", "2.0 GiB of 10.0 GiB are free", "lease 8.0 GiB", "use 8.0 GiB"):
            assert part in refused.value.message
        assert await made.held() == 0


async def test_a_start_that_is_not_wanted_any_more_holds_nothing() -> None:
    async with rig() as made:
        made.use(8 * GIB)
        made.wanted = False
        await made.make_room(4 * GIB)
        assert await made.held() == 0


async def test_what_a_start_has_taken_is_no_longer_held_back() -> None:
    async with rig() as made:
        await made.engine(0)
        await made.make_room(4 * GIB, GIB)
        for used, held in ((0, 3 * GIB), (2 * GIB, GIB), (GIB, GIB), (5 * GIB, 0)):
            made.use(used)
            await until_held(made, held)
        await made.fleet.let_go("i")
        await until_held(made, 0)


async def test_a_start_that_the_headroom_has_little_room_for_can_lease_its_first_cache() -> None:
    async with rig(headroom=0.1) as made:
        engine = await made.engine(0)
        made.use(5 * GIB)
        await until(made, lambda device: device.others == 5 * GIB)
        await made.make_room(5 * GIB, GIB)  # an estimate: it takes 2 GiB
        assert await made.held() == 3 * GIB
        made.use(7 * GIB)
        await until(made, lambda device: device.held_back == GIB)
        engine.say(m.Ask(need=GIB, want=GIB))
        await until(made, lambda device: device.leased == GIB)


async def test_two_that_come_to_one_device_are_held_room_each() -> None:
    async with rig() as made:
        await made.make_room(4 * GIB)
        await made.fleet.make_room("j", spec("other"), [made.device], GIB, kv=None, wanted=lambda: True)
        assert await made.held() == 5 * GIB
        await made.fleet.let_go("j")
        await until_held(made, 4 * GIB)


async def test_without_a_broker_a_fixed_start_goes_on_and_an_elastic_one_says_why_not() -> None:
    async with rig(broker=False, patience=0.3) as made:
        assert await made.make_room(4 * GIB) == [made.device]
        with pytest.raises(ShoalError, match="no memory broker answers") as refused:
            await made.make_room(4 * GIB, GIB)
        assert refused.value.code == "memory_no_broker"
        with pytest.raises(ShoalError) as away:
            await made.fleet.set_terms("i", Terms())
        assert away.value.status == 503


async def test_a_device_that_has_gone_is_full() -> None:
    async with rig(patience=0.1) as made:
        lost = Device("cuda:7", "cuda", "GPU", SIZE, 0)
        with pytest.raises(ShoalError, match="0 B of 10"):
            await made.fleet.make_room("i", spec("big"), [lost], GIB, kv=None, wanted=lambda: True)
