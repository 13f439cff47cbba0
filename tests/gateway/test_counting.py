"""What a running relay counts: usage by key, measures, and streams that are asked for their usage."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from shoal.messages import Demand, DistributionName, Route, Usage, VirtualModel
from tests.gateway.harness import Message, Script, eventually, post, reply
from tests.gateway.native import Gate, NativeWorld, bearer, chat, failed, key, serves, sleeps

EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
TEXT = (
    b'data: {"id":"1","choices":[{"delta":{"content":"a\xc3\xa9"}}],"usage":null}\r\n\r\n'
    b': a comment\n\ndata:{"choices":[]}\n\n'
)
COUNTED = b'data: {"id":"1","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}\n\n'
DONE = b"data: [DONE]\n\n"
ANTHROPIC = (
    b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":7,"output_tokens":1}}}\n\n'
    b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"hi"}}\n\n'
    b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":3}}\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
)
RESPONSES = (
    b'event: response.created\ndata: {"type":"response.created","response":{"usage":null}}\n\n'
    b'event: response.completed\ndata: {"type":"response.completed",'
    b'"response":{"usage":{"input_tokens":7,"output_tokens":3,"total_tokens":10}}}\n\n'
)


def says(body: bytes, kind: str = "application/json", status: str = "200 OK") -> Script:
    async def script(_: Message, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reply(writer, head=f"HTTP/1.1 {status}\r\ncontent-type: {kind}", body=body)

    return script


def streams(*parts: bytes, framing: str = "chunked", size: int = 0) -> Script:
    """An event stream in these parts, or cut into pieces of `size`."""

    async def script(_: Message, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        whole = b"".join(parts)
        pieces = [whole[at : at + size] for at in range(0, len(whole), size)] if size else parts
        if framing == "chunked":
            writer.write(EVENTS + b"transfer-encoding: chunked\r\n\r\n")
            for piece in pieces:
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await writer.drain()
            writer.write(b"0\r\n\r\n")
        elif framing == "length":
            writer.write(EVENTS + b"content-length: %d\r\n\r\n" % len(whole) + whole)
        else:
            writer.write(EVENTS + b"\r\n" + whole)
            writer.close()

    return script


async def used(world: NativeWorld) -> Usage:
    """The only usage that the relay reports."""
    await eventually(lambda: world.controls.usage)
    (usage,) = world.controls.usage
    return usage


# -- usage -------------------------------------------------------------------------------------------------------------


async def test_usage_of_an_answer_by_key_model_and_day(native_world: NativeWorld) -> None:
    body = b'{"choices":[{}],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}'
    engine = await native_world.engine(script=says(body))
    before = datetime.now(UTC)
    await native_world.begin(serves("m", engine), keys=(key("a"),))
    assert (await native_world.ask(chat(extra=bearer("a")))).body == body
    usage = await used(native_world)
    after = datetime.now(UTC)
    assert (usage.key, usage.model, usage.requests, usage.prompt_tokens, usage.completion_tokens) == (
        "id-a", "m", 1, 7, 3,
    )  # fmt: skip
    assert usage.day in {before.date().isoformat(), after.date().isoformat()}
    assert before.timestamp() - 1 <= usage.last_used <= after.timestamp()
    assert (native_world.traffic().prompt_tokens, native_world.traffic().completion_tokens) == (7, 3)


async def test_usage_of_nobody_and_of_what_says_none(native_world: NativeWorld) -> None:
    engine = await native_world.engine(script=says(b"RIFF", "audio/wav"))
    await native_world.begin(serves("m", engine))
    await native_world.ask(post("/v1/audio/speech"))
    usage = await used(native_world)
    assert (usage.key, usage.requests, usage.prompt_tokens, usage.completion_tokens) == ("", 1, 0, 0)


async def test_usage_is_that_of_the_model_that_answered(native_world: NativeWorld) -> None:
    engine = await native_world.engine(script=says(b'{"usage":{"prompt_tokens":7,"total_tokens":7}}'))
    virtual = (VirtualModel("fast", "broken", fallback=("sql",)),)
    await native_world.begin(failed("broken", "it is"), serves("m", engine, names=("sql",)), virtual=virtual)
    assert (await native_world.ask(post("/v1/embeddings", b'{"model":"fast"}'))).status == 200
    usage = await used(native_world)
    assert (usage.model, usage.prompt_tokens, usage.completion_tokens) == ("m", 7, 0)


async def test_requests_that_got_nothing_are_no_usage(native_world: NativeWorld) -> None:
    engine = await native_world.engine(script=says(b'{"error":{}}', status="400 Bad Request"))
    await native_world.begin(serves("m", engine), failed("off", "it is"), keys=(key("a", models=("m", "off")),))
    for model in ("m", "off", "other"):
        assert (await native_world.ask(chat(model, extra=bearer("a")))).status >= 400
    engine.script = says(b"{}")
    assert (await native_world.ask(chat(extra=bearer("a")))).status == 200
    assert (await used(native_world)).requests == 1


@pytest.mark.parametrize("size", [0, 1, 7])
@pytest.mark.parametrize(
    ("path", "stream"), [("/v1/messages", ANTHROPIC), ("/v1/responses", RESPONSES)], ids=["anthropic", "responses"]
)
async def test_streams_that_tell_their_usage_unasked_stay_as_they_are(
    native_world: NativeWorld, path: str, stream: bytes, size: int
) -> None:
    engine = await native_world.engine(script=streams(stream, size=size))
    await native_world.begin(serves("m", engine), keys=(key("a"),))
    body = b'{"model":"m","stream":true}'
    assert (await native_world.ask(post(path, body, bearer("a")))).body == stream
    assert engine.received[0].body == body
    usage = await used(native_world)
    assert (usage.prompt_tokens, usage.completion_tokens) == (7, 3)


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
@pytest.mark.parametrize("size", [0, 1, 50])
async def test_usage_that_only_the_relay_asked_for_is_taken_out_again(
    native_world: NativeWorld, framing: str, size: int
) -> None:
    engine = await native_world.engine(script=streams(TEXT, COUNTED, DONE, framing=framing, size=size))
    await native_world.begin(serves("m", engine), keys=(key("a"),))
    body = b'{"model":"m", "stream":true ,"x":1.50}'
    client = await native_world.client()
    answer = await client.ask(post(body=body, extra=bearer("a")))
    assert (answer.status, answer.complete, answer.body) == (200, True, TEXT + DONE)
    assert answer.get("content-length") is None
    (request,) = engine.received
    assert request.body == body[:-1] + b',"stream_options":{"include_usage":true}}'
    assert request.get("content-length") == str(len(request.body))
    usage = await used(native_world)
    assert (usage.key, usage.prompt_tokens, usage.completion_tokens) == ("id-a", 7, 3)
    assert (await client.ask(post(body=body, extra=bearer("a")))).body == TEXT + DONE  # the connection is still good


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
async def test_so_it_is_for_clients_of_http_1_0(native_world: NativeWorld, framing: str) -> None:
    engine = await native_world.engine(script=streams(TEXT, COUNTED, DONE, framing=framing))
    await native_world.begin(serves("m", engine), keys=(key("a"),))
    body = b'{"model":"m","stream":true}'
    head = b"POST /v1/completions HTTP/1.0\r\n%bContent-Length: %d\r\n\r\n" % (bearer("a"), len(body))
    client = await native_world.send(head + body)
    answer = await client.response(to_eof=True)
    assert answer.body == TEXT + DONE
    assert (answer.get("transfer-encoding"), answer.get("content-length"), answer.get("connection")) == (
        None, None, "close",
    )  # fmt: skip
    assert (await used(native_world)).completion_tokens == 3


@pytest.mark.parametrize(
    ("path", "extra", "body"),
    [
        ("/v1/chat/completions", bearer("a"), b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}'),
        ("/v1/chat/completions", b"", b'{"model":"m","stream":true}'),  # nobody's usage is counted by tokens
        ("/v1/other", bearer("a"), b'{"model":"m","stream":true}'),
        ("/v1/chat/completions", bearer("a"), b'{"model":"m"}'),  # an engine that streams although nobody asked
    ],
    ids=["asked", "without a key", "another path", "no stream"],
)
async def test_other_streams_go_through_byte_for_byte(
    native_world: NativeWorld, path: str, extra: bytes, body: bytes
) -> None:
    engine = await native_world.engine(script=streams(TEXT, COUNTED, DONE))
    await native_world.begin(serves("m", engine), keys=(key("a"),))
    assert (await native_world.ask(post(path, body, extra))).body == TEXT + COUNTED + DONE
    assert engine.received[0].body == body
    usage = await used(native_world)
    assert (usage.prompt_tokens, usage.completion_tokens) == (7, 3)


async def test_a_chunked_request_that_is_asked_for_its_usage_stays_chunked(native_world: NativeWorld) -> None:
    engine = await native_world.engine(script=streams(TEXT, COUNTED, DONE))
    await native_world.begin(serves("m", engine), keys=(key("a"),))
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" + bearer("a") + b"\r\n"
    answer = await native_world.ask(head + b'b\r\n{"model":"m\r\n11\r\n","stream":true }\r\n0\r\n\r\n')
    assert answer.body == TEXT + DONE
    assert engine.received[0].json["stream_options"] == {"include_usage": True}


async def test_a_stream_that_breaks_off_is_counted_as_far_as_it_told(native_world: NativeWorld) -> None:
    async def script(_: Message, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        chunk = TEXT + b'data: {"choi'
        writer.write(EVENTS + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(chunk), chunk))
        await writer.drain()
        writer.close()

    engine = await native_world.engine(script=script)
    await native_world.begin(serves("m", engine), keys=(key("a"),))
    answer = await native_world.ask(post(body=b'{"model":"m","stream":true}', extra=bearer("a")))
    assert not answer.complete
    assert answer.body.startswith(TEXT + b'data: {"choi\n\ndata: {"error"')
    assert b"engine_died" in answer.body
    assert native_world.counts == {("m", "engine_error"): 1}


# -- measures ----------------------------------------------------------------------------------------------------------


async def test_outcomes_by_model_and_class(native_world: NativeWorld) -> None:
    engine = await native_world.engine(script=says(b"{}"))
    teapot = await native_world.engine("teapot", says(b"{}", status="418 Teapot"))
    broken = await native_world.engine("broken", says(b"{}", status="500 Oh"))
    routes = (serves("m", engine), serves("teapot", teapot), serves("broken", broken), failed("off", "it is"))
    await native_world.begin(*routes, keys=(key("a", requests_per_minute=1),))
    for request in (
        chat(priority="high"), chat(), chat("teapot"), chat("broken"), chat("off", priority="low"), chat("none"),
        chat(extra=b"Authorization: Bearer x\r\n"), chat(extra=bearer("a")), chat(extra=bearer("a")), post(body=b"{"),
    ):  # fmt: skip
        await native_world.ask(request)
    counts = {(c.model, c.priority, c.outcome): c.requests for c in native_world.native_relay.counts}
    assert counts == {
        ("m", "high", "ok"): 1,
        ("m", "normal", "ok"): 2,
        ("teapot", "normal", "client_error"): 1,
        ("broken", "normal", "engine_error"): 1,
        ("off", "low", "unavailable"): 1,
        ("", "normal", "client_error"): 2,
        ("", "normal", "refused"): 1,
        ("m", "normal", "refused"): 1,
    }
    await eventually(lambda: len(native_world.controls.report.counts) == len(counts))


@pytest.mark.parametrize("size", [1, 3, 0])
async def test_one_value_a_request(native_world: NativeWorld, size: int) -> None:
    engine = await native_world.engine(script=streams(b"data: 1\n\n", b"data: 2\n\n", DONE, size=size))
    await native_world.begin(serves("m", engine))
    for _ in range(3):
        await native_world.ask(chat(stream=True))
    engine.script = says(b"")
    await native_world.ask(chat())
    engine.script = says(b"{}" * 100_000)
    await native_world.ask(chat())
    names: tuple[DistributionName, ...] = ("queue", "first_byte", "duration", "overhead")
    assert [native_world.observed(name) for name in names] == [5] * 4
    await eventually(lambda: native_world.controls.report.distributions)


async def test_a_chunk_that_comes_in_pieces_has_one_first_byte(native_world: NativeWorld) -> None:
    goes_on = asyncio.Event()

    async def script(_: Message, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENTS + b"transfer-encoding: chunked\r\n\r\n")
        for piece in (b"9", b"\r\n", b"d", b"ata: 1\n\n", b"\r\n", b"0\r\n\r\n"):
            goes_on.clear()
            writer.write(piece)
            await goes_on.wait()

    engine = await native_world.engine(script=script)
    await native_world.begin(serves("m", engine))
    (client,) = await native_world.sent(chat(stream=True))
    while not client.reader.at_eof() and not native_world.counts:
        await asyncio.sleep(0.01)
        goes_on.set()
    assert (await client.response()).body == b"data: 1\n\n"
    assert native_world.observed("first_byte") == 1
    assert native_world.observed("inter_chunk") == 1


async def test_who_leaves_a_queue_has_waited_and_got_no_byte(native_world: NativeWorld) -> None:
    gate = Gate()
    engine = await native_world.engine(script=gate)
    await native_world.begin(serves("m", engine, capacity=1), sleeps("asleep"))
    runs, queued, held = await native_world.sent(chat(name="runs"), chat(name="queued"), chat("asleep"))
    for client in (queued, held, runs):
        client.close()
    await eventually(lambda: native_world.counts == {("m", "cancelled"): 2, ("asleep", "cancelled"): 1})
    assert (native_world.observed("queue"), native_world.observed("queue", "asleep")) == (2, 1)
    assert (native_world.observed("first_byte"), native_world.observed("first_byte", "asleep")) == (0, 0)
    assert (native_world.observed("overhead"), native_world.observed("overhead", "asleep")) == (1, 0)
    waited = [d.total for d in native_world.native_relay.measures.distributions() if d.name == "queue"]
    assert all(total > 0 for total in waited)
    gate.let_go("runs")


async def test_bytes_both_ways(native_world: NativeWorld) -> None:
    engine = await native_world.engine(script=streams(b"data: 1\n\n", DONE))
    await native_world.begin(serves("m", engine))
    request = chat(stream=True)
    answer = await native_world.ask(request)
    traffic = native_world.traffic()
    assert (traffic.bytes_in, traffic.bytes_out) == (len(engine.received[0].body), len(answer.body))


async def test_nothing_is_kept_of_models_that_are_gone(native_world: NativeWorld) -> None:
    gate = Gate()
    engine = await native_world.engine(script=gate)
    await native_world.begin(serves("m", engine, capacity=1), serves("n", engine))
    gate.let_go("n")
    await native_world.ask(chat("n", "n"))
    (client,) = await native_world.sent(chat(name="m"))
    await native_world.controls.tell(Route("k", "unloaded", 1))
    assert native_world.counts == {}
    gate.let_go("m")
    assert (await client.response()).status == 200
    assert native_world.counts == {("", "ok"): 1}
    relay = native_world.native_relay
    assert (relay.measures.distributions(), relay.measures.traffic()) == ((), ())
    assert relay.admission._models == {}
    await eventually(lambda: {usage.model for usage in native_world.controls.usage} == {"m", "n"})


async def test_usage_waits_for_a_controller(native_world: NativeWorld) -> None:
    engine = await native_world.engine(script=says(b"{}"))
    native_world.save(serves("m", engine))
    await native_world.start()
    for _ in range(3):
        await native_world.ask(chat())
    await native_world.controls.start()
    await eventually(lambda: sum(usage.requests for usage in native_world.controls.usage) == 3)


async def test_a_relay_that_stops_tells_what_was_used(native_world: NativeWorld) -> None:
    engine = await native_world.engine(script=says(b"{}"))
    await native_world.begin(serves("m", engine))
    for _ in range(3):
        await native_world.ask(chat())
    await native_world.native_relay.stop(0)
    native_world.relay = None
    assert sum(usage.requests for usage in native_world.controls.usage) == 3


async def test_how_long_a_model_is_to_stay_is_told_as_its_last_request_said(native_world: NativeWorld) -> None:
    engine = await native_world.engine()
    await native_world.begin(serves("m", engine), serves("n", engine))

    async def said(keep_alive: object) -> tuple[Demand, ...]:
        await native_world.ask(chat() if keep_alive is None else chat(keep_alive=keep_alive))
        await asyncio.sleep(0)
        await native_world.controls.settled()
        return native_world.native_relay.keeping.demand()

    assert await said(None) == ()
    (demand,) = await said("5m")
    assert (demand.model, demand.keep_alive) == ("m", 300.0)
    assert abs(demand.last_use - datetime.now(UTC).timestamp()) < 60
    await eventually(lambda: native_world.controls.report.demand == native_world.native_relay.keeping.demand())
    assert (await said(0))[0].keep_alive == 0
    assert (await said("nonsense")) == (), "what cannot be read counts as not said"
    assert (await said(-1))[0].keep_alive == -1
    await native_world.controls.tell(serves("n", engine))
    assert native_world.native_relay.keeping.demand() == ()
