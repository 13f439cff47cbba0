"""Names that stand for others, in a running relay: what the engine gets to read, and which engine."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from shoal.messages import Route, VirtualModel
from tests.gateway.harness import Message, get, post
from tests.gateway.native import Gate, NativeWorld, answered, chat, failed, serves, sleeps

UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\nSec-WebSocket-Version: 13\r\n"


def form(model: bytes, boundary: bytes = b"xYx") -> bytes:
    """A request with a file in a form."""
    body = (
        b'--%b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
        b"RIFF\r\n--xY\x00\xff\r\n"
        b'--%b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n--%b--\r\n'
    ) % (boundary, boundary, model, boundary)
    return post("/v1/audio/transcriptions", body, b"Content-Type: multipart/form-data; boundary=%b\r\n" % boundary)


def body_of(request: bytes) -> bytes:
    return request.partition(b"\r\n\r\n")[2]


async def test_an_alias_changes_the_name_and_nothing_else(native_world: NativeWorld) -> None:
    engine = await native_world.engine()
    await native_world.begin(serves("org/m ü", engine), virtual=(VirtualModel("gpt-4o", "org/m ü"),))
    body = (
        b'{"temperature": 1.50, "model":"gpt-4o","messages":[{"role":"user","content":"\\u00e9 \\/"}], "x":{"a" : 1}}'
    )
    assert (await native_world.ask(post(body=body))).status == 200
    (request,) = engine.received
    assert request.get("content-length") == str(len(request.body))
    assert msgspec.json.decode(request.body) == msgspec.json.decode(body) | {"model": "org/m ü"}
    for kept in (b"1.50", b'[{"role":"user","content":"\\u00e9 \\/"}]', b'{"a" : 1}'):
        assert kept in request.body
    assert native_world.counts == {("org/m ü", "ok"): 1}


async def test_a_model_by_its_own_name_keeps_its_bytes_beside_virtual_ones(native_world: NativeWorld) -> None:
    engine = await native_world.engine()
    virtual = (VirtualModel("m", "n"), VirtualModel("x", "m", set={"seed": 1}))  # what a model is called is its own
    await native_world.begin(serves("m", engine), serves("n", engine), virtual=virtual)
    body = b'{ "model" : "m" , "seed" : 7 }\n'
    await native_world.ask(post(body=body))
    assert engine.received[0].body == body


async def test_fields_are_set_filled_in_and_taken_out(native_world: NativeWorld) -> None:
    engine = await native_world.engine()
    exact = VirtualModel(
        "exact", "m", set={"temperature": 0, "x": [1]}, defaults={"max_tokens": 9, "top_p": 0.5}, strip=("bias", "x"),
        system="Be brief.",
    )  # fmt: skip
    await native_world.begin(serves("m", engine), virtual=(exact,))
    user = {"role": "user", "content": "hi"}
    said = {"role": "system", "content": "Be long."}
    await native_world.ask(chat("exact", temperature=2, top_p=None, bias={}, x=5, messages=[user]))
    await native_world.ask(chat("exact", messages=[said, user], max_tokens=3))
    await native_world.ask(post("/v1/messages", b'{"model":"exact","messages":[]}'))
    first, second, third = (request.json for request in engine.received)
    assert first == {
        "model": "m", "temperature": 0, "x": [1], "max_tokens": 9, "top_p": None,
        "messages": [{"role": "system", "content": "Be brief."}, user],
    }  # fmt: skip
    assert (second["messages"], second["max_tokens"]) == ([said, user], 3)
    assert (third["system"], third["messages"]) == ("Be brief.", [])


async def test_an_adapter_goes_to_its_model_s_engine_by_its_own_name(native_world: NativeWorld) -> None:
    engine, other = await native_world.engine("e"), await native_world.engine("o")
    virtual = (VirtualModel("query", "sql", defaults={"n": 1}),)
    await native_world.begin(serves("m", engine, names=("sql", "fr")), serves("o", other), virtual=virtual)
    body = b'{"model" : "sql"}'
    assert (await native_world.ask(post(body=body))).status == 200
    assert (await native_world.ask(chat("query"))).status == 200
    assert engine.received[0].body == body
    assert engine.received[1].json == {"model": "sql", "n": 1}
    assert other.received == []
    assert native_world.counts == {("m", "ok"): 2}


async def test_adapters_wait_in_their_model_s_queue(native_world: NativeWorld) -> None:
    gate = Gate()
    engine = await native_world.engine(script=gate)
    await native_world.begin(serves("m", engine, capacity=1, names=("sql",)))
    clients = await native_world.sent(chat("m", "base"), chat("sql", "adapter"))
    assert {view.phase for view in (await native_world.controls.requests()).values()} == {"waiting", "queued"}
    gate.let_go("base", "adapter")
    assert [await answered(client) for client in clients] == ["base", "adapter"]


async def test_an_adapter_of_a_model_that_sleeps_wakes_it(native_world: NativeWorld) -> None:
    engine = await native_world.engine()
    await native_world.begin(sleeps("m", names=("sql",)))
    (client,) = await native_world.sent(chat("sql"))
    await native_world.controls.settled()
    assert native_world.controls.wanted == ["m"]
    await native_world.controls.tell(serves("m", engine, names=("sql",)))
    assert (await client.response()).status == 200


@pytest.mark.parametrize("first", [failed("m", "m is broken"), Route("other", "unloaded", 1)], ids=["broken", "gone"])
async def test_a_fallback_answers_for_what_cannot(native_world: NativeWorld, first: Route) -> None:
    engine = await native_world.engine()
    virtual = (VirtualModel("v", "m", set={"seed": 1}, fallback=("lost", "n", "k")),)
    await native_world.begin(first, serves("n", engine), serves("k", engine), virtual=virtual)
    assert (await native_world.ask(chat("v"))).status == 200
    assert engine.received[0].json == {"model": "n", "seed": 1}
    assert native_world.counts == {("n", "ok"): 1}


async def test_without_any_that_can_the_first_says_why(native_world: NativeWorld) -> None:
    virtual = (VirtualModel("v", "m", fallback=("n",)), VirtualModel("w", "lost", fallback=("lost too",)))
    await native_world.begin(failed("m", "m is broken"), failed("n", "n is broken"), virtual=virtual)
    answer = await native_world.ask(chat("v"))
    assert (answer.status, answer.error["code"], answer.error["message"]) == (503, "model_not_ready", "m is broken")
    answer = await native_world.ask(chat("w"))
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert "'w' stands for 'lost'" in str(answer.error["message"])


async def test_what_the_request_is_told_to_be_can_change_while_it_waits(native_world: NativeWorld) -> None:
    engine = await native_world.engine()
    await native_world.begin(sleeps("m"), virtual=(VirtualModel("v", "m", set={"seed": 1}),))
    (client,) = await native_world.sent(chat("v"))
    await native_world.controls.tell(serves("m", engine), virtual=(VirtualModel("v", "other"),))
    assert (await client.response()).status == 200
    assert engine.received[0].json == {"model": "m", "seed": 1}, "it is treated as it was when it came"


async def test_forms_get_the_name_and_keep_their_files(native_world: NativeWorld) -> None:
    engine = await native_world.engine()
    virtual = (
        VirtualModel("ears", "whisper", defaults={"language": "en"}),
        VirtualModel("set", "whisper", set={"a": 1}),
    )
    await native_world.begin(serves("whisper", engine), virtual=virtual)
    assert (await native_world.ask(form(b"ears"))).status == 200
    assert engine.received[0].body == body_of(form(b"whisper"))
    assert engine.received[0].get("content-length") == str(len(body_of(form(b"whisper"))))
    answer = await native_world.ask(form(b"set"))
    assert (answer.status, answer.error["code"]) == (400, "virtual_not_for_forms")
    assert native_world.counts == {("whisper", "ok"): 1, ("whisper", "client_error"): 1}
    assert native_world.native_relay.admission.running("whisper") == 0


async def test_compressed_bodies_cannot_be_renamed(native_world: NativeWorld) -> None:
    engine = await native_world.engine()
    await native_world.begin(serves("m", engine), virtual=(VirtualModel("v", "m"),))
    extra = b"Content-Encoding: gzip\r\nX-Shoal-Model: %b\r\n"
    answer = await native_world.ask(post(body=b"\x1f\x8b", extra=extra % b"v"))
    assert (answer.status, answer.error["code"]) == (400, "virtual_not_for_compressed")
    assert (await native_world.ask(post(body=b"\x1f\x8b", extra=extra % b"m"))).status == 200
    assert engine.received[0].body == b"\x1f\x8b"


async def test_a_websocket_s_query_gets_the_name(native_world: NativeWorld) -> None:
    async def script(_: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi")
        await reader.read()

    engine = await native_world.engine(script=script)
    await native_world.begin(serves("org/m", engine), virtual=(VirtualModel("live", "org/m"),))
    client = await native_world.client()
    answer = await client.ask(get("/v1/realtime?a=%7E&model=live&b=+", UPGRADE), head_only=True)
    assert answer.status == 101
    assert engine.received[0].target == "/v1/realtime?a=%7E&model=org%2Fm&b=+"
    assert await client.reader.readexactly(2) == b"hi"


async def test_an_unknown_name_is_told_those_that_exist(native_world: NativeWorld) -> None:
    virtual = (VirtualModel("fast", "m"), VirtualModel("lost", "gone"))
    await native_world.begin(sleeps("m", names=("sql",)), virtual=virtual)
    for name in ("None", "m\x00", "FAST", " m"):
        answer = await native_world.ask(chat(name))
        assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")
        assert "Known models: fast, lost, m, sql." in str(answer.error["message"])
    assert native_world.counts == {("", "client_error"): 4}
