"""The server half of the aiohttp relay: connections that keep time, refuse politely, and write heads untouched.

aiohttp's low-level server adds headers of its own to responses, logs clients' mistakes with tracebacks, answers
them in plain text, and has no limit on how long headers may take. The subclasses here change exactly that.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import msgspec
from aiohttp import web
from aiohttp.http import StreamWriter
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.web_protocol import PayloadAccessError, RequestHandler, RequestPayloadError

from shoal.errors import ShoalError, error_body, told_on
from shoal.gateway.heads import head_bytes

log = logging.getLogger(__name__)

FLUSH_TIMEOUT = 30.0
"""Seconds that a client may take to read the end of a response that was cut, before it is dropped."""
_CLIENTS_MISTAKES = (RequestPayloadError, PayloadAccessError, HttpProcessingError, ConnectionError)


class RawResponse(web.StreamResponse):
    """A response whose head is written as given; only the framing of this connection is added."""

    def __init__(self, status: int, reason: str, headers: Sequence[tuple[bytes, bytes]]) -> None:
        super().__init__(status=status)
        self._raw_reason = reason
        self._raw_headers = list(headers)
        self.delimited_by_close = False
        """Whether only the end of the connection shows the end of the body (a client of HTTP/1.0)."""

    async def _prepare_headers(self) -> None:
        request, writer = self._req, self._payload_writer
        assert request is not None
        assert writer is not None
        empty = request.method == "HEAD" or self.status in (204, 304)
        has_length = any(name.lower() == b"content-length" for name, _ in self._raw_headers)
        if self.status == 204 and has_length:  # RFC 9110, section 8.6, forbids it
            self._raw_headers = [h for h in self._raw_headers if h[0].lower() != b"content-length"]
        keep_alive = request.keep_alive if self._keep_alive is None else self._keep_alive
        if not empty and not has_length:
            if request.version >= (1, 1):
                writer.enable_chunking()
                self._chunked = True
                self._raw_headers.append((b"Transfer-Encoding", b"chunked"))
            else:
                self.delimited_by_close = True
                keep_alive = False
        self._keep_alive = keep_alive
        if not keep_alive:
            self._raw_headers.append((b"Connection", b"close"))
        elif request.version < (1, 1):
            self._raw_headers.append((b"Connection", b"keep-alive"))

    async def _write_headers(self) -> None:
        request, writer = self._req, self._payload_writer
        assert request is not None
        assert writer is not None
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has gone")
        head = head_bytes(self.status, self._raw_reason, self._raw_headers)
        transport.write(head)
        writer.output_size += len(head)

    async def end_with(self, data: bytes) -> None:
        """Add `data` and close after it, without the mark that would make the body look whole."""
        writer, request = self._payload_writer, self._req
        if writer is None or request is None:
            return
        try:
            if data:
                await cast("StreamWriter", writer).write(data, drain=False)
        except ConnectionError:
            pass
        transport = request.transport
        self._ended()
        if transport is not None:
            transport.close()
            # A client that does not read keeps a closing transport open for ever.
            asyncio.get_running_loop().call_later(FLUSH_TIMEOUT, transport.abort)

    def abort(self) -> None:
        """Drop the connection with a reset, so that a body that ends with the connection does not look whole."""
        transport = self._req.transport if self._req is not None else None
        self._ended()
        if transport is not None:
            sock = transport.get_extra_info("socket")
            if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()

    def _ended(self) -> None:
        self.force_close()
        self._eof_sent = True


def json_response(status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> web.Response:
    """A JSON answer of the relay itself."""
    return web.Response(
        status=status,
        body=msgspec.json.encode(body),
        content_type="application/json",
        headers={"Server": "shoal", **(headers or {})},
    )


def error_response(error: ShoalError, path: str = "") -> web.Response:
    """The JSON answer that tells a client of `path` about `error`."""
    return json_response(error.status, told_on(path, error), error.headers)


class Connection(RequestHandler):
    """A client's connection: a limit on the time of a head, and JSON for what is no HTTP."""

    __slots__ = ("_head_bytes", "_head_deadline", "_header_timeout")

    def __init__(self, manager: web.Server, *, header_timeout: float, **options: Any) -> None:
        super().__init__(manager, loop=asyncio.get_running_loop(), **options)
        self._header_timeout = header_timeout
        self._head_deadline: asyncio.TimerHandle | None = None
        self._head_bytes = False

    @property
    def idle(self) -> bool:
        """Whether it waits for a request."""
        return self._waiter is not None and not self._waiter.done() and not self._messages

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._start_clock()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self._request_count
        super().data_received(data)
        if self._request_count > before:
            self._stop_clock()
            self._pass_on_broken_body()
        elif data and (self._head_deadline is not None or self.idle):
            self._head_bytes = True
            if self._head_deadline is None:
                self._start_clock()

    def _pass_on_broken_body(self) -> None:
        """Tell the handler of a request whose body broke off in nonsense; the parser only queues an error."""
        request = self._current_request
        if request is None or request.content.is_eof() or not self._messages:
            return
        message = self._messages[-1][0]
        exc = getattr(message, "exc", None)
        if exc is not None and request.content.exception() is None:
            self._messages.pop()  # one answer for one request
            request.content.set_exception(RequestPayloadError(str(exc)))

    def _start_clock(self) -> None:
        self._head_deadline = asyncio.get_running_loop().call_later(self._header_timeout, self._head_is_late)

    def _stop_clock(self) -> None:
        self._head_bytes = False
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def _head_is_late(self) -> None:
        self._head_deadline = None
        if self.transport is None or self._messages or self._current_request is not None:
            return
        if self._head_bytes:  # a connection that never said a thing is closed without a word
            body = msgspec.json.encode(
                error_body(
                    f"The request's headers did not arrive within {self._header_timeout:g} s; send them at once.",
                    status=408,
                    code="header_timeout",
                )
            )
            headers = [
                (b"Content-Type", b"application/json"),
                (b"Content-Length", str(len(body)).encode()),
                (b"Connection", b"close"),
            ]
            self.transport.write(head_bytes(408, "Request Timeout", headers) + body)
        self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no HTTP, and to a fault of the relay's own, which alone is logged."""
        if status < 500:
            detail = " ".join((message or str(exc or "")).split())[:300]
            if isinstance(exc, LineTooLong):
                error = ShoalError("The request line or a header is too long.", status=431, code="header_too_large")
            else:
                error = ShoalError(f"The request is not valid HTTP/1.1: {detail}", status=status, code="invalid_http")
        else:
            log.error("A request failed by a fault of the relay", exc_info=exc)
            error = ShoalError("The relay failed; its log says why.", status=500, code="internal_error")
        if request.writer.output_size > 0:
            raise ConnectionError("the response has begun already")
        response = error_response(error)
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """aiohttp's own log of an exception, without those that clients cause."""
        if not isinstance(kw.get("exc_info"), _CLIENTS_MISTAKES):
            super().log_exception(*args, **kw)


class ConnectionServer(web.Server):
    """Makes a `Connection` for every client. A client that leaves cancels the handler of its request."""

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        *,
        header_timeout: float,
        idle_timeout: float,
    ) -> None:
        super().__init__(handler, handler_cancellation=True)
        self._header_timeout = header_timeout
        self._idle_timeout = idle_timeout

    def __call__(self) -> RequestHandler:
        return Connection(
            self,
            header_timeout=self._header_timeout,
            keepalive_timeout=self._idle_timeout,
            access_log=None,
            auto_decompress=False,
            lingering_time=5.0,
            max_line_size=64 * 1024,
            max_field_size=64 * 1024,
            read_bufsize=64 * 1024,
        )

    def close_idle(self) -> None:
        """Close connections on which no request runs."""
        for connection in self.connections:
            if isinstance(connection, Connection) and connection.idle:
                connection.force_close()
