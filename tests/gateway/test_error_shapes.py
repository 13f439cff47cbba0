"""Errors in the shape that the clients of a path know: Anthropic's on its paths, OpenAI's everywhere else."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from shoal.errors import ShoalError, told_in_stream, told_on
from tests.gateway.harness import Message, World, post, route

MESSAGES = "/v1/messages"
EVENT_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
OTHERS = ["", "/v1/chat/completions", "/v1/messagesx", "/v1", "/api/v1/messages"]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (408, "invalid_request_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
    ],
)
def test_anthropics_types(status: int, kind: str) -> None:
    error = ShoalError("It cannot be; do this.", status=status, code="why", param="model")
    expected = {
        "type": "error",
        "error": {"type": kind, "message": "It cannot be; do this.", "details": {"error_code": "why"}},
    }
    for path in (MESSAGES, f"{MESSAGES}/count_tokens", f"{MESSAGES}/batches"):
        assert told_on(path, error) == expected


@pytest.mark.parametrize("path", OTHERS)
def test_openais_shape_everywhere_else(path: str) -> None:
    error = ShoalError("It cannot be; do this.", status=404, code="why", param="model")
    assert told_on(path, error) == error.body()
    assert told_in_stream(path, error).startswith(b'data: {"error":{')


@pytest.mark.parametrize("path", [MESSAGES, "/v1/completions"])
def test_an_event_is_one_event_whatever_the_message(path: str) -> None:
    error = ShoalError("a\n\nb\r\n \ud800 é", status=502, code="engine_died")
    event = told_in_stream(path, error)
    assert event.endswith(b"}\n\n")
    assert b"\n\n" not in event[:-2]
    assert b"\r" not in event
    data = msgspec.json.decode(event.rpartition(b"data: ")[2])
    assert data["error"]["message"] == "a\n\nb\r\n ? é"


async def test_refusals_before_and_after_the_body_was_read(world: World) -> None:
    engine = await world.engine()
    await world.start(route("m", engine))
    for path in (MESSAGES, f"{MESSAGES}/count_tokens?beta=true", f"http://shoal.test{MESSAGES}"):
        unknown = await world.ask(post(path, b'{"model":"nothing"}'))
        assert (unknown.status, unknown.json["type"]) == (404, "error")
        assert (unknown.error["type"], unknown.error["details"]) == (
            "not_found_error",
            {"error_code": "model_not_found"},
        )
        assert "nothing" in str(unknown.error["message"])
        assert "code" not in unknown.error
    broken = await world.ask(post(MESSAGES, b"{"))
    assert (broken.status, broken.json["type"], broken.error["type"]) == (400, "error", "invalid_request_error")
    expecting = await world.ask(post(MESSAGES, extra=b"Expect: miracles\r\n"))
    assert (expecting.status, expecting.json["type"]) == (417, "error")
    assert "type" not in (await world.ask(post(body=b'{"model":"nothing"}'))).json
    assert engine.received == []


@pytest.mark.parametrize("sent", [b"event: message_start\ndata: {}\n\n", b"event: mess", b""])
async def test_death_in_a_stream(world: World, sent: bytes) -> None:
    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENT_STREAM + (b"%x\r\n%s\r\n" % (len(sent), sent) if sent else b""))
        writer.close()

    engine = await world.engine(script=script)
    await world.start(route("m", engine))
    answer = await world.ask(post(MESSAGES))
    assert not answer.complete
    event = answer.body.removeprefix(sent).lstrip(b"\n")
    assert event.startswith(b'event: error\ndata: {"type":"error",')
    assert msgspec.json.decode(event.partition(b"data: ")[2])["error"]["details"] == {"error_code": "engine_died"}
