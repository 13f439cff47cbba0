"""Requests that two parties could read differently: refused before an engine sees a byte, or made plain.

Every stream here is followed by a second request, which would be answered if the first one's end were found anywhere
but where the connection ends.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from shoal.gateway.framing import MAX_CHUNK_LINE, MAX_TRAILERS
from shoal.gateway.http1 import MAX_FIELDS, MAX_REQUEST_HEAD
from tests.gateway.harness import World, route
from tests.gateway.wire import PROBE, Bench, bench, over_sockets, raw_engine

BODY = b'{"model":"m"}'


def head(*lines: bytes, first: bytes = b"POST /v1/x HTTP/1.1", host: bytes = b"Host: h") -> bytes:
    return b"\r\n".join((first, *([host] if host else []), *lines, b"", b""))


def sized(*lines: bytes) -> bytes:
    """A head with these lines, and a body of 13 bytes."""
    return head(*lines) + BODY


def chunked(body: bytes, *lines: bytes) -> bytes:
    return head(b"Transfer-Encoding: chunked", *lines) + body


CHUNKS = b"d\r\n" + BODY + b"\r\n0\r\n\r\n"
LENGTH = b"Content-Length: 13"

FRAMED_TWICE = {
    "length, then chunked": head(LENGTH, b"Transfer-Encoding: chunked") + CHUNKS,
    "chunked, then length": head(b"Transfer-Encoding: chunked", LENGTH) + CHUNKS,
    "chunked and no length": head(b"Content-Length: 0", b"Transfer-Encoding: chunked") + CHUNKS,
    "length and an unknown coding": head(LENGTH, b"Transfer-Encoding: identity") + BODY,
    "equal lengths": sized(LENGTH, LENGTH),
    "different lengths": sized(LENGTH, b"Content-Length: 3"),
    "different lengths in different cases": sized(b"content-length: 3", b"CONTENT-LENGTH: 13"),
    "lengths in a list": sized(b"Content-Length: 13, 13"),
    "different lengths in a list": sized(b"Content-Length: 13, 3"),
    "chunked twice": head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked") + CHUNKS,
    "chunked twice in a list": head(b"Transfer-Encoding: chunked, chunked") + CHUNKS,
    "chunked and identity": head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity") + CHUNKS,
    "identity and chunked": head(b"Transfer-Encoding: identity, chunked") + CHUNKS,
    "chunked, but not last": head(b"Transfer-Encoding: chunked, gzip") + CHUNKS,
}
LENGTHS = {
    f"length {text!r}": sized(b"Content-Length:" + text)
    for text in (
        b" +13", b" -13", b" 1 3", b" 13;", b" 13,", b" 0x0d", b" 0d", b" 13.0", b" 1_3", b" 13\x0b", b" 13\x00",
        b" \xb2", b" 13\x0c", b"", b" ", b" 18446744073709551629", b" 9999999999999999999999999", b" infinity",
        b" thirteen",
    )
}  # fmt: skip
CODINGS = {
    f"coding {text!r}": head(b"Transfer-Encoding:" + text) + CHUNKS
    for text in (
        b" xchunked", b" chunkedx", b" chunked;q=1", b' "chunked"', b" chun ked", b" chunked\x0b", b" chunked\x00",
        b"", b" \xffchunked", b" gzip, chunked", b" identity", b" ,chunked", b" chunked,",
    )
}  # fmt: skip
LINES = {
    "space before a colon": sized(b"Content-Length : 13"),
    "tab before a colon": sized(b"Content-Length\t: 13"),
    "space before the coding's colon": chunked(CHUNKS).replace(b"Encoding:", b"Encoding :"),
    "space before a name": sized(b" Content-Length: 13"),
    "folded length": sized(b"Content-Length:", b" 13"),
    "folded coding": head(b"Transfer-Encoding:", b" chunked") + CHUNKS,
    "folded other field": sized(LENGTH, b"X: a", b" b"),
    "folded with a tab": sized(LENGTH, b"X: a", b"\tContent-Length: 3"),
    "folded first line": head(b" X: a", LENGTH, host=b"") + BODY,
    "bare LF after the first line": sized(LENGTH).replace(b"\r\n", b"\n", 1),
    "bare LF between fields": sized(b"X: a\n" + LENGTH),
    "bare LF before the end": sized(LENGTH).replace(b"\r\n\r\n", b"\n\r\n"),
    "bare LFs everywhere": sized(LENGTH).replace(b"\r\n", b"\n"),
    "an empty line of LF": sized(LENGTH).replace(b"\r\n\r\n", b"\r\n\n"),
    "bare CR after the first line": sized(LENGTH).replace(b"\r\n", b"\r", 1),
    "bare CR between fields": sized(b"X: a\r" + LENGTH),
    "CR CR LF": sized(LENGTH + b"\r"),
    "bare CR in a value": sized(LENGTH, b"X: a\rb"),
    "NUL in a value": sized(LENGTH, b"X: a\0b"),
    "NUL in a name": sized(LENGTH, b"X\0: a"),
    "control in a value": sized(LENGTH, b"X: a\x01b"),
    "DEL in a value": sized(LENGTH, b"X: a\x7fb"),
    "8-bit in a name": sized(LENGTH, b"X\xe9: a"),
    "8-bit look-alike": sized(b"Content\xadLength: 13"),
    "no name": sized(LENGTH, b": a"),
    "no colon": sized(LENGTH, b"Transfer-Encoding"),
    "brackets in a name": sized(LENGTH, b"[X]: a"),
    "blank in a name": sized(LENGTH, b"Transfer Encoding: chunked"),
}
FIRST_LINES = {
    f"first line {first!r}": head(LENGTH, first=first) + BODY
    for first in (
        b"POST /v1/x", b"POST /v1/x ", b"/v1/x HTTP/1.1", b"POST  /v1/x HTTP/1.1", b"POST /v1/x  HTTP/1.1",
        b"POST\t/v1/x HTTP/1.1", b"POST /v1/x\tHTTP/1.1", b" POST /v1/x HTTP/1.1", b"POST /v1/x HTTP/1.1 ",
        b"POST /v1/x y HTTP/1.1", b"POST /v1/x HTTP /1.1", b"POST /v1/x http/1.1", b"POST /v1/x HTTP/1",
        b"POST /v1/x HTTP/1.", b"POST /v1/x HTTP/11.1", b"POST /v1/x HTTP/1.10", b"POST /v1/x HTTP/1.2",
        b"POST /v1/x HTTP/-1.1", b"POST /v1/x HTTP/0.9", b"POST /v1/x HTTP/2.0", b"POST /v1/x HTTP/3",
        b"PRI * HTTP/2.0", b"OPTIONS /v1/x RTSP/1.0", b"SOURCE /v1/x ICE/1.0", b"post /v1/x HTTP/1.1",
        b"BREW /v1/x HTTP/1.1", b"POST\0 /v1/x HTTP/1.1", b"POST /v1/x\0 HTTP/1.1", b"POST /v1/\xe9 HTTP/1.1",
        b"POST /v1/\x7f HTTP/1.1", b"POST /v1/x\rHTTP/1.1", b"POST v1/x HTTP/1.1", b"POST h:80 HTTP/1.1",
        b"POST * HTTP/1.1", b"POST ftp://h/v1/x HTTP/1.1", b"CONNECT h:80 HTTP/1.1", b"CONNECT /v1/x HTTP/1.1",
        b"\x16\x03\x01\x02\x00\x01", b"POST http:///v1/x\x00 HTTP/1.1",
    )
}  # fmt: skip
HOSTS = {
    "no host": head(LENGTH, host=b"") + BODY,
    "two hosts": sized(b"Host: h", LENGTH),
    "two different hosts": sized(b"HOST: other", LENGTH),
    "chunked in HTTP/1.0": head(b"Transfer-Encoding: chunked", first=b"POST /v1/x HTTP/1.0") + CHUNKS,
    "two keys": sized(LENGTH, b"Authorization: Bearer a", b"Authorization: Bearer b"),
    "two types": sized(LENGTH, b"Content-Type: application/json", b"Content-Type: multipart/form-data; boundary=a"),
}
CHUNKED = {
    f"chunk {size!r}": chunked(size + b"\r\n" + BODY + b"\r\n0\r\n\r\n")
    for size in (
        b"+d", b"-d", b"0xd", b"0Xd", b"d_", b"0_d", b" d", b"d ", b"\td", b"d\t", b"", b";", b";a=b", b"g", b"d,",
        b"d\0", b"\xb2", b"d;\0", b"d;a=\x7f", b"f" * 16, b"1" + b"0" * 15 + b"d", b"10000000000000000d",
        b"0" * 16 + b"d", b"d\n", b"d\r", b"d;a\nb", b"d;a\rb", b"d;" + b"a" * MAX_CHUNK_LINE,
    )
} | {
    "no CR LF after a chunk": chunked(b"d\r\n" + BODY + b"0\r\n\r\n"),
    "a longer chunk than its size": chunked(b"c\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "LF after a chunk": chunked(b"d\r\n" + BODY + b"\n0\r\n\r\n"),
    "CR CR LF after a chunk": chunked(b"d\r\n" + BODY + b"\r\r\n0\r\n\r\n"),
    "a blank after a chunk": chunked(b"d\r\n" + BODY + b" \r\n0\r\n\r\n"),
    "LF after a size": chunked(b"d\n" + BODY + b"\r\n0\r\n\r\n"),
    "LFs at the end": chunked(b"d\r\n" + BODY + b"\r\n0\n\n"),
    "LF after the last chunk": chunked(b"d\r\n" + BODY + b"\r\n0\r\n\n"),
    "a trailer that is none": chunked(b"d\r\n" + BODY + b"\r\n0\r\nGET /v1/evil HTTP/1.1\r\n\r\n"),
    "a folded trailer": chunked(b"d\r\n" + BODY + b"\r\n0\r\nX: a\r\n b\r\n\r\n"),
    "a trailer with a blank before its colon": chunked(b"d\r\n" + BODY + b"\r\n0\r\nX : a\r\n\r\n"),
    "a trailer with NUL": chunked(b"d\r\n" + BODY + b"\r\n0\r\nX: \0\r\n\r\n"),
    "a trailer with a bare LF": chunked(b"d\r\n" + BODY + b"\r\n0\r\nX: a\nY: b\r\n\r\n"),
    "a length in a trailer": chunked(b"d\r\n" + BODY + b"\r\n0\r\nContent-Length: 3\r\n\r\n"),
    "a coding in a trailer": chunked(b"d\r\n" + BODY + b"\r\n0\r\nX: a\r\ntransfer-encoding: chunked\r\n\r\n"),
    "too many trailers": chunked(b"d\r\n" + BODY + b"\r\n0\r\n" + b"X: 1\r\n" * (MAX_TRAILERS // 6 + 1) + b"\r\n"),
    "too long a trailer": chunked(b"d\r\n" + BODY + b"\r\n0\r\nX: " + b"a" * MAX_TRAILERS + b"\r\n\r\n"),
}  # fmt: skip
SIZES = {
    "a field too long": sized(LENGTH, b"X: " + b"a" * MAX_REQUEST_HEAD),
    "a name too long": sized(LENGTH, b"X" * MAX_REQUEST_HEAD + b": a"),
    "a target too long": head(LENGTH, first=b"POST /v1/" + b"x" * MAX_REQUEST_HEAD + b" HTTP/1.1") + BODY,
    "a method too long": head(LENGTH, first=b"P" * MAX_REQUEST_HEAD + b" /v1/x HTTP/1.1") + BODY,
    "too many fields": sized(LENGTH, *[b"X-%d: a" % i for i in range(MAX_FIELDS)]),
    "too many equal fields": sized(LENGTH, *[b"X: a"] * MAX_FIELDS),
}
OTHER = {"an expectation that is none": sized(LENGTH, b"Expect: tea")}
REFUSED = {**FRAMED_TWICE, **LENGTHS, **CODINGS, **LINES, **FIRST_LINES, **HOSTS, **CHUNKED, **SIZES, **OTHER}

CODES = {
    400: {"invalid_http", "invalid_target", "invalid_body"},
    405: {"method_not_allowed"},
    413: {"body_too_large"},
    417: {"expectation_failed"},
    431: {"header_too_large"},
    505: {"http_version"},
}
"""What a refusal may be; `STATUSES` says which it has to be where that is not 400."""
STATUSES = (
    dict.fromkeys(SIZES, 431)
    | dict.fromkeys((name for name in FIRST_LINES if "CONNECT" in name), 405)
    | {
        "an expectation that is none": 417,
        "first line b'POST /v1/x HTTP/0.9'": 505,
        "first line b'POST /v1/x HTTP/2.0'": 505,
        "first line b'OPTIONS /v1/x RTSP/1.0'": 505,
        "first line b'SOURCE /v1/x ICE/1.0'": 505,
    }
)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench(tmp_path_factory.mktemp("b")) as made:
        yield made


@pytest.mark.parametrize("name", REFUSED)
def test_refused(one: Bench, name: str) -> None:
    """With a clear error, the end of the connection, and nothing for the engine; however it is cut."""
    stream = REFUSED[name] + PROBE
    for size in (len(stream), len(stream) - 1, 7, 1) if len(stream) < 3000 else (len(stream), 1000):
        pieces = _cut(stream, size)
        outcome = one.exchange(pieces)
        assert outcome.seen == []
        assert outcome.closed
        (answer,) = outcome.answers()
        assert answer.complete
        assert answer.status == STATUSES.get(name, 400)
        assert answer.get(b"connection") == b"close"
        assert (answer.get(b"content-type") or b"").startswith(b"application/json")
        error = msgspec.json.decode(answer.body)["error"]
        assert error["code"] in CODES[answer.status]
        assert error["message"].endswith(".")


def _cut(stream: bytes, size: int) -> list[bytes]:
    return [stream[i : i + size] for i in range(0, len(stream), size)]


ACCEPTED = {
    "length": sized(LENGTH),
    "length with zeros": sized(b"Content-Length: 00013"),
    "blanks around a length": sized(b"Content-Length: \t 13 \t "),
    "no blank before a length": sized(b"Content-Length:13"),
    "length in another case": sized(b"cOnTeNt-LeNgTh: 13"),
    "chunked": chunked(CHUNKS),
    "chunked in another case": head(b"transfer-encoding: CHUNKED ") + CHUNKS,
    "zeros before a size": chunked(b"00000000000000d\r\n" + BODY + b"\r\n000\r\n\r\n"),
    "one byte a chunk": chunked(b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"),
    "extensions": chunked(b'd ; a=b;c="d e"\r\n' + BODY + b"\r\n0;e\r\n\r\n"),
    "trailers": chunked(b"d\r\n" + BODY + b"\r\n0\r\nX-T: 1\r\nX-U:\r\n\r\n", b"Trailer: X-T"),
    "length is named in Connection": sized(LENGTH, b"Connection: content-length, host"),
    "Connection in several lines": sized(
        b"Connection: X-Own", LENGTH, b"X-Own: 1", b"connection: x-other", b"X-Other: 1"
    ),
    "8-bit in a value": sized(LENGTH, b"X: caf\xe9"),
    "absolute form": head(LENGTH, first=b"POST http://other/v1/x HTTP/1.1") + BODY,
    "HTTP/1.0": head(LENGTH, b"Connection: keep-alive", first=b"POST /v1/x HTTP/1.0", host=b"") + BODY,
    "an upgrade that nobody knows": sized(b"Connection: Upgrade", b"Upgrade: h2c", LENGTH),
    "an upgrade in HTTP/1.0": head(
        LENGTH, b"Connection: keep-alive, Upgrade", b"Upgrade: websocket", first=b"POST /v1/x HTTP/1.0"
    )
    + BODY,
    "expectation": sized(LENGTH, b"Expect: 100-Continue"),
    "empty lines before it": b"\r\n\r\n" + sized(LENGTH),
    "as many fields as may be": sized(LENGTH, *[b"X-%d: a" % i for i in range(MAX_FIELDS - 2)]),
    "as long a target as may be": head(LENGTH, first=b"POST /v1/" + b"x" * (MAX_REQUEST_HEAD - 60) + b" HTTP/1.1")
    + BODY,
    "names that look like others": sized(
        LENGTH, b"Content_Length: 3", b"X-Transfer-Encoding: chunked", b"Content-Length-: 1"
    ),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(one: Bench, name: str) -> None:
    """An engine gets one whole request, framed in one way, and the next one is read where it begins."""
    stream = ACCEPTED[name] + PROBE
    for pieces in ([stream], [stream], _cut(stream, 5)):  # twice: a head may be known the second time
        outcome = one.exchange(pieces)
        first, probe = outcome.seen
        assert (first.body, first.method) == (BODY, b"POST")
        assert first.target == ACCEPTED[name].split(b" ")[1].removeprefix(b"http://other")
        assert probe.target == b"/v1/probe?model=m"
        assert [answer.status for answer in outcome.answers()] == [200, 200]
        assert not outcome.closed
        assert not {b"connection", b"upgrade", b"expect", b"x-own", b"x-other"} & {key for key, _ in first.headers}


def test_trailers_carry_nothing_that_belongs_into_the_head(one: Bench) -> None:
    """RFC 9110, section 6.5.1: they go on as trailers, without those that route or authenticate a request."""
    forbidden = (
        b"Host: evil\r\nAuthorization: Bearer k\r\nx-api-key: k\r\n"
        b"Content-Type: text/plain\r\nContent-Encoding: gzip\r\nConnection: close\r\nExpect: 100-continue\r\n"
        b"Trailer: X\r\nCookie: a\r\nRange: bytes=0-1\r\nIf-Match: a\r\nUpgrade: websocket\r\n"
    )
    outcome = one.exchange([chunked(b"d\r\n" + BODY + b"\r\n0\r\n" + forbidden + b"X-Sum: 1\r\n\r\n") + PROBE])
    first, _ = outcome.seen
    assert first.trailers == ((b"x-sum", b"1"),)
    assert first.values(b"host") == [b"h"]
    assert first.values(b"content-length") == []


def test_a_length_that_was_seen_before_is_not_taken_for_another(one: Bench) -> None:
    """Heads that differ in their length alone, one after the other on one connection."""
    bodies = [b'{"model":"m"%s}' % (b" " * n) for n in (0, 1, 9, 100, 1000, 3, 0)]
    streams = [head(b"Content-Length: %d" % len(body)) + body for body in bodies]
    for stream in streams:
        one.exchange([stream])
    outcome = one.exchange([b"".join(streams) + PROBE])
    assert [seen.body for seen in outcome.seen[:-1]] == bodies
    assert [seen.values(b"content-length") for seen in outcome.seen[:-1]] == [[b"%d" % len(body)] for body in bodies]
    for wrong in (b" 13, 13", b" +13", b" 13\r\nContent-Length: 13", b" 13\r\nTransfer-Encoding: chunked"):
        outcome = one.exchange([head(b"Content-Length:" + wrong) + BODY + PROBE])
        assert (outcome.seen, outcome.closed) == ([], True)


@pytest.fixture
def kind() -> str:
    return "native"


async def test_over_sockets_it_is_the_same(world: World) -> None:
    engine = await raw_engine(world)
    await world.start(route("m", engine))
    for name, stream in REFUSED.items():
        outcome = await over_sockets(world, engine, [stream + PROBE])
        assert (name, outcome.seen, outcome.closed) == (name, [], True)
        (answer,) = outcome.answers()
        assert answer.status == STATUSES.get(name, 400)
    for stream in ACCEPTED.values():
        outcome = await over_sockets(world, engine, [stream + PROBE])
        assert [seen.body for seen in outcome.seen] == [BODY, b""]
