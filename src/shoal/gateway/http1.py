"""Heads of HTTP/1.1 messages, read by llhttp (through httptools), and the framing that they announce. Pure.

llhttp is strict: whitespace before a colon, folded lines, bare line feeds, a length that is given twice or beside
`Transfer-Encoding` are all errors. What it leaves to its caller is checked here, and so is whether a connection
outlives a message, which llhttp no longer knows once a message is whole.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal, Self

import httptools
import msgspec

from shoal.errors import ShoalError
from shoal.gateway.framing import Chunked, Fixed, Framing, UntilClose
from shoal.gateway.heads import HOP_BY_HOP, PEER_HEADER

MAX_REQUEST_HEAD = 64 * 1024
MAX_RESPONSE_HEAD = 256 * 1024
MAX_FIELDS = 256
END = b"\r\n\r\n"
_KEPT = frozenset({b"host", b"content-length", b"content-type", b"content-encoding", b"date"})
"""Fields that a peer cannot have removed by naming them in Connection: they are about the message itself."""
_DROPPED = HOP_BY_HOP - {b"trailer"}  # trailers are passed on, and what announces them
_ONCE = (b"host", b"content-length", b"transfer-encoding", b"authorization", b"x-api-key", b"content-type")
_LENGTH = re.compile(rb"(?<=\n)content-length:[ \t]*([0-9]+)", re.IGNORECASE)
BARE = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")
"""A line end that is none, and cannot become one with what follows."""
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?")
_NOT_IN_TRAILERS = HOP_BY_HOP | {
    b"authorization",
    b"cache-control",
    b"content-encoding",
    b"content-length",
    b"content-range",
    b"content-type",
    b"cookie",
    b"expect",
    b"host",
    b"if-match",
    b"if-modified-since",
    b"if-none-match",
    b"if-range",
    b"if-unmodified-since",
    b"max-forwards",
    b"pragma",
    b"range",
    b"x-api-key",
    PEER_HEADER,
}
"""What frames, routes, authenticates or changes the meaning of a request has to stand in its head (RFC 9110, section
6.5.1)."""


class BadResponseError(Exception):
    """An engine answered with something that is no HTTP; the message says what."""


Kind = Literal["models", "inference", "other"]


class Place(msgspec.Struct, frozen=True):
    """Where a request's target leads: `target` in origin form, its path. `straight`: the head can go on as it is.
    `anthropic`: it is of that API."""

    target: str
    path: str
    kind: Kind
    straight: bool
    anthropic: bool


class Shared:
    """What is worked out once of heads that differ in their length alone."""

    __slots__ = ("around", "blocks", "manner", "place")

    def __init__(self) -> None:
        self.around: tuple[bytes, bytes | None] | None = None
        """See `known.py`."""
        self.blocks: dict[frozenset[bytes], tuple[bytes, bytes]] = {}
        """The fields that travel on, by those that do not; cut where the length's digits stand (see `block`)."""
        self.place: Place | None = None
        self.manner: Any = None
        """What a request says of how it is to be treated, for those to keep here who know what to do with it."""


class RequestHead(msgspec.Struct):
    """The head of a request.

    `lines` are its fields in order, as they came, but that `length` may be newer than the line which gives it; `names`
    their names in lower case; `fields` the value of each name, with commas between where it comes in several lines.
    `length` is None without Content-Length. `has_body`: a body follows, even an empty one.
    """

    method: bytes
    target: bytes
    minor: int
    lines: list[bytes]
    names: list[bytes]
    fields: dict[bytes, bytes]
    keep_alive: bool
    upgrade: bool = False
    chunked: bool = False
    has_body: bool = False
    length: int | None = None
    shared: Shared = msgspec.field(default_factory=Shared)

    if TYPE_CHECKING:

        def __copy__(self) -> Self:
            """msgspec's own."""
            ...

    @property
    def first(self) -> bytes:
        """The first line as it goes on, with its end."""
        return b"%b %b HTTP/1.1\r\n" % (self.method, self.target)

    def framing(self) -> Framing:
        """How the body's end is found."""
        return Chunked() if self.chunked else Fixed(self.length or 0)


def _read_fields(lines: list[bytes]) -> tuple[list[bytes], dict[bytes, bytes]]:
    """Names in lower case and values of lines that llhttp has found to be fields."""
    names = []
    fields = {}
    for line in lines:
        name, _, value = line.partition(b":")
        name = name.lower()
        names.append(name)
        fields[name] = value.strip(b" \t")
    if len(fields) != len(names):  # a list in several lines (RFC 9110, section 5.3)
        fields = {}
        for name, line in zip(names, lines, strict=True):
            value = line.partition(b":")[2].strip(b" \t")
            fields[name] = fields[name] + b", " + value if name in fields else value
    return names, fields


def _persists(minor: int, connection: bytes | None) -> bool:
    """Whether a connection outlives a message with this field Connection (RFC 9112, section 9.3)."""
    if connection is None:
        return minor == 1
    words = {word.strip() for word in connection.lower().split(b",")}
    return b"close" not in words and (minor == 1 or b"keep-alive" in words)


class _Deaf:
    """Told nothing by llhttp, which only checks."""

    on_message_begin = on_url = on_status = on_header = on_headers_complete = on_body = on_message_complete = None
    on_chunk_header = on_chunk_complete = None


_DEAF = _Deaf()


def parse_request(head: bytes) -> RequestHead:
    """Read a request's head, its empty line included. Raises ShoalError 400, 431 or 505 (`invalid_http`, …)."""
    parser = httptools.HttpRequestParser(_DEAF)
    upgrade = False
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        upgrade = True
    except httptools.HttpParserInvalidURLError:
        raise ShoalError(
            "The request target has bytes that do not belong there; percent-encode them.", code="invalid_target"
        ) from None
    except httptools.HttpParserError as error:
        raise invalid_http(str(error)) from None
    lines = head[:-4].split(b"\r\n")
    parts = lines.pop(0).split(b" ")
    if len(parts) != 3 or not parts[1]:
        raise invalid_http("its first line has to be a method, a target and a version, with one blank between")
    method, target, version = parts
    if version != b"HTTP/1.1" and version != b"HTTP/1.0":
        raise ShoalError("Only HTTP/1.1 and HTTP/1.0 are spoken here.", status=505, code="http_version")
    if len(lines) > MAX_FIELDS:
        raise ShoalError(f"The request has more than {MAX_FIELDS} header fields.", status=431, code="header_too_large")
    minor = version[7] - 48
    names, fields = _read_fields(lines)
    request = RequestHead(
        method, target, minor, lines, names, fields, keep_alive=_persists(minor, fields.get(b"connection"))
    )
    request.upgrade = upgrade and minor == 1  # clients of HTTP/1.0 cannot know it
    if len(fields) != len(lines):
        for name in _ONCE:
            if names.count(name) > 1:
                raise invalid_http(f"{name.decode('ascii')} is given twice")
    if b"transfer-encoding" in fields:
        if fields[b"transfer-encoding"].lower() != b"chunked" or not request.minor:
            raise invalid_http("the only transfer encoding known is chunked, in HTTP/1.1")
        request.chunked = request.has_body = True
    elif b"content-length" in fields:
        text = fields[b"content-length"]
        if not text.isdigit() or len(text) > 18:
            raise invalid_http("Content-Length is not a number of bytes")
        request.length = int(text)
        request.has_body = True
    if b"host" not in fields and request.minor:
        raise invalid_http("a request of HTTP/1.1 needs a Host header")
    if method == b"CONNECT":
        raise ShoalError("CONNECT is not served here.", status=405, code="method_not_allowed")
    return request


def trailers_passed_on(lines: list[bytes]) -> list[bytes]:
    """The lines of a request's trailers that travel on: none that belongs into the head, where it would have been
    looked at."""
    return [line for line in lines if line.partition(b":")[0].lower() not in _NOT_IN_TRAILERS]


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
    if BARE.search(data, start):
        raise invalid_http("lines have to end with CR LF")
    return -1


def invalid_http(detail: str) -> ShoalError:
    """The error for what is no HTTP/1.1."""
    return ShoalError(f"The request is not valid HTTP/1.1: {detail}.", code="invalid_http")


class ResponseHead(msgspec.Struct):
    """The head of a response; fields as in a request. `sized`: but for a request with HEAD a body of `length` bytes
    follows."""

    status: int
    reason: bytes
    lines: list[bytes]
    names: list[bytes]
    fields: dict[bytes, bytes]
    keep_alive: bool
    sized: bool = False
    length: int | None = None
    shared: Shared = msgspec.field(default_factory=Shared)

    if TYPE_CHECKING:

        def __copy__(self) -> Self:
            """msgspec's own."""
            ...

    @property
    def first(self) -> bytes:
        """The first line as it goes on, with its end."""
        return b"HTTP/1.1 %d %b\r\n" % (self.status, self.reason)

    def framing(self, method: bytes) -> Framing:
        """How the end of the body is found. Raises BadResponseError."""
        if method == b"HEAD" or self.status in (204, 304) or self.status < 200:
            return Fixed(0)
        coding = self.fields.get(b"transfer-encoding")
        if coding is not None:
            if coding.lower() != b"chunked":
                raise BadResponseError("it used a transfer encoding that nobody asked for")
            return Chunked()
        return UntilClose() if self.length is None else Fixed(self.length)


def parse_response(head: bytes) -> ResponseHead:
    """Read a response's head, its empty line included. Raises BadResponseError."""
    parser = httptools.HttpResponseParser(_DEAF)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise BadResponseError(f"it answered with no valid HTTP: {error}") from None
    lines = head[:-4].split(b"\r\n")
    match = _STATUS_LINE.fullmatch(lines.pop(0))
    if match is None:
        raise BadResponseError("its first line is not that of a response of HTTP/1.1 or HTTP/1.0")
    names, fields = _read_fields(lines)
    response = ResponseHead(
        int(match[2]),
        match[3] or b"",
        lines,
        names,
        fields,
        keep_alive=_persists(match[1][0] - 48, fields.get(b"connection")),
    )
    if (length := fields.get(b"content-length")) is not None:
        if not length.isdigit() or len(length) > 18:
            raise BadResponseError("its Content-Length is not a number of bytes")
        response.length = int(length)
        response.sized = response.status not in (204, 304) and b"transfer-encoding" not in fields
    return response


def passed_on(head: RequestHead | ResponseHead, drop: frozenset[bytes] = frozenset()) -> list[bytes]:
    """The lines of a head that travel on: without the hop-by-hop fields, those that the field Connection names, and
    `drop` (lower case); `Transfer-Encoding` goes too."""
    dropped = _DROPPED | drop if drop else _DROPPED
    connection = head.fields.get(b"connection")
    if connection is not None and (named := {word.strip().lower() for word in connection.split(b",")} - dropped):
        dropped = dropped | (named - _KEPT)
    lines = [line for line, name in zip(head.lines, head.names, strict=True) if name not in dropped]
    if head.length is not None:
        for at, line in enumerate(lines):
            if line[:15].lower() == b"content-length:":
                lines[at] = line[:15] + b" %d" % head.length
    return lines


def block(head: RequestHead | ResponseHead, drop: frozenset[bytes]) -> tuple[bytes, bytes]:
    """The first line and these in one piece, each with its end: what stands before the digits of Content-Length and
    what after; without such a field, all of it and nothing. Worked out once for heads that differ in digits alone."""
    blocks = head.shared.blocks
    found = blocks.get(drop)
    if found is None:
        whole = head.first + b"".join(line + b"\r\n" for line in passed_on(head, drop))
        before, after = whole, b""
        if head.length is not None and (match := _LENGTH.search(whole)) is not None:
            before, after = whole[: match.start(1)], whole[match.end(1) :]
        found = blocks[drop] = before, after
    return found
