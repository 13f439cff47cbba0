"""What looks at the broker and steers it: blocking and not, and what becomes of it when the broker goes away."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from shoal.memory import messages as m
from shoal.memory.answers import Answers
from shoal.memory.broker import Broker
from shoal.memory.client import Lease, Rank
from shoal.memory.ledger import Ledger, Terms
from shoal.memory.tools import AsyncBrokerTool, Books, BrokerError, BrokerTool
from shoal.memory.watching import listing

from .tool import eventually

MIB = 2**20
GPU = 1024 * MIB


@pytest.fixture
async def lease(broker: Broker, path: Path) -> AsyncIterator[Lease]:
    lease = Lease(path, Rank("a", "gpu", GPU))
    await asyncio.to_thread(lease.wait_connected, 30)
    lease.ask(100 * MIB)
    await eventually(lambda: lease.lease == 100 * MIB)
    yield lease
    await asyncio.to_thread(lease.close)


def _answering(path: Path, answer: bytes | None) -> socket.socket:
    """A program on `path` that is no broker: it gives everyone the same answer and closes, or says nothing."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def serve() -> None:
        while True:
            try:
                peer, _ = server.accept()
            except OSError:
                return
            if answer is not None:
                peer.sendall(answer)
                peer.shutdown(socket.SHUT_WR)
            threading.Thread(target=_drain, args=(peer,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return server


def _drain(peer: socket.socket) -> None:
    with peer:
        while peer.recv(4096):
            pass


def _stop(server: socket.socket) -> None:
    server.shutdown(socket.SHUT_RDWR)
    server.close()


async def test_a_blocking_tool_sees_and_steers(broker: Broker, lease: Lease, path: Path) -> None:
    def use() -> None:
        with BrokerTool(path) as tool:
            book = tool.list()["gpu"]
            assert (book.device.leased, [member.engine for member in book.members]) == (100 * MIB, ["a"])
            tool.set_terms("a", floor=10 * MIB, ceiling=80 * MIB, priority=3)
            tool.set_budget("gpu", limit=500 * MIB, headroom=MIB)
            tool.reserve("gpu", 700 * MIB)
            tool.reserve("moon", 5, 10)
            tool.trim("a")
            books = tool.list()
            member = books["gpu"].members[0]
            assert (member.floor, member.ceiling, member.priority) == (10 * MIB, 80 * MIB, 3)
            assert books["gpu"].device.budget == GPU - 701 * MIB
            assert books["moon"].device.held_back == 5
            tool.set_terms("a", unlimited=True)
            tool.set_budget("gpu", unlimited=True)
            refusals: list[tuple[Callable[[], None], str]] = [
                (lambda: tool.set_terms("b", floor=1), "no_engine"),
                (lambda: tool.set_terms("a", floor=2 * GPU), "floor_above_device"),
                (lambda: tool.set_budget("sun"), "no_device"),
                (lambda: tool.set_budget("sun", limit=2**60), "invalid"),
                (lambda: tool.trim("a\n"), "invalid"),
                (lambda: tool.reserve("sun", 1), "no_device"),
            ]
            for refused, code in refusals:
                with pytest.raises(BrokerError) as caught:
                    refused()
                assert caught.value.code == code
            assert tool.list()["gpu"].members[0].ceiling is None  # a refusal does not end the connection

    await asyncio.to_thread(use)
    await eventually(lambda: broker.ledger.devices["gpu"].held_back == 0)


async def test_a_blocking_watch_tells_of_changes_beside_other_calls(broker: Broker, lease: Lease, path: Path) -> None:
    def use() -> None:
        with BrokerTool(path) as tool:
            watching = tool.watch(0.05)
            assert next(watching)["gpu"].device.leased == 100 * MIB
            tool.set_terms("a", priority=7)
            while next(watching)["gpu"].members[0].priority != 7:
                pass

    await asyncio.to_thread(use)
    await eventually(lambda: broker.connections == 1)


def test_books_of_many_pages_are_one(path: Path) -> None:
    ledger = Ledger()
    for key in ("gpu", "host"):
        device = ledger.add_device(key, GPU)
        for number in range(m.MEMBERS_A_FRAME + 5):
            ledger.join(device, f"{key}-{number}", 0, Terms())
    answers = Answers(path)
    for _ in range(2):  # the second books are not added to the first
        (books,) = answers.feed(b"".join(m.frame(page) for page in listing(ledger, lambda _: 1)))
        assert isinstance(books, dict)
        for key in ("gpu", "host"):
            names = [member.engine for member in books[key].members]
            assert names == [f"{key}-{number}" for number in range(m.MEMBERS_A_FRAME + 5)]


@pytest.mark.parametrize("kind", ["nothing", "a file", "stale", "foreign", "newer", "silent", "too long"])
async def test_what_is_no_broker_is_said_to_be_none(path: Path, kind: str) -> None:
    server = None
    if kind == "a file":
        path.write_text("a letter")
    elif kind == "stale":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    elif kind == "foreign":
        server = _answering(path, b"HTTP/1.1 400 Bad Request\r\n\r\n")
    elif kind == "newer":
        payload = b'{"v": 2, "type": "unheard of"}'
        server = _answering(path, len(payload).to_bytes(4, "big") + payload)
    elif kind == "silent":
        server = _answering(path, None)
    elif kind == "too long":
        path = path.with_name("x" * 120)
    code, words = {
        "foreign": ("protocol", "does not speak as a broker should"),
        "newer": ("protocol", "version 2 of the protocol, and this side speaks 1; install the same version"),
        "silent": ("timeout", "does not answer"),
        "too long": ("no_broker", "cannot be used"),
    }.get(kind, ("no_broker", f"no memory broker answers on {path}; start one with `shoal memory broker`"))

    def blocking() -> None:
        with BrokerTool(path, timeout=0.3) as tool:
            tool.list()

    try:
        with pytest.raises(BrokerError) as caught:
            await asyncio.to_thread(blocking)
        assert caught.value.code == code
        assert words in str(caught.value)
        async with AsyncBrokerTool(path, timeout=0.3) as tool:
            with pytest.raises(BrokerError) as caught:
                await tool.list()
            assert caught.value.code == code
            listings = tool.listings()
            assert await anext(listings) is None
            assert tool.problem is not None
            assert words in tool.problem
            await listings.aclose()
    finally:
        if server is not None:
            _stop(server)


async def test_a_tool_for_an_event_loop_sees_and_steers(broker: Broker, lease: Lease, path: Path) -> None:
    async with AsyncBrokerTool(path) as tool:
        assert (await tool.list())["gpu"].device.leased == 100 * MIB
        await asyncio.gather(
            tool.set_terms("a", floor=10 * MIB, ceiling=80 * MIB, priority=3),
            tool.set_budget("gpu", limit=500 * MIB),
            tool.trim("a", 50 * MIB),
            tool.reserve("gpu", 10 * MIB),
        )
        book = (await tool.list())["gpu"]
        assert (book.device.limit, book.device.held_back, book.members[0].ceiling) == (500 * MIB, 10 * MIB, 80 * MIB)
        for refused in (tool.set_terms("b", floor=1), tool.reserve("gpu", 2 * GPU), tool.trim("")):
            with pytest.raises(BrokerError):
                await refused
        assert (await tool.list())["gpu"].device.held_back == 10 * MIB
        await tool.reserve("gpu", 0)
        assert (await tool.list())["gpu"].device.held_back == 0
    await eventually(lambda: broker.connections == 1)


async def test_listings_go_on_with_the_next_broker_and_what_is_held_back_too(path: Path) -> None:
    seen: list[Books | None] = []
    tool = AsyncBrokerTool(path)

    async def follow() -> None:
        async for books in tool.listings(0.05):
            seen.append(books)  # noqa: PERF401 - seen while it goes on

    following = asyncio.create_task(follow())
    await eventually(lambda: seen == [None])
    assert tool.problem is not None
    assert "no memory broker answers" in tool.problem
    with pytest.raises(BrokerError):
        await tool.reserve("gpu", 300 * MIB, GPU)
    for _ in range(2):
        broker = Broker(path)
        await broker.start()
        # Nobody calls anything: the listings bring it back.
        await eventually(lambda: seen[-1] is not None and seen[-1]["gpu"].device.held_back == 300 * MIB)
        await eventually(lambda: tool.problem is None)
        await broker.stop()
        await eventually(lambda: seen[-1] is None)
    assert all(a is not None or b is not None for a, b in itertools.pairwise(seen))  # None is said once
    broker = Broker(path)
    await broker.start()
    await tool.reserve("gpu", 100 * MIB)  # a call that finds its connection dead makes another
    assert broker.ledger.devices["gpu"].held_back == 100 * MIB
    following.cancel()
    await tool.close()
    await eventually(lambda: broker.connections == 0 and broker.ledger.devices["gpu"].held_back == 0)
    await broker.stop()


async def test_an_answer_that_comes_late_is_not_taken_for_another(broker: Broker, lease: Lease, path: Path) -> None:
    async with AsyncBrokerTool(path) as tool:
        await tool.list()
        asking = asyncio.create_task(tool.list())
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await tool.set_terms("a", priority=9)
        assert (await tool.list())["gpu"].members[0].priority == 9


def test_answers_are_put_together_from_any_pieces(path: Path) -> None:
    answers = Answers(path)
    stream = m.frame(m.Done()) + m.frame(m.Listing(device=None)) + m.frame(m.Error(code="x", message="no"))
    found = [answer for byte in stream for answer in answers.feed(bytes([byte]))]
    assert found[:2] == [m.Done(), {}]
    assert isinstance(found[2], BrokerError)
    assert (str(found[2]), found[2].code) == ("no", "x")
    with pytest.raises(BrokerError, match="has closed the connection"):
        answers.feed(b"")
