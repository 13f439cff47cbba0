"""API keys in a running relay: who gets in, to which models, how much, and what an engine gets to see of it."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest

from shoal.messages import Route, VirtualModel
from tests.gateway.harness import Message, eventually, get, post, reply
from tests.gateway.native import Gate, NativeWorld, answered, bearer, chat, key, refused, secret_of, serves, sleeps


def api_key(name: str) -> bytes:
    """The header line with which Anthropic's clients send a key."""
    return f"X-Api-Key: {secret_of(name)}\r\n".encode()


@pytest.mark.parametrize("line", [b"", b"Authorization: Basic eDp5\r\n", b"X-Api-Key: \r\n"])
async def test_without_a_key_nobody_gets_in_where_one_is_needed(native_world: NativeWorld, line: bytes) -> None:
    engine = await native_world.engine()
    await native_world.begin(serves("m", engine), keys=(key("a"),), keys_required=True)
    for request in (chat(extra=line), get("/v1/models", line), get("/v1/models/m", line)):
        answer = await native_world.ask(request)
        assert (answer.status, answer.error["code"]) == (401, "key_required")
        assert answer.get("www-authenticate") == "Bearer"
    assert engine.received == []
    assert native_world.counts == {("", "refused"): 1}


async def test_a_key_that_is_not_known_is_refused_before_its_body_is_read(native_world: NativeWorld) -> None:
    engine = await native_world.engine()
    await native_world.begin(serves("m", engine), keys=(key("a"),))
    client = await native_world.send(chat(extra=bearer("b"), padding="x" * 10_000)[:-5000])
    status, code, answer = await refused(client)
    assert (status, code, answer.get("connection")) == (401, "invalid_key", "close")
    assert answer.get("x-request-id")
    assert engine.received == []
    assert native_world.native_relay.requests == {}


async def test_keys_that_have_expired_or_will(native_world: NativeWorld) -> None:
    engine = await native_world.engine()
    now = time.time()
    keys = (key("old", expires_at=now - 1), key("new", expires_at=now + 3600))
    await native_world.begin(serves("m", engine), keys=keys)
    answer = await native_world.ask(chat(extra=bearer("old")))
    assert (answer.status, answer.error["code"]) == (401, "key_expired")
    assert (await native_world.ask(chat(extra=bearer("new")))).status == 200


async def test_a_key_goes_with_the_table_that_has_it(native_world: NativeWorld) -> None:
    engine = await native_world.engine()
    await native_world.begin(serves("m", engine), keys=(key("a"), key("b")))
    client = await native_world.client()
    assert (await client.ask(chat(extra=bearer("a")))).status == 200
    await native_world.controls.tell(serves("m", engine), keys=(key("b"),))
    answer = await client.ask(post(body=b'{"model":"m"}', extra=bearer("a")))
    assert (answer.status, answer.error["code"]) == (401, "invalid_key")


@pytest.mark.parametrize(
    "line",
    [bearer("a"), api_key("a"), bearer("a") + b"x-api-key: other\r\n", b"authorization: bearer  " + bearer("a")[22:]],
)
async def test_no_engine_sees_a_key(native_world: NativeWorld, line: bytes) -> None:
    engine = await native_world.engine()
    await native_world.begin(serves("m", engine), keys=(key("a"),), keys_required=True)
    assert (await native_world.ask(chat(extra=line + b"X-Stays: 1\r\n"))).status == 200
    (request,) = engine.received
    assert request.get("authorization") is None
    assert request.get("x-api-key") is None
    assert request.get("x-stays") == "1"
    assert b"sk-shoal" not in repr(request).encode()


async def test_no_engine_sees_a_key_that_is_not_needed_any_more(native_world: NativeWorld) -> None:
    engine = await native_world.engine()
    await native_world.begin(serves("m", engine))
    assert (await native_world.ask(chat(extra=bearer("a") + api_key("a")))).status == 200
    assert (engine.received[0].get("authorization"), engine.received[0].get("x-api-key")) == (None, None)
    assert (await native_world.ask(chat(extra=b"Authorization: Bearer the-engine's-own\r\n"))).status == 200
    assert engine.received[1].get("authorization") == "Bearer the-engine's-own"


async def test_a_key_is_for_its_models(native_world: NativeWorld) -> None:
    engine = await native_world.engine()
    routes = (serves("m", engine, names=("sql",)), serves("n", engine), sleeps("asleep"))
    virtual = (VirtualModel("fast", "n"), VirtualModel("slow", "m"))
    keys = (key("a", models=("m", "fast", "gone")), key("all"))
    await native_world.begin(*routes, keys=keys, virtual=virtual, keys_required=True)
    for model, status in (("m", 200), ("fast", 200), ("n", 403), ("slow", 403), ("sql", 403), ("asleep", 403)):
        answer = await native_world.ask(chat(model, extra=bearer("a")))
        assert answer.status == status, model
        if status == 403:
            assert answer.error["code"] == "model_not_allowed"
            assert (await native_world.ask(get(f"/v1/models/{model}", bearer("a")))).status == 404
    missing = await native_world.ask(chat("other", extra=bearer("a")))
    assert (missing.status, missing.error["code"]) == (404, "model_not_found")
    assert "Known models: fast, m." in str(missing.error["message"])
    assert [r.json["model"] for r in engine.received] == ["m", "n"]  # a virtual model needs no right to what it is
    for name, seen in (("a", ["fast", "m"]), ("all", ["asleep", "fast", "m", "n", "slow", "sql"])):
        listed = (await native_world.ask(get("/v1/models", bearer(name)))).json
        assert [model["id"] for model in msgspec.convert(listed["data"], list[dict[str, object]])] == seen
    await native_world.controls.settled()
    assert native_world.controls.wanted == [], "who may not use a model cannot have it loaded"


@pytest.mark.parametrize(
    ("limits", "param"),
    [({"requests_per_minute": 2}, "requests_per_minute"), ({"tokens_per_minute": 600}, "tokens_per_minute")],
)
async def test_so_much_a_minute(native_world: NativeWorld, limits: dict[str, int], param: str) -> None:
    engine = await native_world.engine()
    await native_world.begin(serves("m", engine), keys=(key("a", **limits), key("b")))
    request = chat(extra=bearer("a"), max_tokens=250)
    client = await native_world.client()
    assert [(await client.ask(request)).status for _ in range(2)] == [200, 200]
    answer = await client.ask(request)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (429, "rate_limited", param)
    assert int(answer.get("retry-after") or 0) >= 1
    assert (await native_world.ask(chat(extra=bearer("b")))).status == 200
    assert native_world.counts == {("m", "ok"): 3, ("m", "refused"): 1}


async def test_what_the_engine_counted_is_what_counts(native_world: NativeWorld) -> None:
    async def script(_: Message, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = b'{"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'
        await reply(writer, head="HTTP/1.1 200 OK\r\ncontent-type: application/json", body=body)

    engine = await native_world.engine(script=script)
    await native_world.begin(serves("m", engine), keys=(key("a", tokens_per_minute=600),))
    client = await native_world.client()
    for _ in range(20):  # each might have been 500 tokens, and was 2
        assert (await client.ask(chat(extra=bearer("a"), max_tokens=500))).status == 200


@pytest.mark.parametrize("how", ["ends", "leaves", "is cancelled", "is held and leaves", "is refused"])
async def test_a_place_is_free_when_a_request_ends_however_it_does(native_world: NativeWorld, how: str) -> None:
    gate = Gate()
    engine = await native_world.engine(script=gate)
    routes = (serves("m", engine), sleeps("asleep"), Route("off", "unloaded", 1))
    await native_world.begin(*routes, keys=(key("a", concurrent=1),))
    if how == "is refused":
        assert (await native_world.ask(chat("off", extra=bearer("a")))).status == 503
    else:
        model = "asleep" if how == "is held and leaves" else "m"
        (first,) = await native_world.sent(chat(model, "first", extra=bearer("a") + b"X-Request-Id: first\r\n"))
        answer = await native_world.ask(chat(name="second", extra=bearer("a")))
        assert (answer.status, answer.error["param"]) == (429, "concurrent")
        if how == "ends":
            gate.let_go("first")
            assert await answered(first) == "first"
        elif how == "is cancelled":
            assert await native_world.controls.cancel("first")
        else:
            first.close()
    await eventually(lambda: not native_world.native_relay.requests)
    gate.let_go("third")
    assert (await native_world.ask(chat(name="third", extra=bearer("a")))).status == 200


async def test_a_relay_without_a_controller_goes_by_the_keys_of_its_file(native_world: NativeWorld) -> None:
    engine = await native_world.engine()
    keys = (key("a", models=("m",), requests_per_minute=1),)
    native_world.save(serves("m", engine), serves("n", engine), keys=keys, keys_required=True)
    await native_world.start()
    assert (await native_world.ask(chat())).error["code"] == "key_required"
    assert (await native_world.ask(chat(extra=bearer("b")))).error["code"] == "invalid_key"
    assert (await native_world.ask(chat("n", extra=bearer("a")))).error["code"] == "model_not_allowed"
    assert (await native_world.ask(chat(extra=bearer("a")))).status == 200
    assert (await native_world.ask(chat(extra=bearer("a")))).error["code"] == "rate_limited"
    assert native_world.routes.table.epoch == "e0"
