"""The bytes that travel: a chat request, its answer, and the events of a stream, as large as real ones. Pure."""

from __future__ import annotations

import json
import re

PATH = "/v1/chat/completions"

ANSWERS, SPREAD, STEPS, LATE = "answers", "spread", "steps", "late"
"""Models of the fake engine: one JSON answer; streams each in its own time; streams all in step, as an engine makes one
token for each request at a time; and streams that let the first event wait for `FIRST_WAIT`."""
STREAMS = (SPREAD, STEPS, LATE)
RATE = 50
"""Events a second in each stream."""
FIRST_WAIT = 0.03
"""Seconds before the first event of `LATE`."""

_TEXT = "Memory flows to the models that have work, and one endpoint reaches them all. "
_STAMP = re.compile(rb'"content": ?"(\d{10,})"')


def chat(model: str) -> bytes:
    """A chat request of about 700 bytes; a streamed one for the models that stream."""
    return _encode(
        {
            "model": model,
            "messages": [
                {"role": "system", "content": "You are a helpful assistant. Answer briefly and to the point."},
                {"role": "user", "content": _TEXT * 6},
            ],
            "temperature": 0.7,
            "max_tokens": 512,
            "stream": model != ANSWERS,
        }
    )


def answer(model: str = ANSWERS) -> bytes:
    """A chat completion of about 700 bytes."""
    message: dict[str, object] = {"role": "assistant", "content": _TEXT * 4, "refusal": None, "tool_calls": []}
    return _encode(
        {
            "id": "chatcmpl-3f2a9c5e7b1d4f60",
            "object": "chat.completion",
            "created": 1767225600,
            "model": model,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 96, "total_tokens": 164, "completion_tokens": 68},
        }
    )


def event(model: str, stamp: int) -> bytes:
    """One event of a stream, about 200 bytes; its text is `stamp`, the moment it was made in monotonic nanoseconds."""
    return b"".join(
        (
            b'data: {"id":"chatcmpl-3f2a9c5e7b1d4f60","object":"chat.completion.chunk","created":1767225600,"model":"',
            model.encode(),
            b'","choices":[{"index":0,"delta":{"content":"',
            b"%d" % stamp,
            b'"},"logprobs":null,"finish_reason":null}]}\n\n',
        )
    )


def chunk(data: bytes) -> bytes:
    """`data` as one chunk of the chunked transfer coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def stamps(data: bytes) -> list[int]:
    """The stamps of the whole events in `data`."""
    return [int(found) for found in _STAMP.findall(data)]


def request(model: str, port: int, key: str) -> bytes:
    """The request as it goes over a connection to 127.0.0.1."""
    body = chat(model)
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _encode(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
