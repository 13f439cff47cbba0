"""The other APIs of the simulated engine: Anthropic's messages, OpenAI's responses, transcriptions, the websocket."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import aiohttp
import pytest
from websockets.asyncio.client import ClientConnection, connect, unix_connect

from shoal.engines.simulated import text
from tests.engines.simulated_process import CHAT, DEADLINE, Answer, Process

PROMPT = "user: hello there"
MESSAGE = {**CHAT, "max_tokens": 99}
RESPONSE = {"model": "fish", "input": "hello there"}
AUDIO = bytes(range(256)) * 250
SPEECH = ("--task", "transcription")


def events(answer: Answer) -> list[tuple[str, Any]]:
    """Names and data of a stream's events."""
    assert answer.status == 200, answer.text
    assert answer.text.endswith("\n\n")
    found = []
    for event in answer.text.split("\n\n")[:-1]:
        name, data = event.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    assert all(name == data["type"] for name, data in found)
    return found


# -- Anthropic's messages ----------------------------------------------------------------------------------------------


async def test_messages_whole_and_in_a_stream() -> None:
    with Process() as engine:
        await engine.ready()
        whole = (await engine.post("/v1/messages", MESSAGE)).json
        assert whole["content"] == [{"type": "text", "text": text.answer(PROMPT)}]
        assert (whole["type"], whole["role"], whole["stop_reason"]) == ("message", "assistant", "end_turn")
        length = text.natural_length(PROMPT, 0)
        assert whole["usage"] == {"input_tokens": 3, "output_tokens": length}
        got = events(await engine.post("/v1/messages", {**MESSAGE, "stream": True}))
        assert [name for name, _ in got[:2]] == ["message_start", "content_block_start"]
        assert [name for name, _ in got[-3:]] == ["content_block_stop", "message_delta", "message_stop"]
        pieces = [data["delta"]["text"] for name, data in got if name == "content_block_delta"]
        assert "".join(pieces) == text.answer(PROMPT)
        assert got[0][1]["message"]["usage"]["input_tokens"] == 3
        assert got[-2][1]["usage"]["output_tokens"] == length
        system = {**MESSAGE, "system": [{"type": "text", "text": "Be kind."}]}
        assert (await engine.post("/v1/messages/count_tokens", system)).json == {"input_tokens": 6}


async def test_how_messages_end() -> None:
    with Process() as engine:
        await engine.ready()
        cut = (await engine.post("/v1/messages", {**MESSAGE, "max_tokens": 2})).json
        assert cut["stop_reason"] == "max_tokens"
        stop = text.answer(PROMPT)[20:29]
        for stream in (False, True):
            answer = await engine.post("/v1/messages", {**MESSAGE, "stop_sequences": [stop], "stream": stream})
            ended = events(answer)[-2][1]["delta"] if stream else answer.json
            assert (ended["stop_reason"], ended["stop_sequence"]) == ("stop_sequence", stop)


@pytest.mark.parametrize(
    ("path", "body", "status", "named"),
    [
        ("/v1/messages", CHAT, 400, "max_tokens"),
        ("/v1/messages", {**MESSAGE, "model": "whale"}, 404, "whale"),
        ("/v1/messages", {"model": "fish", "max_tokens": 3}, 400, "messages"),
        ("/v1/messages/count_tokens", {"model": "fish"}, 400, "messages"),
    ],
)
async def test_refusals_of_messages(path: str, body: dict[str, Any], status: int, named: str) -> None:
    with Process() as engine:
        await engine.ready()
        answer = await engine.post(path, body)
        assert answer.status == status
        assert answer.json["type"] == "error"
        assert named in answer.json["error"]["message"]


# -- OpenAI's responses ------------------------------------------------------------------------------------------------


async def test_responses_whole_and_in_a_stream() -> None:
    with Process() as engine:
        await engine.ready()
        whole = (await engine.post("/v1/responses", RESPONSE)).json
        [item] = whole["output"]
        assert item["content"][0]["text"] == text.answer(PROMPT)
        assert whole["status"] == item["status"] == "completed"
        assert whole["usage"]["total_tokens"] == 3 + text.natural_length(PROMPT, 0)
        items = [{"role": "user", "content": [{"type": "input_text", "text": "hello there"}]}]
        same = (await engine.post("/v1/responses", {"model": "fish", "input": items})).json
        assert same["output"][0]["content"] == item["content"]
        got = events(await engine.post("/v1/responses", {**RESPONSE, "max_output_tokens": 3, "stream": True}))
        assert [data["sequence_number"] for _, data in got] == list(range(len(got)))
        assert "".join(d["delta"] for name, d in got if name == "response.output_text.delta") == text.answer(PROMPT, 3)
        assert got[0][0] == "response.created"
        name, last = got[-1]
        assert (name, last["response"]["status"]) == ("response.incomplete", "incomplete")
        assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
        refused = await engine.post("/v1/responses", {"model": "fish"})
        assert (refused.status, refused.json["error"]["param"]) == (400, "body.input")


# -- speech ------------------------------------------------------------------------------------------------------------


def form(**fields: Any) -> aiohttp.FormData:
    data = aiohttp.FormData()
    for name, value in fields.items():
        data.add_field(name, value, filename="a.wav" if isinstance(value, bytes) else None)
    return data


async def test_uploads_are_transcribed() -> None:
    with Process(SPEECH) as engine:
        await engine.ready()
        path = "/v1/audio/transcriptions"
        first = await engine.request("POST", path, data=form(model="fish", file=AUDIO, language="en"))
        again = await engine.request("POST", path, data=form(file=AUDIO, model="fish"))
        other = await engine.request("POST", path, data=form(file=AUDIO[1:], model="fish"))
        assert first.json == again.json != other.json
        assert first.json["usage"] == {"type": "duration", "seconds": 2}
        unknown = await engine.request("POST", path, data=form(file=AUDIO, model="whale"))
        assert (unknown.status, "whale" in unknown.text) == (404, True)
        for data in (form(model="fish", x=b""), b"no form", None):
            assert (await engine.request("POST", path, data=data)).status == 400
        assert (await engine.get("/v1/realtime")).status == 404
        assert (await engine.post("/v1/chat/completions", CHAT)).status == 404


def session(engine: Process) -> connect:
    return unix_connect(str(engine.socket), uri="ws://engine/v1/realtime?model=fish", open_timeout=DEADLINE)


async def receive(socket: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(DEADLINE):
        event: dict[str, Any] = json.loads(await socket.recv())
        return event


async def test_a_realtime_session() -> None:
    with Process(SPEECH) as engine:
        await engine.ready()
        uploaded = await engine.request("POST", "/v1/audio/transcriptions", data=form(file=AUDIO, model="fish"))
        async with session(engine) as socket:
            assert (await receive(socket))["type"] == "session.created"

            async def told(sent: str) -> str:
                await socket.send(sent)
                event = await receive(socket)
                assert event["type"] == "error"
                return str(event["code"])

            assert await told("{") == "invalid_json"
            assert await told('{"type":"x"}') == await told("[]") == "unknown_event"
            assert await told('{"type":"input_audio_buffer.commit"}') == "model_not_validated"
            assert await told('{"type":"session.update","model":"whale"}') == "model_not_found"
            assert await told('{"type":"input_audio_buffer.append","audio":"é"}') == "invalid_audio"
            await socket.send('{"type":"session.update","model":"fish"}')
            for _ in range(2):
                for part in (AUDIO[:1000], AUDIO[1000:]):
                    audio = base64.b64encode(part).decode()
                    await socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
                await socket.send(['{"type":"input_audio_', 'buffer.commit"}'])  # in two frames
                said = ""
                while (event := await receive(socket))["type"] == "transcription.delta":
                    said += event["delta"]
                assert event["type"] == "transcription.done"
                assert said == event["text"] == uploaded.json["text"]
                assert event["usage"]["completion_tokens"] > 0
            async with asyncio.timeout(DEADLINE):
                await (await socket.ping())
        await engine.samples_to("vllm:num_requests_running", 0)


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\x81\x02hi", 1002),  # not masked
        (b"\xc1\x80abcd", 1002),  # compressed, which was not agreed on
        (b"\x80\x80abcd", 1002),  # continues nothing
        (b"\x01\x80abcd\x81\x80abcd", 1002),  # begins anew in the middle
        (b"\x09\x80abcd", 1002),  # a ping in parts
        (b"\x89\xfe\x00\x7eabcd" + b"x" * 126, 1002),  # a ping that is too long
        (b"\x82\x80abcd", 1003),  # no text
        (b"\x81\x81\0\0\0\0\xff", 1007),  # not UTF-8
        (b"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff", 1009),  # longer than anybody's memory
        (b"\x88\x80abcd", 1000),
    ],
)
async def test_what_closes_a_websocket(frame: bytes, code: int) -> None:
    with Process(SPEECH) as engine:
        await engine.ready()
        reader, writer = await asyncio.open_unix_connection(str(engine.socket))
        writer.write(b"GET /v1/realtime HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nsec-websocket-key: eA==\r\n\r\n")
        async with asyncio.timeout(DEADLINE):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
            kind, size = await reader.readexactly(2)
            assert kind == 0x81
            await reader.readexactly(size)  # session.created
            writer.write(frame)
            assert await reader.read() == b"\x88\x02" + code.to_bytes(2)
        writer.close()
        await writer.wait_closed()
