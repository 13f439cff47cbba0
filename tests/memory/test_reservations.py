"""Memory that is held back for what arrives: never leased meanwhile, and never counted twice."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.memory import messages as m
from shoal.memory.accounts import READINGS
from shoal.memory.broker import Broker
from shoal.memory.client import Callbacks
from shoal.memory.ledger import Device, Ledger, Terms
from shoal.memory.measuring import Reading
from shoal.memory.tools import BrokerTool

from .engines import GPU, MIB, Engines, has
from .tool import Tool, eventually

SIZE = 1000


def _books(others: int = 0) -> tuple[Ledger, Device]:
    """A device of 1,000 bytes with a member, of which `others` use so much."""
    ledger = Ledger()
    device = ledger.add_device("gpu", SIZE)
    ledger.join(device, "a", 0, Terms())
    _read(ledger, device, others)
    return ledger, device


def _read(ledger: Ledger, device: Device, others: int) -> None:
    ledger.observe(device, SIZE, SIZE - others)
    ledger.settle(device)


@given(
    others=st.integers(0, 500),
    size=st.integers(1, 400),
    steps=st.lists(st.integers(0, 120), max_size=9),
    late=st.booleans(),
)
def test_what_arrives_counts_once_at_every_moment(others: int, size: int, steps: list[int], late: bool) -> None:
    """`late`: each reading was under way before what it should show."""
    ledger, device = _books(others)
    ledger.hold_back(device, "x", size, arriving=True)
    taken = before = 0
    for step in steps:
        before, taken = taken, min(size, taken + step)
        _read(ledger, device, others + (before if late else taken))
        assert device.others + device.held_back == others + size, "counted twice, or not at all"
    ledger.arrived(device, "x")
    for number in range(READINGS + 1):
        _read(ledger, device, others + (before if late and number == 0 else taken))
        assert device.others + device.held_back >= others + taken, "what was taken would be leased"
    assert (device.others, device.held_back) == (others + taken, 0)
    ledger.check()


def test_what_comes_and_goes_while_something_arrives_counts_once() -> None:
    ledger, device = _books(100)
    ledger.hold_back(device, "x", 300, arriving=True)
    for peak in (250, 100, 250, 100, 250):
        for _ in range(READINGS):
            _read(ledger, device, peak)
        assert device.held_back == 150
    for _ in range(READINGS):
        _read(ledger, device, 500)
    assert device.held_back == 0
    _read(ledger, device, 200)
    ledger.hold_back(device, "x", 100, arriving=True)  # what came down before is not owed by what comes now
    for _ in range(READINGS):
        _read(ledger, device, 270)
    assert device.held_back == 30


@given(seen=st.booleans(), ended=st.booleans())
def test_what_gives_way_for_an_arrival_is_not_owed_by_it(seen: bool, ended: bool) -> None:
    """A model falls asleep for one that starts, while the start before it is still being measured (`ended`: it is
    not), and either before the room is held back (`seen`), or the first measurement after that shows it."""
    ledger, device = _books(300)
    ledger.hold_back(device, "before", 300, arriving=True)
    for others in (600, 600):
        _read(ledger, device, others)
    ledger.arrived(device, "before")
    for _ in range((READINGS + 1) * ended):
        _read(ledger, device, 600)
    assert ("before" in device.reservations) is not ended
    if seen:
        _read(ledger, device, 350)
    ledger.hold_back(device, "x", 250, arriving=True)
    for others in (350, 600, 600):
        _read(ledger, device, others)
    assert (device.others, device.held_back) == (600, 0)
    ledger.check()


def test_two_that_arrive_share_what_is_measured_and_one_that_only_waits_has_no_part_in_it() -> None:
    ledger, device = _books()
    ledger.hold_back(device, "waits", 50)
    ledger.hold_back(device, "x", 100, arriving=True)
    ledger.hold_back(device, "y", 200, arriving=True)
    for _ in range(READINGS):
        _read(ledger, device, 150)
    assert device.held_back == 50 + 150
    ledger.hold_back(device, "y", 0)
    assert device.held_back == 50


def test_what_waited_and_never_came_ends_at_once_and_so_does_what_nobody_can_measure() -> None:
    ledger, device = _books()
    ledger.hold_back(device, "x", 100)
    ledger.arrived(device, "x")
    assert device.held_back == 0
    ledger.arrived(device, "nobody")
    unmeasured = ledger.add_device("moon", SIZE)
    ledger.join(unmeasured, "a", 0, Terms())
    ledger.hold_back(unmeasured, "x", 100, arriving=True)
    ledger.arrived(unmeasured, "x")
    assert unmeasured.held_back == 0


def test_what_has_arrived_ends_though_the_last_member_is_gone() -> None:
    ledger, device = _books()
    ledger.hold_back(device, "over", 100, arriving=True)
    ledger.hold_back(device, "comes", 10, arriving=True)
    ledger.arrived(device, "over")
    ledger.leave(next(iter(device.members.values())))
    assert device.held_back == 110
    assert device.watched
    for _ in range(READINGS + 1):
        _read(ledger, device, 0)
    assert device.held_back == 10
    ledger.hold_back(device, "comes", 0)
    assert not device.watched


class Card:
    """A device that is measured when the test says so, and holds what it is told."""

    def __init__(self) -> None:
        self.free = GPU
        self.readings = 0
        self.open = threading.Event()
        self.open.set()

    def measure(self) -> dict[str, Reading]:
        assert self.open.wait(30)
        self.readings += 1
        return {"gpu": Reading(GPU, self.free)}

    async def measured(self, times: int = READINGS) -> None:
        goal = self.readings + times + 1
        await eventually(lambda: self.readings >= goal)


@contextmanager
def _shut(card: Card) -> Iterator[None]:
    card.open.clear()
    try:
        yield
    finally:
        card.open.set()


@asynccontextmanager
async def _measuring(path: Path, interval: float) -> AsyncIterator[tuple[Card, Broker, Engines]]:
    """A card, and a broker that measures it."""
    card, engines = Card(), Engines(path)
    broker = Broker(path, measure=card.measure, interval=interval)
    await broker.start()
    try:
        yield card, broker, engines
    finally:
        card.open.set()
        await asyncio.to_thread(engines.close)
        await broker.stop()


@pytest.mark.parametrize("interval", [0.01, 30.0])
async def test_what_was_just_given_back_is_seen_before_anything_is_asked_back(path: Path, interval: float) -> None:
    recalls: list[int] = []
    async with _measuring(path, interval) as (card, broker, engines):
        card.free = GPU - 700 * MIB
        a = await engines.joined("a", Callbacks(recalled=lambda lease, _: recalls.append(lease)))
        a.ask(0, GPU)
        await has(a, 324 * MIB)
        with _shut(card):
            card.free = 0
            a.report(used=0, cached=(324 * MIB,), backed=324 * MIB)
            await eventually(lambda: all(one.backed for one in broker.ledger.devices["gpu"].members.values()))
        tool = await asyncio.to_thread(BrokerTool, path)
        with _shut(card):
            # A model of 600 MiB has fallen asleep, and another one is to have its place.
            card.free = GPU - (100 + 324) * MIB
            reserved = asyncio.create_task(asyncio.to_thread(tool.reserve, "gpu", 600 * MIB, holder="i"))
            await eventually(lambda: broker.ledger.devices["gpu"].held_back)
            assert not reserved.done()
        await asyncio.wait_for(reserved, 30)
        books = await asyncio.to_thread(tool.list)
        assert (books["gpu"].device.budget, books["gpu"].device.owed) == (324 * MIB, 0)
        assert recalls == []
        tool.close()


async def test_a_hungry_engine_gets_nothing_of_what_another_one_is_taking(path: Path) -> None:
    async with _measuring(path, 0.01) as (card, broker, engines):
        a = await engines.joined("a")
        tool = await asyncio.to_thread(BrokerTool, path)
        await asyncio.to_thread(tool.reserve, "gpu", 600 * MIB, holder="i")
        await asyncio.to_thread(tool.reserve, "gpu", 600 * MIB, holder="i", arriving=True)
        a.ask(GPU)
        await has(a, 424 * MIB)
        for taken in (200, 600):
            card.free = GPU - taken * MIB
            await card.measured()
            assert a.lease == 424 * MIB
        card.free = GPU - 500 * MIB  # in the end it takes less, and all that it took was seen
        await asyncio.to_thread(tool.reserve, "gpu", 0, holder="i")
        await has(a, 524 * MIB)
        broker.ledger.check()
        tool.close()


async def test_the_first_model_on_a_device_has_its_cache_though_nobody_leased_there_before(path: Path) -> None:
    async with _measuring(path, 0.01) as (card, broker, engines):
        card.free = GPU - 100 * MIB
        tool = await asyncio.to_thread(BrokerTool, path)
        for arriving in (False, True):
            await asyncio.to_thread(tool.reserve, "gpu", 600 * MIB, GPU, holder="i", arriving=arriving)
        assert card.readings >= 1
        for taken in (300, 700):
            card.free = GPU - taken * MIB
            await card.measured()
        a = await engines.joined("a")
        a.ask(GPU)
        await has(a, 324 * MIB)
        await asyncio.to_thread(tool.reserve, "gpu", 0, holder="i")
        await asyncio.to_thread(engines.close)
        await eventually(lambda: not broker.ledger.devices["gpu"].watched)
        tool.close()


async def test_devices_are_measured_as_long_as_somebody_depends_on_it(path: Path) -> None:
    async with _measuring(path, 0.01) as (card, broker, engines):
        tool = await asyncio.to_thread(BrokerTool, path)
        await asyncio.to_thread(tool.reserve, "gpu", MIB, GPU)
        await card.measured(20)
        await asyncio.to_thread(tool.reserve, "gpu", MIB, GPU, arriving=True)
        await asyncio.to_thread(tool.reserve, "gpu", 0)
        follower = broker._follower
        assert follower is not None
        await eventually(lambda: not follower._occupied.is_set())
        card.free = GPU - 500 * MIB
        a = await engines.joined("a")
        a.ask(GPU)
        await has(a, 524 * MIB)
        assert broker.ledger.devices["gpu"].others == 500 * MIB, "the first reading stands for itself"
        tool.close()


async def test_who_waits_for_a_measurement_is_answered_when_the_last_engine_goes(path: Path) -> None:
    async with _measuring(path, 30.0) as (card, broker, engines):
        await engines.joined("a")
        tool, other = await asyncio.to_thread(BrokerTool, path), await asyncio.to_thread(Tool, path)
        with _shut(card):
            reserved = asyncio.create_task(asyncio.to_thread(tool.reserve, "gpu", MIB))
            other.socket.sendall(m.frame(m.Reserve(device="gpu", size=MIB)))
            await eventually(lambda: broker.ledger.devices["gpu"].held_back == 2 * MIB)
            other.close()
            await eventually(lambda: broker.ledger.devices["gpu"].held_back == MIB)
            await asyncio.to_thread(engines.close)
            await asyncio.wait_for(reserved, 30)
        tool.close()


def test_a_reservation_of_an_earlier_version_is_understood() -> None:
    found = m.to_broker(b'{"v": 1, "type": "reserve", "device": "gpu", "size": 5}')
    assert found == m.Reserve(device="gpu", size=5)
