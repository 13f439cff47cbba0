"""Clients that are slow or wrong: a clear answer each, and never a traceback."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from tests.gateway.harness import Message, World, get, post, reply, route

EVENT_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


async def test_headers_that_do_not_come(world: World) -> None:
    world.config = dataclasses.replace(world.config, header_timeout=1.0)
    engine = await world.engine()
    await world.start(route("m", engine))
    silent, slow, second = await world.client(), await world.client(), await world.client()
    assert (await second.ask(post())).status == 200  # a connection that has served starts a new clock
    for client in (slow, second):
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: h\r\nX-Slow: ")
    for client in (slow, second):
        answer = await client.response()
        assert (answer.status, answer.error["code"]) == (408, "header_timeout")
        assert await client.closed() == b""
    assert await silent.closed() == b""


async def test_idle_connections_outlive_the_header_timeout(world: World) -> None:
    world.config = dataclasses.replace(world.config, header_timeout=1.0)
    await world.start()
    client = await world.client()
    assert (await client.ask(get("/v1/models"))).status == 200
    await asyncio.sleep(1.3)
    assert (await client.ask(get("/v1/models"))).status == 200


async def test_a_long_request_outlives_the_header_timeout(world: World) -> None:
    world.config = dataclasses.replace(world.config, header_timeout=1.0)

    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(1.3)
        await reply(writer)

    engine = await world.engine(script=script)
    await world.start(route("m", engine))
    assert (await world.ask(post())).status == 200


async def test_a_body_that_stands_still(world: World) -> None:
    world.config = dataclasses.replace(world.config, body_timeout=0.2)
    await world.start()
    client = await world.client()
    answer = await client.ask(post()[:-3])
    assert (answer.status, answer.error["code"]) == (408, "body_timeout")
    assert answer.get("connection") == "close"


async def test_too_large_a_body_is_refused_before_it_is_sent(world: World) -> None:
    world.config = dataclasses.replace(world.config, max_body=1000)
    await world.start()
    for path in ("/v1/x", "/api/v1/models"):
        answer = await world.ask(b"POST %s HTTP/1.1\r\nHost: h\r\nContent-Length: 1001\r\n\r\n" % path.encode())
        assert (answer.status, answer.error["code"]) == (413, "body_too_large")
    expecting = b"POST /v1/x HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 99999999999\r\n\r\n"
    assert (await world.ask(expecting)).status == 413


async def test_too_large_a_chunked_body_is_refused_once_it_is(world: World) -> None:
    world.config = dataclasses.replace(world.config, max_body=1000)
    engine = await world.engine()
    await world.start(route("m", engine))
    client = await world.client()
    await client.send(b"POST /v1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
    await client.send(b"3e8\r\n" + b" " * 1000 + b"\r\n")
    await client.send(b"1\r\n \r\n")
    answer = await client.response()
    assert (answer.status, answer.error["code"]) == (413, "body_too_large")
    assert engine.received == []


async def test_body_of_exactly_the_limit(world: World) -> None:
    world.config = dataclasses.replace(world.config, max_body=13)
    engine = await world.engine()
    await world.start(route("m", engine))
    assert (await world.ask(post())).status == 200


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (b"hello\r\n\r\n", 400, "invalid_http"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "invalid_http"),
        (b"GET /v1/models HTTP/1.1\r\n\r\n", 400, "invalid_http"),
        (
            b"POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
            "invalid_http",
        ),
        (b"POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n", 400, "invalid_http"),
        (b"GET /v1/models HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", 431, "header_too_large"),
        (b"GET /v1/models HTTP/1.1\r\nHost: h\r\nBad Name: 1\r\n\r\n", 400, "invalid_http"),
        (b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", 400, "invalid_target"),
        (b"POST /v1/x HTTP/1.1\r\nHost: h\r\nExpect: tea\r\nContent-Length: 5\r\n\r\n", 417, "expectation_failed"),
        (
            b"POST /v1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            400,
            None,
        ),
    ],
)
async def test_malformed_http(world: World, request_bytes: bytes, status: int, code: str | None) -> None:
    engine = await world.engine()
    await world.start(route("m", engine))
    answer = await world.ask(request_bytes)
    assert answer.status == status
    assert (
        answer.get("content-type") == "application/json; charset=utf-8"
        or answer.get("content-type") == "application/json"
    )
    assert answer.error["code"] == code or code is None
    assert engine.received == []


async def test_a_chunked_body_that_turns_into_nonsense(world: World) -> None:
    await world.start()
    client = await world.client()
    await client.send(b"POST /v1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n")
    await asyncio.sleep(0.05)
    answer = await client.ask(b"zz\r\n")
    assert (answer.status, answer.error["code"]) == (400, "invalid_body")
    assert await client.closed() == b""


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{not json", "invalid_json"),
        (b"", "model_required"),
        (b"{}", "model_required"),
        (b'{"model": null}', "model_required"),
        (b'["model"]', "model_required"),
        (b'{"model": 7}', "invalid_model"),
    ],
)
async def test_bodies_without_a_model(world: World, body: bytes, code: str) -> None:
    await world.start()
    client = await world.client()
    answer = await client.ask(post(body=body))
    assert (answer.status, answer.error["code"]) == (400, code)
    assert (await client.ask(get("/v1/models"))).status == 200  # the connection goes on
    assert world.counts == {("", "client_error"): 1}


async def test_unknown_models(world: World) -> None:
    engine = await world.engine()
    await world.start(route("m", engine), route("org/other"))
    for i in range(20):
        answer = await world.ask(post(body=b'{"model":"no-%d"}' % i))
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")
        assert answer.error["param"] == "model"
        assert "m, org/other" in str(answer.error["message"])
    assert world.counts == {("", "client_error"): 20}  # one counter, whatever names clients make up


async def test_model_that_is_not_ready(world: World) -> None:
    await world.start(route("m", detail="m is loading (40 %).", retry_after=12), route("off"))
    answer = await world.ask(post())
    assert (answer.status, answer.error["code"]) == (503, "model_not_ready")
    assert answer.error["message"] == "m is loading (40 %)."
    assert answer.get("retry-after") == "12"
    assert (await world.ask(post(body=b'{"model":"off"}'))).status == 503
    assert world.counts == {("m", "unavailable"): 1, ("off", "unavailable"): 1}


async def test_header_values_that_are_not_utf_8(world: World) -> None:
    engine = await world.engine()
    await world.start(route("m", engine))
    answer = await world.ask(b"POST /v1/x?model=m HTTP/1.1\r\nHost: h\r\nX-Latin: caf\xe9\r\n\r\n")
    if world.native:
        assert answer.status == 200
        assert engine.received[0].others[-1] == (b"X-Latin", b"caf\xe9")
    else:
        assert (answer.status, answer.error["code"]) == (400, "invalid_header")
