"""The broker and its client over a real socket."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import threading
import time
from pathlib import Path

import pytest

from shoal.memory import messages as m
from shoal.memory.broker import Broker
from shoal.memory.client import Callbacks, Lease, LeaseError, Rank
from shoal.memory.listening import BrokerRunningError

from .engines import GPU, MIB, Engines, has, owes
from .tool import Tool, eventually


async def test_an_ask_is_granted_and_a_release_goes_to_the_next(broker: Broker, engines: Engines) -> None:
    grants: list[int] = []
    a = await engines.joined("a", Callbacks(granted=grants.append))
    b = await engines.joined("b")
    a.ask(1000 * MIB)
    await has(a, 1000 * MIB)
    assert grants == [1000 * MIB]
    a.ask(600 * MIB)
    b.ask(400 * MIB)
    await eventually(lambda: a.excess > 0)
    a.release(a.excess)
    await has(b, 400 * MIB)
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
    await has(a, 1000 * MIB)
    b.ask(100 * MIB)
    await eventually(lambda: b.lease == 24 * MIB and a.excess == 76 * MIB)
    a.release(76 * MIB)
    await has(b, 100 * MIB)


async def test_two_first_requests_that_do_not_fit_together_run_one_after_the_other(
    broker: Broker, engines: Engines
) -> None:
    a, b = await engines.joined("a"), await engines.joined("b")
    a.ask(600 * MIB, least=600 * MIB)
    await has(a, 600 * MIB)
    b.ask(700 * MIB, least=700 * MIB)
    # It is heard before a asks again, which would be granted everything else.
    await eventually(lambda: any(m.need == 700 * MIB for m in broker.ledger.devices["gpu"].members.values()))
    a.report(used=600 * MIB, backed=600 * MIB, waiting=1)
    a.ask(1200 * MIB)  # the first runs, and there is another
    await owes(a, 600 * MIB - (GPU - 700 * MIB))
    a.report(used=0, backed=600 * MIB, waiting=1)
    a.ask(600 * MIB, least=600 * MIB)
    await eventually(lambda: a.excess)
    a.release(a.excess)
    await has(b, 700 * MIB)
    b.ask(0)
    b.release(700 * MIB)
    await has(a, 600 * MIB)


async def test_a_closed_lease_is_free_at_once(broker: Broker, engines: Engines) -> None:
    a, b = await engines.joined("a"), await engines.joined("b")
    a.ask(GPU)
    await has(a, GPU)
    b.ask(500 * MIB)
    await asyncio.to_thread(a.close)
    await has(b, 500 * MIB)


async def test_terms_change_at_run_time_on_every_rank_and_reach_the_engine(broker: Broker, engines: Engines) -> None:
    told: list[tuple[int, int | None, int]] = []
    ranks = [
        await engines.joined("a", Callbacks(terms=lambda *terms: told.append(terms)), rank=number) for number in (0, 1)
    ]
    for rank in ranks:
        rank.ask(500 * MIB)
        await has(rank, 500 * MIB)
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
    await has(a, 900 * MIB)
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
    await has(a, 100 * MIB)
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
    await has(a, MIB)
    a.ask(2 * MIB)
    await has(a, 2 * MIB)
    assert a.connected
