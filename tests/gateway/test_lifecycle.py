"""A controller that is away, stopping, and balance between instances."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tests.gateway.harness import Message, World, eventually, get, post, reply, route

EVENT_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


async def test_controller_away(world: World) -> None:
    engine = await world.engine()
    await world.start(route("m", engine))
    answer = await world.ask(get("/api/v1/models"))
    assert (answer.status, answer.error["code"], answer.get("retry-after")) == (503, "controller_away", "1")
    live = await world.ask(get("/health/live"))
    assert (live.status, live.json["status"]) == (200, "live")
    assert live.json["degraded"]
    ready = await world.ask(get("/health/ready"))
    assert (ready.status, ready.json["status"]) == (200, "ready")
    assert (await world.ask(post())).status == 200
    controller = await world.controller()
    assert (await world.ask(get("/api/v1/models"))).status == 200
    assert len(controller.received) == 1


async def test_not_ready_without_targets(world: World) -> None:
    await world.start(route("m"))
    assert (await world.ask(get("/health/live"))).status == 200
    assert (await world.ask(get("/health/ready"))).status == 503


async def test_controller_that_dies_while_it_answers(world: World) -> None:
    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    await world.controller(script)
    await world.start()
    answer = await world.ask(post("/api/v1/models/m/load"))
    assert (answer.status, answer.error["code"]) == (503, "controller_away")
    assert "took effect" in str(answer.error["message"])
    assert (await world.ask(get("/health/live"))).status == 200


async def test_a_controller_that_hangs_is_away_for_health(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.gateway.relay_aiohttp.HEALTH_TIMEOUT", 0.1)
    hung = socket.socket(socket.AF_UNIX)
    hung.bind(str(world.config.controller))
    hung.listen()
    await world.start()
    live = await world.ask(get("/health/live"))
    assert (live.status, live.json["status"]) == (200, "live")
    hung.close()


async def test_stop_lets_running_requests_end(world: World) -> None:
    gate = asyncio.Event()

    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENT_STREAM)
        await gate.wait()
        writer.write(b"1\r\nx\r\n0\r\n\r\n")

    engine = await world.engine(script=script)
    await world.start(route("m", engine))
    assert world.relay is not None
    idle, client = await world.client(), await world.client()
    assert (await idle.ask(get("/v1/models"))).status == 200
    await client.send(post())
    await client.response(head_only=True)
    stopping = asyncio.create_task(world.relay.stop(60))
    assert await idle.closed() == b""  # idle connections go at once
    with pytest.raises(OSError):
        await world.client()
    assert not stopping.done()
    gate.set()
    assert await client.closed() == b"1\r\nx\r\n0\r\n\r\n"
    await stopping
    world.relay = None


async def test_stop_ends_what_runs_too_long(world: World) -> None:
    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if message.target == "/v1/stream":
            writer.write(EVENT_STREAM + b"9\r\ndata: x\n\n\r\n")
        await reader.read()

    engine = await world.engine(script=script)
    await world.start(route("m", engine))
    assert world.relay is not None
    streaming, waiting = await world.client(), await world.client()
    await streaming.send(post("/v1/stream"))
    await streaming.response(head_only=True)
    await waiting.send(post("/v1/wait"))
    await eventually(lambda: len(engine.received) == 2)
    await world.relay.stop(0.1)
    world.relay = None
    answer = await waiting.response()
    assert (answer.status, answer.error["code"]) == (503, "relay_stopping")
    rest = await streaming.closed()
    assert b'"code":"relay_stopping"' in rest
    assert not rest.endswith(b"0\r\n\r\n")


async def test_load_goes_to_the_instance_with_the_least(world: World) -> None:
    gate = asyncio.Event()

    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if message.target == "/v1/slow":
            await gate.wait()
        await reply(writer)

    one, two = await world.engine("one", script), await world.engine("two", script)
    await world.start(route("m", one, two))
    held = [await world.client() for _ in range(2)]
    await held[0].send(post("/v1/slow"))
    await eventually(lambda: len(one.received) == 1)
    for _ in range(5):  # the first is busy, so all of these go to the second
        assert (await world.ask(post())).status == 200
    assert (len(one.received), len(two.received)) == (1, 5)
    await held[1].send(post("/v1/slow"))
    await eventually(lambda: world.outstanding == {"m-0": 1, "m-1": 1})
    for _ in range(4):
        assert (await world.ask(post())).status == 200
    assert (len(one.received), len(two.received)) == (3, 8)  # equals take turns
    gate.set()
    for client in held:
        assert (await client.response()).status == 200
    await eventually(lambda: world.outstanding == {})
