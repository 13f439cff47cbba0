"""What both relays refuse alike: the simpler one must not be the open door."""

from __future__ import annotations

import dataclasses

import pytest

from shoal.gateway import relay_aiohttp
from shoal.gateway.link import save_table
from shoal.gateway.server import ClientConnection
from shoal.messages import Key, RoutingTable
from tests.gateway.harness import Message, World, get, reply, route
from tests.gateway.native import bearer, chat, key, secret_of


async def guarded(world: World, *keys: Key, required: bool = True) -> None:
    """A relay with one engine, two models and these keys."""
    engine = await world.engine()
    table = RoutingTable("e1", 1, (route("m", engine), route("other", engine)), keys=keys, keys_required=required)
    save_table(world.config.table, table)
    await world.start()


async def test_a_key_is_asked_for_and_kept_from_engines(world: World) -> None:
    await guarded(world, key("a"))
    for line, code in ((b"", "key_required"), (bearer("b"), "invalid_key"), (b"x-api-key: no\r\n", "invalid_key")):
        for request in (chat(extra=line), get("/v1/models", line), get("/v1/models/m", line)):
            answer = await world.ask(request)
            assert (answer.status, answer.error["code"]) == (401, code)
            assert answer.get("www-authenticate") == "Bearer"
    (engine,) = world._engines
    assert engine.received == []
    for line in (bearer("a"), f"X-Api-Key: {secret_of('a')}\r\n".encode()):
        assert (await world.ask(chat(extra=line))).status == 200
    assert b"sk-shoal" not in repr(engine.received).encode()
    assert world.counts == {("", "refused"): 3, ("m", "ok"): 2}


async def test_keys_have_their_models_and_limits(world: World) -> None:
    await guarded(world, key("a", models=("m",), requests_per_minute=2), key("b", concurrent=1))
    listed = await world.ask(get("/v1/models", bearer("a")))
    assert [model["id"] for model in listed.json["data"]] == ["m"]  # type: ignore[attr-defined]
    assert (await world.ask(get("/v1/models/other", bearer("a")))).status == 404
    forbidden = await world.ask(chat("other", extra=bearer("a")))
    assert (forbidden.status, forbidden.error["code"]) == (403, "model_not_allowed")
    for _ in range(2):
        assert (await world.ask(chat(extra=bearer("a")))).status == 200
    limited = await world.ask(chat(extra=bearer("a")))
    assert (limited.status, limited.error["param"]) == (429, "requests_per_minute")
    for _ in range(3):  # each has ended before the next
        assert (await world.ask(chat("other", extra=bearer("b")))).status == 200


async def test_other_machines_do_not_manage_models(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    controller = await world.controller()
    world.config = dataclasses.replace(world.config, remote_admin=False)
    await guarded(world, required=False)
    assert (await world.ask(get("/api/v1/models"))).status == 200
    monkeypatch.setattr(ClientConnection, "loopback", property(lambda _: False))
    monkeypatch.setattr(relay_aiohttp, "_is_local", lambda _: False)
    answer = await world.ask(get("/api/v1/models"))
    assert (answer.status, answer.error["code"]) == (403, "local_only")
    assert len(controller.received) == 1
    assert (await world.ask(get("/health/live"))).status == 200
    assert (await world.ask(chat())).status == 200


async def test_an_engine_does_not_say_which_web_pages_may_read_it(world: World) -> None:
    async def allow(_: Message, __: object, writer: object) -> None:
        await reply(writer, head="HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *")  # type: ignore[arg-type]

    await guarded(world, required=False)
    world._engines[0].script = allow
    answer = await world.ask(chat(extra=b"Origin: https://evil.test\r\n"))
    assert answer.status == 200
    assert answer.get("access-control-allow-origin") is None


@pytest.mark.parametrize(
    ("peer", "local"),
    [("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("", True), (None, True)]
    + [(peer, False) for peer in ("10.0.0.1", "128.0.0.1", "::2", "::ffff:10.0.0.1", "1270.0.0.1")],
)
def test_who_is_on_this_machine(peer: str | None, local: bool) -> None:
    assert relay_aiohttp._is_local(peer) == local
