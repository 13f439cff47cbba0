"""What can be seen of requests and done to them: ids, times, lists, cancelling; and web pages that may see them."""

from __future__ import annotations

import asyncio
import re

import pytest

from shoal.messages import RequestView
from tests.gateway.harness import Message, eventually, get, post, reply
from tests.gateway.native import Gate, NativeWorld, answered, bearer, chat, key, refused, serves, sleeps

EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
MADE = re.compile(r"req-[0-9a-f]{8}-[0-9a-f]+")


async def open_stream(_: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Two events, and then nothing until the relay leaves."""
    writer.write(EVENTS + b"9\r\ndata: 1\n\n\r\n9\r\ndata: 2\n\n\r\n")
    await reader.read()


async def half_a_body(_: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{")
    await reader.read()


def ids(message: Message) -> list[str]:
    return [value.decode() for name, value in message.headers if name.lower() == b"x-request-id"]


# -- ids and times -----------------------------------------------------------------------------------------------------


async def test_a_client_s_own_id_is_kept_all_the_way(native_world: NativeWorld) -> None:
    engine = await native_world.engine()
    await native_world.begin(serves("m", engine))
    answer = await native_world.ask(chat(extra=b"X-REQUEST-ID: my/own:id\r\n"))
    assert ids(answer) == ids(engine.received[0]) == ["my/own:id"]
    assert (b"X-REQUEST-ID", b"my/own:id") in engine.received[0].headers


@pytest.mark.parametrize("given", [None, b"", b"a b", b"x" * 129, b"\xc3\xa9"])
async def test_an_id_is_made_where_none_is_given_or_none_that_will_do(
    native_world: NativeWorld, given: bytes | None
) -> None:
    line = b"" if given is None else b"X-Request-Id: %b\r\n" % given
    engine = await native_world.engine()
    await native_world.begin(serves("m", engine))
    answer = await native_world.ask(chat(extra=line))
    (id,) = ids(answer)
    assert MADE.fullmatch(id)
    assert ids(engine.received[0]) == [id]


async def test_two_requests_at_once_have_two_ids(native_world: NativeWorld) -> None:
    gate = Gate()
    engine = await native_world.engine(script=gate)
    await native_world.begin(serves("m", engine))
    clients = await native_world.sent(*(chat(name=name, extra=b"X-Request-Id: same\r\n") for name in ("a", "b")))
    assert len(await native_world.controls.requests()) == 2
    gate.let_go("a", "b")
    answers = [await client.response() for client in clients]
    assert ids(answers[0]) == ["same"]
    (made,) = ids(answers[1])
    assert MADE.fullmatch(made)
    assert sorted(ids(request)[0] for request in engine.received) == sorted(["same", made])
    again = await native_world.ask(chat(name="a", extra=b"X-Request-Id: same\r\n"))
    assert ids(again) == ["same"], "the first one is over"


async def test_an_engine_s_echo_of_the_id_is_not_said_twice(native_world: NativeWorld) -> None:
    async def script(message: Message, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reply(writer, head=f"HTTP/1.1 200 OK\r\nX-Request-Id: {message.get('x-request-id')}")

    engine = await native_world.engine(script=script)
    await native_world.begin(serves("m", engine))
    assert ids(await native_world.ask(chat(extra=b"x-request-id: a\r\n"))) == ["a"]


async def test_clients_of_anthropic_s_find_the_id_where_they_look(native_world: NativeWorld) -> None:
    async def script(message: Message, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reply(writer, head="HTTP/1.1 200 OK\r\nRequest-Id: engine-1")

    engine = await native_world.engine(script=script)
    await native_world.begin(serves("m", engine))

    def both(answer: Message) -> list[bytes]:
        return [value for name, value in answer.headers if name.lower() in (b"x-request-id", b"request-id")]

    for path in ("/v1/messages", "/v1/messages/count_tokens?beta=true"):
        for model, status in ((b"m", 200), (b"none", 404)):
            answer = await native_world.ask(post(path, b'{"model":"%b"}' % model, b"X-Request-Id: a\r\n"))
            assert answer.status == status
            assert both(answer) == [b"a", b"a"]
    assert both(await native_world.ask(chat(extra=b"X-Request-Id: b\r\n"))) == [b"engine-1", b"b"], "not of theirs"


async def test_times_are_told(native_world: NativeWorld) -> None:
    gate = Gate()
    engine = await native_world.engine(script=gate)
    await native_world.begin(serves("m", engine, capacity=1))
    first, second = await native_world.sent(chat(name="a"), chat(name="b"))
    gate.let_go("a", "b")
    answers = [await first.response(), await second.response()]
    for answer in answers:
        assert re.fullmatch(r"\d+\.\d", answer.get("x-shoal-queue-ms") or "")
        assert answer.get("x-shoal-wake-ms") == "0.0"
        assert 0 < int(answer.get("x-shoal-overhead-us") or 0) < 20_000_000
    assert answers[0].get("x-shoal-queue-ms") == "0.0"
    for name in (b"x-shoal-queue-ms", b"x-shoal-wake-ms", b"x-shoal-overhead-us"):
        assert [key for key, _ in answers[0].headers].count(name) == 1


async def test_errors_have_ids_too(native_world: NativeWorld) -> None:
    engine = await native_world.engine()
    await native_world.begin(serves("m", engine), keys=(key("a"),))
    given = b"X-Request-Id: mine\r\n"
    client = await native_world.client()
    for request, status in ((chat("none", extra=given), 404), (post(body=b"{", extra=given), 400)):
        answer = await client.ask(request)
        assert (answer.status, ids(answer)) == (status, ["mine"])
    answer = await client.ask(chat(extra=given + b"Authorization: Bearer no\r\n"))
    assert (answer.status, ids(answer)) == (401, ["mine"])


# -- the list ----------------------------------------------------------------------------------------------------------


async def test_requests_are_listed_with_where_they_are(native_world: NativeWorld) -> None:
    gate = Gate()
    streaming, working = await native_world.engine("s", open_stream), await native_world.engine("w", gate)
    routes = (serves("s", streaming), serves("w", working, capacity=1), sleeps("asleep"))
    await native_world.begin(*routes, keys=(key("a"),))
    named = b"X-Request-Id: %b\r\n"
    (stream,) = await native_world.sent(chat("s", extra=named % b"streams" + bearer("a"), stream=True))
    await stream.response(head_only=True)
    await native_world.sent(
        chat("w", "w", extra=named % b"works"),
        chat("w", "w", extra=named % b"second", priority="low"),
        chat("w", "w", extra=named % b"first"),
        chat("asleep", extra=named % b"held"),
    )
    half = chat("w", extra=named % b"comes")
    await native_world.sent(half[:-3])
    await eventually(lambda: gate.begun)
    await eventually(lambda: native_world.native_relay.requests["streams"].view(0, None).tokens == 2)
    views = await native_world.controls.requests()
    seen = {id: (v.model, v.phase, v.position, v.instance, v.tokens, v.priority) for id, v in views.items()}
    assert seen == {
        "streams": ("s", "answering", None, "s-0", 2, "normal"),
        "works": ("w", "waiting", None, "w-0", 0, "normal"),
        "second": ("w", "queued", 2, None, 0, "low"),
        "first": ("w", "queued", 1, None, 0, "normal"),
        "held": ("asleep", "held", 1, None, 0, "normal"),
        "comes": ("", "queued", None, None, 0, "normal"),
    }
    assert (views["streams"].key, views["streams"].tenant) == ("a", "id-a")
    assert (views["held"].key, views["held"].tenant) == (None, "127.0.0.1")
    assert {view.path for view in views.values()} == {"/v1/chat/completions"}
    assert all(0 <= view.age < 60 for view in views.values())
    assert views["streams"].age >= views["held"].age
    gate.let_go("w")


# -- cancelling --------------------------------------------------------------------------------------------------------


async def cancel_the_only_one(world: NativeWorld) -> RequestView:
    ((id, view),) = (await world.controls.requests()).items()
    assert await world.controls.cancel(id)
    assert not await world.controls.cancel(id), "it is gone"
    return view


async def test_nobody_to_cancel(native_world: NativeWorld) -> None:
    await native_world.begin()
    assert not await native_world.controls.cancel("none")


async def test_cancelling_what_is_held(native_world: NativeWorld) -> None:
    engine = await native_world.engine()
    await native_world.begin(sleeps("m"))
    (client,) = await native_world.sent(chat())
    assert (await cancel_the_only_one(native_world)).phase == "held"
    status, code, answer = await refused(client)
    assert (status, code) == (503, "request_cancelled")
    assert ids(answer)
    assert native_world.native_relay.link.wanted == set()
    await native_world.controls.tell(serves("m", engine))
    assert (await client.ask(chat())).status == 200  # the connection is still good
    assert len(engine.received) == 1
    assert native_world.counts == {("m", "cancelled"): 1, ("m", "ok"): 1}


async def test_cancelling_what_is_queued(native_world: NativeWorld) -> None:
    gate = Gate()
    engine = await native_world.engine(script=gate)
    await native_world.begin(serves("m", engine, capacity=1))
    runs, waits = await native_world.sent(chat(name="runs"), chat(name="waits", extra=b"X-Request-Id: it\r\n"))
    assert await native_world.controls.cancel("it")
    assert (await refused(waits))[:2] == (503, "request_cancelled")
    gate.let_go("runs")
    assert await answered(runs) == "runs"
    assert gate.begun == ["runs"]


async def test_cancelling_what_waits_for_its_engine_ends_it_there(native_world: NativeWorld) -> None:
    engine = await native_world.engine()

    async def script(_: Message, reader: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        await engine.until_left(reader)

    engine.script = script
    await native_world.begin(serves("m", engine, capacity=1))
    (client,) = await native_world.sent(chat())
    await eventually(lambda: engine.received)
    assert (await cancel_the_only_one(native_world)).phase == "waiting"
    assert (await refused(client))[:2] == (503, "request_cancelled")
    await asyncio.wait_for(engine.left.wait(), 20)
    assert native_world.outstanding == {}
    assert native_world.counts == {("m", "cancelled"): 1}


async def test_cancelling_a_stream_ends_it_with_an_error_event(native_world: NativeWorld) -> None:
    engine = await native_world.engine(script=open_stream)
    await native_world.begin(serves("m", engine))
    (client,) = await native_world.sent(chat(stream=True))
    await client.response(head_only=True)
    await client.reader.readuntil(b"data: 2\n\n\r\n")
    assert (await cancel_the_only_one(native_world)).phase == "answering"
    rest = await client.closed()
    assert b'data: {"error":{' in rest
    assert b'"code":"request_cancelled"' in rest
    assert not rest.endswith(b"0\r\n\r\n"), "it does not look whole"
    await asyncio.wait_for(engine.left.wait(), 20)
    assert native_world.counts == {("m", "cancelled"): 1}


async def test_cancelling_another_body_breaks_the_connection(native_world: NativeWorld) -> None:
    engine = await native_world.engine(script=half_a_body)
    await native_world.begin(serves("m", engine))
    (client,) = await native_world.sent(chat())
    await client.response(head_only=True)
    assert await client.reader.readexactly(1) == b"{"
    await cancel_the_only_one(native_world)
    with pytest.raises(ConnectionResetError):
        await client.reader.readexactly(99)
    await asyncio.wait_for(engine.left.wait(), 20)


async def test_cancelling_what_still_comes(native_world: NativeWorld) -> None:
    await native_world.begin(sleeps("m"))
    (client,) = await native_world.sent(chat()[:-3])
    await cancel_the_only_one(native_world)
    status, code, answer = await refused(client)
    assert (status, code, answer.get("connection")) == (503, "request_cancelled", "close")
    assert native_world.counts == {("", "cancelled"): 1}


# -- web pages ---------------------------------------------------------------------------------------------------------

ORIGIN = b"Origin: https://chat.example\r\n"
ASKING = (
    ORIGIN + b"Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization,content-type\r\n"
)


async def allows_everyone(_: Message, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = (
        "HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\naccess-control-allow-credentials: true\r\n"
        "access-control-expose-headers: x-own\r\nX-Own: 1"
    )
    await reply(writer, head=head)


def cors(message: Message) -> dict[str, str]:
    found = [(n.decode().lower(), v.decode()) for n, v in message.headers if n.lower().startswith(b"access-control-")]
    assert len(dict(found)) == len(found), "each only once"
    return dict(found)


@pytest.mark.parametrize(
    ("origins", "allowed"),
    [
        ((), None),
        (("https://other.example",), None),
        (("https://chat.example",), "https://chat.example"),
        (("*",), "*"),
    ],
)
async def test_web_pages_of_these_origins_may_call(
    native_world: NativeWorld, origins: tuple[str, ...], allowed: str | None
) -> None:
    native_world.configure(cors_origins=origins)
    engine = await native_world.engine(script=allows_everyone)
    await native_world.begin(serves("m", engine), keys=(key("a"),), keys_required=True)
    for path in ("/v1/chat/completions", "/v1/models"):  # a preflight has no key
        answer = await native_world.ask(get(path, ASKING, b"OPTIONS"), head_only=allowed is not None)
        if allowed is None:
            assert (answer.status, answer.error["code"], cors(answer)) == (403, "origin_not_allowed", {})
            continue
        assert (answer.status, answer.get("content-length"), answer.get("vary")) == (204, None, "Origin")
        assert cors(answer)["access-control-allow-origin"] == allowed
        assert "POST" in cors(answer)["access-control-allow-methods"]
        assert "authorization" in cors(answer)["access-control-allow-headers"]
        assert "access-control-allow-credentials" not in cors(answer)
    answers = [
        await native_world.ask(chat(extra=ORIGIN + bearer("a"))),
        await native_world.ask(chat("none", extra=ORIGIN + bearer("a"))),
        await native_world.ask(chat(extra=ORIGIN)),
        await native_world.ask(get("/v1/models", ORIGIN + bearer("a"))),
        await native_world.ask(get("/v1/models", ORIGIN)),
        await native_world.ask(post("/v1/models", extra=ORIGIN)),
    ]
    assert [answer.status for answer in answers] == [200, 404, 401, 200, 401, 405]
    for answer in answers:
        assert cors(answer).get("access-control-allow-origin") == allowed
        assert ("x-request-id" in cors(answer).get("access-control-expose-headers", "")) is (allowed is not None)
    assert answers[0].get("x-own") == "1"


async def test_what_is_no_web_page_is_told_nothing_of_origins(native_world: NativeWorld) -> None:
    native_world.configure(cors_origins=("*",))
    engine = await native_world.engine(script=allows_everyone)
    await native_world.begin(serves("m", engine))
    for request in (chat(), chat("none"), get("/v1/models")):
        assert cors(await native_world.ask(request)) == {}


async def test_a_page_s_headers_are_those_of_its_own_request(native_world: NativeWorld) -> None:
    native_world.configure(cors_origins=("https://chat.example",))
    engine = await native_world.engine()
    await native_world.begin(serves("m", engine))
    client = await native_world.client()
    assert cors(await client.ask(chat("none", extra=ORIGIN)))
    assert cors(await client.ask(chat("none"))) == {}
    assert cors(await client.ask(get("/v1/models", ORIGIN)))
    assert cors(await client.ask(get("/v1/models/none"))) == {}


async def test_pages_may_not_manage_models(native_world: NativeWorld) -> None:
    native_world.configure(cors_origins=("*",))
    controller = await native_world.controller()
    await native_world.begin()
    answer = await native_world.ask(get("/api/v1/models", ASKING, b"OPTIONS"))
    assert (answer.status, cors(answer)) == (200, {})  # whatever the controller says
    assert len(controller.received) == 1
