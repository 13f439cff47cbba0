"""The same bytes through both relays: engines and clients have to see the same.

The relay that is built on aiohttp is asked over sockets. The native one is a `Bench`, so that each recorded stream can
be cut at every position; `test_smuggling.py` and all that uses `harness.py` show that sockets make no difference to it.

Where they differ on purpose is said here, and nowhere else is anything overlooked:

- The oracle reads a chunked request whole and sends its length. Trailers of requests are not sent here: aiohttp takes
  them for headers of the next request.
- The oracle does not get to see 1xx answers and trailers of engines, and chunks leave with other borders.
- What follows a request that ends the connection makes the oracle refuse that request; the native relay ignores it.
- What is refused by its head alone ends the native relay's connection if a body follows; the oracle reads that.
- Each relay has words of its own for what it refuses, and headers of its own on its answers.
- The native relay leaves `Access-Control-…` of engines out.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gateway.harness import World, route
from tests.gateway.recorded import REQUESTS, RESPONSES
from tests.gateway.wire import PROBE, PROBED, Answer, Bench, Outcome, Say, Seen, bench, over_sockets, raw_engine

EXAMPLES = int(os.environ.get("SHOAL_TEST_EXAMPLES", "100"))
_thorough = settings(max_examples=EXAMPLES, deadline=None)
pytestmark = pytest.mark.timeout(max(120, EXAMPLES // 10))

_FRAMING = (b"content-length", b"transfer-encoding", b"trailer")


@dataclass
class Both:
    """Both relays, in front of engines that answer alike."""

    native: Bench
    oracle: Callable[[list[bytes]], Outcome]
    set_say: Callable[[Say], None]

    def compare(
        self, stream: bytes, cuts: list[list[int]], methods: list[bytes], say: Say, *, ends: bool = False
    ) -> Outcome:
        """Send `stream` to the oracle, cut like the first of `cuts`, and to the native relay, cut like each.

        A probe follows, unless the stream `ends` the connection. Returns what the oracle made of it.
        """
        stream += b"" if ends else PROBE
        self.set_say(say)
        self.native.say = say
        expected = self.oracle(pieces(stream, cuts[0]))
        plain = _plain(expected, methods)
        for places in cuts:
            assert _plain(self.native.exchange(pieces(stream, places)), methods) == plain, places
        return expected


def pieces(raw: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(raw) + 1) for place in places} | {len(raw)})
    return [raw[start:end] for start, end in zip([0, *ends], ends, strict=False) if start < end]


def _plain(outcome: Outcome, methods: list[bytes]) -> Any:
    """What has to be the same: requests, answers, and whether the connection goes on."""
    return [_request(seen) for seen in outcome.seen], [_answer(a) for a in outcome.answers(methods)], outcome.closed


def _request(seen: Seen) -> Any:
    headers = [(name, value) for name, value in seen.headers if name not in _FRAMING]
    return seen.method, seen.target, headers, seen.body


def _answer(answer: Answer) -> Any:
    if answer.get(b"server") == b"shoal":
        body = msgspec.json.decode(answer.body) if answer.body else {}
        return answer.status, body["error"].get("code") if "error" in body else body
    ours = (*_FRAMING, b"connection")
    headers = [f for f in answer.headers if f[0] not in ours and not f[0].startswith(b"access-control-")]
    length = answer.get(b"content-length")
    whole = answer.body if answer.complete else answer.body.partition(b'data: {"error":')[0]
    return answer.status, answer.reason, headers, length, whole, answer.complete


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    with tempfile.TemporaryDirectory(prefix="shoal-") as name:
        folder = Path(name)
        (folder / "o").mkdir()
        with bench(folder) as native:
            world = World(folder / "o", "aiohttp")
            engine = native.run(raw_engine(world))
            controller = native.run(raw_engine(world, "c"))
            native.run(world.start(route("m", engine)))

            def set_say(say: Say) -> None:
                engine.say = controller.say = say

            yield Both(native, lambda pieces: native.run(over_sockets(world, engine, pieces)), set_say)
            native.run(world.end())


def echo(seen: Seen) -> tuple[list[bytes], bool]:
    """An engine that says what it was asked."""
    if seen.target.startswith(b"/v1/probe"):
        return [PROBED], False
    body = b"%b %b %b" % (seen.method, seen.target, seen.body)
    head = b"HTTP/1.1 200 Fine\r\nX-Engine: 1\r\nContent-Length: %d\r\n\r\n" % len(body)
    return [head if seen.method == b"HEAD" else head + body], False


def answering(parts: list[bytes], close: bool = False) -> Say:
    """An engine that answers in these pieces."""
    return lambda seen: ([PROBED], False) if seen.target.startswith(b"/v1/probe") else (parts, close)


# -- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REQUESTS)
def test_recorded_requests_cut_at_every_position(both: Both, name: str) -> None:
    stream, ends = REQUESTS[name], name == "curl, HTTP/1.0"
    size = len(stream) + (0 if ends else len(PROBE))
    outcome = both.compare(stream, [[], *([place] for place in range(1, size))], [], echo, ends=ends)
    assert {answer.status for answer in outcome.answers()} == {200}
    assert len(outcome.seen) == (1 if ends or name == "Open WebUI, its poll" else 2)


def test_recorded_requests_one_after_the_other(both: Both) -> None:
    streams = [stream for name, stream in REQUESTS.items() if name != "curl, HTTP/1.0"]
    outcome = both.compare(b"".join(streams), [[], *(list(range(0, 9999, step)) for step in (1, 7, 100))], [], echo)
    assert len(outcome.answers()) == len(streams) + 1


METHODS = st.sampled_from([b"POST", b"POST", b"POST", b"PUT", b"PATCH", b"DELETE", b"GET", b"HEAD", b"OPTIONS"])
PATHS = st.sampled_from([b"/v1/x", b"/v1/messages", b"/tokenize", b"/v1//y/%2F?a=b&c"])
LOCAL = st.sampled_from([b"/v1/models", b"/v1/models/m", b"/v1/models/none"])
"""What relays answer themselves."""
FIELDS = st.sampled_from(
    [
        b"X-A: 1", b"x-a:2", b"X-Empty:", b"X-Blanks: \t a  b \t", b"X-Utf: \xc3\xa9", b"Accept: */*", b"TE: trailers",
        b"X-Own: 1",
    ]
)  # fmt: skip
CONNECTIONS = st.sampled_from([[], [], [], [b"Connection: keep-alive"], [b"Connection: X-Own"], [b"Connection: close"]])
BODIES = st.sampled_from(
    [b'{"model":"m"}', b'{"model":"m","x":"\xc3\xa9 \\u0000"}', b'{"model":"none"}', b"{", b'{"model":7}', b""]
)
PLACES = st.lists(st.lists(st.integers(0, 2000), max_size=8), min_size=3)


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, bytes, bool]:
    """A request, its method, and whether it ends the connection."""
    method, path, minor = draw(METHODS), draw(PATHS), draw(st.sampled_from([1, 1, 1, 0]))
    fields = [b"Host: h"] * (minor or draw(st.integers(0, 1))) + draw(st.lists(FIELDS, max_size=4))
    connection = draw(CONNECTIONS)
    ends = b"Connection: close" in connection or (not minor and b"Connection: keep-alive" not in connection)
    fields += connection
    body = draw(BODIES)
    if method in (b"GET", b"HEAD", b"DELETE", b"OPTIONS"):
        body, path = b"", draw(st.one_of(PATHS, LOCAL))
        path += (b"&" if b"?" in path else b"?") + b"model=m"
        if draw(st.booleans()):
            fields.append(b"Content-Length: 0")
    elif minor and draw(st.booleans()):
        places = draw(st.lists(st.integers(0, 50), max_size=3))
        last = draw(st.sampled_from([b"0\r\n\r\n", b"000;a=b\r\n\r\n"]))
        body = b"".join(b"%X;e\r\n%b\r\n" % (len(part), part) for part in pieces(body, places)) + last
        fields.append(b"Transfer-Encoding: chunked")
    else:
        fields.append(b"content-length: %d" % len(body))
    first = b"%b %b HTTP/1.%d" % (method, path, minor)
    return b"\r\n".join([first, *draw(st.permutations(fields)), b"", body]), method, ends


def test_made_requests(both: Both) -> None:
    @_thorough
    @given(st.lists(requests(), min_size=1, max_size=5), PLACES)
    def check(made: list[tuple[bytes, bytes, bool]], cuts: list[list[int]]) -> None:
        last = next((at for at, (_, _, ends) in enumerate(made) if ends), len(made)) + 1
        stream = b"".join(raw for raw, _, _ in made[:last])
        both.compare(stream, cuts, [method for _, method, _ in made], echo, ends=last <= len(made))

    check()


# -- responses --------------------------------------------------------------------------------------------------------

ASK = {
    b"GET": b"GET /v1/x?model=m HTTP/1.1\r\nHost: h\r\n\r\n",
    b"HEAD": b"HEAD /v1/x?model=m HTTP/1.1\r\nHost: h\r\n\r\n",
    b"POST": b"POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: 13\r\n\r\n" + b'{"model":"m"}',
    b"OLD": b'POST /v1/x HTTP/1.0\r\nContent-Length: 13\r\n\r\n{"model":"m"}',
}
UNTIL_CLOSE = {
    "until it closes": b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nall of it",
    "events until it closes": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\ndata: 2\n\n",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nall of it",
    "HTTP/1.0 with a length": b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc",
    "nothing until it closes": b"HTTP/1.1 200 OK\r\n\r\n",
}
INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"


def _respond(both: Both, raw: bytes, method: bytes, cuts: list[list[int]], close: bool) -> None:
    """Compare what clients see of `raw`, which comes cut like each of `cuts`."""
    methods, old = [method if method != b"OLD" else b"POST"], method == b"OLD"
    expected = both.compare(ASK[method], [[]], methods, answering([raw], close), ends=old)
    plain = _plain(expected, methods)
    for places in cuts:
        both.native.say = answering(pieces(raw, places), close)
        assert _plain(both.native.exchange([ASK[method] + (b"" if old else PROBE)]), methods) == plain, places


@pytest.mark.parametrize("method", [b"POST", b"OLD"])
@pytest.mark.parametrize("name", RESPONSES)
def test_recorded_responses_cut_at_every_position(both: Both, name: str, method: bytes) -> None:
    raw = RESPONSES[name]
    _respond(both, raw, method, [[place] for place in range(1, len(raw))], close="one connection" in name)
    interim = INTERIM + raw
    _respond(both, interim, method, [[], list(range(len(interim)))], close=False)


@pytest.mark.parametrize("method", [b"POST", b"OLD"])
@pytest.mark.parametrize("name", UNTIL_CLOSE)
def test_responses_that_end_with_the_connection(both: Both, name: str, method: bytes) -> None:
    raw = UNTIL_CLOSE[name]
    _respond(both, raw, method, [[place] for place in range(1, len(raw))], close=True)


@pytest.mark.parametrize("name", RESPONSES)
def test_answers_to_head(both: Both, name: str) -> None:
    raw = RESPONSES[name].partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    _respond(both, raw, b"HEAD", [[place] for place in range(1, len(raw))], close=False)


@pytest.mark.parametrize("name", ["vLLM", "vLLM, a stream", "chunks, extensions, trailers", "one connection each"])
def test_responses_that_break_off_anywhere(both: Both, name: str) -> None:
    """At each byte of head and body: 502, or a body that does not look whole."""
    raw = RESPONSES[name]
    for end in range(0, len(raw), 3):
        _respond(both, raw[:end], b"POST", [[], [end // 2], list(range(end))], close=True)


STATUSES = st.sampled_from(
    [b"200 OK", b"201 ", b"204 No Content", b"304 Not Modified", b"429 Too  Many", b"500 x", b"299"]
)
MORE = st.sampled_from(
    [
        b"Content-Type: text/event-stream", b"content-type: application/json", b"Set-Cookie: a", b"set-cookie: b",
        b"Content-Encoding: gzip", b"Keep-Alive: timeout=5", b"Access-Control-Allow-Origin: *", b"Date: today",
        b"X-Empty:",
    ]
)  # fmt: skip


@st.composite
def responses(draw: st.DrawFn) -> tuple[bytes, bytes, bool]:
    """A response, the request that it answers, and whether the engine closes after it."""
    method, status = draw(st.sampled_from(list(ASK))), draw(STATUSES)
    fields = draw(st.lists(MORE, max_size=4, unique_by=lambda field: field[:8].lower()))
    body = draw(st.sampled_from([b"", b"abcde", b"data: 1\n\ndata: [DONE]\n\n", b"\r\n\r\n0\r\n\r\n", b"{}"]))
    how = draw(st.sampled_from(["length", "chunked", "close"]))
    close = how == "close" or draw(st.booleans())
    if how == "length":
        fields.append(b"Content-Length: %d" % len(body))
    elif how == "chunked":
        parts = pieces(body, draw(st.lists(st.integers(0, 50), max_size=3)))
        ends = draw(st.sampled_from([b"0\r\n\r\n", b"0\r\nX-T: 1\r\n\r\n"]))
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + ends
        fields.append(b"transfer-encoding: chunked")
    if close and draw(st.booleans()):
        fields.append(b"Connection: close")
    if method == b"HEAD" or status[:3] in (b"204", b"304"):
        body = b""
        if status[:3] == b"204":
            fields = [field for field in fields if not field.lower().startswith((b"content-length", b"transfer"))]
    raw = b"\r\n".join([b"HTTP/1.1 " + status, *draw(st.permutations(fields)), b"", body])
    return draw(st.sampled_from([b"", b"", INTERIM])) + raw, method, close


def test_made_responses(both: Both) -> None:
    @_thorough
    @given(responses(), st.lists(st.lists(st.integers(0, 300), max_size=6), min_size=2))
    def check(made: tuple[bytes, bytes, bool], cuts: list[list[int]]) -> None:
        raw, method, close = made
        _respond(both, raw, method, cuts, close)

    check()
