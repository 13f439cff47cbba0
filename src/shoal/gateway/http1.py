"""Heads of HTTP/1.1 messages, read by llhttp (through httptools), and the framing that they announce. Pure.

llhttp is strict: whitespace before a colon, folded lines, bare line feeds, a length that is given twice or beside
`Transfer-Encoding` are all errors. What it leaves to its caller is checked here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import httptools

from shoal.errors import ShoalError
from shoal.gateway.framing import Chunked, Fixed, Framing, UntilClose
from shoal.gateway.heads import HOP_BY_HOP

MAX_REQUEST_HEAD = 64 * 1024
MAX_RESPONSE_HEAD = 256 * 1024
MAX_FIELDS = 256
END = b"\r\n\r\n"
_KEPT = frozenset({b"host", b"content-length", b"content-type", b"content-encoding", b"date"})
"""Fields that a peer cannot have removed by naming them in Connection: they are about the message itself."""
_DROPPED = HOP_BY_HOP - {b"trailer"}  # trailers are passed on, and what announces them
_ONCE = (b"host", b"content-length", b"transfer-encoding", b"authorization", b"x-api-key", b"content-type")
_BARE = re.compile(rb"(?<!\r)\n|\r(?!\n)")


class BadResponseError(Exception):
    """An engine answered with something that is no HTTP; the message says what."""


class RequestHead:
    """The head of a request.

    `headers` are its fields in order, as they came; `fields` the last value by lower-case name. `length` is None
    without Content-Length.
    """

    __slots__ = (
        "chunked",
        "fields",
        "headers",
        "keep_alive",
        "length",
        "method",
        "minor",
        "target",
        "upgrade",
    )

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.fields: dict[bytes, bytes] = {}
        self.method = b""
        self.target = b""
        self.minor = 1
        self.keep_alive = True
        self.upgrade = False
        self.chunked = False
        self.length: int | None = None

    def on_url(self, url: bytes) -> None:
        """For llhttp."""
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """For llhttp."""
        self.headers.append((name, value))

    @property
    def has_body(self) -> bool:
        """Whether a body follows, even an empty one."""
        return self.chunked or self.length is not None

    def framing(self) -> Framing:
        """How the body's end is found."""
        return Chunked() if self.chunked else Fixed(self.length or 0)


def parse_request(head: bytes) -> RequestHead:
    """Read a request's head, its empty line included. Raises ShoalError 400, 431 or 505 (`invalid_http`, …)."""
    request = RequestHead()
    parser = httptools.HttpRequestParser(request)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        request.upgrade = True
    except httptools.HttpParserInvalidURLError:
        raise ShoalError(
            "The request target has bytes that do not belong there; percent-encode them.", code="invalid_target"
        ) from None
    except httptools.HttpParserError as error:
        raise invalid_http(str(error)) from None
    if parser.get_http_version() not in ("1.1", "1.0"):
        raise ShoalError("Only HTTP/1.1 and HTTP/1.0 are spoken here.", status=505, code="http_version")
    request.minor = 1 if parser.get_http_version() == "1.1" else 0
    request.method = parser.get_method()
    request.keep_alive = parser.should_keep_alive()
    headers = request.headers
    if len(headers) > MAX_FIELDS:
        raise ShoalError(f"The request has more than {MAX_FIELDS} header fields.", status=431, code="header_too_large")
    fields = request.fields
    for name, value in headers:
        key = name.lower()
        if key in fields and key in _ONCE:
            raise invalid_http(f"{key.decode('ascii', 'replace')} is given twice")
        fields[key] = value
    if b"transfer-encoding" in fields:
        if fields[b"transfer-encoding"].lower() != b"chunked" or not request.minor:
            raise invalid_http("the only transfer encoding known is chunked, in HTTP/1.1")
        request.chunked = True
    elif b"content-length" in fields:
        text = fields[b"content-length"]
        if not text.isdigit() or len(text) > 18:
            raise invalid_http("Content-Length is not a number of bytes")
        request.length = int(text)
    if b"host" not in fields and request.minor:
        raise invalid_http("a request of HTTP/1.1 needs a Host header")
    if request.method == b"CONNECT":
        raise ShoalError("CONNECT is not served here.", status=405, code="method_not_allowed")
    return request


def find_end(data: bytes, limit: int, seen: int = 0) -> int:
    """The position after the empty line that ends a head, or -1 if it has not come yet. `seen` bytes were looked at.

    Raises ShoalError 431 for a head longer than `limit`, 400 for one with bare line ends, which would never end.
    """
    start = max(0, seen - 3)
    end = data.find(END, start)
    if end >= 0 and end + 4 <= limit:
        return end + 4
    if len(data) > limit:
        raise ShoalError("The request line and the headers are too long.", status=431, code="header_too_large")
    if _BARE.search(data, start, max(start, len(data) - 1)):
        raise invalid_http("lines have to end with CR LF")
    return -1


def invalid_http(detail: str) -> ShoalError:
    """The error for what is no HTTP/1.1."""
    return ShoalError(f"The request is not valid HTTP/1.1: {detail}.", code="invalid_http")


class ResponseHead:
    """The head of a response; `fields` and `headers` as in a request."""

    __slots__ = ("fields", "headers", "keep_alive", "reason", "status")

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.fields: dict[bytes, bytes] = {}
        self.status = 0
        self.reason = b""
        self.keep_alive = True

    def on_status(self, reason: bytes) -> None:
        """For llhttp."""
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """For llhttp."""
        self.headers.append((name, value))

    def framing(self, method: bytes) -> Framing:
        """How the end of the body is found. Raises BadResponseError."""
        if method == b"HEAD" or self.status in (204, 304) or self.status < 200:
            return Fixed(0)
        coding = self.fields.get(b"transfer-encoding")
        if coding is not None:
            if coding.lower().rpartition(b",")[2].strip() == b"chunked":
                return Chunked()
            return UntilClose()
        length = self.fields.get(b"content-length")
        if length is None:
            return UntilClose()
        if not length.isdigit() or len(length) > 18:
            raise BadResponseError("its Content-Length is not a number of bytes")
        return Fixed(int(length))


def parse_response(head: bytes) -> ResponseHead:
    """Read a response's head, its empty line included. Raises BadResponseError."""
    response = ResponseHead()
    parser = httptools.HttpResponseParser(response)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise BadResponseError(f"it answered with no valid HTTP: {error}") from None
    response.status = parser.get_status_code()
    if response.status < 100:
        raise BadResponseError("it answered with no status")
    response.keep_alive = parser.should_keep_alive()
    response.fields = {name.lower(): value for name, value in response.headers}
    return response


def passed_on(
    headers: Iterable[tuple[bytes, bytes]], connection: bytes | None, drop: frozenset[bytes] = frozenset()
) -> list[bytes]:
    """The lines of a head that travel on: without the hop-by-hop fields, those that the field Connection (its value
    is `connection`) names, and `drop` (lower case); `Transfer-Encoding` goes too."""
    dropped = _DROPPED | drop if drop else _DROPPED
    if connection is not None and (named := {word.strip().lower() for word in connection.split(b",")} - dropped):
        dropped = dropped | (named - _KEPT)
    return [name + b": " + value for name, value in headers if name.lower() not in dropped]
