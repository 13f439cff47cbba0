from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shoal.gateway.usage import (
    MAX_EVENT,
    MAX_WHOLE,
    TAIL,
    SseReader,
    Tokens,
    UsageStripper,
    asks_usage,
    counts_usage,
    usage_of_json,
    usage_of_tail,
    with_usage,
)
from tests.gateway.test_inspect import JSON

CHUNK = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"hi"}}],"usage":null}'
TOLD = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12}}'
DONE = b"data: [DONE]"


def cut(data: bytes, at: list[int]) -> list[bytes]:
    bounds = [0, *sorted(position % (len(data) + 1) for position in at), len(data)]
    return [data[a:b] for a, b in pairwise(bounds)]


def read(*pieces: bytes) -> tuple[Tokens | None, int]:
    reader = SseReader()
    for piece in pieces:
        assert reader.feed(piece) is piece
    assert reader.end() == b""
    return reader.tokens, reader.events


def strip(*pieces: bytes) -> tuple[bytes, Tokens | None, int]:
    stripper = UsageStripper()
    out = b"".join([*(stripper.feed(piece) for piece in pieces), stripper.end()])
    return out, stripper.tokens, stripper.events


def each_byte(data: bytes) -> list[bytes]:
    return [bytes([byte]) for byte in data]


# -- whole answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}, Tokens(5, 7)),
        ({"prompt_tokens": 5, "total_tokens": 5}, Tokens(5, 0)),
        ({"input_tokens": 5, "output_tokens": 7}, Tokens(5, 7)),
        ({"input_tokens": 5, "output_tokens": 7, "input_tokens_details": {"cached_tokens": 3}}, Tokens(5, 7)),
        ({"total_tokens": 9}, Tokens(9, 0)),
        ({"prompt_tokens": 5, "completion_tokens": None}, Tokens(5, 0)),
        ({"prompt_tokens": -5, "completion_tokens": 1.5}, None),
        ({"prompt_tokens": "5"}, None),
        ({"prompt_tokens": 10**400}, None),
        ({"type": "duration", "seconds": 3}, None),
        ({}, None),
        (None, None),
        (5, None),
        ([], None),
    ],
)
def test_usage_of_an_answer(usage: Any, tokens: Tokens | None) -> None:
    answer = json.dumps({"id": "x", "usage": usage, "choices": [{"text": '"usage": {"prompt_tokens": 1}'}]}).encode()
    assert usage_of_json(answer) == usage_of_json(bytearray(answer)) == tokens
    assert usage_of_tail(answer) == tokens


@pytest.mark.parametrize("answer", [b"", b"[]", b"{", b"\xff", b'{"usage":{}', b"[" * 100_000, b'{"usage":' * 5000])
def test_no_answer_is_a_crash(answer: bytes) -> None:
    assert usage_of_json(answer) is None
    assert usage_of_tail(answer) is None


@given(JSON, st.text(max_size=50), st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 100))
def test_the_tail_knows_what_the_whole_knows(value: Any, text: str, prompt: int, completion: int, at: int) -> None:
    """Texts that speak of usage do not mislead it, wherever the tail begins."""
    quoted = json.dumps({"usage": {"prompt_tokens": 1}, "text": text})
    answer: dict[str, Any] = {
        "tools": {"usage": {"type": "object"}},
        "choices": [quoted, json.dumps(quoted), quoted[1:], value],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion},
    }
    whole = json.dumps(answer).encode()
    assert usage_of_tail(whole) == usage_of_json(whole) == Tokens(prompt, completion)
    before = whole[: whole.rindex(b'"usage"')]
    assert usage_of_tail(whole[at % len(before) :]) == Tokens(prompt, completion)
    del answer["usage"]
    texts = json.dumps({"choices": answer["choices"][:3]}).encode()
    assert usage_of_tail(texts[at % len(texts) :]) is None


def test_of_long_answers_the_end_is_read() -> None:
    usage = b'"usage" :\n {"prompt_tokens":5,"completion_tokens":7}'
    long = b'{"choices":["%s"],%s,"kv_transfer_params":null}' % (b"x" * MAX_WHOLE, usage)
    assert usage_of_json(long) == Tokens(5, 7)
    assert usage_of_json(b'{%s,"choices":["%s"]}' % (usage, b"x" * MAX_WHOLE)) is None
    assert usage_of_tail(b'{"usage":' * 3000 + usage[8:]) is None


@given(st.binary(max_size=300))
def test_no_bytes_are_a_crash(data: bytes) -> None:
    for form in (data, b'"usage":{' + data, b'{"usage":' + data + b"}"):
        usage_of_json(form)
        usage_of_tail(form)
        read(form, b"data: " + form + b"\n\n")
        with_usage(form)
        asks_usage(form)


# -- streams -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_a_stream_of_chat(end: bytes) -> None:
    stream = end.join([CHUNK, CHUNK, b": ping", TOLD, DONE, b""])
    left = end.join([CHUNK, CHUNK, b": ping", DONE, b""])
    for pieces in ([stream], stream.splitlines(keepends=True), each_byte(stream)):
        assert read(*pieces) == (Tokens(5, 7), 4)
        assert strip(*pieces) == (left, Tokens(5, 7), 4)


def test_a_stream_of_anthropic() -> None:
    stream = (
        b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":9}}}\n\n'
        b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"\\"usage\\":{}"}}\n\n'
        b'event: message_delta\ndata: {"type":"message_delta","delta":{},"usage":{"output_tokens":4}}\n\n'
        b'event: message_delta\ndata: {"type":"message_delta","usage":{"input_tokens":0,"output_tokens":6}}\n\n'
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    )
    for pieces in ([stream], each_byte(stream)):
        assert read(*pieces) == (Tokens(9, 6), 5)
        assert strip(*pieces)[0] == stream


def test_a_stream_of_responses() -> None:
    stream = (
        b'event: response.created\ndata: {"type":"response.created","response":{"usage":null}}\n\n'
        b'event: response.completed\ndata: {"type":"response.completed","response":{"output":[],'
        b'"usage":{"input_tokens":3,"output_tokens":4}}}\n\n'
    )
    assert read(*each_byte(stream)) == read(stream) == (Tokens(3, 4), 2)
    assert strip(stream)[0] == stream


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"choices":[{"index":0}],"usage":{"prompt_tokens":5}}\n\n',
        b'data: {"choices":[],"usage":null}\n\n',
        b'data: {"choices":[],"usage":{}}\n\n',
        b'data: {"choices":[],"prompt_filter_results":["usage"]}\n\n',
        b'data: {"choices":null,"usage":{"prompt_tokens":5}}\n\n',
        b'data: {"usage":{"prompt_tokens":5}}\n\n',
        b'data: {"choices":[],"usage":{"prompt_tokens":5}\n\n',
        b'data: {"choices":[{"delta":{"content":"\\"usage\\":{"}}]}\n\n',
        b'event: x {"choices":[],"usage":{"prompt_tokens":5}}\n\n',
        b': {"choices":[],"usage":{"prompt_tokens":5}}\n\n',
    ],
)
def test_events_that_stay(event: bytes) -> None:
    assert strip(event)[0] == strip(*each_byte(event))[0] == event


@pytest.mark.parametrize(
    "event",
    [
        TOLD + b"\n\n",
        TOLD + b"\r\n\n",
        TOLD.replace(b"data: ", b"data:") + b"\n\r\n",
        b": comment\r\nevent: message\r\n" + TOLD + b"\r\nid: 1\r\n\r\n",
        b'data: {"choices": [ ],\ndata: "usage" : {"prompt_tokens":5,\ndata:"completion_tokens":7}}\n\n',
        TOLD,
        TOLD + b"\n",
    ],
)
def test_events_that_go(event: bytes) -> None:
    before = CHUNK + b"\n\n\n\r\n"
    for pieces in ([before + event], [before, event], each_byte(before + event)):
        assert strip(*pieces)[:2] == (before, Tokens(5, 7))


EVENTS = st.lists(
    st.tuples(
        st.sampled_from([CHUNK, CHUNK, DONE, b": ping", b"event: x\ndata: 1\ndata: 2", b"id: 1", b"", b"data", b"\r"]),
        st.sampled_from([b"\n\n", b"\r\n\r\n", b"\n\r\n", b"\r\n\n", b"\n\n\n", b"\n\n\r\n\n"]),
    ),
    max_size=6,
).map(lambda events: b"".join(event + end for event, end in events))
CUTS = st.lists(st.integers(0, 2000), max_size=8)


@given(before=EVENTS, after=EVENTS, rest=st.sampled_from([b"", b"data: {", b"\r", DONE]), cuts=CUTS)
@example(before=CHUNK + b"\n\n\n", after=b"", rest=b"", cuts=[len(CHUNK) + 3])
def test_what_is_left_is_all_but_that_event(before: bytes, after: bytes, rest: bytes, cuts: list[int]) -> None:
    event = TOLD + b"\n\n"
    stream = before + event + after + rest
    out, tokens, events = strip(*cut(stream, cuts))
    assert out == before + after + rest
    assert tokens == Tokens(5, 7)
    assert (tokens, events) == read(*cut(stream, cuts)) == read(stream) == read(*each_byte(stream))
    assert strip(*each_byte(stream)) == strip(stream) == (out, tokens, events)


@given(st.lists(st.sampled_from([b"\n", b"\r", b"data:", TOLD, TOLD + b"\n\n", CHUNK, b"x", b":"]), max_size=20), CUTS)
def test_any_cut_gives_the_same(parts: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(parts)
    assert strip(*cut(stream, cuts)) == strip(stream) == strip(*each_byte(stream))
    assert read(*cut(stream, cuts)) == read(stream)


def test_an_event_is_held_back_until_it_is_whole_and_no_longer() -> None:
    stripper = UsageStripper()
    assert stripper.feed(CHUNK) == b""
    assert stripper.feed(b"\n") == b""
    assert stripper.feed(b"\n" + TOLD) == CHUNK + b"\n\n"
    assert stripper.feed(b"\n\n") == b""
    assert stripper.end() == b""


@pytest.mark.parametrize("size", [1 << 14, 1 << 20, 1 << 24])
def test_events_too_long_to_hold_back_pass(size: int) -> None:
    long = b'data: {"choices":["%s"],"usage":{"prompt_tokens":1,"completion_tokens":2}}' % (b"x" * (MAX_EVENT + 9))
    stream = CHUNK + b"\n\n" + long + b"\n\n"
    pieces = [stream[i : i + size] for i in range(0, len(stream), size)]
    assert strip(*pieces) == (stream, Tokens(1, 2), 2)
    assert strip(*pieces, TOLD + b"\n\n") == (stream, Tokens(5, 7), 3)
    assert strip(*pieces[:-1], pieces[-1][:-2])[:2] == (stream[:-2], Tokens(1, 2))


def test_memory_stays_small_whatever_comes() -> None:
    for reader in (SseReader(), UsageStripper()):
        for _ in range(40):
            reader.feed(b'"usage":{\n' * 10_000)
            assert len(reader._held) <= MAX_EVENT
        assert len(reader._held) == TAIL


# -- requests ----------------------------------------------------------------------------------------------------------


def test_which_paths_have_to_be_asked() -> None:
    assert counts_usage("/v1/chat/completions")
    assert counts_usage("/v1/completions")
    assert not any(counts_usage(path) for path in ("/v1/responses", "/v1/messages", "/v1/embeddings", "/x", ""))


@pytest.mark.parametrize(
    ("body", "new"),
    [
        (b'{"stream":true}', b'{"stream":true,"stream_options":{"include_usage":true}}'),
        (
            b' {"a" : 1.50, "a":2, "stream":true}\r\n',
            b' {"a" : 1.50, "a":2, "stream":true,"stream_options":{"include_usage":true}}',
        ),
        (b'{"stream":true,"stream_options":null}', b'{"stream":true,"stream_options":{"include_usage":true}}'),
        (
            b'{"stream_options":{"include_usage":false,"x":[1, 2]}, "stream":true, "a":"\\u00e9"}',
            b'{"stream_options":{"include_usage":true,"x":[1, 2]},"stream":true,"a":"\\u00e9"}',
        ),
        (
            b'{"stream_options":{"continuous_usage_stats":true},"stream":true}',
            b'{"stream_options":{"include_usage":true},"stream":true}',
        ),
        (b'\xef\xbb\xbf{"stream":true}', b'{"stream":true,"stream_options":{"include_usage":true}}'),
    ],
)
def test_usage_is_asked_for(body: bytes, new: bytes) -> None:
    assert with_usage(body) == with_usage(bytearray(body)) == new
    assert with_usage(new) is new


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b'{"stream":false}',
        b'{"stream":"true"}',
        b'{"stream":true,"stream":false}',
        b'{"stream":true',
        b'{"stream":true,"stream_options":{"include_usage":true}}',
        b'{"stream":true,"stream_options":{"include_usage":"yes"}}',
        b'{"stream":true,"stream_options":5}',
        b'{"stream":true,"stream_options":{"\xff":1}}',
        b'{"stream":true,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_requests_that_stay(body: bytes) -> None:
    assert with_usage(body) is body


@given(st.dictionaries(st.text(), JSON, max_size=5), st.none() | st.dictionaries(st.text(), JSON, max_size=3))
def test_all_else_stays(body: dict[str, Any], options: dict[str, Any] | None) -> None:
    request = {**body, "stream": True}
    if options is not None:
        request["stream_options"] = {**options, "include_usage": False}
    new = json.loads(with_usage(json.dumps(request).encode()))
    assert new.pop("stream_options") == {**(options or {}), "include_usage": True}
    request.pop("stream_options", None)
    assert new == request
