"""What both relays refuse alike: the simpler one must not be the open door."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from shoal.gateway.heads import MAX_SESSION_BODY
from shoal.gateway.link import save_table
from shoal.gateway.server import ClientConnection
from shoal.messages import Key, RoutingTable
from tests.gateway.harness import Message, World, get, post, reply, route
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


FORGED = (
    b"X-Shoal-Peer: 127.0.0.1\r\n",
    b"x-shoal-peer: 10.0.0.1\r\nX-SHOAL-PEER: 10.0.0.2\r\n",
    b"X-Shoal-Peer:\r\n",
    b"X-Shoal-Peer: 10.0.0.1\r\nConnection: x-shoal-peer\r\n",
    b"Connection: close, x-shoal-peer\r\n",
    b"X-Forwarded-For: 10.0.0.1\r\n",
    b"",
)


@pytest.mark.parametrize("forged", FORGED)
async def test_the_controller_is_told_who_asks_by_the_relay_alone(world: World, forged: bytes) -> None:
    controller = await world.controller()
    await guarded(world, required=False)
    # The second is a head that was read before; so is a body's.
    requests = [get("/api/v1/models", forged)] * 2 + [post("/api/v1/keys", b"{}", forged)] * 2
    for request in requests:
        assert (await world.ask(request)).status == 200
    for message in controller.received:
        assert [value for name, value in message.headers if name.lower() == b"x-shoal-peer"] == [b"127.0.0.1"]
    assert len(controller.received) == len(requests)


async def test_signing_in_takes_little(world: World) -> None:
    """Everybody may ask there, and the controller would read it whole."""
    controller = await world.controller()
    await guarded(world, required=False)
    large = b"x" * (MAX_SESSION_BODY + 1)
    chunked = b"POST /api/v1/session HTTP/1.1\r\nHost: s\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(large)
    for request in (post("/api/v1/session", large), post("/api/v1/session?path=/", large), chunked + large + b"\r\n"):
        answer = await world.ask(request)
        assert (answer.status, answer.error["code"]) == (413, "body_too_large")
    assert controller.received == []
    assert (await world.ask(post("/api/v1/session", large[1:]))).status == 200
    assert (await world.ask(post("/api/v1/models", large))).status == 200


async def test_trailers_do_not_tell_the_controller_who_asks(world: World) -> None:
    controller = await world.controller()
    await guarded(world, required=False)
    head = b"POST /api/v1/keys HTTP/1.1\r\nHost: s\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = await world.ask(head + b"2\r\n{}\r\n0\r\nX-Shoal-Peer: 127.0.0.9\r\nX-Other: 1\r\n\r\n")
    assert answer.status == 200
    (message,) = controller.received
    assert message.body == b"{}"
    assert [value for name, value in message.headers if name.lower() == b"x-shoal-peer"] == [b"127.0.0.1"]
    assert b"x-shoal-peer" not in message.trailers.lower()


async def test_the_peer_is_of_the_socket(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The controller judges by it; `tests/fleet/test_users.py` has what it makes of each."""
    controller = await world.controller()
    await guarded(world, required=False)
    if world.native:
        made = ClientConnection.connection_made

        def from_elsewhere(self: ClientConnection, transport: asyncio.BaseTransport) -> None:
            made(self, transport)
            self.peer = "10.9.8.7"

        monkeypatch.setattr(ClientConnection, "connection_made", from_elsewhere)
    else:
        monkeypatch.setattr(web.BaseRequest, "remote", property(lambda _: "10.9.8.7"))
    assert (await world.ask(get("/api/v1/models", b"X-Shoal-Peer: 127.0.0.1\r\n"))).status == 200
    assert controller.received[0].get("x-shoal-peer") == "10.9.8.7"


async def test_an_engine_does_not_say_which_web_pages_may_read_it(world: World) -> None:
    async def allow(_: Message, __: object, writer: object) -> None:
        await reply(writer, head="HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *")  # type: ignore[arg-type]

    await guarded(world, required=False)
    world._engines[0].script = allow
    answer = await world.ask(chat(extra=b"Origin: https://evil.test\r\n"))
    assert answer.status == 200
    assert answer.get("access-control-allow-origin") is None
