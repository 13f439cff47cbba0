"""Websockets: the handshake goes to an engine, and then bytes go both ways as they are."""

from __future__ import annotations

import asyncio

import pytest

from tests.gateway.harness import Message, World, eventually, get, route
from tests.gateway.native import NativeWorld, serves

UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\nSec-WebSocket-Version: 13\r\n"
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: b\r\n\r\n"
)


async def echo(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(SWITCH + b"\x81\x02hi")
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def test_bytes_go_both_ways(world: World) -> None:
    engine = await world.engine(script=echo)
    await world.start(route("m", engine))
    client = await world.client()
    answer = await client.ask(get("/v1/realtime?model=m", UPGRADE) + b"early", head_only=True)
    if not world.native:
        assert answer.status == 501
        assert engine.received == []
        return
    assert answer.start == "HTTP/1.1 101 Switching Protocols"
    assert (answer.get("upgrade"), answer.get("sec-websocket-accept")) == ("websocket", "b")
    assert await client.reader.readexactly(9) == b"\x81\x02hiearly"
    (request,) = engine.received
    assert (request.get("upgrade"), request.get("connection")) == ("websocket", "Upgrade")
    blob = bytes(range(256)) * 4096
    sending = asyncio.create_task(client.send(blob))
    assert await client.reader.readexactly(len(blob)) == blob
    await sending
    assert world.outstanding == {"m-0": 1}
    client.close()
    await asyncio.wait_for(engine.left.wait(), 20)
    await eventually(lambda: world.outstanding == {})


@pytest.mark.parametrize(
    "frames",
    [
        b"\x80\x82mask\x00\x00" * 3,  # the end of a message that never began
        b"\x01\x81maska" + b"\x01\x81maskb" + b"\x82\x81maskc",  # a second and a third begin within the first
        b"\x09\x81maskp" + b"\x88\x80mask" + b"\x81\x81maskx",  # a ping in two parts, and text after the close
        b"\x81\x02hi" + b"\xf3\x80mask",  # without a mask; reserved bits and a reserved opcode
        b"\x82\xff" + b"\xff" * 8 + b"mask" + b"x" * 70_000,  # a length beyond any
        b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n",  # no frame at all
    ],
    ids=["continuation", "interleaved", "after close", "reserved", "endless", "http"],
)
async def test_frames_that_no_peer_may_send_are_the_engines_to_refuse(native_world: NativeWorld, frames: bytes) -> None:
    engine = await native_world.engine(script=echo)
    await native_world.begin(serves("m", engine))
    client = await native_world.client()
    await client.ask(get("/v1/realtime?model=m", UPGRADE), head_only=True)
    assert await client.reader.readexactly(4) == b"\x81\x02hi"
    for cut in (1, len(frames) // 2, len(frames)):  # in any pieces
        await client.send(frames[:cut])
        assert await client.reader.readexactly(cut) == frames[:cut]
        await client.send(frames[cut:])
        assert await client.reader.readexactly(len(frames) - cut) == frames[cut:]
    assert len(engine.received) == 1, "what looks like a request is none"
    assert (await native_world.ask(get("/v1/models"))).status == 200
    client.close()
    await eventually(lambda: native_world.outstanding == {})


async def test_an_engine_that_ends_it_ends_it_for_the_client(world: World) -> None:
    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SWITCH + b"bye")
        writer.close()

    engine = await world.engine(script=script)
    await world.start(route("m", engine))
    client = await world.client()
    await client.send(get("/v1/realtime?model=m", UPGRADE))
    if world.native:
        assert (await client.closed()).endswith(b"\r\n\r\nbye")
        await eventually(lambda: world.counts == {("m", "ok"): 1})


async def test_an_engine_that_does_not_switch_answers_as_ever(world: World) -> None:
    engine = await world.engine()
    await world.start(route("m", engine))
    client = await world.client()
    answer = await client.ask(get("/v1/realtime?model=m", UPGRADE))
    if world.native:
        assert (answer.status, answer.body) == (200, b"{}")


async def test_other_protocols_are_ignored(world: World) -> None:
    engine = await world.engine()
    await world.start(route("m", engine))
    answer = await world.ask(get("/v1/x?model=m", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"))
    assert answer.status == 200
    assert engine.received[0].get("upgrade") is None


async def test_the_controller_speaks_none(world: World) -> None:
    await world.controller()
    await world.start()
    answer = await world.ask(get("/api/v1/events", UPGRADE))
    assert (answer.status, answer.error["code"]) == (501, "websocket_not_supported")
