"""Forms on whose way something goes wrong, engines that answer early, and how little is held of a large file."""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile

import psutil
import pytest

from shoal.gateway.link import save_table
from tests.gateway.harness import PATIENCE, Engine, World, eventually, reply, route, table
from tests.gateway.test_process import gateway
from tests.gateway.uploading import (
    END,
    LARGE,
    MODEL,
    chunked,
    exactly,
    file,
    gone,
    head,
    nothing_is_left,
    part,
    relay_of,
    slow_engine,
)


@pytest.fixture
def kind() -> str:
    """The other relay takes forms whole."""
    return "native"


# -- what goes wrong on the way ----------------------------------------------------------------------------------------


async def test_an_engine_that_cannot_be_reached_leaves_the_form_to_another(world: World) -> None:
    engine = await world.engine("good")
    await world.start(route("m", Engine(world.folder / "gone.sock"), engine))
    for _ in range(2):
        client = await world.client()
        await client.send(head(len(LARGE)) + LARGE[:1000])
        await eventually(lambda: relay_of(world).requests)
        await client.send(LARGE[1000:])
        assert (await client.response()).status == 200
    assert [message.body for message in engine.received] == [LARGE] * 2
    assert nothing_is_left(world)


async def test_no_engine_can_be_reached(world: World) -> None:
    await world.start(route("m", Engine(world.folder / "gone.sock")))
    answer = await world.ask(head(len(LARGE), b"X-Shoal-Hold: off\r\n") + LARGE[:1000])
    assert (answer.status, answer.error["code"]) == (503, "engine_connection_failed")
    assert nothing_is_left(world)


async def test_an_engine_that_dies_gets_no_second_chance(world: World) -> None:
    other = await world.engine("other")
    async with slow_engine(world.folder / "e.sock") as engine:
        await world.start(route("m", Engine(world.folder / "e.sock"), other))
        client = await world.client()
        await client.send(head(len(LARGE)) + LARGE[:1000])
        _, _, writer = await engine.request()
        writer.transport.abort()
        answer = await client.response()
        assert (answer.status, answer.error["code"]) == (502, "engine_died")
        assert other.received == []
        assert world.counts == {("m", "engine_error"): 1}
        assert nothing_is_left(world)


@pytest.mark.parametrize("framed", [True, False])
async def test_a_client_that_leaves_takes_its_form_along(world: World, framed: bool) -> None:
    async with slow_engine(world.folder / "e.sock") as engine:
        await world.start(route("m", Engine(world.folder / "e.sock")))
        client = await world.client()
        await client.send(head(len(LARGE)) + LARGE[:1000] if framed else head(None) + chunked(LARGE[:1000]))
        _, reader, _ = await engine.request()
        client.close()
        await gone(reader)
        await eventually(lambda: nothing_is_left(world))
        assert world.counts == {("m", "cancelled"): 1}


async def test_a_client_that_stops_sending(world: World) -> None:
    world.config = dataclasses.replace(world.config, body_timeout=0.2)
    async with slow_engine(world.folder / "e.sock") as engine:
        await world.start(route("m", Engine(world.folder / "e.sock")))
        client = await world.client()
        await client.send(head(len(LARGE)) + LARGE[:1000])
        _, reader, _ = await engine.request()
        answer = await client.response()
        assert (answer.status, answer.error["code"]) == (408, "body_timeout")
        await gone(reader)
        assert nothing_is_left(world)
        assert world.counts == {("m", "client_error"): 1}


@pytest.mark.parametrize(("response", "request_"), [(0.3, 0), (0, 0.3)])
async def test_an_engine_that_stops_reading(world: World, response: float, request_: float) -> None:
    world.config = dataclasses.replace(world.config, response_timeout=response, request_timeout=request_)
    async with slow_engine(world.folder / "e.sock") as engine:
        await world.start(route("m", Engine(world.folder / "e.sock")))
        client = await world.client()
        client.writer.write(head(2**24) + LARGE[:2_900_000])
        answer = await client.response()
        assert (answer.status, answer.error["code"]) == (504, "engine_timeout")
        assert nothing_is_left(world)
        assert world.counts == {("m", "engine_error"): 1}
        del engine


async def test_an_engine_has_its_time_only_once_it_is_its_turn(world: World) -> None:
    world.config = dataclasses.replace(world.config, response_timeout=0.3)
    async with slow_engine(world.folder / "e.sock") as engine:
        await world.start(route("m", Engine(world.folder / "e.sock")))
        client = await world.client()
        await client.send(head(len(LARGE)) + LARGE[:1000])
        _, reader, _ = await engine.request()
        await asyncio.sleep(0.5)
        await asyncio.gather(client.send(LARGE[1000:]), exactly(reader, len(LARGE)))
        answer = await client.response()
        assert (answer.status, answer.error["code"]) == (504, "engine_timeout")


async def test_a_broken_chunk_breaks_off(world: World) -> None:
    async with slow_engine(world.folder / "e.sock") as engine:
        await world.start(route("m", Engine(world.folder / "e.sock")))
        client = await world.client()
        await client.send(head(None) + chunked(LARGE[:1000]))
        _, reader, _ = await engine.request()
        answer = await client.ask(b"zz\r\n")
        assert (answer.status, answer.error["code"]) == (400, "invalid_body")
        await gone(reader)
        assert nothing_is_left(world)


async def test_a_form_that_turns_out_too_large(world: World) -> None:
    world.config = dataclasses.replace(world.config, max_body=100_000)
    async with slow_engine(world.folder / "e.sock") as engine:
        await world.start(route("m", Engine(world.folder / "e.sock")))
        client = await world.client()
        await client.send(head(None) + chunked(LARGE[:90_000]))
        _, reader, _ = await engine.request()
        await exactly(reader, 90_000)
        answer = await client.ask(chunked(LARGE[90_000:110_000]))
        assert (answer.status, answer.error["code"]) == (413, "body_too_large")
        await gone(reader)
        assert nothing_is_left(world)


async def test_a_full_disk(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: open("/dev/full", "r+b", 0))  # noqa: PTH123, SIM115
    engine = await world.engine()
    await world.start(route("m", engine))
    client = await world.client()
    body = file(2**21) + MODEL + END
    client.writer.write(head(len(body)) + body)
    answer = await client.response()
    assert (answer.status, answer.error["code"]) == (507, "no_room")
    assert "No space left on device" in str(answer.error["message"])
    assert engine.received == []
    body = MODEL + file(2**21) + END  # the usual order needs no room
    client = await world.client()
    await client.send(head(len(body)) + body)
    assert (await client.response()).status == 200
    assert world.counts == {("", "unavailable"): 1, ("m", "ok"): 1}
    assert nothing_is_left(world)


async def test_a_stopping_relay_ends_it(world: World) -> None:
    async with slow_engine(world.folder / "e.sock") as engine:
        await world.start(route("m", Engine(world.folder / "e.sock")))
        client = await world.client()
        await client.send(head(len(LARGE)) + LARGE[:1000])
        _, reader, _ = await engine.request()
        relay = relay_of(world)
        stopping = asyncio.create_task(relay.stop(0.1))
        answer = await client.response()
        assert (answer.status, answer.error["code"]) == (503, "relay_stopping")
        client.close()
        await gone(reader)
        await stopping
        assert nothing_is_left(world)
        world.relay = None


# -- answers that come early -------------------------------------------------------------------------------------------


async def test_an_early_refusal_reaches_a_client_that_still_sends(world: World) -> None:
    async with slow_engine(world.folder / "e.sock") as engine:
        await world.start(route("m", Engine(world.folder / "e.sock")))
        client = await world.client()
        await client.send(head(len(LARGE)) + LARGE[:1000])
        _, reader, writer = await engine.request()
        await reply(writer, head="HTTP/1.1 413 Content Too Large", body=b"too long a recording")
        answer = await client.response()
        assert (answer.status, answer.body, answer.get("connection")) == (413, b"too long a recording", "close")
        await client.send(LARGE[1000:])  # thrown away
        assert await client.closed() == b""
        assert len(await reader.read(2**20)) <= 1000
        assert await reader.read() == b""
        assert world.counts == {("m", "client_error"): 1}
        assert nothing_is_left(world)


async def test_an_early_refusal_of_which_the_client_awaits_the_end(world: World) -> None:
    world.config = dataclasses.replace(world.config, body_timeout=0.2)
    async with slow_engine(world.folder / "e.sock") as engine:
        await world.start(route("m", Engine(world.folder / "e.sock")))
        client = await world.client()
        await client.send(head(len(LARGE)) + LARGE[:1000])
        _, _, writer = await engine.request()
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 10\r\n\r\nhello")
        assert (await client.response(head_only=True)).status == 400
        await asyncio.sleep(0.5)  # it may send no more of its form now
        writer.write(b"there")
        assert await exactly(client.reader, 10) == b"hellothere"
        assert await client.closed() == b""


async def test_an_answer_beside_the_form(world: World) -> None:
    """An engine may write while it reads; the form flows on."""
    async with slow_engine(world.folder / "e.sock") as engine:
        await world.start(route("m", Engine(world.folder / "e.sock")))
        client = await world.client()
        await client.send(head(len(LARGE)) + LARGE[:1000])
        _, reader, writer = await engine.request()
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(b"first"))
        answer = await client.response(head_only=True)
        assert (answer.status, answer.get("connection")) == (200, "close")
        received, _ = await asyncio.gather(exactly(reader, len(LARGE)), client.send(LARGE[1000:]))
        assert received == LARGE
        writer.write(chunked(b"last") + b"0\r\n\r\n")
        assert await client.closed() == chunked(b"first") + chunked(b"last") + b"0\r\n\r\n"
        assert world.counts == {("m", "ok"): 1}
        assert nothing_is_left(world)


async def test_a_form_that_breaks_after_the_answer_began_does_not_look_answered(world: World) -> None:
    async with slow_engine(world.folder / "e.sock") as engine:
        await world.start(route("m", Engine(world.folder / "e.sock")))
        client = await world.client()
        await client.send(head(None) + chunked(LARGE[:1000]))
        _, reader, writer = await engine.request()
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(b"first"))
        await client.response(head_only=True)
        await exactly(client.reader, len(chunked(b"first")))
        await client.send(b"zz\r\n")
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(PATIENCE):
                await client.reader.read()
        await gone(reader)
        assert world.counts == {("m", "client_error"): 1}
        assert nothing_is_left(world)


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False])
async def test_a_large_file_is_never_held(world: World, first: bool) -> None:
    """Whether the engine reads nothing for a while, or the model comes last and all has to wait for it."""
    size, grown = 64 * 2**20, 0
    async with slow_engine(world.folder / "e.sock") as engine:
        save_table(world.config.table, table(route("m", Engine(world.folder / "e.sock"))))
        with gateway(world, "--settings", f'{{"max_body": {size + 1000}}}') as process:
            relay = psutil.Process(process.pid)
            warm = await world.client()
            await warm.send(head(len(LARGE)) + LARGE[:1000])
            _, reader, writer = await engine.request()
            _, _ = await asyncio.gather(warm.send(LARGE[1000:]), exactly(reader, len(LARGE)))
            await reply(writer)
            assert (await warm.response()).status == 200
            before = relay.memory_info().rss
            block = bytes(range(256)) * 4096
            fields = part("file", b"", '; filename="a.wav"')[:-2]
            begin, end = (MODEL + fields, b"\r\n" + END) if first else (fields, b"\r\n" + MODEL + END)
            client = await world.client()

            async def send() -> None:
                await client.send(head(len(begin) + size + len(end)) + begin)
                for _ in range(0, size, len(block)):
                    await client.send(block)
                await client.send(end)

            def look() -> None:
                nonlocal grown
                grown = max(grown, relay.memory_info().rss - before)

            sending = asyncio.create_task(send())
            _, reader, writer = await engine.request()
            for _ in range(20):  # the engine reads nothing, and the relay holds what little it may
                look()
                await asyncio.sleep(0.01)
            assert not first or not sending.done()
            assert await exactly(reader, len(begin)) == begin
            for _ in range(0, size, len(block)):
                assert await exactly(reader, len(block)) == block
                look()
            assert await exactly(reader, len(end)) == end
            await sending
            await reply(writer)
            assert (await client.response()).status == 200
            assert grown < 8 * 2**20
