"""Peers that never end or never read: each costs what its own connection costs, and nobody else waits."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import struct
from collections.abc import Callable

import psutil
import pytest

from shoal.gateway import server
from shoal.gateway.http1 import MAX_REQUEST_HEAD, find_end
from shoal.gateway.link import save_table
from shoal.gateway.relay_native import NativeRelay
from tests.gateway.harness import (
    Client,
    Message,
    World,
    eventually,
    get,
    post,
    reply,
    route,
    table,
)
from tests.gateway.test_process import gateway
from tests.gateway.test_websockets import SWITCH, UPGRADE
from tests.gateway.wire import Wire, read_answers

MIB = 2**20
SOCKETS = 32 * MIB
"""More than what all sockets and buffers between two peers hold."""
MODELS = get("/v1/models")


@pytest.fixture
def kind() -> str:
    return "native"


async def stands_still(progress: Callable[[], int]) -> int:
    """Wait until a number does not grow any more; the number."""
    last, same = -1, 0
    while same < 5:
        await asyncio.sleep(0.05)
        same = same + 1 if progress() == last else 0
        last = progress()
    return last


async def others_are_served(world: World) -> None:
    for _ in range(3):
        assert (await world.ask(post())).status == 200


async def talk(client: Client, begin: bytes, filler: bytes) -> Message:
    """Send without end, until there is an answer."""

    async def send() -> None:
        with contextlib.suppress(ConnectionError):
            await client.send(begin)
            while True:
                await client.send(filler)
                await asyncio.sleep(0)

    sending = asyncio.create_task(send())
    answer = await client.response()
    sending.cancel()
    return answer


async def test_heads_that_come_byte_by_byte_are_looked_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = 0

    def counting(data: bytes, limit: int, seen: int = 0) -> int:
        nonlocal looked_at
        looked_at += len(data) - max(0, seen - 3)
        return find_end(data, limit, seen)

    monkeypatch.setattr(server, "find_end", counting)
    await world.start(route("m", await world.engine()))
    assert isinstance(world.relay, NativeRelay)
    loop = asyncio.get_running_loop()
    wires = [Wire(server.ClientConnection(world.relay, loop)) for _ in range(10)]
    sent = 0
    for at in range(MAX_REQUEST_HEAD // 8):
        for wire in wires:
            wire.feed(b"GET /v1/x HTTP/1.1\r\nX: "[at : at + 1] or b"x")
            sent += 1
        if at % 2000 == 0:
            await others_are_served(world)
    assert looked_at < 5 * sent
    assert not any(wire.written for wire in wires)
    for _ in range(MAX_REQUEST_HEAD - MAX_REQUEST_HEAD // 8):
        wires[0].feed(b"x")
    assert not wires[0].written
    wires[0].feed(b"x")
    (answer,) = read_answers(bytes(wires[0].written), [], closed=True)
    assert answer.status == 431
    for wire in wires:
        wire.lose()


async def test_many_clients_that_send_a_byte_at_a_time(world: World) -> None:
    engine = await world.engine()
    await world.start(route("m", engine))

    async def slow() -> int:
        client = await world.client()
        for byte in post(extra=b"X-Slow: yes\r\n"):
            await client.send(bytes([byte]))
            await asyncio.sleep(0)
        return (await client.response()).status

    async with asyncio.timeout(60):
        results = await asyncio.gather(*(slow() for _ in range(50)), others_are_served(world), others_are_served(world))
    assert results[:50] == [200] * 50


CHUNKED = b"POST /v1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("begin", "filler", "status", "code"),
    [
        (b"GET /v1/x HTTP/1.1\r\nX: ", b"x" * 100, 431, "header_too_large"),
        (b"GET /v1/x HTTP/1.1\r\n", b"X: y\r\n" * 20, 431, "header_too_large"),
        (b"GET /", b"x" * 100, 431, "header_too_large"),
        (b"", b"\x00" * 100, 431, "header_too_large"),
        (CHUNKED, b"1\r\nx\r\n" * 50, 413, "body_too_large"),
        (CHUNKED, b"1" + b";a=b" * 1000 + b"\r\nx\r\n", 413, "body_too_large"),
        (CHUNKED + b"1;", b"a" * 100, 400, "invalid_body"),
        (CHUNKED, b"0" * 100, 400, "invalid_body"),
        (CHUNKED + b"0\r\n", b"X: y\r\n" * 20, 400, "invalid_body"),
        (CHUNKED + b"0\r\nX: ", b"y" * 100, 400, "invalid_body"),
        (CHUNKED + b"fffffffffff\r\n", b"x" * 1000, 413, "body_too_large"),
    ],
)
async def test_messages_without_an_end(world: World, begin: bytes, filler: bytes, status: int, code: str) -> None:
    world.config = dataclasses.replace(world.config, max_body=20_000)
    engine = await world.engine()
    await world.start(route("m", engine))
    client = await world.client()
    answer, _ = await asyncio.gather(talk(client, begin, filler), others_are_served(world))
    assert (answer.status, answer.error["code"], answer.get("connection")) == (status, code, "close")
    assert {message.target for message in engine.received} == {"/v1/chat/completions"}


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_client_that_sends_requests_and_reads_no_answers(world: World, at_once: bool) -> None:
    """It gets no more made than fit into buffers, and all of them once it reads."""
    await world.start(route("m", await world.engine()), *(route(f"model-{number}") for number in range(200)))
    assert isinstance(world.relay, NativeRelay)
    loop = asyncio.get_running_loop()
    request = get("/v1/models", b"X: " + b"x" * 8000 + b"\r\n") if at_once else MODELS  # shorter than its answer
    answer = await world.ask(request)
    sent = 0
    with socket.create_connection(("127.0.0.1", world.port)) as sock:
        sock.setblocking(False)

        def push() -> int:
            nonlocal sent
            with contextlib.suppress(BlockingIOError):
                while sent < 4 * SOCKETS:
                    sent += sock.send((request * 100)[sent % len(request) :])
            return sent

        if at_once:
            await stands_still(push)
            assert sent < SOCKETS
        else:
            while sent * len(answer.body) < SOCKETS * len(request):
                await loop.sock_sendall(sock, request)
                await asyncio.sleep(0.001)  # so that each comes alone
                sent += len(request)
        connection = next(one for one in world.relay.connections if one.full)
        assert connection._transport is not None
        assert connection._transport.get_write_buffer_size() < server.WRITE_LIMIT + len(answer.body) + 1000
        assert len(connection._buffer) < server.PIPELINED + 256 * 1024 + 1
        await others_are_served(world)
        begun = sent % len(request)
        expected, received, tail = sent // len(request) + bool(begun), 0, b""
        sending = asyncio.create_task(loop.sock_sendall(sock, request[begun:] if begun else b""))
        async with asyncio.timeout(60):
            while received < expected:
                data = await loop.sock_recv(sock, MIB)
                assert data
                received += (tail + data).count(b"HTTP/1.1 200 OK")
                tail = (tail + data)[-14:]
        await sending
        assert received == expected


FLOODS = {
    "a length": (b"Content-Length: %d\r\n" % 2**30, b"", b"x" * MIB),
    "chunks": (b"Transfer-Encoding: chunked\r\n", b"", b"100000\r\n" + b"x" * MIB + b"\r\n"),
    "chunks of one byte": (b"Transfer-Encoding: chunked\r\n", b"", b"1\r\nx\r\n" * 170_000),
    "events": (
        b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n",
        b"",
        (b"400\r\ndata: " + b"x" * 1016 + b"\n\n\r\n") * 1024,
    ),
    "one event in one chunk": (
        b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n",
        b"40000000\r\ndata: ",
        b"x" * MIB,
    ),
    "until it closes": (b"Content-Type: application/json\r\n", b"", b"x" * MIB),
    "interim answers": (b"", b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 25_000),
}


@pytest.mark.parametrize("how", FLOODS)
async def test_a_gibibyte_for_a_client_that_does_not_read(world: World, how: str) -> None:
    fields, begin, piece = FLOODS[how]
    written = 0

    async def script(message: Message, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        if message.target != "/v1/flood":
            await reply(writer)
            return
        writer.write((b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n" + begin) if fields else b"")
        while written < 2**30:
            writer.write(piece)
            await writer.drain()
            written += len(piece)

    engine = await world.engine(script=script)
    save_table(world.config.table, table(route("m", engine)))
    with gateway(world) as process:
        relay = psutil.Process(process.pid)
        await others_are_served(world)
        before = relay.memory_info().rss
        client = await world.client()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(post("/v1/flood"))
        await stands_still(lambda: written)
        assert written < SOCKETS
        await others_are_served(world)
        assert relay.memory_info().rss - before < 16 * MIB
        client.writer.transport.abort()
        await asyncio.wait_for(engine.left.wait(), 20)


@pytest.mark.parametrize("side", ["client", "engine"])
async def test_a_websocket_peer_that_does_not_read(world: World, side: str) -> None:
    written = 0

    async def flood(writer: asyncio.StreamWriter) -> None:
        nonlocal written
        with contextlib.suppress(ConnectionError):
            while written < 4 * SOCKETS:
                writer.write(b"x" * 65536)
                await writer.drain()
                written += 65536

    async def script(message: Message, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if message.get("upgrade") is None:
            await reply(writer)
            return
        writer.write(SWITCH)
        if side == "client":
            await flood(writer)
        else:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await left.wait()

    left = asyncio.Event()
    engine = await world.engine(script=script)
    await world.start(route("m", engine))
    client = await world.client()
    assert (await client.ask(get("/v1/realtime?model=m", UPGRADE), head_only=True)).status == 101
    if side == "client":
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await stands_still(lambda: written)
    else:
        flooding = asyncio.create_task(flood(client.writer))
        await stands_still(lambda: written)
        flooding.cancel()
    assert 0 < written < SOCKETS
    await others_are_served(world)
    # A client that leaves with a reset is seen to leave, although it is not read from.
    sock = client.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.writer.transport.abort()
    await eventually(lambda: world.outstanding == {})
    left.set()
