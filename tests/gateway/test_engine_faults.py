"""Engines that die at any stage: no request runs twice, and no truncated answer looks whole."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from tests.gateway.harness import Engine, Message, World, get, post, reply, route

HOLD_OFF = b"X-Shoal-Hold: off\r\n"
EVENT_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def unreachable(world: World) -> int:
    """The status of a request that no instance takes; the native relay holds those that may be held."""
    return 503 if world.kind == "native" else 502


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
    answer = await world.ask(post(extra=HOLD_OFF))
    assert (answer.status, answer.error["code"]) == (unreachable(world), "engine_connection_failed")
    assert good.received == []
    assert sum(world.counts.values()) == 1
    assert world.outstanding == {}


async def test_there_is_no_other_target(world: World) -> None:
    await world.start(route("m", Engine(world.folder / "gone.sock")))
    client = await world.client()
    answer = await client.ask(post(extra=HOLD_OFF))
    assert (answer.status, answer.error["code"]) == (unreachable(world), "engine_connection_failed")
    assert answer.get("retry-after") == (None if answer.status == 502 else "5")
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
