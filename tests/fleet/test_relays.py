"""The controller's end of the relay socket, with relays on a real one."""

from __future__ import annotations

import asyncio

import pytest

from shoal.errors import ShoalError
from shoal.fleet import facts
from shoal.messages import (
    MAX_LINE,
    Cancelled,
    CancelRequest,
    ListRequests,
    RelayReport,
    RequestList,
    RoutingTable,
    Usage,
    UsageReport,
    UsageStored,
    Wanted,
)
from tests.fleet.relay import switchboard, view

USAGE = UsageReport("a", 1, (Usage("k", "m", "2026-01-31", 1, 2, 3, 4.0),))
SOON = 0.2
"""Patience for what will not come."""


async def test_tables_go_to_those_who_are_there_and_those_who_come() -> None:
    async with switchboard() as board:
        first = await board.connect("a")
        board.relays.route(RoutingTable("e", 1))
        assert (await first.get(RoutingTable)).version == 1
        second = await board.connect("b")
        assert (await second.get(RoutingTable)).version == 1
        board.relays.route(RoutingTable("e", 2))
        for relay in (first, second):
            assert (await relay.get(RoutingTable)).version == 2
        assert board.relays.connected == 2


async def test_what_relays_say_becomes_facts_of_their_connection() -> None:
    async with switchboard() as board:
        relay = await board.connect("a")
        relay.send(Wanted("m"))
        wants = await board.fact(facts.RelayWants)
        assert wants.model == "m"
        relay.send(RelayReport("a", "e", 2, {"m-0": 1}))
        reported = await board.fact(facts.RelayReported)
        assert reported.report.outstanding == {"m-0": 1}
        await relay.close()
        gone = await board.fact(facts.RelayGone)
        assert gone.connection == reported.connection == wants.connection
        assert board.relays.connected == 0


@pytest.mark.parametrize(
    "nonsense",
    [
        b"nonsense\n",
        b'{"type":"something new"}\n',
        b'{"type":"report","relay":"a","epoch":"","version":1,"outstanding":{},"protocol":999}\n',
        b"x" * (MAX_LINE + 2) + b"\n",
    ],
    ids=["no JSON", "a type unknown here", "another protocol", "too long"],
)
async def test_a_relay_that_cannot_be_understood_is_cut_off_and_others_are_not(nonsense: bytes) -> None:
    async with switchboard() as board:
        bad = await board.connect("bad")
        await board.connect("good", [view("r")])
        bad.send(nonsense)
        await board.fact(facts.RelayGone)
        await bad.ended()
        assert [request.id for request in (await board.relays.requests()).requests] == ["r"]


async def test_requests_of_all_relays_the_oldest_first() -> None:
    async with switchboard() as board:
        await board.connect("a", [view("young", age=1.0), view("old", age=9.0)])
        await board.connect("b", [view("middle", age=5.0)])
        found = await board.relays.requests()
        assert [request.id for request in found.requests] == ["old", "middle", "young"]
        assert found.silent == []


async def test_without_relays_there_are_no_requests() -> None:
    async with switchboard() as board:
        found = await board.relays.requests()
        assert (found.requests, found.silent) == ([], [])
        assert not await board.relays.cancel("r")


async def test_a_relay_that_does_not_answer_is_named() -> None:
    async with switchboard(patience=SOON) as board:
        await board.connect("a", [view("r")])
        mute = await board.connect("mute", silent=True)
        found = await board.relays.requests()
        assert [request.id for request in found.requests] == ["r"]
        assert found.silent == ["mute"]
        late = await mute.get(ListRequests)
        mute.send(RequestList(late.ask, (view("late"),)))  # nobody waits for it any more
        mute.silent = False
        found = await board.relays.requests()
        assert ([request.id for request in found.requests], found.silent) == (["r"], [])


async def test_a_relay_that_goes_away_is_not_waited_for() -> None:
    async with switchboard() as board:
        relay = await board.connect("a", silent=True)
        asking = asyncio.create_task(board.relays.requests())
        await relay.get(ListRequests)
        await relay.close()
        assert (await asking).silent == ["a"]


async def test_a_request_is_cancelled_wherever_it_is() -> None:
    async with switchboard() as board:
        first = await board.connect("a", [view("r1")])
        second = await board.connect("b", [view("r2")])
        assert await board.relays.cancel("r2")
        assert not await board.relays.cancel("r2")
        assert [request.id for request in first.requests] == ["r1"]
        assert second.requests == []


async def test_one_relay_that_has_it_is_enough_and_one_that_is_silent_may_have_it() -> None:
    async with switchboard(patience=SOON) as board:
        await board.connect("mute", silent=True)
        await board.connect("a", [view("r")])
        assert await board.relays.cancel("r")
        with pytest.raises(ShoalError, match="mute did not say in time") as raised:
            await board.relays.cancel("r")
        assert (raised.value.status, raised.value.code) == (504, "relay_silent")


async def test_an_answer_of_the_wrong_kind_is_none() -> None:
    async with switchboard() as board:
        relay = await board.connect("a", silent=True)
        asking = asyncio.create_task(board.relays.requests())
        relay.send(Cancelled((await relay.get(ListRequests)).ask, found=True))
        assert (await asking).silent == ["a"]
        cancelling = asyncio.create_task(board.relays.cancel("r"))
        relay.send(RequestList((await relay.get(CancelRequest)).ask, ()))
        with pytest.raises(ShoalError):
            await cancelling


async def test_usage_is_confirmed_once_it_is_stored() -> None:
    stored: list[UsageReport] = []
    gate = asyncio.Event()

    async def store(report: UsageReport) -> None:
        await gate.wait()
        stored.append(report)

    async with switchboard(usage=store) as board:
        relay = await board.connect("a", [view("r")])
        relay.send(USAGE)
        relay.send(USAGE)  # sent again while it is being stored
        found = await board.relays.requests()  # which holds up nothing else
        assert [request.id for request in found.requests] == ["r"]
        assert isinstance(relay.received.get_nowait(), ListRequests)
        gate.set()
        assert (await relay.get(UsageStored)).seq == 1
        assert stored == [USAGE]


async def test_usage_that_cannot_be_stored_is_not_confirmed() -> None:
    tries: list[UsageReport] = []

    async def store(report: UsageReport) -> None:
        tries.append(report)
        if len(tries) == 1:
            raise OSError(28, "No space left on device")

    async with switchboard(usage=store) as board:
        relay = await board.connect("a")
        relay.send(USAGE)
        await board.relays.requests()
        await relay.get(ListRequests)
        assert relay.received.empty()
        relay.send(USAGE)
        assert (await relay.get(UsageStored)).seq == 1
        assert tries == [USAGE, USAGE]


async def test_without_a_store_nothing_is_confirmed() -> None:
    async with switchboard() as board:
        relay = await board.connect("a")
        relay.send(USAGE)
        await board.relays.requests()
        assert isinstance(await relay.get(ListRequests), ListRequests)
        assert relay.received.empty()


async def test_the_end_does_not_wait_for_ever_for_usage_to_be_stored() -> None:
    begun = asyncio.Event()

    async def store(_: UsageReport) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with switchboard(usage=store, patience=SOON) as board:
        relay = await board.connect("a")
        relay.send(USAGE)
        await begun.wait()
        await board.relays.stop()
        await relay.ended()
        assert relay.received.empty()
