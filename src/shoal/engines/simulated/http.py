"""HTTP/1.1 over asyncio, small enough to start at once: keep-alive, chunked bodies, streams, disconnects.

Header names keep their case and order, so that a test can see exactly what arrived.
"""

from __future__ import annotations

import asyncio
import re
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qsl, unquote, urlsplit

MAX_HEAD = 64 * 1024
MAX_BODY = 512 * 1024 * 1024
_READ_AHEAD = 1024 * 1024
_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) (\S+) HTTP/1\.([01])")
_HEADER = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*(.*?)[ \t]*")


class BadRequestError(Exception):
    """Bytes that are no HTTP request."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(slots=True)
class Request:
    """One request, its body complete. `headers` are as received."""

    method: str
    target: str
    minor: int
    headers: list[tuple[str, str]]
    body: bytes = b""
    path: str = ""
    query: dict[str, str] = field(default_factory=dict)

    def header(self, name: str) -> str:
        """The values of a header (lower-case name), joined by commas; empty if there is none."""
        return ", ".join(value for key, value in self.headers if key.lower() == name)

    @property
    def keep_alive(self) -> bool:
        tokens = [token.strip().lower() for token in self.header("connection").split(",")]
        return "close" not in tokens if self.minor else "keep-alive" in tokens


class Reply:
    """The answer to one request: `send` once, or `start`, `write` … and `end`."""

    def __init__(self, connection: Connection, request: Request) -> None:
        self._connection = connection
        self._chunked = bool(request.minor)
        self.keep_alive = request.keep_alive
        self.status = 0

    def send(self, status: int, body: bytes, content_type: str, headers: Mapping[str, str] | None = None) -> None:
        """A whole answer."""
        self.status = status
        self._connection.put(
            self._head(status, content_type, headers) + b"content-length: %d\r\n\r\n" % len(body) + body
        )

    def start(self, status: int, content_type: str) -> None:
        """The head of a streamed answer."""
        self.status = status
        self.keep_alive = self.keep_alive and self._chunked
        framing = b"transfer-encoding: chunked\r\n\r\n" if self._chunked else b"\r\n"
        self._connection.put(self._head(status, content_type, None) + framing)

    async def write(self, data: bytes) -> None:
        """A part of a streamed answer; waits while the client is slow."""
        self._connection.put(b"%x\r\n%s\r\n" % (len(data), data) if self._chunked else data)
        await self._connection.drained()

    def end(self) -> None:
        """The end of a streamed answer."""
        if self._chunked:
            self._connection.put(b"0\r\n\r\n")

    def switch(self, headers: Mapping[str, str]) -> None:
        """Another protocol from here on: `write` sends its bytes as they are, and `read` takes them."""
        self.status = 101
        self.keep_alive = self._chunked = False
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._connection.put(f"HTTP/1.1 101 Switching Protocols\r\n{lines}\r\n".encode("latin-1"))

    async def read(self) -> bytes:
        """What comes next of another protocol."""
        return await self._connection.received()

    def _head(self, status: int, content_type: str, headers: Mapping[str, str] | None) -> bytes:
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "server: simulated", f"content-type: {content_type}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if not self.keep_alive:
            lines.append("connection: close")
        return "".join(f"{line}\r\n" for line in lines).encode("latin-1")


Handler = Callable[[Request, Reply], Awaitable[None]]


class Connection(asyncio.Protocol):
    """One client. Its requests are handled in turn; a handler is cancelled when the client goes away."""

    def __init__(self, handler: Handler, connections: set[Connection]) -> None:
        self._handler = handler
        self._connections = connections
        self._buffer = bytearray()
        self._request: Request | None = None
        self._body: _Body | None = None
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._arrived = asyncio.Event()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._connections.discard(self)
        self._writable.set()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._arrived.set()
        if self._task is None:
            self._advance()
        elif len(self._buffer) > _READ_AHEAD:
            self._transport.pause_reading()

    def abort(self) -> None:
        """Drop the client without a word."""
        self._transport.abort()

    def put(self, data: bytes) -> None:
        """Send bytes, if the client is still there."""
        if not self._transport.is_closing():
            self._transport.write(data)

    async def drained(self) -> None:
        """Wait until the client takes more."""
        await self._writable.wait()

    async def received(self) -> bytes:
        """What has come behind the request that is handled, as soon as there is anything."""
        while not self._buffer:
            self._arrived.clear()
            await self._arrived.wait()
        data = bytes(self._buffer)
        self._buffer.clear()
        self._transport.resume_reading()
        return data

    def _advance(self) -> None:
        try:
            request = self._read()
        except BadRequestError as error:
            body = f"{error}".encode()
            head = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\nconnection: close\r\n"
            self.put(f"{head}content-type: text/plain\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
            self._transport.close()
            return
        if request is not None:
            self._task = asyncio.get_running_loop().create_task(self._serve(request))

    def _read(self) -> Request | None:
        """The next request, or None while it is incomplete."""
        if self._request is None:
            end = self._buffer.find(b"\r\n\r\n")
            if end > MAX_HEAD or (end < 0 and len(self._buffer) > MAX_HEAD):
                raise BadRequestError(431, "the headers are too long")
            if end < 0:
                return None
            self._request = _parse_head(bytes(self._buffer[:end]))
            del self._buffer[: end + 4]
            self._body = _Body(self._request)
            if self._request.header("expect").lower() == "100-continue" and not self._buffer:
                self.put(b"HTTP/1.1 100 Continue\r\n\r\n")
        request, body = self._request, self._body
        if body is None or not body.feed(self._buffer):
            return None
        request.body = bytes(body.data)
        self._request = self._body = None
        return request

    async def _serve(self, request: Request) -> None:
        reply = Reply(self, request)
        try:
            await self._handler(request, reply)
        except Exception:
            traceback.print_exc()
            if reply.status:
                self.abort()
            else:
                reply.keep_alive = False
                reply.send(500, b"Internal Server Error", "text/plain; charset=utf-8")
        if not reply.keep_alive:
            self._transport.close()
            return
        self._task = None
        self._transport.resume_reading()
        if self._buffer:
            self._advance()


class _Body:
    """Collects a request's body out of the connection's buffer."""

    def __init__(self, request: Request) -> None:
        self.data = bytearray()
        length, coding = request.header("content-length"), request.header("transfer-encoding").lower()
        if coding not in ("", "chunked") or (coding and length):
            raise BadRequestError(400, "the body's framing is ambiguous")
        if length and not re.fullmatch(r"[0-9]{1,18}", length):
            raise BadRequestError(400, "content-length is not a number")
        self._chunked = bool(coding)
        self._left = int(length or 0)
        self._expects = "size"  # of a chunked body: size, end (of a chunk), trailer
        self._check(self._left)

    def feed(self, buffer: bytearray) -> bool:
        """Take what belongs to the body; whether it is complete."""
        while True:
            self._take(buffer)
            if self._left or not self._chunked:
                return self._left == 0
            end = buffer.find(b"\r\n")
            if end < 0:
                if len(buffer) > MAX_HEAD:
                    raise BadRequestError(400, "a chunk's head is too long")
                return False
            line = bytes(buffer[:end])
            del buffer[: end + 2]
            if self._expects == "size":
                self._begin_chunk(line)
            elif self._expects == "end":
                if line:
                    raise BadRequestError(400, "a chunk is longer than its length")
                self._expects = "size"
            elif not line:
                return True

    def _begin_chunk(self, line: bytes) -> None:
        size = re.fullmatch(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?", line)
        if size is None:
            raise BadRequestError(400, "a chunk's length is not hexadecimal")
        self._left = int(size[1], 16)
        self._check(len(self.data) + self._left)
        self._expects = "end" if self._left else "trailer"

    def _take(self, buffer: bytearray) -> None:
        part = buffer[: self._left]
        self.data += part
        del buffer[: len(part)]
        self._left -= len(part)

    @staticmethod
    def _check(length: int) -> None:
        if length > MAX_BODY:
            raise BadRequestError(413, "the body is too long")


def _parse_head(head: bytes) -> Request:
    first, *rest = head.lstrip(b"\r\n").split(b"\r\n")
    line = _REQUEST_LINE.fullmatch(first)
    if line is None:
        raise BadRequestError(400, "this is no HTTP/1.1 request")
    headers = []
    for text in rest:
        header = _HEADER.fullmatch(text)
        if header is None:
            raise BadRequestError(400, "a header is malformed")
        headers.append((header[1].decode("latin-1"), header[2].decode("latin-1")))
    target = line[2].decode("latin-1")
    try:
        parts = urlsplit(target)
    except ValueError:
        raise BadRequestError(400, "the target is malformed") from None
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    return Request(line[1].decode(), target, int(line[3]), headers, path=unquote(parts.path), query=query)
