"""The load generator against a real server that behaves, and does not."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from shoal.bench.load import Due, Served, body, client, drive, prompt, send

EVENT = b'data: {"id":"x","choices":[{"index":0,"text":"w"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":%d}}\n\ndata: [DONE]\n\n'


class Server:
    """Streams as many events as were asked for, and what `mode` says goes wrong."""

    def __init__(self) -> None:
        self.mode = "good"
        self.bodies: list[dict[str, object]] = []
        self.peers: set[object] = set()

    async def completions(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        self.bodies.append(asked)
        assert request.transport is not None
        self.peers.add(request.transport.get_extra_info("peername"))
        if self.mode == "refuse":
            return web.Response(status=503, text="no memory")
        response = web.StreamResponse()
        await response.prepare(request)
        if self.mode == "hang":
            await asyncio.sleep(3600)
        for _ in range(asked["max_tokens"]):
            if self.mode == "cut in two":
                await response.write(EVENT[:25])
                await asyncio.sleep(0.02)
                await response.write(EVENT[25:])
            else:
                await response.write(EVENT)
        if self.mode == "early end":
            await response.write_eof()
            return response
        if self.mode == "broken off":
            request.transport.abort()
            return response
        await response.write(USAGE % asked["max_tokens"])
        await response.write_eof()
        return response


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Server, str]]:
    server = Server()
    app = web.Application()
    app.router.add_post("/v1/completions", server.completions)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        yield server, f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def one(url: str, tokens: int = 4) -> Served:
    served = Served(0, time.monotonic())
    async with client() as session:
        await send(session, url, body([1, 2, 3], tokens), served)
    return served


async def test_a_stream_is_counted_and_timed() -> None:
    async with serving() as (server, url):
        for mode in ("good", "cut in two"):
            server.mode = mode
            served = await one(url)
            assert served.complete(4), served
            assert served.due <= served.sent <= served.first <= served.last <= served.end
            assert not served.complete(5)
        assert server.bodies[0]["prompt"] == [1, 2, 3]
        assert server.bodies[0]["ignore_eos"] is True


async def test_what_goes_wrong_is_an_error_in_the_result() -> None:
    async with serving() as (server, url):
        for mode in ("refuse", "early end", "broken off"):
            server.mode = mode
            served = await one(url)
            assert not served.finished, mode
            assert served.error, mode
    served = await one(url)
    assert "Connect" in served.error


async def test_requests_are_sent_when_due_whatever_became_of_others() -> None:
    async with serving() as (server, url):
        planned = [Due(at, model, body([model], 2)) for at in (0.0, 0.1, 0.05) for model in (0, 1)]
        async with client() as session:
            start = time.monotonic()
            served = await drive(session, [url, url], planned, start, 30)
        assert [round(each.due - start, 2) for each in served] == [0, 0, 0.05, 0.05, 0.1, 0.1]
        assert all(each.sent >= each.due and each.complete(2) for each in served)
        assert sorted(each.model for each in served) == [0, 0, 0, 1, 1, 1]
        assert len(server.peers) == 6, "each request has a connection of its own"


async def test_a_request_that_never_ends_is_given_up() -> None:
    async with serving() as (server, url):
        server.mode = "hang"
        async with client() as session:
            served = await drive(session, [url], [Due(0, 0, body([1], 2))], time.monotonic(), 0.3)
        assert not served[0].finished
        assert "not over" in served[0].error
        async with client() as session:
            assert await drive(session, [url], [], time.monotonic(), 1) == []


def test_prompts_keep_clear_of_special_tokens_and_are_reproducible() -> None:
    one, other = (prompt(random.Random(3), 500, 1000) for _ in range(2))
    assert one == other
    assert all(10 <= token < 900 for token in one)
    assert json.loads(body(one, 7))["max_tokens"] == 7
