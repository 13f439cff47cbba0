"""Websockets: the handshake goes to an engine, and then bytes go both ways as they are."""

from __future__ import annotations

import asyncio

from tests.gateway.harness import Message, World, eventually, get, route

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
