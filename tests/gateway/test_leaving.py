"""Clients that leave: whatever runs for them is cancelled."""

from __future__ import annotations

import asyncio

import pytest

from tests.gateway.harness import Message, World, eventually, get, post, route

EVENT_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


async def test_leaving_while_waiting_for_headers_cancels(world: World) -> None:
    engine = await world.engine()

    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await engine.until_left(reader)

    engine.script = script
    await world.start(route("m", engine))
    client = await world.client()
    await client.send(post())
    await eventually(lambda: engine.received)
    client.close()
    await asyncio.wait_for(engine.left.wait(), 20)
    await eventually(lambda: world.counts == {("m", "cancelled"): 1})
    assert world.outstanding == {}


@pytest.mark.parametrize("head", [EVENT_STREAM, b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n"])
async def test_leaving_while_streaming_cancels(world: World, head: bytes) -> None:
    engine = await world.engine()

    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        await engine.until_left(reader)

    engine.script = script
    await world.start(route("m", engine))
    client = await world.client()
    await client.send(post())
    await client.response(head_only=True)
    client.close()
    await asyncio.wait_for(engine.left.wait(), 20)
    await eventually(lambda: world.counts == {("m", "cancelled"): 1})
    assert world.outstanding == {}


async def test_leaving_during_a_busy_stream_cancels(world: World) -> None:
    engine = await world.engine()

    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENT_STREAM)
        while True:
            writer.write(b"4000\r\n" + b"z" * 0x4000 + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0)

    engine.script = script
    await world.start(route("m", engine))
    client = await world.client()
    await client.send(post())
    await client.reader.readexactly(100_000)
    client.writer.transport.abort()
    await asyncio.wait_for(engine.left.wait(), 20)
    await eventually(lambda: world.counts == {("m", "cancelled"): 1})


async def test_leaving_during_the_upload_reaches_no_engine(world: World) -> None:
    engine = await world.engine()
    await world.start(route("m", engine))
    client = await world.client()
    await client.send(post()[:-3])
    client.close()
    await eventually(lambda: world.counts == {("", "cancelled"): 1})
    assert engine.received == []


async def test_leaving_an_admin_stream_cancels(world: World) -> None:
    controller = await world.controller()

    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENT_STREAM)
        await controller.until_left(reader)

    controller.script = script
    await world.start()
    client = await world.client()
    await client.send(get("/api/v1/events"))
    await client.response(head_only=True)
    client.close()
    await asyncio.wait_for(controller.left.wait(), 20)
