"""Heads: what is read is what was sent, what goes on is read alike by another parser, and nonsense has one error."""

from __future__ import annotations

import os
from typing import Any

import h11
import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shoal.errors import ShoalError
from shoal.gateway.framing import Chunked, Fixed, UntilClose
from shoal.gateway.http1 import (
    END,
    BadResponseError,
    RequestHead,
    ResponseHead,
    find_end,
    parse_request,
    parse_response,
    passed_on,
    trailers_passed_on,
)
from shoal.gateway.known import LARGEST, Known, repeated

EXAMPLES = int(os.environ.get("SHOAL_TEST_EXAMPLES", "200"))
_thorough = settings(max_examples=EXAMPLES, deadline=None)

METHODS = st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"HEAD", b"QUERY"])
TARGETS = st.text("abz019-._~%!$&'()*+,;=:@/?", max_size=30).map(lambda text: b"/" + text.encode())
NAMES = st.text("!#$%&'*+-.^_`|~0123456789abcXYZ", min_size=1, max_size=12).map(lambda text: b"X-" + text.encode())
VISIBLE = bytes(byte for byte in range(33, 256) if byte != 127)
VALUES = st.lists(st.sampled_from([*(bytes([byte]) for byte in VISIBLE), b" ", b"\t"]), max_size=12).map(b"".join)
BLANKS = st.sampled_from([b"", b" ", b"\t", b"  \t "])
CONNECTIONS = st.sampled_from([b"", b"close", b"keep-alive", b"Close", b"Keep-Alive, X-a", b"x-b , close", b"upgrade"])


@st.composite
def lines(draw: st.DrawFn) -> list[bytes]:
    """Fields of which none says anything about framing."""
    fields = draw(st.lists(st.tuples(NAMES, BLANKS, VALUES, BLANKS), max_size=8))
    fields += [(b"Connection", b" ", words, b"") for words in draw(st.lists(CONNECTIONS, max_size=2)) if words]
    return [name + b":" + before + value + after for name, before, value, after in draw(st.permutations(fields))]


FRAMINGS = st.sampled_from(
    [[], [b"Content-Length: 0"], [b"content-length:\t00012 "], [b"CONTENT-LENGTH: 7"], [b"Transfer-Encoding: Chunked "]]
)


def keeps(fields: list[bytes], minor: int) -> bool:
    """Whether a connection is kept, after RFC 9112, section 9.3."""
    values = [line.partition(b":")[2] for line in fields if line.lower().startswith(b"connection:")]
    words = {word.strip().lower() for value in values for word in value.split(b",")}
    return b"close" not in words and (minor == 1 or b"keep-alive" in words)


@_thorough
@given(METHODS, TARGETS, st.integers(0, 1), lines(), FRAMINGS)
def test_requests_are_read_as_sent(
    method: bytes, target: bytes, minor: int, more: list[bytes], framing: list[bytes]
) -> None:
    if not minor and framing and framing[0].startswith(b"Transfer"):
        framing = []
    fields = [b"Host: h", *more, *framing]
    first = b"%b %b HTTP/1.%d" % (method, target, minor)
    raw = b"\r\n".join([first, *fields, b"", b""])
    assert find_end(raw + b"body", 10_000) == len(raw)
    head = parse_request(raw)
    assert (head.method, head.target, head.minor, head.lines) == (method, target, minor, fields)
    assert head.keep_alive == keeps(fields, minor)
    for line, name in zip(fields, head.names, strict=True):
        assert name == line.partition(b":")[0].lower()
        value = line.partition(b":")[2].strip(b" \t")
        assert head.fields[name] == value or value in head.fields[name].split(b", ") or b"," in value or not value
    sized = [line for line in framing if line.lower().startswith(b"content")]
    assert head.length == (int(sized[0].partition(b":")[2]) if sized else None)
    assert head.chunked == (bool(framing) and not sized)
    assert head.has_body == bool(framing)
    _read_alike(head)


def _read_alike(head: RequestHead) -> None:
    """What goes on is one request with the same fields, for h11 as well."""
    on = passed_on(head)
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=2**20)
    coding = [b"Transfer-Encoding: chunked"] if head.chunked else []
    parser.receive_data(b"\r\n".join([head.first[:-2], *on, *coding, b"", b""]))
    request = parser.next_event()
    assert isinstance(request, h11.Request)
    assert (request.method, request.target) == (head.method, head.target)
    names = [line.partition(b":")[0].lower() for line in [*on, *coding]]
    assert [name for name, _ in request.headers] == names
    if head.length is not None:
        assert [int(value) for name, value in request.headers if name == b"content-length"] == [head.length]
    parser.receive_data(b"0\r\n\r\n" if head.chunked else b"x" * (head.length or 0))
    while not isinstance(event := parser.next_event(), h11.EndOfMessage):
        assert isinstance(event, h11.Data)


TOKENS = st.sampled_from(
    [
        b"GET", b"POST", b" ", b"/", b"/v1/x", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"200", b"204", b"\r\n", b"\n",
        b"\r", b":", b": ", b"Host: h\r\n", b"Content-Length: 5\r\n", b"Content-Length:",
        b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Upgrade: websocket\r\n",
        b"Connection: upgrade\r\n", b"\t", b"\0", b"\xff", b"X: y\r\n", b",", b"GET / HTTP/1.1\r\nHost: h\r\n",
        b"HTTP/1.1 200 OK\r\n", b"CONNECT h:1 HTTP/1.1\r\n", b"PRI * HTTP/2.0",
    ]
)  # fmt: skip
NONSENSE = st.lists(st.one_of(TOKENS, TOKENS, st.binary(max_size=4)), max_size=12).map(b"".join)


@_thorough
@given(NONSENSE)
def test_nonsense_has_the_request_error_or_is_read_alike(raw: bytes) -> None:
    raw += END
    raw = raw[: raw.index(END) + 4]
    read = _request_or_error(raw)
    if isinstance(read, ShoalError):
        assert read.status in (400, 405, 431, 505)
        assert read.message.isprintable()
    else:
        _read_alike(read)


def _request_or_error(raw: bytes) -> RequestHead | ShoalError:
    try:
        return parse_request(raw)
    except ShoalError as error:
        return error


@_thorough
@given(NONSENSE, st.sampled_from([b"GET", b"HEAD", b"POST"]))
def test_nonsense_has_the_response_error(raw: bytes, method: bytes) -> None:
    raw += END
    try:
        head = parse_response(raw[: raw.index(END) + 4])
        head.framing(method)
    except BadResponseError:
        return
    assert 100 <= head.status <= 999


@_thorough
@given(st.lists(st.one_of(TOKENS, st.just(END), st.binary(max_size=4)), max_size=15).map(b"".join), st.integers(0, 200))
@example(b"GET / HTTP/1.1\r\n", 200)
@example(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", 27)
@example(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", 26)
def test_the_end_is_found_wherever_it_is_cut(raw: bytes, limit: int) -> None:
    """One byte more each time and with what was seen, as if it had come at once."""

    def ends(seen: int, data: bytes) -> int | str:
        try:
            return find_end(data, limit, seen)
        except ShoalError as error:
            return str(error.code)

    for size in range(len(raw) + 1):
        there = ends(0, raw[:size])
        for seen in range(max(0, size - 6), size):
            if ends(0, raw[:seen]) == -1:
                assert ends(seen, raw[:size]) == there
    if END in raw and raw.index(END) + 4 <= limit:
        assert ends(0, raw) == raw.index(END) + 4


@_thorough
@given(st.integers(100, 999).filter(lambda status: status != 101), st.integers(0, 1), VALUES, lines(), FRAMINGS)
def test_responses_are_read_as_sent(
    status: int, minor: int, reason: bytes, fields: list[bytes], framing: list[bytes]
) -> None:
    raw = b"\r\n".join([b"HTTP/1.%d %d %b" % (minor, status, reason), *fields, *framing, b"", b""])
    head = parse_response(raw)
    assert (head.status, head.reason, head.lines) == (status, reason, [*fields, *framing])
    assert head.keep_alive == keeps(fields, minor)
    how = head.framing(b"POST")
    if status < 200 or status in (204, 304):
        assert isinstance(how, Fixed) and how.done
    elif not framing:
        assert isinstance(how, UntilClose)
    elif head.length is None:
        assert isinstance(how, Chunked)
    else:
        assert isinstance(how, Fixed) and how.left == head.length
    assert head.framing(b"HEAD").done


def _plain(head: RequestHead | ResponseHead) -> dict[str, Any]:
    """All but what may still have the length of the head that was read first."""
    changing = ("shared", "lines", "fields")
    return {name: value for name, value in msgspec.structs.asdict(head).items() if name not in changing}


@_thorough
@given(st.lists(st.tuples(lines(), FRAMINGS, st.integers(0, 10**9)), min_size=1, max_size=2))
def test_a_head_that_is_known_is_read_as_a_new_one(heads: list[tuple[list[bytes], list[bytes], int]]) -> None:
    known = Known(parse_request)
    raws = []
    for more, framing, length in heads:
        sized = [line.partition(b":")[0] + b": %d" % length if b"ength" in line else line for line in framing]
        raws += [b"\r\n".join([b"POST /x HTTP/1.1", b"Host: h", *more, *how, b"", b""]) for how in (framing, sized)]
    for raw in raws * 2:
        head, new = known.read(raw), parse_request(raw)
        assert _plain(head) == _plain(new)
        assert len(passed_on(head)) == len(passed_on(new))
        if (head.length or 0) < 1000:
            _read_alike(head)


@_thorough
@given(lines(), FRAMINGS, st.integers(0, 10**19), st.binary(max_size=30), st.data())
def test_a_head_that_comes_again_is_read_as_a_new_one(
    more: list[bytes], framing: list[bytes], length: int, rest: bytes, data: st.DataObject
) -> None:
    """Whatever follows it, and only if it is there whole and nothing but its length differs."""
    first = b"\r\n".join([b"POST /x HTTP/1.1", b"Host: h", *more, *framing, b"", b""])
    last = Known(parse_request).read(first)
    sized = [line.partition(b":")[0] + b": %d" % length if b"ength" in line else line for line in framing]
    raw = b"\r\n".join([b"POST /x HTTP/1.1", b"Host: h", *more, *sized, b"", b""])
    again = repeated(last, raw + rest)
    if again is not None:  # not of a length as no request has, or that is written in another way than before
        head, end = again
        assert end == len(raw)
        assert _plain(head) == _plain(parse_request(raw))
    else:
        assert sized != framing
        assert length >= 10**18 or b": " not in b"".join(framing)
    assert repeated(last, raw[: data.draw(st.integers(0, len(raw) - 1))]) is None
    at = data.draw(st.integers(0, len(raw) - 1))
    byte = data.draw(st.sampled_from(b" \r\n:;+-_0xA"))
    changed = raw[:at] + bytes([byte]) + raw[at + 1 :]
    again = repeated(last, changed + rest)
    if again is not None:  # a digit that became another one
        assert _plain(again[0]) == _plain(parse_request(changed[: again[1]]))


def test_what_is_not_kept_is_not_compared() -> None:
    """None came yet; a head that is too large."""
    raw = b"GET / HTTP/1.1\r\nHost: h\r\nA: %b\r\n\r\n" % (b"a" * LARGEST)
    known = Known(parse_request)
    assert repeated(None, raw) is None
    assert repeated(known.read(raw), raw) is None


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 O\0K", b"HTTP/1.1 200 O\x1bK", b"HTTP/1.1  200 OK", b"HTTP/1.1 099 x", b"HTTP/1.1 20 x",
        b"HTTP/1.1 2000 x", b"HTTP/1.1 OK", b"HTTP/2.0 200 OK", b"HTTP/0.9 200 OK", b"RTSP/1.0 200 OK", b"ICY 200 OK",
        b"GET / HTTP/1.1", b"", b"\r\nHTTP/1.1 200 OK", b"HTTP/1.1 200 OK\nA: b", b"HTTP/1.1 200 OK\r\nA: b\r\n c",
        b"HTTP/1.1 200 OK\r\nA : b", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked",
        b"HTTP/1.1 200 OK\r\nContent-Length: +2", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: gzip",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999",
    ],
)  # fmt: skip
def test_responses_that_are_none(raw: bytes) -> None:
    with pytest.raises(BadResponseError):
        parse_response(raw + END).framing(b"GET")


@pytest.mark.parametrize(
    ("minor", "fields", "kept"),
    [
        (1, b"", True), (0, b"", False), (1, b"Connection: close", False), (0, b"Connection: keep-alive", True),
        (1, b"Connection: CLOSE", False), (1, b"Connection: keep-alive", True), (0, b"Connection: Keep-Alive", True),
        (1, b"Connection: x\r\nConnection: close", False), (1, b"Connection: close\r\nConnection: x", False),
        (0, b"Connection: x\r\nConnection: keep-alive", True), (1, b"Connection: x, close ,y", False),
        (1, b"Connection: closed", True), (1, b"Proxy-Connection: close", True), (0, b"Keep-Alive: 5", False),
        (1, b"Connection: keep-alive, close", False), (1, b"Connection:", True), (1, b"Connection: Upgrade", True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("body", [b"", b"Content-Length: 0\r\n", b"Content-Length: 5\r\n"])
def test_whether_a_connection_is_kept(minor: int, fields: bytes, kept: bool, body: bytes) -> None:
    """Whatever follows the head: a message that is whole with it says so as well as one with a body."""
    fields = fields + b"\r\n" if fields else b""
    assert parse_request(b"GET / HTTP/1.%d\r\nHost: h\r\n%b%b\r\n" % (minor, fields, body)).keep_alive == kept
    for status in (b"200", b"204", b"304"):
        assert parse_response(b"HTTP/1.%d %b x\r\n%b%b\r\n" % (minor, status, fields, body)).keep_alive == kept


def test_fields_in_several_lines_are_one_list() -> None:
    fields = b"Host: h\r\nX: a\r\nConnection: X\r\nx:\r\nX:  b, c \r\nconnection: y\r\n"
    head = parse_request(b"GET / HTTP/1.1\r\n" + fields + b"\r\n")
    assert head.fields == {b"host": b"h", b"x": b"a, , b, c", b"connection": b"X, y"}
    assert passed_on(head) == [b"Host: h"]
    assert passed_on(head, frozenset({b"host"})) == []


@pytest.mark.parametrize("minor", [0, 1])
def test_an_upgrade_is_for_those_who_know_it(minor: int) -> None:
    head = parse_request(b"GET / HTTP/1.%d\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n" % minor)
    assert head.upgrade == bool(minor)


def test_trailers_that_go_on() -> None:
    allowed = [b"X-Sum: 1", b"x:", b"Digest: a", b"Server-Timing: a"]
    forbidden = [b"HOST: a", b"content-length:1", b"Transfer-Encoding: chunked", b"authorization: Bearer k", b"TE: x"]
    assert trailers_passed_on([*forbidden, *allowed, *forbidden]) == allowed
