"""One request on its way to an engine or the controller, and its response on the way back.

The response's bytes go on as they came. They are framed anew only where they have to be: for a client of HTTP/1.0, for
a body that ends with the engine's connection, and where a filter takes something out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum, auto

from shoal.errors import ShoalError, told_in_stream
from shoal.gateway.framing import Chunked, Fixed, Framing, UntilClose, chunk
from shoal.gateway.heads import path_of
from shoal.gateway.http1 import RequestHead, ResponseHead, block, passed_on
from shoal.gateway.server import ClientConnection
from shoal.gateway.upstream import EngineConnection, Parts, Pool

HELD_BACK = 64 * 1024
"""Bytes of an incomplete chunk of an event stream that wait for its end, so that an error event could still follow."""
LARGE = 64 * 1024
"""Bytes of a body from which on it is not copied to stand behind its head."""
_EVENT_ENDS = (b"\n\n", b"\r\r", b"\r\n\r\n")
_LAST_CHUNK = b"0\r\n\r\n"
_EXPECT = frozenset({b"expect"})
_NO_LENGTH = frozenset({b"content-length"})


class Mode(Enum):
    """How a response's body is written."""

    AS_IT_CAME = auto()
    CHUNKED = auto()
    PLAIN = auto()
    """Without framing: its end is the connection's."""


_AS_IT_CAME, _CHUNKED = Mode.AS_IT_CAME, Mode.CHUNKED  # an Enum's members are slow to get at


class Passage:
    """A request and its response. Subclasses say where it goes and what is learnt from it.

    What every request comes to have is in slots, because with more than 30 attributes each object makes a dictionary.
    """

    __slots__ = (
        "__dict__",
        "connection",
        "dropped",
        "ended",
        "head",
        "max_body",
        "method",
        "response",
        "target",
        "upstream",
    )

    response_dropped: frozenset[bytes] = frozenset()
    """Response headers that do not travel on."""

    whole = False
    """Whether `on_whole` may be called."""

    # What few have.
    _give_up: Callable[[], object] | None = None
    _mode = _AS_IT_CAME
    _keep_alive = True
    _events = False  # the body is an event stream that another event could be added to
    _partial = b""
    _spilled = False  # part of an incomplete chunk has been written
    _tail = b""
    _unsent = b""  # a head that goes out with what is known to follow it
    _raw = False  # another protocol is spoken

    def __init__(self, connection: ClientConnection, head: RequestHead, target: str, max_body: int) -> None:
        self.connection = connection
        self.head = head
        self.method = head.method
        self.target = target
        self.max_body = max_body
        self.dropped: frozenset[bytes] = _EXPECT
        """Request headers that do not travel on."""
        self.upstream: EngineConnection | None = None
        self.response: ResponseHead | None = None
        self.ended = False

    # -- what subclasses say ------------------------------------------------------------------------------------------

    def on_request(self, body: bytes | bytearray | None, trailers: list[bytes]) -> None:
        """The request is there, whole."""
        raise NotImplementedError

    def on_part(self, content: bytes) -> bool:
        """A part of the body; it is kept until all is there."""
        del content
        return True

    def unreachable(self, error: OSError) -> None:
        """No connection could be made; nothing was sent."""
        raise NotImplementedError

    def reached(self) -> None:
        """A connection was made for it."""

    def on_unsent(self, error: OSError) -> None:
        """The connection had ended before anything of the request was sent."""
        self.on_broken(str(error))

    def broke_off(self, why: str) -> ShoalError:
        """The connection ended before the response did: what the client is to be told."""
        raise NotImplementedError

    def end(self, status: int | None) -> None:
        """All is over. `status`: of a response that came whole; None if it did not."""
        raise NotImplementedError

    def added(self) -> bytes:
        """Header lines to be added to the response, each with its end."""
        return b""

    def came(self, head: ResponseHead, content: bytes) -> None:
        """All of the response has come at once, and is about to be passed on."""

    def filters(self, response: ResponseHead) -> bool:
        """Whether the body will go through `passing`."""
        del response
        return False

    def passing(self, content: bytes) -> bytes:
        """What is to be passed on of a part of the body. Called for every part if `filters` said so."""
        return content

    def remaining(self) -> bytes:
        """What was held back by `passing` when the body ended."""
        return b""

    # -- the request --------------------------------------------------------------------------------------------------

    def forward(self, pool: Pool, data: Parts, *, keep: bool = True) -> None:
        """Send `data`, the request whole, over a connection to `pool`'s address."""
        connection = pool.take()
        if connection is not None:
            self.upstream = connection
            connection.send(self, data, keep=keep)
            return

        def connected(result: EngineConnection | OSError) -> None:
            self._give_up = None
            if isinstance(result, OSError):
                self.unreachable(result)
            else:
                self.upstream = result
                result.send(self, data, keep=keep)
                self.reached()

        self._give_up = pool.connect(connected)

    def message(self, body: bytes | bytearray | None, trailers: Sequence[bytes], *, rewritten: bool = False) -> Parts:
        """The request as it goes on. `rewritten`: its body has another length than the client said."""
        head = self.head
        place = head.shared.place
        if not (rewritten or head.chunked) and place is not None and place.straight and self.target is place.target:
            before, after = head.shared.blocks.get(self.dropped) or block(head, self.dropped)
            digits = b"" if head.length is None else b"%d" % head.length
            if body is not None and len(body) > LARGE:
                return (b"".join((before, digits, after, self.own_fields(), b"\r\n")), body)
            return (b"".join((before, digits, after, self.own_fields(), b"\r\n", body or b"")),)
        fields = head.fields
        dropped = self.dropped | {b"content-length"} if rewritten else self.dropped
        lines = passed_on(head, dropped)
        if b"host" not in fields:
            lines.insert(0, b"Host: localhost")  # clients of HTTP/1.0 may send none
        first = b"%b %b HTTP/1.1" % (self.method, self.target.encode("latin-1"))
        if rewritten and not head.chunked:
            lines.append(b"Content-Length: %d" % len(body or b""))
        start = b"\r\n".join((first, *lines, self.own_fields()))
        if body is not None and head.chunked:
            size = b"%x\r\n" % len(body) if body else b""
            end = b"\r\n".join((b"\r\n0" if body else b"0", *trailers, b"", b""))
            parts = (start + b"Transfer-Encoding: chunked\r\n\r\n" + size, body, end)
            return parts if len(body) > LARGE else (b"".join(parts),)
        if body is not None and len(body) > LARGE:
            return (start + b"\r\n", body)  # not copied
        return (b"".join((start, b"\r\n", body or b"")),)

    def own_fields(self) -> bytes:
        """Header lines to be added to the request, each with its end."""
        return b""

    # -- the response -------------------------------------------------------------------------------------------------

    def on_interim(self, head: ResponseHead) -> None:
        """A 1xx response: passed on, except to clients that cannot know it. The relay has said 100 itself."""
        if head.status != 100 and self.head.minor:
            lines = passed_on(head, _NO_LENGTH)
            self.connection.write(head.first + b"\r\n".join((*lines, b"", b"")))

    def on_head(self, head: ResponseHead, framing: Framing) -> None:
        """The head of the response: written at once, with what this connection needs of framing."""
        self.response = head
        if self.connection.full and self.upstream is not None:
            self.upstream.pause(True)
        keep = self._keep_alive = self.head.keep_alive and not self.closes
        filtered = not framing.done and self.filters(head)
        fixed = isinstance(framing, Fixed)
        if not fixed:
            self._events = (
                head.fields.get(b"content-type", b"").partition(b";")[0].strip().lower() == b"text/event-stream"
                and head.fields.get(b"content-encoding", b"identity").lower() == b"identity"
            )
        if filtered or not keep or head.status == 204 or not self.head.minor or isinstance(framing, UntilClose):
            self._write_head(head, framing, filtered=filtered)
            return
        before, after = block(head, self.response_dropped)
        if fixed:
            digits = b"" if head.length is None else b"%d" % head.length
            head_bytes = b"".join((before, digits, after, self.added(), b"\r\n"))
            if framing.done:
                self.connection.write(head_bytes)
            else:
                self._unsent = head_bytes
        else:
            self.connection.write(b"".join((before, after, b"Transfer-Encoding: chunked\r\n", self.added(), b"\r\n")))

    def _write_head(self, head: ResponseHead, framing: Framing, *, filtered: bool) -> None:
        """Write a head that cannot be written as it came."""
        minor = self.head.minor
        lines = passed_on(head, self.response_dropped)
        if filtered or not isinstance(framing, Fixed):
            lines = [line for line in lines if line[:15].lower() != b"content-length:"] if filtered else lines
            if not minor:
                self._mode = Mode.PLAIN
                self._keep_alive = False
            else:
                lines.append(b"Transfer-Encoding: chunked")
                if filtered or isinstance(framing, UntilClose):
                    self._mode = Mode.CHUNKED
        elif head.status == 204:  # RFC 9110, section 8.6, forbids a length
            lines = [line for line in lines if line[:15].lower() != b"content-length:"]
        if not self._keep_alive:
            lines.append(b"Connection: close")
        elif not minor:
            lines.append(b"Connection: keep-alive")
        self.connection.write(head.first + b"\r\n".join((*lines, self.added() + b"\r\n")))

    def _write(self, data: bytes) -> None:
        """Write, behind the head if that is still here."""
        unsent = self._unsent
        if unsent:
            data = unsent + data
            self._unsent = b""
        self.connection.write(data)

    def on_head_alone(self) -> None:
        """The body will take a while to come: the head goes ahead."""
        if self._unsent:
            self._write(b"")

    def on_body(self, data: bytes, framing: Framing) -> None:
        """A part of the body."""
        content = framing.content
        if self._events:
            self._tail = content if len(content) >= 4 else (self._tail + content)[-4:]
        passed = self.passing(content)
        if self._mode is _AS_IT_CAME:
            if not self._events:
                self._write(data)
            elif framing.exact and not self._partial and not self._spilled:
                self.connection.write(data)
            else:
                self._write_chunks(data, framing)
        elif passed:
            if self._mode is not _CHUNKED:
                self.connection.write(passed)
            elif passed is content and framing.exact:
                self.connection.write(data)  # its chunks do as they are
            else:
                self.connection.write(chunk(passed))

    @property
    def passes_chunks(self) -> bool:
        """Whether a whole chunk that comes now goes on as it is."""
        if self._mode is _AS_IT_CAME:
            return self._events and not (self._partial or self._spilled)
        return self._mode is _CHUNKED

    def on_whole(self, head: ResponseHead, content: bytes) -> None:
        """All of the response at once: a head with a length, and a body of that length."""
        self.upstream = None
        self.response = head
        self.came(head, content)
        connection, asked = self.connection, self.head
        keep = asked.keep_alive and not connection.front.stopping
        if keep and asked.minor:
            before, after = head.shared.blocks.get(self.response_dropped) or block(head, self.response_dropped)
            connection.write(b"".join((before, b"%d" % len(content), after, self.added(), b"\r\n", content)))
        else:
            self._keep_alive = keep
            self._write_head(head, Fixed(len(content)), filtered=False)
            connection.write(content)
        self._finish(head.status)
        connection.finish(keep_alive=keep)

    def on_complete(self) -> None:
        """The response is there, whole."""
        self.upstream = None
        response = self.response
        assert response is not None
        if self._mode is not Mode.AS_IT_CAME:
            rest = self.remaining()
            if self._mode is Mode.CHUNKED:
                self.connection.write((chunk(rest) if rest else b"") + _LAST_CHUNK)
            elif rest:
                self.connection.write(rest)
        self._finish(response.status)
        self.connection.finish(keep_alive=self._keep_alive)

    def on_broken(self, why: str) -> None:
        """The engine's connection has ended too early."""
        self.upstream = None
        if not self.ended:
            self.break_off(self.broke_off(why))

    def break_off(self, error: ShoalError) -> None:
        """End a response that will not come whole, so that nobody takes it for a whole one."""
        self._drop_upstream()
        self._finish(None)
        if self.response is None:
            self.connection.refuse(error)
            return
        if not self._events or self._spilled:
            self.connection.abort()
            return
        rest = self.remaining() if self._mode is not Mode.AS_IT_CAME else _unfinished(self._partial)
        between = b"" if not self._tail or self._tail.endswith(_EVENT_ENDS) else b"\n\n"
        content = b"%b%b%b" % (rest, between, told_in_stream(path_of(self.target), error))
        self.connection.exchange = None
        self.connection.write(content if self._mode is Mode.PLAIN else chunk(content))
        self.connection.close()

    def _write_chunks(self, data: bytes, framing: Framing) -> None:
        """Write whole chunks as they came; an incomplete one waits for its end, unless it is a large one."""
        assert isinstance(framing, Chunked)
        whole = len(data) if framing.done else framing.boundary
        if self._spilled:
            self._spilled = not whole
            self.connection.write(data[:whole] if whole else data)
            self._partial = data[whole:] if whole else b""
            return
        if whole:
            first = data if whole == len(data) else data[:whole]
            self.connection.write(self._partial + first if self._partial else first)
            self._partial = data[whole:]
        else:
            self._partial += data
        if len(self._partial) > HELD_BACK:
            self.connection.write(self._partial)
            self._partial = b""
            self._spilled = True

    # -- other protocols ----------------------------------------------------------------------------------------------

    def on_upgraded(self, head: ResponseHead, rest: bytes) -> None:
        """The engine switches protocols, which a subclass has to have asked for."""
        del head, rest
        self.break_off(self.broke_off("it switched protocols, which nobody asked for"))

    def on_raw(self, data: bytes) -> None:
        """Bytes of another protocol, from the client."""
        del data

    def on_raw_back(self, data: bytes) -> None:
        """Bytes of another protocol, from the engine."""
        del data

    # -- the client ---------------------------------------------------------------------------------------------------

    @property
    def closes(self) -> bool:
        """Whether the client's connection has to end with the response."""
        return self.connection.front.stopping

    def on_gone(self) -> None:
        """The client has left: whatever runs for it is cancelled."""
        self._drop_upstream()
        self._finish(None)

    def on_refused(self, error: ShoalError) -> bool:
        """The connection answers in its place, unless the answer has begun."""
        if self.response is not None:
            self.break_off(error)
            return True
        self._drop_upstream()
        self._finish(None)
        return False

    def on_full(self, full: bool) -> None:
        """The client does not read as fast as the engine writes, or does again."""
        if self.upstream is not None:
            self.upstream.pause(full)

    def on_upstream_full(self, full: bool) -> None:
        """The engine does not read as fast as the client writes, or does again.

        A request is there, whole, before any of it is sent: to read on costs nothing and shows whether its client
        leaves. What comes of another protocol has to wait.
        """
        if self._raw:
            self.connection.pause(full)

    def on_timeout(self) -> None:
        """The deadline of the connection has passed."""

    def _drop_upstream(self) -> None:
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.abandon()
        give_up, self._give_up = self._give_up, None
        if give_up is not None:
            give_up()

    def _finish(self, status: int | None) -> None:
        if not self.ended:
            self.ended = True
            self.end(status)


def _unfinished(raw: bytes) -> bytes:
    """The content of an incomplete chunk, as far as it is there."""
    line, separator, content = raw.partition(b"\r\n")
    return content[: int(line.partition(b";")[0], 16)] if separator else b""
