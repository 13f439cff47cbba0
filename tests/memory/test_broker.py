"""The broker and its client over a real socket."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal.memory import messages as m
from shoal.memory.broker import Broker
from shoal.memory.client import Callbacks, Lease, LeaseError, Rank
from shoal.memory.listening import BrokerRunningError
from shoal.memory.measuring import Reading

from .tool import Tool, eventually

MIB = 2**20
GPU = 1024 * MIB


class Engines:
    """Leases that are closed when the test ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.leases: list[Lease] = []

    def start(self, name: str, callbacks: Callbacks | None = None, **rank: int | None) -> Lease:
        lease = Lease(self.path, Rank(name, "gpu", GPU, **rank), callbacks)  # type: ignore[arg-type]
        self.leases.append(lease)
        return lease

    async def joined(self, name: str, callbacks: Callbacks | None = None, **rank: int | None) -> Lease:
        lease = self.start(name, callbacks, **rank)
        await asyncio.to_thread(lease.wait_connected, 30)
        return lease


@pytest.fixture
async def engines(path: Path) -> AsyncIterator[Engines]:
    engines = Engines(path)
    yield engines
    for lease in engines.leases:
        await asyncio.to_thread(lease.close)


async def _has(lease: Lease, size: int) -> None:
    await eventually(lambda: lease.lease == size)


async def _owes(lease: Lease, size: int) -> None:
    await eventually(lambda: lease.excess == size)


async def _leased(broker: Broker, size: int) -> None:
    await eventually(lambda: broker.ledger.devices["gpu"].leased == size)


async def test_an_ask_is_granted_and_a_release_goes_to_the_next(broker: Broker, engines: Engines) -> None:
    grants: list[int] = []
    a = await engines.joined("a", Callbacks(granted=grants.append))
    b = await engines.joined("b")
    a.ask(1000 * MIB)
    await _has(a, 1000 * MIB)
    assert grants == [1000 * MIB]
    a.ask(600 * MIB)
    b.ask(400 * MIB)
    await eventually(lambda: a.excess > 0)
    a.release(a.excess)
    await _has(b, 400 * MIB)
    assert a.lease == 624 * MIB
    broker.ledger.check()


async def test_every_ask_is_answered_and_says_what_is_missing(broker: Broker, engines: Engines) -> None:
    a = await engines.joined("a", ceiling=100 * MIB)
    for need in (0, 50 * MIB, 300 * MIB, 10 * MIB, 300 * MIB):
        a.ask(need)
        assert await asyncio.to_thread(a.wait_answered, 30)
        assert (a.lease, a.missing) == (min(100 * MIB, max(need, a.lease)), max(0, need - 100 * MIB))


async def test_two_race_for_the_last_bytes_and_the_loser_gets_them_later(broker: Broker, engines: Engines) -> None:
    leases = [await engines.joined(name, unit=MIB) for name in "abcd"]
    worst: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        tool = Tool(engines.path)
        while not stop.is_set():
            worst.append(sum(member.lease for member in tool.list()["gpu"][1]))
        tool.close()

    def play(lease: Lease, number: int) -> None:
        for turn in range(60):
            lease.ask((700 if (turn + number) % 2 else 300) * MIB)
            lease.report(used=0)
            lease.wait_answered(30)
            lease.release(lease.excess)
        lease.ask(0)
        lease.wait_answered(30)  # so that no grant is under way
        lease.release(lease.lease)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        await asyncio.gather(*(asyncio.to_thread(play, lease, i) for i, lease in enumerate(leases)))
    finally:
        stop.set()
        await asyncio.to_thread(watcher.join)
    assert max(worst) <= GPU
    await eventually(lambda: broker.ledger.devices["gpu"].leased == sum(lease.lease for lease in leases))
    broker.ledger.check()
    a, b = leases[:2]
    a.report(used=1000 * MIB)
    a.ask(1000 * MIB)
    await _has(a, 1000 * MIB)
    b.ask(100 * MIB)
    await eventually(lambda: b.lease == 24 * MIB and a.excess == 76 * MIB)
    a.release(76 * MIB)
    await _has(b, 100 * MIB)


async def test_two_first_requests_that_do_not_fit_together_run_one_after_the_other(
    broker: Broker, engines: Engines
) -> None:
    a, b = await engines.joined("a"), await engines.joined("b")
    a.ask(600 * MIB, least=600 * MIB)
    await _has(a, 600 * MIB)
    b.ask(700 * MIB, least=700 * MIB)
    # It is heard before a asks again, which would be granted everything else.
    await eventually(lambda: any(m.need == 700 * MIB for m in broker.ledger.devices["gpu"].members.values()))
    a.report(used=600 * MIB, backed=600 * MIB, waiting=1)
    a.ask(1200 * MIB)  # the first runs, and there is another
    await _owes(a, 600 * MIB - (GPU - 700 * MIB))
    a.report(used=0, backed=600 * MIB, waiting=1)
    a.ask(600 * MIB, least=600 * MIB)
    await eventually(lambda: a.excess)
    a.release(a.excess)
    await _has(b, 700 * MIB)
    b.ask(0)
    b.release(700 * MIB)
    await _has(a, 600 * MIB)


async def test_a_closed_lease_is_free_at_once(broker: Broker, engines: Engines) -> None:
    a, b = await engines.joined("a"), await engines.joined("b")
    a.ask(GPU)
    await _has(a, GPU)
    b.ask(500 * MIB)
    await asyncio.to_thread(a.close)
    await _has(b, 500 * MIB)


async def test_terms_change_at_run_time_on_every_rank_and_reach_the_engine(broker: Broker, engines: Engines) -> None:
    told: list[tuple[int, int | None, int]] = []
    ranks = [
        await engines.joined("a", Callbacks(terms=lambda *terms: told.append(terms)), rank=number) for number in (0, 1)
    ]
    for rank in ranks:
        rank.ask(500 * MIB)
        await _has(rank, 500 * MIB)
    tool = await asyncio.to_thread(Tool, engines.path)
    answer = await asyncio.to_thread(tool.say, m.SetTerms(engine="a", ceiling=200 * MIB, floor=100 * MIB, priority=7))
    assert answer == m.Done()
    await eventually(lambda: told == [(100 * MIB, 200 * MIB, 7)] * 2 and all(r.excess == 300 * MIB for r in ranks))
    # Too much for both ranks: neither is changed.
    answer = await asyncio.to_thread(tool.say, m.SetTerms(engine="a", floor=900 * MIB, unlimited=True))
    assert isinstance(answer, m.Error)
    assert answer.code == "floors_above_budget"
    assert "900.0 MiB" in answer.message
    assert {member.terms.floor for member in broker.ledger.devices["gpu"].members.values()} == {100 * MIB}
    # Up again, to any value.
    assert await asyncio.to_thread(tool.say, m.SetTerms(engine="a", unlimited=True)) == m.Done()
    ranks[0].ask(900 * MIB)
    await eventually(lambda: ranks[0].lease == 524 * MIB)
    answer = await asyncio.to_thread(tool.say, m.SetTerms(engine="nobody", floor=1))
    assert answer == m.Error(code="no_engine", message="no engine nobody is connected; connected: a")
    tool.close()


async def test_an_engine_knows_the_most_it_can_ever_have(broker: Broker, engines: Engines) -> None:
    a = await engines.joined("a", ceiling=900 * MIB)
    await eventually(lambda: a.most is None)
    a.ask(2 * GPU)
    await _has(a, 900 * MIB)
    assert a.most == 900 * MIB
    await engines.joined("b", floor=300 * MIB)
    await eventually(lambda: a.most == 724 * MIB)  # told without asking, as it waits for more
    tool = await asyncio.to_thread(Tool, engines.path)
    assert await asyncio.to_thread(tool.say, m.SetBudget(device="gpu", limit=500 * MIB)) == m.Done()
    await eventually(lambda: a.most == 200 * MIB)
    assert await asyncio.to_thread(tool.say, m.SetBudget(device="gpu", unlimited=True)) == m.Done()
    await eventually(lambda: a.most == 724 * MIB)
    tool.close()
    await broker.stop()
    await eventually(lambda: not a.connected)
    await eventually(lambda: a.most is None)


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
    await _has(a, 724 * MIB)
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
    await _has(a, 724 * MIB)
    too_much = await asyncio.to_thread(tool.say, m.Reserve(device="gpu", size=2 * GPU))
    assert isinstance(too_much, m.Error)
    assert "2,048.0 MiB cannot be held back on device gpu, which has 1,024.0 MiB" in too_much.message
    tool.close()
    await _has(a, 824 * MIB)
    assert await asyncio.to_thread(other.say, m.Reserve(device="gpu", size=0)) == m.Done()
    await _has(a, GPU)
    other.close()
    broker.ledger.check()


async def test_trim_and_budget(broker: Broker, engines: Engines) -> None:
    recalls: list[tuple[int, str]] = []
    a = await engines.joined("a", Callbacks(recalled=lambda lease, reason: recalls.append((lease, reason))))
    a.ask(800 * MIB)
    await _has(a, 800 * MIB)
    a.report(used=100 * MIB, cached=(0, 700 * MIB), backed=800 * MIB)
    a.ask(100 * MIB)
    tool = await asyncio.to_thread(Tool, engines.path)
    await asyncio.to_thread(a.wait_answered, 30)
    await asyncio.sleep(0.2)
    assert await asyncio.to_thread(tool.say, m.Trim(engine="a", lease=300 * MIB)) == m.Done()
    await eventually(lambda: recalls == [(300 * MIB, "trim")])
    a.release(a.excess)
    await _leased(broker, 300 * MIB)
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
        await _has(a, 800 * MIB)
        a.report(used=0, cached=(800 * MIB,), backed=800 * MIB)
        assert await asyncio.to_thread(tool.say, m.Trim(engine="a", lease=size * MIB)) == m.Done()
        await _owes(a, (800 - size) * MIB)
        a.ask(0, 801 * MIB)
        a.release(a.excess)
        assert await asyncio.to_thread(a.wait_answered, 30)
        await _leased(broker, size * MIB)
        await asyncio.to_thread(tool.list)
        assert a.lease == size * MIB
    # What is asked after the release counts, though both may be told at once.
    assert await asyncio.to_thread(tool.say, m.Trim(engine="a", lease=50 * MIB)) == m.Done()
    await eventually(lambda: a.excess == 150 * MIB)
    a.release(a.excess)
    a.ask(0, 70 * MIB)
    await _has(a, 70 * MIB)
    tool.close()


async def test_a_trim_right_after_a_fall_in_need_comes_when_the_fall_counts(broker: Broker, engines: Engines) -> None:
    a = await engines.joined("a")
    a.ask(800 * MIB)
    await _has(a, 800 * MIB)
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
        await _has(a, 824 * MIB)
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
        await _has(a, 924 * MIB)
    finally:
        for lease in engines.leases:
            await asyncio.to_thread(lease.close)
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
        await _has(a, GPU)
    finally:
        for lease in engines.leases:
            await asyncio.to_thread(lease.close)
        await broker.stop()


async def test_refusals_say_why_and_leave_the_others_alone(broker: Broker, engines: Engines) -> None:
    a = await engines.joined("a", floor=600 * MIB)
    for lease, words in (
        (engines.start("b", floor=500 * MIB), "more than the budget of 1,024.0 MiB"),
        (engines.start("c", floor=2 * GPU), "more than device gpu has"),
    ):
        with pytest.raises(LeaseError, match=words):
            await asyncio.to_thread(lease.wait_connected, 30)
    # Room is made, and the one that waits for it gets in by itself.
    await asyncio.to_thread(a.close)
    await eventually(lambda: engines.leases[1].connected)


async def test_a_sleeper_comes_back_though_its_floor_was_given_away(broker: Broker, engines: Engines) -> None:
    a = await engines.joined("a", floor=600 * MIB)
    await asyncio.to_thread(a.close)
    b = await engines.joined("b", floor=700 * MIB)
    back = Lease(engines.path, Rank("a", "gpu", GPU, floor=600 * MIB), returning=True)
    engines.leases.append(back)
    await asyncio.to_thread(back.wait_connected, 30)
    tool = await asyncio.to_thread(Tool, engines.path)

    def floors() -> dict[str, tuple[int, int]]:
        return {member.engine: (member.floor // MIB, member.promised // MIB) for member in tool.list()["gpu"][1]}

    assert await asyncio.to_thread(floors) == {"a": (324, 600), "b": (700, 700)}
    # A change of other terms leaves the promise as it is, and the engine says it to the next broker.
    assert await asyncio.to_thread(tool.say, m.SetTerms(engine="a", priority=7)) == m.Done()
    await eventually(lambda: back.terms == (600 * MIB, None, 7))
    await asyncio.to_thread(b.close)
    await eventually(lambda: broker.ledger.devices["gpu"].floors == 600 * MIB)
    tool.close()


async def test_the_name_of_a_rank_belongs_to_one_process_which_may_connect_anew(
    broker: Broker, engines: Engines
) -> None:
    a = await engines.joined("a")
    a.ask(100 * MIB)
    await _has(a, 100 * MIB)
    # The same process, as after a connection that broke: the newcomer takes the place.
    tool = await asyncio.to_thread(Tool, engines.path)
    hello = m.Hello(engine="a", device="gpu", device_size=GPU, held=60 * MIB)
    assert await asyncio.to_thread(tool.say, hello) == m.Welcome(lease=60 * MIB, floor=0, ceiling=None, priority=100)
    assert broker.ledger.devices["gpu"].leased <= 160 * MIB
    tool.close()


async def test_watch_tells_of_changes_and_only_of_changes(broker: Broker, engines: Engines) -> None:
    tool = await asyncio.to_thread(Tool, engines.path)
    assert await asyncio.to_thread(tool.say, m.Watch(interval=0.05)) == m.Listing(device=None)
    a = await engines.joined("a")
    a.ask(100 * MIB)

    def until_leased() -> m.Listing:
        while True:
            listing = tool.hear()
            assert isinstance(listing, m.Listing)
            if listing.members and listing.members[0].lease == 100 * MIB:
                return listing

    listing = await asyncio.to_thread(until_leased)
    assert listing.members[0].pid == os.getpid()
    assert listing.device is not None
    assert listing.device.leased == 100 * MIB
    tool.socket.settimeout(0.4)
    with pytest.raises(TimeoutError):
        await asyncio.to_thread(lambda: [tool.hear() for _ in range(3)])
    tool.close()


async def test_many_members_are_listed_in_several_frames(broker: Broker, engines: Engines) -> None:
    names = [f"engine-{number}" for number in range(m.MEMBERS_A_FRAME + 6)]
    tools = []
    for name in names:
        tools.append(await asyncio.to_thread(Tool, engines.path))
        await asyncio.to_thread(tools[-1].say, m.Hello(engine=name, device="gpu", device_size=GPU))
    _, members = await asyncio.to_thread(lambda: tools[0].list()["gpu"])
    assert [member.engine for member in members] == names
    for tool in tools:
        tool.close()


async def test_the_socket_is_for_its_user_and_goes_with_the_broker(path: Path) -> None:
    broker = Broker(path)
    await broker.start()
    mode = path.lstat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    with pytest.raises(BrokerRunningError, match="a memory broker already runs"):
        await Broker(path).start()
    with socket.socket(socket.AF_UNIX) as client:  # the first one is unharmed
        client.connect(str(path))
    await broker.stop()
    assert not path.exists()


async def test_what_is_no_dead_broker_is_not_replaced(path: Path) -> None:
    path.write_text("a letter")
    with pytest.raises(OSError, match="is no socket"):
        await Broker(path).start()
    assert path.read_text() == "a letter"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(BrokerRunningError, match="another program"):
            await Broker(path).start()
    broker = Broker(path)  # the other program is gone and its socket is stale
    await broker.start()
    await broker.stop()
    with pytest.raises(OSError, match="longer than the 107 bytes"):
        await Broker(path.with_name("x" * 120)).start()


async def test_hot_path_calls_neither_wait_nor_raise_without_a_broker(path: Path) -> None:
    lease = Lease(path, Rank("a", "gpu", GPU), held=10 * MIB)
    start = time.monotonic()
    for _ in range(1000):
        lease.ask(5)
        lease.report(used=1)
        lease.release(1)
    assert time.monotonic() - start < 5
    assert lease.lease == 10 * MIB - 1000
    with pytest.raises(LeaseError, match="no memory broker answers"):
        await asyncio.to_thread(lease.wait_connected, 0.2)
    await asyncio.to_thread(lease.close)
    lease.ask(5)
    lease.release(5)
    lease.close()


async def test_a_callback_that_raises_harms_nothing(broker: Broker, engines: Engines) -> None:
    def fail(size: int) -> None:
        raise RuntimeError("an engine's mistake")

    a = await engines.joined("a", Callbacks(granted=fail))
    a.ask(MIB)
    await _has(a, MIB)
    a.ask(2 * MIB)
    await _has(a, 2 * MIB)
    assert a.connected
