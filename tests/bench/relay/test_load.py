"""The fake engine and the load generator against each other, over real connections."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.bench.relay import bodies, load, tally, usage, wrk
from shoal.bench.relay.client import Reader
from shoal.bench.relay.upstream import Upstream

KEY = "sk-x"


@asynccontextmanager
async def serving(interval: float = 0.01) -> AsyncIterator[tuple[Upstream, int]]:
    upstream = Upstream(interval)
    server = await asyncio.get_running_loop().create_server(upstream, "127.0.0.1", 0)
    try:
        yield upstream, server.sockets[0].getsockname()[1]
        while upstream.stats.connections:  # the ends of connections are still on their way
            await asyncio.sleep(0.01)
    finally:
        server.close()


async def exchange(port: int, data: bytes, *, until: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    answer = await reader.readuntil(until)
    writer.close()
    return answer


async def test_requests_on_several_connections_are_counted_and_timed() -> None:
    async with serving() as (_, port):
        served = await load.requests(port, bodies.ANSWERS, KEY, connections=4, seconds=0.3)
    assert served.failed == 0
    assert served.requests > 4
    assert 0 < served.p50_us <= served.p99_us
    assert served.rate == served.requests / served.seconds


async def test_requests_that_are_refused_or_broken_off_failed() -> None:
    closing = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    answers = iter([closing, b"HTTP/1.1 200 OK\r\nContent-Le", b"nonsense\r\n\r\n"])

    over: list[asyncio.Task[None] | None] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        over.append(asyncio.current_task())
        await reader.readexactly(len(bodies.request(bodies.ANSWERS, port, KEY)))
        writer.write(next(answers, b""))
        if len(over) > 3:
            await reader.read()  # until the client has had enough
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        served = await load.requests(port, bodies.ANSWERS, KEY, connections=1, seconds=0.3)
        await asyncio.gather(*(task for task in over if task is not None), return_exceptions=True)
    assert served == tally.Served(0, served.seconds, 0.0, 0.0, 3)


async def test_no_server_is_an_error() -> None:
    async with serving() as (_, port):
        pass
    with pytest.raises(OSError):
        await load.requests(port, bodies.ANSWERS, KEY, connections=2, seconds=5)


@pytest.mark.parametrize("model", [bodies.SPREAD, bodies.STEPS, bodies.LATE])
async def test_streams_are_read_timed_and_cancelled_at_the_end(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "SETTLE", 0.05)
    async with serving() as (upstream, port):
        family = usage.family([os.getpid()])
        streamed = await load.streams(port, model, KEY, number=5, seconds=0.3, proxy=family)
    assert (streamed.streams, streamed.failed) == (5, 0)
    assert streamed.events >= 5
    assert 0 < streamed.first_p50_us <= streamed.first_p99_us
    assert 0 < streamed.delay_p50_us <= streamed.delay_p99_us
    assert streamed.cpu >= 0, "a few events may take less than the kernel counts in"
    assert streamed.rss > 0
    if model == bodies.LATE:
        assert streamed.first_p50_us >= 1e6 * bodies.FIRST_WAIT
    assert (upstream.stats.begun, upstream.stats.cancelled, upstream.stats.running) == (5, 5, 0)


async def test_streams_that_never_begin_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "PATIENCE", 0.1)
    monkeypatch.setattr(load, "SETTLE", 0.0)
    async with serving() as (_, port):
        with pytest.raises(TimeoutError, match="none of 2 streams of 'answers'"):
            await load.streams(port, bodies.ANSWERS, KEY, number=2, seconds=0.05)


async def test_every_stream_that_is_broken_off_is_seen_by_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "LONGEST", 0.08)
    async with serving() as (upstream, port):
        aborted = await load.aborts(port, bodies.LATE, KEY, number=200, together=20, seed=5)
    assert (aborted.streams, aborted.failed) == (200, 0)
    assert 0 < aborted.partial < 60
    assert aborted.unanswered > 0
    assert 0 < upstream.stats.begun <= 200 - aborted.partial
    assert upstream.stats.cancelled == upstream.stats.begun
    assert upstream.stats.running == 0


async def test_of_streams_that_end_before_they_are_broken_off_it_is_said_how(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    monkeypatch.setattr(load, "LONGEST", 0.3)
    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        aborted = await load.aborts(port, bodies.LATE, KEY, number=20, together=20, seed=5)
    assert aborted.failed == aborted.wrong["status 503"] > 0


async def test_the_engine_answers_other_paths_and_refuses_what_it_cannot_read() -> None:
    async with serving() as (_, port):
        stats = await exchange(port, b"GET /stats HTTP/1.1\r\nHost: x\r\n\r\n", until=b"}")
        assert json.loads(stats.partition(b"\r\n\r\n")[2])["connections"] == 1
        health = await exchange(port, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", until=b"}")
        assert health.startswith(b"HTTP/1.1 200 ")
        nameless = f"POST {bodies.PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}".encode()
        assert (await exchange(port, nameless, until=b"}}")).startswith(b"HTTP/1.1 400 ")
        assert (await exchange(port, b"\0garbage\r\n\r\n", until=b"}}")).startswith(b"HTTP/1.1 400 ")


async def test_requests_follow_each_other_on_one_connection_however_they_are_cut() -> None:
    async with serving() as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        asked = bodies.request(bodies.ANSWERS, port, KEY)
        for _ in range(2):
            for at in range(0, len(asked), 100):
                writer.write(asked[at : at + 100])
                await writer.drain()
            answer = await reader.readuntil(bodies.answer())
            assert answer.startswith(b"HTTP/1.1 200 OK")
        writer.close()


@given(st.lists(st.integers(1, 700), max_size=8))
def test_events_are_counted_once_wherever_the_stream_is_cut(cuts: list[int]) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    whole = head + b"".join(bodies.chunk(bodies.event(bodies.SPREAD, 10**12 + number)) for number in range(3))

    async def read() -> Reader:
        reader = Reader(b"")
        at = 0
        for cut in [*sorted(cuts), len(whole)]:
            reader.data_received(whole[at:cut])
            at = max(at, min(cut, len(whole)))
        return reader

    reader = asyncio.run(read())
    assert reader.events == len(reader.delays) == 3
    assert not reader.wrong
    assert reader.begun.is_set()


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
async def test_wrk_sends_what_the_engine_answers_and_says_so(tmp_path: Path) -> None:
    script = tmp_path / "load.lua"
    script.write_text(wrk.script(bodies.ANSWERS, KEY))
    async with serving() as (_, port):
        process = await asyncio.create_subprocess_exec(
            *wrk.command("wrk", port, str(script), connections=2, seconds=1), stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
    served = tally.parse(output.decode(), tally.Served)
    assert served.failed == 0
    assert served.requests > 0
    assert 0 < served.p50_us <= served.p99_us
