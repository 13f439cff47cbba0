"""The client's side of the relay: connections that read one request after the other, keep time, and refuse politely.

A `ClientConnection` is an `asyncio.Protocol`: no task and no coroutine for a request. Time limits are looked at by one
sweep over all connections, so that a request costs no timer.
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from collections.abc import Callable
from typing import cast

from shoal.errors import ShoalError, told_on
from shoal.gateway.answers import answer, body_late, head_late, too_large, too_many
from shoal.gateway.exchange import Exchange, Front, State
from shoal.gateway.framing import Chunked, Framing, FramingError
from shoal.gateway.http1 import MAX_REQUEST_HEAD, RequestHead, find_end, parse_request, trailers_passed_on
from shoal.gateway.known import Known, repeated

PIPELINED = 64 * 1024
"""Bytes of further requests that are read while one is answered."""
LINGER = 5.0
"""Seconds for which a refused client may go on sending, so that it gets to read why."""
FLUSH = 30.0
"""Seconds that a client may take to read the end of a response before it is dropped."""
WRITE_LIMIT = 256 * 1024
_HEADS = Known(parse_request)
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_HEAD, _BUSY = State.HEAD, State.BUSY  # an Enum's members are slow to get at


class ClientConnection(asyncio.Protocol):
    """One client's connection."""

    __slots__ = (
        "_body",
        "_breathes",
        "_buffer",
        "_expecting",
        "_framing",
        "_last",
        "_limit",
        "_loop",
        "_paused",
        "_seen",
        "_size",
        "_state",
        "_transport",
        "deadline",
        "exchange",
        "extra",
        "front",
        "full",
        "head",
        "peer",
    )

    def __init__(self, front: Front, loop: asyncio.AbstractEventLoop) -> None:
        self.front = front
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._state = State.HEAD
        self._buffer = b""
        self._seen = 0
        self._framing: Framing | None = None
        self._body: bytes | bytearray = b""
        self._size = 0
        self._paused = False
        self._breathes = False
        self._expecting = True
        self._limit = 0.0
        self.full = False
        """Whether the client does not read as fast as is written."""
        self.exchange: Exchange | None = None
        self.head: RequestHead | None = None
        self._last: RequestHead | None = None
        self.deadline = 0.0
        """Loop time at which the present state has lasted too long; 0 for never."""
        self.peer = ""
        self.extra: dict[str, str] = {}
        """Headers that an error for the present request is to have."""

    # -- for asyncio --------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_LIMIT)
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if isinstance(peer, tuple) else ""
        full = self.front.full()
        self.front.connections.add(self)
        self.deadline = self._loop.time() + self.front.header_timeout
        if full:
            self.refuse(too_many())

    def connection_lost(self, _exc: BaseException | None) -> None:
        self._transport = None
        self._state = State.CLOSING
        self.front.connections.discard(self)
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.on_gone()

    def data_received(self, data: bytes) -> None:
        try:
            if self._state is _HEAD and not self.full:
                self._read_head(data)
            else:
                self._receive(data)
        except ShoalError as error:
            self.refuse(error)
        except Exception as error:
            self.front.fault(error)
            self.refuse(ShoalError("The relay failed; its log says why.", status=500, code="internal_error"))

    def pause_writing(self) -> None:
        self.full = True
        if self.exchange is not None:
            self.exchange.on_full(True)

    def resume_writing(self) -> None:
        self.full = False
        if self.exchange is not None:
            self.exchange.on_full(False)
        elif self._buffer or self._paused:
            self._loop.call_soon(self._next)

    # -- reading ------------------------------------------------------------------------------------------------------

    def _receive(self, data: bytes) -> None:
        state = self._state
        if state is State.BODY:
            self._read_body(data)
        elif state is State.BUSY or state is State.HEAD:  # a client that reads no answers gets no further ones made
            self._buffer += data
            if len(self._buffer) > PIPELINED:
                self.pause(True)
        elif state is State.RAW and self.exchange is not None:
            self.exchange.on_raw(data)

    def _read_head(self, data: bytes) -> None:
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        if data[0] in b"\r\n":  # RFC 9112, section 2.2: a client may send an empty line before its request
            data = data.lstrip(b"\r\n")
            if not data:
                return
        again = repeated(self._last, data)
        if again is not None:
            head, end = again
        else:
            end = find_end(data, MAX_REQUEST_HEAD, self._seen)
            if end < 0:
                if not self._seen:
                    self.deadline = self._loop.time() + self.front.header_timeout
                self._buffer, self._seen = data, len(data)
                return
            head = self._last = _HEADS.read(data[:end])
        self._seen = 0
        self.head = head
        rest = data[end:]
        length = head.length
        if not (length or head.chunked):  # it is whole: if it is refused, the next one may come
            self._state, self._buffer = _BUSY, rest
        exchange = self.exchange = self.front.open(self, head)
        if not head.has_body:
            self._complete(None, rest, [])
            return
        if length is not None and length > exchange.max_body:
            raise too_large(exchange.max_body)
        if b"expect" in head.fields and head.minor:
            if head.fields[b"expect"].lower() != b"100-continue":
                raise ShoalError("Only `Expect: 100-continue` is known.", status=417, code="expectation_failed")
            if not rest:
                self.write(_CONTINUE)
        elif length is not None and len(rest) >= length:  # as most requests are: there in one piece
            self._complete(rest[:length], rest[length:], [])
            return
        self._state = State.BODY
        self._framing = head.framing()
        if rest or self._framing.done:
            self._read_body(rest)
        else:
            self.deadline = self._loop.time() + self.front.body_timeout

    def _read_body(self, data: bytes) -> None:
        framing, exchange = self._framing, self.exchange
        assert framing is not None
        assert exchange is not None
        try:
            end = framing.feed(data)
        except FramingError as error:
            raise ShoalError(f"The request body is broken: {error}.", code="invalid_body") from None
        content = framing.content
        self._size += len(content)
        if self._size > exchange.max_body:
            raise too_large(exchange.max_body)
        # What is there in one piece is a request like others, and handed over whole.
        if content and ((framing.done and self._size == len(content)) or exchange.on_part(content)):
            if not self._body:
                self._body = content
            elif isinstance(self._body, bytearray):
                self._body += content
            else:  # grows in place, so that a large body is there once
                self._body = bytearray(self._body) + content
        if self.exchange is not exchange:
            return
        if framing.done:
            trailers = trailers_passed_on(framing.trailers) if isinstance(framing, Chunked) else []
            body, self._body, self._size, self._framing = self._body, b"", 0, None
            self._complete(body, data[end:], trailers)
        else:
            self._await_body()

    def _complete(self, body: bytes | bytearray | None, rest: bytes, trailers: list[bytes]) -> None:
        self._state = _BUSY
        self._buffer = rest
        if len(rest) > PIPELINED:
            self.pause(True)
        self.deadline = 0.0
        exchange = self.exchange
        assert exchange is not None
        exchange.on_request(body, trailers)

    def _await_body(self) -> None:
        due = self._loop.time() + self.front.body_timeout if self._expecting else 0.0
        self.deadline = min(due, self._limit) if due and self._limit else due or self._limit

    # -- for exchanges ------------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether anything can still be written."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def idle(self) -> bool:
        """Whether it waits for a request."""
        return self._state is State.HEAD and not self._buffer

    @property
    def collected(self) -> bytes | bytearray:
        """What has come of the body so far and is kept, without the part that an exchange is told of just now."""
        return self._body

    def write(self, data: bytes) -> None:
        """Write, as far as there is still somebody to write to."""
        transport = self._transport
        if transport is not None:
            transport.write(data)

    def pause(self, wanted: bool) -> None:
        """Read nothing from the client until told otherwise; or go on."""
        if self._transport is None or wanted == self._paused or self._transport.is_closing():
            return
        self._paused = wanted
        if wanted:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def breathe(self) -> None:
        """Let others have their turn before more of a body is read."""
        if not self._paused:
            self.pause(True)
            self._breathes = True
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._breathes = False
        if self._state is State.BODY or len(self._buffer) <= PIPELINED:
            self.pause(False)

    def expect(self, wanted: bool) -> None:
        """While a body comes: whether the client has to send more of it in time."""
        self._expecting = wanted
        if self._state is State.BODY:
            self._await_body()
        else:
            self._limit = 0.0

    def limit(self, when: float) -> None:
        """Loop time at which `on_timeout` of the exchange is due; 0 for never. While a body comes its own time limit
        holds too."""
        if self._state is State.BODY:
            self._limit = when
            self._await_body()
        else:
            self._limit = 0.0
            self.deadline = when

    @property
    def paused(self) -> bool:
        """Whether it is not read from."""
        return self._paused

    @property
    def hung_up(self) -> bool:
        """Whether a client that is not read from has left, as far as that can be seen: what it sent before it left
        has to have come. Of any other client asyncio tells."""
        if not self._paused or self._breathes or self._transport is None or self._transport.is_closing():
            return False
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))

    def drop(self) -> None:
        """The client has left: forget what it sent."""
        if self._transport is not None:
            self._transport.abort()

    def finish(self, *, keep_alive: bool) -> None:
        """The response is written whole; the next request may come."""
        self.exchange = None
        self.head = None
        self.extra = {}
        if self._transport is None:
            return
        if not keep_alive or self.front.stopping:
            self.close()
            return
        self._state = _HEAD
        self.deadline = self._loop.time() + self.front.idle_timeout
        if self._paused or self._buffer:
            self._loop.call_soon(self._next)

    def _next(self) -> None:
        if self._state is not State.HEAD or self.full:
            return
        buffer, self._buffer = self._buffer, b""
        self.pause(False)
        if buffer:
            self.data_received(buffer)

    def raw(self, rest_to: Callable[[bytes], None]) -> None:
        """Another protocol is spoken from now on; what has come of it already goes to `rest_to`."""
        self._state = State.RAW
        self.deadline = 0.0
        rest, self._buffer = self._buffer, b""
        self.pause(False)
        if rest:
            rest_to(rest)

    def refuse(self, error: ShoalError) -> None:
        """Answer a request with an error, before anything else of the answer was written.

        If its body has not been read, or it was no HTTP, the connection ends after it.
        """
        exchange, self.exchange = self.exchange, None
        if exchange is not None and exchange.on_refused(error):
            return
        if self._transport is None:
            return
        head = self.head
        complete = self._state is State.BUSY and head is not None and head.keep_alive and not self.front.stopping
        place = None if head is None else head.shared.place
        body = told_on("" if place is None else place.path, error)
        self.write(answer(error.status, body, {**self.extra, **error.headers}, head, close=not complete))
        if complete:
            self.finish(keep_alive=True)
        elif self._state is State.BUSY or self._transport.is_closing():
            self.close()
        else:
            self._linger()

    def _linger(self) -> None:
        """End the connection so that the client can read the answer although it may still be sending."""
        transport = self._transport
        if transport is None:
            return
        self._state = State.CLOSING
        self._buffer = b""
        self.pause(False)
        self.deadline = self._loop.time() + (FLUSH if transport.get_write_buffer_size() else LINGER)
        if transport.can_write_eof():
            transport.write_eof()
        else:
            transport.close()

    def close(self) -> None:
        """Close once all is written; a client that does not read it is dropped after a while."""
        if self._state is State.BODY:  # it is still sending, and would be told so before it has read the answer
            self._linger()
            return
        self._state = State.CLOSING
        if self._transport is not None:
            self.deadline = self._loop.time() + FLUSH
            self._transport.close()

    def abort(self) -> None:
        """Drop the connection with a reset, so that a body that ends with the connection does not look whole."""
        self.exchange = None
        self._state = State.CLOSING
        transport = self._transport
        if transport is not None:
            sock = transport.get_extra_info("socket")
            if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()

    # -- time ---------------------------------------------------------------------------------------------------------

    def on_deadline(self) -> None:
        """The present state has lasted too long."""
        self.deadline = 0.0
        state = self._state
        if state is State.BUSY:
            if self.exchange is not None:
                self.exchange.on_timeout()
        elif state is State.CLOSING:
            if self._transport is not None:
                self._transport.abort()
        elif state is State.BODY and self._limit and self._limit <= self._loop.time():
            self._limit = 0.0
            if self.exchange is not None:
                self.exchange.on_timeout()
        elif state is State.BODY:
            self.refuse(body_late(self.front.body_timeout))
        elif self._buffer:
            self.refuse(head_late(self.front.header_timeout))
        else:  # a connection that never said a thing is closed without a word
            self.close()
