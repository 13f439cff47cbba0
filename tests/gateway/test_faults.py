"""What the relay does when engines die, clients leave or stall, and the controller is away."""

from __future__ import annotations

import asyncio
import dataclasses
import socket

import msgspec
import pytest

from tests.gateway.harness import Engine, Message, World, eventually, get, post, reply, route

EVENT_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


# ---- clients that leave


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


# ---- engines that die


async def test_refused_connection_tries_another_target(world: World) -> None:
    good = await world.engine("good")
    await world.start(route("m", Engine(world.folder / "gone.sock"), good))
    for _ in range(4):
        assert (await world.ask(post())).status == 200
    assert len(good.received) == 4
    assert world.counts == {("m", "ok"): 4}


async def test_only_two_targets_are_tried(world: World) -> None:
    good = await world.engine("good")
    await world.start(route("m", Engine(world.folder / "g1.sock"), Engine(world.folder / "g2.sock"), good))
    answer = await world.ask(post())
    assert (answer.status, answer.error["code"]) == (502, "engine_connection_failed")
    assert good.received == []
    assert world.counts == {("m", "engine_error"): 1}
    assert world.outstanding == {}


async def test_no_other_target_is_a_502(world: World) -> None:
    await world.start(route("m", Engine(world.folder / "gone.sock")))
    client = await world.client()
    answer = await client.ask(post())
    assert (answer.status, answer.error["code"]) == (502, "engine_connection_failed")
    assert answer.error["type"] == "server_error"
    assert (await client.ask(get("/v1/models"))).status == 200  # the client's connection goes on


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\ncontent-len", b"not http at all\r\n\r\n"])
@pytest.mark.parametrize("method", [b"POST", b"GET"])
async def test_death_before_headers_runs_no_request_twice(world: World, first: bytes, method: bytes) -> None:
    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        writer.close()

    one, two = await world.engine("one", script), await world.engine("two", script)
    await world.start(route("m", one, two))
    answer = await world.ask(post() if method == b"POST" else get("/v1/x?model=m"))
    assert (answer.status, answer.error["code"]) == (502, "engine_died")
    assert len(one.received) + len(two.received) == 1
    assert world.counts == {("m", "engine_error"): 1}


async def test_death_during_an_upload(world: World) -> None:
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()
        closed.set()

    server = await asyncio.start_unix_server(serve, world.folder / "e.sock")
    await world.start(route("m", Engine(world.folder / "e.sock")))
    answer = await world.ask(post(body=b'{"model":"m","x":"' + b"x" * 2**23 + b'"}'))
    assert closed.is_set()
    assert (answer.status, answer.error["code"]) == (502, "engine_died")
    server.close()


@pytest.mark.parametrize(
    ("sent", "between"), [(b'data: {"a":1}\n\n', b""), (b'data: {"a', b"\n\n"), (b"data: x\r\n\r\n", b""), (b"", b"")]
)
async def test_death_in_an_event_stream(world: World, sent: bytes, between: bytes) -> None:
    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENT_STREAM + (b"%x\r\n%s\r\n" % (len(sent), sent) if sent else b""))
        writer.close()

    engine = await world.engine(script=script)
    await world.start(route("m", engine))
    client = await world.client()
    answer = await client.ask(post())
    assert not answer.complete
    assert answer.body.startswith(sent + between + b'data: {"error":{')
    assert answer.body.endswith(b"}}\n\n")
    event = msgspec.json.decode(answer.body[len(sent + between) + 6 :])
    assert event["error"]["code"] == "engine_died"
    assert await client.closed() == b""
    assert world.counts == {("m", "engine_error"): 1}
    assert world.outstanding == {}


@pytest.mark.parametrize(
    "head",
    [
        b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n5\r\n",
        b"content-type: application/json\r\ncontent-length: 50\r\n\r\n",
        b"content-type: text/event-stream\r\ncontent-length: 50\r\n\r\n",
        b"content-type: text/event-stream\r\ncontent-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n5\r\n",
    ],
)
async def test_death_in_another_body_never_looks_whole(world: World, head: bytes) -> None:
    go_on = asyncio.Event()

    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n" + head + b"abcde")
        await go_on.wait()
        writer.close()

    engine = await world.engine(script=script)
    await world.start(route("m", engine))
    client = await world.client()
    await client.send(post())
    assert (await client.reader.readuntil(b"abcde")).startswith(b"HTTP/1.1 200 OK\r\n")
    go_on.set()
    rest = await client.closed()
    assert rest in (b"", b"\r\n")
    assert world.counts == {("m", "engine_error"): 1}


async def test_truncated_body_without_framing_ends_in_a_reset(world: World) -> None:
    """A client of HTTP/1.0 sees the end of a body only by the end of the connection, so that must not be clean."""
    go_on = asyncio.Event()

    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n")
        await go_on.wait()
        writer.close()

    engine = await world.engine(script=script)
    await world.start(route("m", engine))
    client = await world.client()
    await client.send(b'POST /v1/x HTTP/1.0\r\nContent-Length: 13\r\n\r\n{"model":"m"}')
    await client.reader.readuntil(b"abcde")
    go_on.set()
    with pytest.raises(ConnectionResetError):
        async with asyncio.timeout(20):
            await client.reader.read()


async def test_early_refusal_by_the_engine_is_passed_on(world: World) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reply(writer, head="HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7", body=b"later")
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(serve, world.folder / "e.sock")
    await world.start(route("m", Engine(world.folder / "e.sock")))
    answer = await world.ask(post(body=b'{"model":"m","x":"' + b"x" * 2**22 + b'"}'))
    assert (answer.status, answer.body, answer.get("retry-after")) == (429, b"later", "7")
    server.close()


# ---- clients that are slow or wrong


async def test_headers_that_do_not_come(world: World) -> None:
    world.config = dataclasses.replace(world.config, header_timeout=0.2)
    engine = await world.engine()
    await world.start(route("m", engine))
    silent, slow, second = await world.client(), await world.client(), await world.client()
    assert (await second.ask(post())).status == 200  # a connection that has served starts a new clock
    for client in (slow, second):
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: h\r\nX-Slow: ")
    for client in (slow, second):
        answer = await client.response()
        assert (answer.status, answer.error["code"]) == (408, "header_timeout")
        assert await client.closed() == b""
    assert await silent.closed() == b""


async def test_idle_connections_outlive_the_header_timeout(world: World) -> None:
    world.config = dataclasses.replace(world.config, header_timeout=0.1)
    await world.start()
    client = await world.client()
    assert (await client.ask(get("/v1/models"))).status == 200
    await asyncio.sleep(0.4)
    assert (await client.ask(get("/v1/models"))).status == 200


async def test_a_long_request_outlives_the_header_timeout(world: World) -> None:
    world.config = dataclasses.replace(world.config, header_timeout=0.1)

    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.4)
        await reply(writer)

    engine = await world.engine(script=script)
    await world.start(route("m", engine))
    assert (await world.ask(post())).status == 200


async def test_a_body_that_stands_still(world: World) -> None:
    world.config = dataclasses.replace(world.config, body_timeout=0.2)
    await world.start()
    client = await world.client()
    answer = await client.ask(post()[:-3])
    assert (answer.status, answer.error["code"]) == (408, "body_timeout")
    assert answer.get("connection") == "close"


async def test_too_large_a_body_is_refused_before_it_is_sent(world: World) -> None:
    world.config = dataclasses.replace(world.config, max_body=1000)
    await world.start()
    for path in ("/v1/x", "/api/v1/models"):
        answer = await world.ask(b"POST %s HTTP/1.1\r\nHost: h\r\nContent-Length: 1001\r\n\r\n" % path.encode())
        assert (answer.status, answer.error["code"]) == (413, "body_too_large")
    expecting = b"POST /v1/x HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 99999999999\r\n\r\n"
    assert (await world.ask(expecting)).status == 413


async def test_too_large_a_chunked_body_is_refused_once_it_is(world: World) -> None:
    world.config = dataclasses.replace(world.config, max_body=1000)
    engine = await world.engine()
    await world.start(route("m", engine))
    client = await world.client()
    await client.send(b"POST /v1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
    await client.send(b"3e8\r\n" + b" " * 1000 + b"\r\n")
    await client.send(b"1\r\n \r\n")
    answer = await client.response()
    assert (answer.status, answer.error["code"]) == (413, "body_too_large")
    assert engine.received == []


async def test_body_of_exactly_the_limit(world: World) -> None:
    world.config = dataclasses.replace(world.config, max_body=13)
    engine = await world.engine()
    await world.start(route("m", engine))
    assert (await world.ask(post())).status == 200


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (b"hello\r\n\r\n", 400, "invalid_http"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "invalid_http"),
        (b"GET /v1/models HTTP/1.1\r\n\r\n", 400, "invalid_http"),
        (
            b"POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
            "invalid_http",
        ),
        (b"POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n", 400, "invalid_http"),
        (b"GET /v1/models HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", 431, "header_too_large"),
        (b"GET /v1/models HTTP/1.1\r\nHost: h\r\nBad Name: 1\r\n\r\n", 400, "invalid_http"),
        (b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", 400, "invalid_target"),
        (b"POST /v1/x?model=m HTTP/1.1\r\nHost: h\r\nX-Latin: caf\xe9\r\n\r\n", 400, "invalid_header"),
        (b"POST /v1/x HTTP/1.1\r\nHost: h\r\nExpect: tea\r\nContent-Length: 5\r\n\r\n", 417, "expectation_failed"),
        (
            b"POST /v1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            400,
            None,
        ),
    ],
)
async def test_malformed_http(world: World, request_bytes: bytes, status: int, code: str | None) -> None:
    engine = await world.engine()
    await world.start(route("m", engine))
    answer = await world.ask(request_bytes)
    assert answer.status == status
    assert (
        answer.get("content-type") == "application/json; charset=utf-8"
        or answer.get("content-type") == "application/json"
    )
    assert answer.error["code"] == code or code is None
    assert engine.received == []


async def test_a_chunked_body_that_turns_into_nonsense(world: World) -> None:
    await world.start()
    client = await world.client()
    await client.send(b"POST /v1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n")
    await asyncio.sleep(0.05)
    answer = await client.ask(b"zz\r\n")
    assert (answer.status, answer.error["code"]) == (400, "invalid_body")
    assert await client.closed() == b""


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{not json", "invalid_json"),
        (b"", "model_required"),
        (b"{}", "model_required"),
        (b'{"model": null}', "model_required"),
        (b'["model"]', "model_required"),
        (b'{"model": 7}', "invalid_model"),
    ],
)
async def test_bodies_without_a_model(world: World, body: bytes, code: str) -> None:
    await world.start()
    client = await world.client()
    answer = await client.ask(post(body=body))
    assert (answer.status, answer.error["code"]) == (400, code)
    assert (await client.ask(get("/v1/models"))).status == 200  # the connection goes on
    assert world.counts == {("", "client_error"): 1}


async def test_unknown_models(world: World) -> None:
    engine = await world.engine()
    await world.start(route("m", engine), route("org/other"))
    for i in range(20):
        answer = await world.ask(post(body=b'{"model":"no-%d"}' % i))
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")
        assert answer.error["param"] == "model"
        assert "m, org/other" in str(answer.error["message"])
    assert world.counts == {("", "client_error"): 20}  # one counter, whatever names clients make up


async def test_model_that_is_not_ready(world: World) -> None:
    await world.start(route("m", detail="m is loading (40 %).", retry_after=12), route("off"))
    answer = await world.ask(post())
    assert (answer.status, answer.error["code"]) == (503, "model_not_ready")
    assert answer.error["message"] == "m is loading (40 %)."
    assert answer.get("retry-after") == "12"
    assert (await world.ask(post(body=b'{"model":"off"}'))).status == 503
    assert world.counts == {("m", "unavailable"): 1, ("off", "unavailable"): 1}


async def test_websockets_are_refused(world: World) -> None:
    engine = await world.engine()
    await world.start(route("m", engine))
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\nSec-WebSocket-Version: 13\r\n"
    answer = await world.ask(get("/v1/realtime?model=m", upgrade))
    assert (answer.status, answer.error["code"]) == (501, "websocket_not_supported")
    assert engine.received == []


# ---- the controller is away


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


# ---- the end


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
