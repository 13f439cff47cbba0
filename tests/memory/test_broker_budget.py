"""What there is to lease changes: memory that is held back, trimmed, limited, or used by others."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

from shoal.memory import messages as m
from shoal.memory.broker import Broker
from shoal.memory.client import Callbacks
from shoal.memory.measuring import Reading

from .engines import GPU, MIB, Engines, has, leased, owes
from .tool import Tool, eventually


async def test_memory_held_back_is_given_back_by_engines_and_free_with_the_connection(
    broker: Broker, engines: Engines
) -> None:
    tool, other = await asyncio.to_thread(Tool, engines.path), await asyncio.to_thread(Tool, engines.path)
    # Before any engine has named the device its size has to be said.
    answer = await asyncio.to_thread(tool.say, m.Reserve(device="gpu", size=300 * MIB))
    assert isinstance(answer, m.Error)
    assert (answer.code, answer.fatal) == ("no_device", False)
    assert await asyncio.to_thread(tool.say, m.Reserve(device="gpu", size=300 * MIB, device_size=GPU)) == m.Done()
    recalls: list[tuple[int, str]] = []
    a = await engines.joined("a", Callbacks(recalled=lambda lease, reason: recalls.append((lease, reason))))
    a.ask(0, GPU)
    await has(a, 724 * MIB)
    a.report(used=0, cached=(724 * MIB,), backed=724 * MIB)
    assert await asyncio.to_thread(other.say, m.Reserve(device="gpu", size=200 * MIB)) == m.Done()
    await eventually(lambda: recalls == [(524 * MIB, "budget")])
    device, members = await asyncio.to_thread(lambda: other.list()["gpu"])
    assert (device.held_back, device.budget, device.owed) == (500 * MIB, 524 * MIB, 200 * MIB)
    assert (members[0].want, members[0].cached_by_age) == (GPU, (724 * MIB,))
    a.release(a.excess)
    a.ask(0, GPU)
    # Another one on the same connection takes the place of the first, and none of it is left at the end.
    assert await asyncio.to_thread(tool.say, m.Reserve(device="gpu", size=100 * MIB)) == m.Done()
    await has(a, 724 * MIB)
    too_much = await asyncio.to_thread(tool.say, m.Reserve(device="gpu", size=2 * GPU))
    assert isinstance(too_much, m.Error)
    assert "2,048.0 MiB cannot be held back on device gpu, which has 1,024.0 MiB" in too_much.message
    tool.close()
    await has(a, 824 * MIB)
    assert await asyncio.to_thread(other.say, m.Reserve(device="gpu", size=0)) == m.Done()
    await has(a, GPU)
    other.close()
    broker.ledger.check()


async def test_trim_and_budget(broker: Broker, engines: Engines) -> None:
    recalls: list[tuple[int, str]] = []
    a = await engines.joined("a", Callbacks(recalled=lambda lease, reason: recalls.append((lease, reason))))
    a.ask(800 * MIB)
    await has(a, 800 * MIB)
    a.report(used=100 * MIB, cached=(0, 700 * MIB), backed=800 * MIB)
    a.ask(100 * MIB)
    tool = await asyncio.to_thread(Tool, engines.path)
    await asyncio.to_thread(a.wait_answered, 30)
    await asyncio.sleep(0.2)
    assert await asyncio.to_thread(tool.say, m.Trim(engine="a", lease=300 * MIB)) == m.Done()
    await eventually(lambda: recalls == [(300 * MIB, "trim")])
    a.release(a.excess)
    await leased(broker, 300 * MIB)
    assert await asyncio.to_thread(tool.say, m.SetBudget(device="gpu", limit=250 * MIB)) == m.Done()
    await eventually(lambda: recalls[-1] == (250 * MIB, "budget"))
    device, _ = await asyncio.to_thread(lambda: tool.list()["gpu"])
    assert (device.budget, device.leased, device.owed) == (250 * MIB, 300 * MIB, 50 * MIB)
    assert await asyncio.to_thread(tool.say, m.SetBudget(device="gpu", unlimited=True)) == m.Done()
    await eventually(lambda: a.excess == 0)
    assert isinstance(await asyncio.to_thread(tool.say, m.SetBudget(device="moon", limit=1)), m.Error)
    tool.close()


async def test_a_trim_stays_done_whether_the_engine_asks_anew_before_or_after_it_gives_back(
    broker: Broker, engines: Engines
) -> None:
    a = await engines.joined("a")
    tool = await asyncio.to_thread(Tool, engines.path)
    for size in (300, 200):
        a.ask(0, 800 * MIB)
        await has(a, 800 * MIB)
        a.report(used=0, cached=(800 * MIB,), backed=800 * MIB)
        assert await asyncio.to_thread(tool.say, m.Trim(engine="a", lease=size * MIB)) == m.Done()
        await owes(a, (800 - size) * MIB)
        a.ask(0, 801 * MIB)
        a.release(a.excess)
        assert await asyncio.to_thread(a.wait_answered, 30)
        await leased(broker, size * MIB)
        await asyncio.to_thread(tool.list)
        assert a.lease == size * MIB
    # What is asked after the release counts, though both may be told at once.
    assert await asyncio.to_thread(tool.say, m.Trim(engine="a", lease=50 * MIB)) == m.Done()
    await eventually(lambda: a.excess == 150 * MIB)
    a.release(a.excess)
    a.ask(0, 70 * MIB)
    await has(a, 70 * MIB)
    tool.close()


async def test_a_trim_right_after_a_fall_in_need_comes_when_the_fall_counts(broker: Broker, engines: Engines) -> None:
    a = await engines.joined("a")
    a.ask(800 * MIB)
    await has(a, 800 * MIB)
    tool = await asyncio.to_thread(Tool, engines.path)
    a.ask(100 * MIB)
    assert await asyncio.to_thread(a.wait_answered, 30)
    assert await asyncio.to_thread(tool.say, m.Trim(engine="a", lease=0)) == m.Done()
    await eventually(lambda: a.excess == 700 * MIB)
    tool.close()


async def test_the_budget_follows_what_others_use(path: Path) -> None:
    free = GPU
    backed = 0
    measured = threading.Event()

    def measure() -> dict[str, Reading]:
        measured.set()
        return {"gpu": Reading(GPU, free - backed)}

    broker = Broker(path, measure=measure, interval=0.02)
    await broker.start()
    engines = Engines(path)
    try:
        await asyncio.sleep(0.1)
        assert not measured.is_set()  # nobody to measure for
        free = GPU - 200 * MIB
        recalls: list[tuple[int, str]] = []
        a = await engines.joined("a", Callbacks(recalled=lambda lease, reason: recalls.append((lease, reason))))
        a.ask(GPU)
        await has(a, 824 * MIB)
        backed = 824 * MIB
        a.report(used=0, cached=(backed,), backed=backed)
        await asyncio.sleep(0.2)
        assert recalls == []
        free = GPU - 500 * MIB  # a neighbour asks the driver for 300 MiB, and the books follow
        backed = 524 * MIB
        a.report(used=0, cached=(backed,), backed=backed)
        await eventually(lambda: recalls and recalls[-1] == (524 * MIB, "budget"))
        a.release(300 * MIB)
        free = GPU - 100 * MIB
        await has(a, 924 * MIB)
    finally:
        await asyncio.to_thread(engines.close)
        await broker.stop()


async def test_an_engine_that_comes_back_with_memory_makes_none_up(path: Path) -> None:
    weights, backed = 500 * MIB, 100 * MIB
    measures = 0

    def measure() -> dict[str, Reading]:
        nonlocal measures
        measures += 1
        return {"gpu": Reading(GPU, GPU - weights - backed)}

    broker = Broker(path, measure=measure, interval=0.02)
    await broker.start()
    worst: list[int] = []
    recalls: list[m.FromBroker] = []

    def come_back(held: int) -> Tool:
        tool = Tool(path)
        assert isinstance(tool.say(m.Hello(engine="a", device="gpu", device_size=GPU, held=held)), m.Welcome)
        seen = measures
        deadline = time.monotonic() + 30
        while measures < seen + 3:  # readings before it says what of its lease it has really backed
            assert time.monotonic() < deadline
            time.sleep(0.005)
        tool.socket.sendall(m.frame(m.Report(used=0, backed=backed)))
        tool.socket.sendall(m.frame(m.Ask(need=0, want=GPU, seq=1)))
        while not isinstance(answer := tool.hear(), m.Grant) or not answer.size:
            if isinstance(answer, m.Recall):
                recalls.append(answer)
        assert answer.size == GPU - weights - held
        worst.append(broker.ledger.devices["gpu"].budget)
        return tool

    bystander = await asyncio.to_thread(Tool, path)
    try:
        await asyncio.to_thread(bystander.say, m.Hello(engine="b", device="gpu", device_size=GPU))
        for _ in range(3):
            tool = await asyncio.to_thread(come_back, 200 * MIB)
            tool.close()
            await eventually(lambda: len(broker.ledger.devices["gpu"].members) == 1)
        assert max(worst) <= GPU - weights
        assert not recalls
    finally:
        bystander.close()
        await broker.stop()


async def test_a_measurement_that_fails_or_knows_no_such_device_stops_nobody(path: Path) -> None:
    calls: list[int] = []

    def measure() -> dict[str, Reading]:
        calls.append(1)
        if len(calls) % 2:
            raise OSError("no driver")
        return {"other": Reading(1, 1)}

    broker = Broker(path, measure=measure, interval=0.02)
    await broker.start()
    engines = Engines(path)
    try:
        a = await engines.joined("a")
        a.ask(GPU)
        await has(a, GPU)
    finally:
        await asyncio.to_thread(engines.close)
        await broker.stop()
