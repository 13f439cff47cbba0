"""The simulated engine's HTTP, byte by byte."""

from __future__ import annotations

import asyncio
import base64
import re

import pytest

from tests.engines.simulated_process import DEADLINE, Answer, Process


@pytest.fixture(scope="module")
def shared() -> object:
    with Process() as engine:
        asyncio.run(engine.ready())
        yield engine


async def raw(engine: Process, data: bytes, *, pause_after: int | None = None) -> bytes:
    """What the engine says to exactly these bytes, until it closes."""
    reader, writer = await asyncio.open_unix_connection(str(engine.socket))
    writer.write(data[:pause_after])
    if pause_after is not None:
        await asyncio.sleep(0.05)
        writer.write(data[pause_after:])
    async with asyncio.timeout(DEADLINE):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_echo_shows_headers_as_they_came(shared: Process) -> None:
    fields = b"Host: h\r\nX-Odd: 1\r\nx-odd:  two \r\nContent-Length: 4\r\nConnection: close\r\n\r\n"
    head = b"PUT /v1/echo?a=%20b HTTP/1.1\r\n" + fields
    answer = await raw(shared, head + b"\x00\xff\r\n")
    echo = Answer(200, answer.partition(b"\r\n\r\n")[2].decode()).json
    assert echo["method"] == "PUT"
    assert echo["path"] == "/v1/echo?a=%20b"
    names = [["Host", "h"], ["X-Odd", "1"], ["x-odd", "two"], ["Content-Length", "4"], ["Connection", "close"]]
    assert echo["headers"] == names
    assert base64.b64decode(echo["body"]) == b"\x00\xff\r\n"


@pytest.mark.parametrize("cut", [1, 30, 90, 101, 110, 125])
async def test_chunked_bodies_however_they_are_cut(shared: Process, cut: int) -> None:
    head = b"POST /v1/echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    answer = await raw(shared, head + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: x\r\n\r\n", pause_after=cut)
    echo = Answer(200, answer.partition(b"\r\n\r\n")[2].decode()).json
    assert base64.b64decode(echo["body"]) == b"abcde"


async def test_pipelined_requests_are_answered_in_turn(shared: Process) -> None:
    one = b"GET /v1/echo?%d HTTP/1.1\r\nHost: h\r\n\r\n"
    answer = await raw(shared, one % 1 + one % 2 + b"GET /v1/echo?3 HTTP/1.0\r\n\r\n")
    assert re.findall(rb"/v1/echo\?(\d)", answer) == [b"1", b"2", b"3"]


async def test_expect_100_continue(shared: Process) -> None:
    head = (
        b"POST /v1/echo HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\n"
    )
    answer = await raw(shared, head + b"ok", pause_after=len(head))
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"what is this\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nbroken\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 70_000, 431),
        (b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\nabc\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: 999999999999\r\n\r\n", 413),
    ],
)
async def test_what_is_no_http_is_refused_and_hurts_nobody(shared: Process, data: bytes, status: int) -> None:
    assert (await raw(shared, data)).startswith(b"HTTP/1.1 %d " % status)
    assert (await shared.get("/health")).status == 200
