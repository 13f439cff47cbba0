"""Engines that answer nonsense, too early, too much or not at all: no client gets a wrong answer, or waits for ever."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import select

import pytest

from shoal.gateway import upstream
from shoal.gateway.http1 import END, MAX_RESPONSE_HEAD
from tests.gateway.harness import (
    Engine,
    Message,
    World,
    eventually,
    get,
    post,
    read_message,
    reply,
    route,
)

MODELS = get("/v1/models")


@pytest.fixture
def kind() -> str:
    return "native"


@pytest.mark.parametrize(
    "garbage",
    [
        b"garbage", b"\x00" * 100, b"\x16\x03\x01", b"\r\n", b"\n", b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\ncontent-length: 2\n\nok", b"HTTP/1.1 200 OK\rX: y",
        b"ICY 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 999999\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_RESPONSE_HEAD,
        b"HTTP/1.1 200 OK\r\nX : y\r\n\r\n", b"HTTP/1.1 200 OK\r\n X: y\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", b"HTTP/1.1 101 x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", b"HTTP/1.1 200 \x00\r\n\r\n", b"0\r\n\r\n",
    ],
)  # fmt: skip
async def test_an_engine_that_answers_garbage_and_stays(world: World, garbage: bytes) -> None:
    """It is let go at once, although it does not close the connection."""

    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(garbage)
        await engine.until_left(reader)

    engine = await world.engine(script=script)
    await world.start(route("m", engine))
    client = await world.client()
    answer = await client.ask(post())
    assert (answer.status, answer.error["code"]) == (502, "engine_died")
    await asyncio.wait_for(engine.left.wait(), 20)
    assert (await client.ask(MODELS)).status == 200
    assert len(engine.received) == 1


@pytest.mark.parametrize(
    ("begin", "whole"),
    [
        (b"", False),
        (b"HTTP/1.1 200 OK\r\nContent-Le", False),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", True),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", True),
    ],
)
async def test_an_engine_that_stalls(world: World, begin: bytes, whole: bool) -> None:
    world.config = dataclasses.replace(world.config, response_timeout=0.3)

    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        await engine.until_left(reader)

    engine = await world.engine(script=script)
    await world.start(route("m", engine))
    client = await world.client()
    await client.send(post())
    if whole:
        rest = await client.closed()
        assert (b"engine_timeout" in rest) == (b"event-stream" in begin)
        assert not rest.endswith(b"0\r\n\r\n")
    else:
        answer = await client.response()
        answer = await client.response() if answer.status == 103 else answer
        assert (answer.status, answer.error["code"]) == (504, "engine_timeout")
        assert (await client.ask(MODELS)).status == 200
    await asyncio.wait_for(engine.left.wait(), 20)
    assert world.counts == {("m", "engine_error"): 1}
    assert world.outstanding == {}


@pytest.mark.parametrize("more", [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwrong", b"x", b"\r\n", b"0\r\n\r\n"])
@pytest.mark.parametrize("later", [False, True])
async def test_an_engine_that_says_more_than_it_was_asked(world: World, more: bytes, later: bool) -> None:
    """No client gets what belongs to nobody."""
    said = asyncio.Event()

    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = message.target.encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b%b" % (len(name), name, b"" if later else more))
        if later:
            await asyncio.sleep(0.05)
            writer.write(more)
        said.set()

    engine = await world.engine(script=script)
    await world.start(route("m", engine))
    client = await world.client()
    for number in range(5):
        said.clear()
        engine.left.clear()
        assert (await client.ask(post(f"/v1/{number}"))).body == b"/v1/%d" % number
        await said.wait()
        await asyncio.wait_for(engine.left.wait(), 20)
    assert engine.connections == 5


class Hasty(Engine):
    """Answers once it has the head, and reads on only when told to."""

    read = -1

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        await reader.readuntil(END)
        await reply(writer, head="HTTP/1.1 413 Too Large", body=b"no")
        await self.left.wait()
        total = 0
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(2**20):
                total += len(data)
        self.read = total
        writer.close()


async def test_an_engine_that_answers_before_it_has_read_gets_no_more(world: World) -> None:
    size = 32 * 2**20
    engine = Hasty(world.folder / "e.sock")
    await engine.start()
    world._engines.append(engine)
    await world.start(route("m", engine))
    client = await world.client()
    answer = await client.ask(post(body=b'{"model":"m","x":"' + b"x" * size + b'"}'))
    assert (answer.status, answer.body) == (413, b"no")
    engine.left.set()
    await eventually(lambda: engine.read >= 0)
    assert engine.read < size / 2
    assert (await client.ask(MODELS)).status == 200


BEAT = 0.005
BEATS = 12
"""Beats since its last answer after which an engine may close a connection: the relay has had that answer for more of
them than `KEEPALIVE` is long."""


class IdleCloser(Engine):
    """Closes connections that idle, each after a time of its own.

    It counts beats of the loop that it shares with the relay, too. A loop that stands still lets the relay have an
    answer later, and so take its connection for fresh for longer than a clock at the engine would tell.
    """

    dice = random.Random(3)
    closed = 0
    beats = 0

    async def beat(self) -> None:
        """Count what the loop gets done, while it runs."""
        while True:
            await asyncio.sleep(BEAT)
            self.beats += 1

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        poll = select.poll()
        poll.register(writer.get_extra_info("socket").fileno(), select.POLLIN)
        waiting = asyncio.create_task(read_message(reader))
        since = self.beats
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                done, _ = await asyncio.wait([waiting], timeout=self.dice.uniform(0.05, 0.3))
                if done:
                    self.received.append(waiting.result())
                    await reply(writer, body=self.received[-1].target.encode())
                    waiting = asyncio.create_task(read_message(reader))
                    since = self.beats
                elif self.beats - since >= BEATS and not poll.poll(0):
                    self.closed += 1
                    break
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        writer.close()


async def test_engines_that_close_idle_connections(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As uvicorn does after 5 s, before which the relay lets go of a connection: 5,000 requests, none fails."""
    monkeypatch.setattr(upstream, "KEEPALIVE", 0.03)
    engines = [IdleCloser(world.folder / f"{n}.sock") for n in range(3)]
    for engine in engines:
        await engine.start()
    world._engines += engines
    await world.start(route("m", *engines))
    dice = random.Random(4)

    async def client(number: int) -> None:
        one = await world.client()
        for _ in range(100):
            answer = await one.ask(post(f"/v1/{number}"))
            assert (answer.status, answer.body) == (200, b"/v1/%d" % number)
            await asyncio.sleep(dice.choice((0, 0, 0.01, 0.03, 0.05, 0.1)))

    beating = [asyncio.create_task(engine.beat()) for engine in engines]
    async with asyncio.timeout(100):
        async with asyncio.TaskGroup() as clients:
            for number in range(50):
                clients.create_task(client(number))
    for task in beating:
        task.cancel()
    await asyncio.gather(*beating, return_exceptions=True)
    assert sum(len(engine.received) for engine in engines) == 5000
    assert sum(engine.connections for engine in engines) < 4000  # most were used again
