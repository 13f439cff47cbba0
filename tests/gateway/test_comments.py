"""Streams that are told while they are held: nothing but valid SSE, whatever comes of them."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import hashlib
import re

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shoal.gateway.comments import Commented, comment, engine_error
from shoal.gateway.link import save_table
from shoal.gateway.relay_native import NativeRelay
from shoal.gateway.server import ClientConnection
from shoal.messages import Key, Route, RoutingTable, VirtualModel
from tests.gateway.harness import Client, Message, World, eventually, get, post, reply, route, table

HOLD = b"x-shoal-hold: comments\r\n"
ASKED = post(body=b'{"model":"m","stream":true}', extra=HOLD)
EVENTS = b'data: {"a":1}\n\ndata: [DONE]\n\n'
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.fixture
def kind() -> str:
    """The other relay holds nothing."""
    return "native"


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.gateway.comments.INTERVAL", 0.02)


def coming(detail: str = "m is starting (loading weights, 62 %)") -> Route:
    return msgspec.structs.replace(route("m", detail=detail), comes=True, state="starting")


def relay_of(world: World) -> NativeRelay:
    assert isinstance(world.relay, NativeRelay)
    return world.relay


def renew(world: World, *routes: Route, version: int = 2) -> None:
    assert relay_of(world).routes.replace(table(*routes, version=version))
    relay_of(world)._on_table()


async def stream(_: Message, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM + b"%x\r\n%b\r\n0\r\n\r\n" % (len(EVENTS), EVENTS))


async def held(world: World, request: bytes = ASKED) -> tuple[Client, Message]:
    """A client whose request is held, and the head that it got."""
    client = await world.client()
    await client.send(request)
    head = await client.response(head_only=True)
    assert (head.status, head.get("content-type")) == (200, "text/event-stream; charset=utf-8")
    return client, head


async def body_of(client: Client) -> bytes:
    """The body of a chunked answer of which the head was read; it has to come to its end."""
    body = b""
    async with asyncio.timeout(20):
        while size := int(await client.reader.readuntil(b"\r\n"), 16):
            body += (await client.reader.readexactly(size + 2))[:-2]
        assert await client.reader.readexactly(2) == b"\r\n"
    return body


def split(body: bytes) -> tuple[bytes, bytes]:
    """The comments that a body begins with, and the rest."""
    match = re.match(rb"(?:: [^\r\n]*\n\n)*", body)
    assert match is not None
    return match[0], body[match.end() :]


def error_of(event: bytes) -> dict[str, object]:
    assert event.startswith(b"data: ") and event.endswith(b"\n\n")
    assert b"\n" not in event[:-2] and b"\r" not in event
    said = msgspec.json.decode(event[6:], type=dict[str, dict[str, object]])
    return said["error"]


async def test_a_stream_is_told_and_then_comes(world: World) -> None:
    engine = await world.engine(script=stream)
    await world.start(coming())
    client, head = await held(world)
    assert (head.get("transfer-encoding"), head.get("cache-control"), head.get("connection")) == (
        "chunked",
        "no-cache",
        None,
    )
    assert (head.get("x-request-id") or "").startswith("req-")
    line = b": waiting for m: m is starting (loading weights, 62 %)\n\n"
    first = b"%x\r\n%b\r\n" % (len(line), line)
    assert await client.reader.readexactly(2 * len(first)) == first * 2
    renew(world, coming("m is starting (warming up)"))
    await client.reader.readuntil(b": waiting for m: m is starting (warming up)\n\n\r\n")
    renew(world, route("m", engine), version=3)
    comments, rest = split(await body_of(client))
    assert set(comments.split(b"\n\n")) <= {b"", b": waiting for m: m is starting (warming up)"}
    assert rest == EVENTS
    assert (await client.ask(ASKED)).body == EVENTS  # the connection goes on, and what is not held is as always
    assert world.counts == {("m", "ok"): 2}
    assert world.outstanding == {}
    assert [message.get("accept-encoding") for message in engine.received] == [None, None]


async def test_one_whose_engine_takes_no_connections_is_told_so(world: World) -> None:
    engine = await world.engine(script=stream)
    await engine.stop()
    await world.start(route("m", engine))
    client, _ = await held(world, ASKED.replace(b"\r\n\r\n", b"\r\nAccept-Encoding: gzip\r\n\r\n", 1))
    await client.reader.readuntil(b": waiting for m: its engine takes no connections\n\n\r\n")
    await engine.start()
    assert split(await body_of(client))[1] == EVENTS
    assert [message.get("accept-encoding") for message in engine.received] == [None]


@pytest.mark.parametrize(
    "request_",
    [
        post(body=b'{"model":"m","stream":true}'),
        post(body=b'{"model":"m","stream":true}', extra=b"x-shoal-hold: on\r\n"),
        post(extra=HOLD),
        get("/v1/x?model=m", HOLD),
    ],
    ids=["unasked", "on", "no stream", "get"],
)
async def test_others_are_told_nothing(world: World, request_: bytes) -> None:
    engine = await world.engine(script=stream)
    await world.start(coming())
    client = await world.client()
    await client.send(request_)
    await eventually(lambda: relay_of(world).requests)
    await asyncio.sleep(0.1)
    renew(world, route("m", engine))
    answer = await client.response()
    assert (answer.body, answer.get("content-type")) == (EVENTS, "text/event-stream")


async def test_a_model_that_is_soon_there_answers_itself(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.gateway.comments.INTERVAL", 60)

    async def script(_: Message, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reply(writer, head="HTTP/1.1 400 Bad Request", body=b'{"error":{}}')

    engine = await world.engine(script=script)
    await world.start(coming())
    client = await world.client()
    await client.send(ASKED)
    await eventually(lambda: relay_of(world).admission.waiting("m"))
    renew(world, route("m", engine))
    answer = await client.response()
    assert (answer.status, answer.body) == (400, b'{"error":{}}')


async def test_who_waits_for_a_turn_after_that_is_told_so(world: World) -> None:
    engine = await world.engine(script=stream)
    only = msgspec.structs.replace(route("m", engine), limit=1)
    gate = asyncio.Event()

    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await stream(message, reader, writer)

    engine.script = script
    await world.start(coming())
    clients = [(await held(world))[0] for _ in range(2)]
    renew(world, only)
    await clients[1].reader.readuntil(b": waiting for m: its turn comes\n\n")
    gate.set()
    assert split(await body_of(clients[0]))[1] == EVENTS
    rest = await clients[1].reader.readuntil(b"0\r\n\r\n")
    assert EVENTS in rest


async def test_a_client_of_http_1_0_is_told_without_chunks(world: World) -> None:
    engine = await world.engine(script=stream)
    await world.start(coming())
    client, head = await held(world, ASKED.replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    assert (head.get("transfer-encoding"), head.get("connection")) == (None, "close")
    await client.reader.readuntil(b"\n\n")
    renew(world, route("m", engine))
    assert split(await client.closed())[1] == EVENTS


# -- what becomes of it ------------------------------------------------------------------------------------------------

PRETTY = b'{\n  "error": {\r\n    "message": "too \\n long", "type": "BadRequestError", "code": 400\n  }\n}'


@pytest.mark.parametrize(
    ("head", "body", "message", "outcome"),
    [
        ("HTTP/1.1 400 Bad Request\r\ncontent-type: application/json", PRETTY, "too \n long", "client_error"),
        ("HTTP/1.1 429 Too Many Requests", b'{"error":{"message":"later"}}', "later", "client_error"),
        ("HTTP/1.1 422 X", b'{"detail":[{"loc":["x"]}]}', 'with 422: [{"loc":["x"]}]', "client_error"),
        ("HTTP/1.1 404 X", b'{"object":"error","message":"no such"}', "with 404: no such", "client_error"),
        ("HTTP/1.1 500 X", b"Internal\n\nServer Error", "with 500.", "engine_error"),
        ("HTTP/1.1 500 X", b'{"error":"' + b"x" * 70_000 + b'"}', "with 500.", "engine_error"),
        ("HTTP/1.1 503 X", b"", "with 503.", "engine_error"),
        ("HTTP/1.1 200 OK\r\ncontent-type: application/json", b'{"choices":[]}', "no event stream", "engine_error"),
        (
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: gzip",
            gzip.compress(EVENTS),
            "no event stream",
            "engine_error",
        ),
        ("HTTP/1.1 307 X\r\nlocation: /", b"", "with 307", "engine_error"),
    ],
    ids=["pretty", "error", "detail", "message", "text", "large", "empty", "json", "gzip", "redirect"],
)
async def test_an_engine_that_does_not_stream(world: World, head: str, body: bytes, message: str, outcome: str) -> None:
    async def script(_: Message, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n")
        await reply(writer, head=head, body=body)

    engine = await world.engine(script=script)
    await world.start(coming())
    client, _ = await held(world)
    renew(world, route("m", engine))
    _, event = split(await body_of(client))
    assert message in str(error_of(event)["message"])
    assert world.counts == {("m", outcome): 1}
    assert world.outstanding == {}
    assert (await client.ask(get("/v1/models"))).status == 200


async def test_anthropics_clients_get_a_named_event(world: World) -> None:
    async def script(_: Message, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reply(writer, head="HTTP/1.1 400 Bad Request", body=b'{"type":"error","error":{"message":"too long"}}')

    engine = await world.engine(script=script)
    await world.start(coming())
    asked = post("/v1/messages", b'{"model":"m","stream":true}', HOLD)
    client, _ = await held(world, asked)
    gone, _ = await held(world, asked)
    renew(world, route("n", engine))
    for one in (client, gone):
        _, event = split(await body_of(one))
        assert event.startswith(b'event: error\ndata: {"type":"error","error":{"type":"not_found_error"')
    renew(world, coming(), version=3)
    client, _ = await held(world, asked)
    renew(world, route("m", engine), version=4)
    _, event = split(await body_of(client))
    assert event == b'event: error\ndata: {"type":"error","error":{"message":"too long"}}\n\n'


async def test_a_stream_of_known_length(world: World) -> None:
    async def script(_: Message, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reply(writer, head="HTTP/1.1 200 OK\r\ncontent-type: text/event-stream", body=EVENTS)

    engine = await world.engine(script=script)
    await world.start(coming())
    client, _ = await held(world)
    renew(world, route("m", engine))
    assert split(await body_of(client))[1] == EVENTS


async def test_an_engine_that_dies_before_it_answers(world: World) -> None:
    async def script(_: Message, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 X\r\ncontent-length: 100\r\n\r\n{")
        writer.close()

    engine = await world.engine(script=script)
    await world.start(coming())
    client, _ = await held(world)
    renew(world, route("m", engine))
    _, event = split(await body_of(client))
    assert error_of(event)["code"] == "engine_died"
    assert world.counts == {("m", "engine_error"): 1}


async def test_an_engine_that_dies_while_it_streams_does_not_look_whole(world: World) -> None:
    async def script(_: Message, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM + b"9\r\ndata: x\n\n\r\n8\r\ndata: cu\r\n")
        writer.close()

    engine = await world.engine(script=script)
    await world.start(coming())
    client, _ = await held(world)
    renew(world, route("m", engine))
    raw = await client.closed()
    assert not raw.endswith(b"0\r\n\r\n")
    body = b"".join(re.findall(rb"[0-9a-f]+\r\n(.*?\n?)\r\n(?=[0-9a-f]+\r\n|$)", raw, re.DOTALL))
    assert b"data: x\n\ndata: cu\n\ndata: {" in body
    assert b'"code":"engine_died"' in body
    assert world.counts == {("m", "engine_error"): 1}


async def test_who_is_held_too_long_gets_an_event(world: World) -> None:
    world.config = dataclasses.replace(world.config, hold_timeout=0.3)
    await world.start(coming())
    client, _ = await held(world)
    comments, event = split(await body_of(client))
    assert comments
    assert error_of(event)["code"] == "model_not_ready"
    assert world.counts == {("m", "unavailable"): 1}
    assert relay_of(world).link.wanted == set()
    assert (await client.ask(get("/v1/models"))).status == 200


async def test_a_model_that_comes_no_more(world: World) -> None:
    await world.start(coming(), route("other"))
    one, _ = await held(world)
    renew(world, route("m", detail="m could not be run: no memory"), route("other"))
    _, event = split(await body_of(one))
    assert "no memory" in str(error_of(event)["message"])
    renew(world, coming(), route("other"), version=3)
    two, _ = await held(world)
    renew(world, route("other"), version=4)
    _, event = split(await body_of(two))
    assert error_of(event) == {
        "message": "The model 'm' does not exist. Known models: other.",
        "type": "not_found_error",
        "code": "model_not_found",
        "param": "model",
    }
    assert relay_of(world).requests == {}


async def test_a_fallback_streams_in_its_place(world: World) -> None:
    engine = await world.engine(script=stream)
    names = (VirtualModel("v", "m", fallback=("n",)),)
    ready = route("n", engine)
    save_table(world.config.table, RoutingTable("e1", 1, (coming(), ready), virtual=names))
    await world.start()
    client, _ = await held(world, ASKED.replace(b'"m"', b'"v"', 1))
    relay = relay_of(world)
    assert relay.routes.replace(RoutingTable("e1", 2, (route("m", detail="gone"), ready), virtual=names))
    relay._on_table()
    assert split(await body_of(client))[1] == EVENTS
    assert b'"n"' in engine.received[0].body


async def test_usage_that_nobody_asked_for_is_taken_out(world: World) -> None:
    secret = "sk-shoal-12345678-" + "a" * 32
    key = Key("k", "ann", hashlib.sha256(secret.encode()).hexdigest())
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n'

    async def script(message: Message, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert b"include_usage" in message.body
        said = EVENTS.replace(b"data: [DONE]", usage + b"data: [DONE]")
        writer.write(STREAM + b"%x\r\n%b\r\n0\r\n\r\n" % (len(said), said))

    engine = await world.engine(script=script)
    save_table(world.config.table, RoutingTable("e1", 1, (coming(),), (key,)))
    await world.start()
    bearer = b"Authorization: Bearer " + secret.encode() + b"\r\nAccept-Encoding: gzip\r\n"
    client, _ = await held(world, post(body=b'{"model":"m","stream":true}', extra=HOLD + bearer))
    assert relay_of(world).routes.replace(RoutingTable("e1", 2, (route("m", engine),), (key,)))
    relay_of(world)._on_table()
    assert split(await body_of(client))[1] == EVENTS
    assert engine.received[0].get("accept-encoding") is None
    (traffic,) = relay_of(world).measures.traffic()
    assert (traffic.prompt_tokens, traffic.completion_tokens) == (3, 4)


async def test_who_leaves_frees_its_place(world: World) -> None:
    await world.start(coming())
    client, _ = await held(world)
    (request,) = relay_of(world).requests.values()
    assert isinstance(request, Commented)
    assert request.phase == "held"
    client.close()
    await eventually(lambda: not relay_of(world).requests)
    assert request._timer is None
    assert relay_of(world).admission.waiting("m") == 0
    assert world.counts == {("m", "cancelled"): 1}


async def test_one_that_is_cancelled_gets_an_event(world: World) -> None:
    await world.start(coming())
    client, _ = await held(world)
    (request,) = relay_of(world).requests.values()
    request.cancel()
    _, event = split(await body_of(client))
    assert error_of(event)["code"] == "request_cancelled"
    assert world.counts == {("m", "cancelled"): 1}


async def test_a_relay_that_stops_says_so(world: World) -> None:
    await world.start(coming())
    client, _ = await held(world)
    stopping = asyncio.create_task(relay_of(world).stop(60))
    _, event = split(await body_of(client))
    assert error_of(event)["code"] == "relay_stopping"
    assert await client.closed() == b""
    await stopping
    world.relay = None


async def test_a_client_that_reads_nothing_is_told_no_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.start(coming())
    client, _ = await held(world)
    (request,) = relay_of(world).requests.values()
    assert isinstance(request, Commented)
    connection = request.connection
    connection.full = True
    written: list[bytes] = []
    monkeypatch.setattr(ClientConnection, "write", lambda _, data: written.append(data))
    for _ in range(3):
        request._tick()
    assert written == []
    connection.full = False
    request._tick()
    assert len(written) == 1
    client.close()


# -- what is written ---------------------------------------------------------------------------------------------------


@given(st.text(), st.text())
@example("m\r\ndata: x", "a\n\nb\u2028c\x00\ud800")
def test_a_comment_is_one_line_whatever_is_in_it(model: str, detail: str) -> None:
    line = comment(model, detail).decode()
    assert line.startswith(": waiting for") and line.endswith("\n\n")
    assert len(line.splitlines()) == 2
    assert line[:-2].isprintable()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["error", "message", "x"]), inner),
    max_leaves=6,
)


@given(st.integers(200, 599), st.binary(max_size=30) | JSON.map(lambda said: msgspec.json.format(encode(said))))
@example(500, b'{"error": "\\ud800"}')
@example(500, b'{"message": "\\ud800"}')
@example(500, b"[" * 5000)
@example(400, b'\xef\xbb\xbf{"error":{}}')
def test_an_engines_error_is_one_event_whatever_it_says(status: int, body: bytes) -> None:
    event = engine_error("/v1/completions", status, body)
    assert event.startswith(b"data: {") and event.endswith(b"}\n\n")
    assert b"\n" not in event[:-2] and b"\r" not in event
    assert msgspec.json.decode(event[6:])["error"]
    named = engine_error("/v1/messages", status, body)
    assert named.startswith(b"event: error\n" + b"data: {") and named.count(b"\n") == 3
    assert msgspec.json.decode(named.partition(b"data: ")[2])["error"]


def encode(said: object) -> bytes:
    return msgspec.json.encode(said)
