"""Forms that go to the engine while they come: byte for byte, and in their turn."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.gateway.link import save_table
from shoal.gateway.server import ClientConnection
from shoal.gateway.uploads import HELD, Upload
from shoal.messages import Key, RoutingTable, VirtualModel
from tests.gateway.harness import PATIENCE, Engine, World, eventually, get, post, reply, route, table
from tests.gateway.uploading import (
    END,
    LARGE,
    MODEL,
    PATH,
    chunked,
    exactly,
    file,
    gone,
    head,
    nothing_is_left,
    part,
    paused,
    relay_of,
    renew,
    slow_engine,
    upload_of,
)


@pytest.fixture
def kind() -> str:
    """The other relay takes forms whole."""
    return "native"


# -- what the engine gets ----------------------------------------------------------------------------------------------


async def test_the_engine_reads_while_the_client_still_sends(world: World) -> None:
    first, second = MODEL + file(5000)[:3000], file(5000)[3000:] + END
    async with slow_engine(world.folder / "e.sock") as engine:
        await world.start(route("m", Engine(world.folder / "e.sock")))
        client = await world.client()
        await client.send(head(len(first + second), b"X-Odd:  a b\r\n") + first)
        message, reader, writer = await engine.request()
        assert message.start == f"POST {PATH} HTTP/1.1"
        assert message.get("content-length") == str(len(first + second))
        assert (b"X-Odd", b" a b") in message.headers
        assert await exactly(reader, len(first)) == first
        assert upload_of(world)._spool.left == 0
        await client.send(second)
        assert await exactly(reader, len(second)) == second
        await reply(writer, body=b"heard")
        answer = await client.response()
        assert (answer.status, answer.body, answer.get("connection")) == (200, b"heard", None)
        assert (await client.ask(get("/v1/models"))).status == 200  # the connection goes on
        assert world.counts == {("m", "ok"): 1}
        assert nothing_is_left(world)


async def next_chunk(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(PATIENCE):
        size = int(await reader.readuntil(b"\r\n"), 16)
        return (await reader.readexactly(size + 2))[:-2]


async def test_chunks_and_trailers_go_on(world: World) -> None:
    async with slow_engine(world.folder / "e.sock") as engine:
        await world.start(route("m", Engine(world.folder / "e.sock")))
        client = await world.client()
        await client.send(head(None, b"Trailer: X-Sum\r\n") + chunked(MODEL, b"--XyZ"))
        message, reader, writer = await engine.request()
        assert (message.get("transfer-encoding"), message.get("content-length")) == ("chunked", None)
        assert message.get("trailer") == "X-Sum"
        assert await next_chunk(reader) == MODEL + b"--XyZ"
        await client.send(chunked(b"--\r"))
        assert await next_chunk(reader) == b"--\r"
        await client.send(chunked(b"\n") + b"0\r\nX-Sum: 7\r\n\r\n")
        assert await next_chunk(reader) == b"\n"
        assert await exactly(reader, 15) == b"0\r\nX-Sum: 7\r\n\r\n"
        await reply(writer)
        assert (await client.response()).status == 200
        assert nothing_is_left(world)


async def test_a_client_that_asks_first_is_told_to_go_on(world: World) -> None:
    engine = await world.engine()
    await world.start(route("m", engine))
    client = await world.client()
    body = MODEL + file(10) + END
    await client.send(head(len(body), b"Expect: 100-continue\r\n"))
    assert await exactly(client.reader, 25) == b"HTTP/1.1 100 Continue\r\n\r\n"
    await client.send(body[:100])
    await client.send(body[100:])
    assert (await client.response()).status == 200
    assert (engine.received[0].body, engine.received[0].get("expect")) == (body, None)


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("size", [1000, 3_000_000])
async def test_a_model_after_the_file(world: World, fixed: bool, size: int) -> None:
    """All of it waits, in memory or in a file, and then goes out as it came."""
    engine = await world.engine()
    await world.start(route("m", engine))
    client = await world.client()
    body = part("prompt", b"hello") + file(size) + MODEL + END
    await client.send(head(len(body) if fixed else None))
    for at in range(0, len(body), 70_000):
        await client.send(body[at : at + 70_000] if fixed else chunked(body[at : at + 70_000]))
        await asyncio.sleep(0)
    if not fixed:
        await client.send(b"0\r\n\r\n")
    assert (await client.response()).status == 200
    assert engine.received[0].body == body
    assert (engine.received[0].get("content-length") is not None) == fixed
    assert nothing_is_left(world)


async def test_a_form_in_one_piece_is_a_request_like_others(world: World) -> None:
    engine = await world.engine()
    await world.start(route("m", engine))
    client = await world.client()
    for framed in (head(len(MODEL + END)) + MODEL + END, head(None) + chunked(MODEL + END) + b"0\r\n\r\n"):
        assert (await client.ask(framed)).status == 200
    assert [message.body for message in engine.received] == [MODEL + END] * 2
    assert engine.connections == 1  # and so is its connection


class Wire(asyncio.Transport):
    """A client's transport that takes what is written and brings what a test says."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.paused = False
        self.closing = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


PLACES = st.integers(0, 3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), place=PLACES, fixed=st.booleans(), renamed=st.booleans())
async def test_cut_anywhere(world_of_names: World, data: st.DataObject, place: int, fixed: bool, renamed: bool) -> None:
    """Wherever reads end, the engine gets the same bytes."""
    world = world_of_names
    (engine,) = world._engines
    name = b"virtual" if renamed else b"m"
    fields = [part("prompt", b"--Xy\r\n-"), file(data.draw(st.integers(0, 400))), part("user", b"ann")]
    fields.insert(place, part("model", name))
    body = b"".join(fields) + END
    if fixed:
        raw = body
    else:
        sizes = data.draw(st.lists(st.integers(1, 200), max_size=8))
        raw, at = b"", 0
        for size in [*sizes, len(body)]:
            if at < len(body):
                raw += chunked(body[at : at + size])
            at += size
        raw += b"0\r\n\r\n"
    raw = head(len(body) if fixed else None) + raw
    cuts = sorted(data.draw(st.lists(st.integers(1, len(raw) - 1), max_size=8)))
    turns = data.draw(st.lists(st.integers(0, 3), min_size=len(cuts) + 1, max_size=len(cuts) + 1))
    relay, wire = relay_of(world), Wire()
    connection = ClientConnection(relay, relay.loop)
    connection.connection_made(wire)
    engine.received.clear()
    for (start, end), turn in zip(pairwise([0, *cuts, len(raw)]), turns, strict=True):
        if start < end:
            connection.data_received(raw[start:end])
        for _ in range(turn):
            await asyncio.sleep(0)
    await eventually(lambda: wire.written)
    assert wire.written.startswith(b"HTTP/1.1 200 OK\r\n")
    (message,) = engine.received
    expected = body.replace(b"\r\nvirtual\r\n", b"\r\nm\r\n")
    assert message.body == expected
    assert message.get("content-length") == (str(len(expected)) if fixed else None)
    assert not wire.paused
    await eventually(lambda: nothing_is_left(world))
    connection.connection_lost(None)


@pytest.fixture
async def world_of_names(world: World) -> World:
    engine = await world.engine()
    names = (VirtualModel("virtual", "m"), VirtualModel("sets", "m", set={"temperature": 0}))
    save_table(world.config.table, RoutingTable("e1", 1, (route("m", engine),), virtual=names))
    await world.start()
    return world


# -- what is wrong with a form -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        (file(300), END, "model_required"),
        (MODEL, file(300), "invalid_body"),
        (MODEL + file(300), part("model", b"other") + END, "invalid_model"),
        (part("model", b"\xff"), END, "invalid_model"),
        (MODEL, b"--XyZ and on" + b"-" * 2000, "invalid_body"),
        (part("model", b"nobody") + file(300), END, "model_not_found"),
        (part("model", b"sets") + file(300), END, "virtual_not_for_forms"),
        (part("model", b"virtual") + file(300), part("model", b"virtual") + END, "invalid_model"),
    ],
    ids=["none", "unfinished", "two", "no text", "boundary", "unknown", "sets", "renamed twice"],
)
async def test_forms_that_are_refused(world_of_names: World, first: bytes, second: bytes, code: str) -> None:
    world = world_of_names
    client = await world.client()
    await client.send(head(len(first + second)) + first[:-1])
    await eventually(lambda: relay_of(world).requests or world.counts)
    await client.send(first[-1:] + second)
    answer = await client.response()
    assert (answer.error["code"], answer.status) == (code, 404 if code == "model_not_found" else 400)
    assert world._engines[0].received == [] or not world._engines[0].received[0].complete
    await eventually(lambda: nothing_is_left(world))
    assert sum(world.counts.values()) == 1
    assert {outcome for _, outcome in world.counts} == {"client_error"}


async def test_the_same_model_twice_is_one(world: World) -> None:
    engine = await world.engine()
    await world.start(route("m", engine))
    client = await world.client()
    body = MODEL + file(300) + MODEL + END
    await client.send(head(len(body)) + body[:200])
    await eventually(lambda: relay_of(world).requests)
    await client.send(body[200:])
    assert (await client.response()).status == 200
    assert engine.received[0].body == body


@pytest.mark.parametrize("spelt", [b"Content-Length", b"Content-length"])
async def test_what_a_renamed_form_comes_to_is_its_own(world_of_names: World, spelt: bytes) -> None:
    """Heads that came before are known by their bytes; the length that one's engine is told must not become theirs."""
    (engine,) = world_of_names._engines
    body = part("model", b"virtual") + file(300) + END
    first = head(len(body)).replace(b"Content-Length", spelt)
    client = await world_of_names.client()
    for _ in range(3):
        await client.send(first + body[:200])
        await eventually(lambda: relay_of(world_of_names).requests)
        await client.send(body[200:])
        assert (await client.response()).status == 200
    assert [message.body for message in engine.received] == [body.replace(b"virtual", b"m", 1)] * 3


async def test_who_may_not_is_told_before_the_file_is_there(world_of_names: World) -> None:
    client = await world_of_names.client()
    await client.send(head(2**26) + part("model", b"nobody") + b"--XyZ")
    answer = await client.response()
    assert (answer.status, answer.error["code"], answer.get("connection")) == (404, "model_not_found", "close")
    await client.send(b"x" * 2**20)  # it may go on for a while, so that it gets to read why
    client.writer.write_eof()
    assert await client.closed() == b""


# -- turns -------------------------------------------------------------------------------------------------------------


async def test_a_form_waits_for_its_turn_and_its_client_with_it(world: World) -> None:
    async with slow_engine(world.folder / "e.sock") as engine:
        only = msgspec.structs.replace(route("m", Engine(world.folder / "e.sock")), limit=1)
        await world.start(only)
        first, second = await world.client(), await world.client()
        await first.send(post())
        _, _, writer = await engine.request()
        second.writer.write(head(len(LARGE)) + LARGE)
        await eventually(lambda: paused(world))
        (connection,) = paused(world)
        upload = connection.exchange
        assert isinstance(upload, Upload)
        assert HELD < upload._spool.left < HELD + 2**18
        assert (upload.phase, relay_of(world).admission.waiting("m")) == ("queued", 1)
        await reply(writer)
        assert (await first.response()).status == 200
        _, reader, writer = await engine.request()
        assert await exactly(reader, len(LARGE)) == LARGE
        await reply(writer)
        answer = await second.response()
        assert answer.status == 200
        assert float(answer.get("x-shoal-queue-ms") or 0) > 0
        assert nothing_is_left(world)


async def test_a_form_is_held_until_its_model_serves(world: World) -> None:
    world.config = dataclasses.replace(world.config, body_timeout=0.2)
    engine = await world.engine()
    await world.start(msgspec.structs.replace(route("m"), comes=True))
    client = await world.client()
    client.writer.write(head(len(LARGE)) + LARGE)
    await eventually(lambda: paused(world))
    upload = upload_of(world)
    assert upload.phase == "held"
    assert relay_of(world).link.wanted == {"m"}
    await asyncio.sleep(0.5)  # the client is not to blame for that
    renew(world, table(route("m", engine), version=2))
    assert (await client.response()).status == 200
    assert engine.received[0].body == LARGE
    assert nothing_is_left(world)


async def test_a_form_that_waits_in_vain_is_refused_while_it_comes(world: World) -> None:
    world.config = dataclasses.replace(world.config, hold_timeout=0.2)
    await world.start(msgspec.structs.replace(route("m"), comes=True))
    client = await world.client()
    client.writer.write(head(len(LARGE)) + LARGE)
    answer = await client.response()
    assert (answer.status, answer.error["code"], answer.get("connection")) == (503, "model_not_ready", "close")
    assert nothing_is_left(world)
    assert world.counts == {("m", "unavailable"): 1}


@pytest.mark.parametrize("sent", [1000, HELD + 1000])
async def test_who_leaves_while_a_form_waits_frees_its_place(world: World, sent: int) -> None:
    await world.start(msgspec.structs.replace(route("m"), comes=True))
    client = await world.client()
    await client.send(head(len(LARGE)) + LARGE[:sent])
    await eventually(lambda: relay_of(world).admission.waiting("m"))
    if sent > HELD:
        await eventually(lambda: paused(world))
    client.close()
    await eventually(lambda: nothing_is_left(world))
    assert world.counts == {("m", "cancelled"): 1}
    assert relay_of(world).link.wanted == set()


async def test_keys_get_back_what_a_broken_off_form_took(world: World) -> None:
    secret = "sk-shoal-12345678-" + "a" * 32
    key = Key("k", "ann", hashlib.sha256(secret.encode()).hexdigest(), concurrent=1)
    bearer = b"Authorization: Bearer " + secret.encode() + b"\r\n"
    async with slow_engine(world.folder / "e.sock") as engine:
        ready = route("m", Engine(world.folder / "e.sock"))
        save_table(world.config.table, RoutingTable("e1", 1, (ready,), (key,), keys_required=True))
        await world.start()
        assert (await world.ask(head(len(LARGE)) + MODEL)).status == 401  # without reading a form
        for _ in range(3):
            client = await world.client()
            await client.send(head(len(LARGE), bearer) + LARGE[:1000])
            message, reader, _ = await engine.request()
            assert message.get("authorization") is None
            refused = await world.ask(post(extra=bearer))
            assert (refused.status, refused.error["code"]) == (429, "rate_limited")
            client.close()
            await gone(reader)
            await eventually(lambda: nothing_is_left(world))
