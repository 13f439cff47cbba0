"""An inference request: what is added to its answer, learnt from it, and written down at its end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from shoal.errors import ShoalError
from shoal.gateway.asking import Asking
from shoal.gateway.framing import SMALL, Framing
from shoal.gateway.http1 import ResponseHead
from shoal.gateway.manner import ANTHROPICS_ID_HEADER, REQUEST_ID_HEADER
from shoal.gateway.reading import reader_for, tokens_in
from shoal.gateway.routes import UNKNOWN
from shoal.gateway.usage import UsageStripper, tells_usage
from shoal.messages import Phase, RequestView

if TYPE_CHECKING:
    from shoal.gateway.tracing import Tracing

_CORS = frozenset(
    b"access-control-" + word
    for word in (b"allow-origin", b"allow-credentials", b"allow-methods", b"allow-headers", b"expose-headers")
)
"""Engines allow every origin by default; which ones may come is the relay's to say."""
_DROPPED = _CORS | REQUEST_ID_HEADER
_DROPPED_OF_ANTHROPICS = _DROPPED | ANTHROPICS_ID_HEADER
_WAITED = b"x-request-id: %b\r\nx-shoal-overhead-us: %d\r\nx-shoal-queue-ms: %.1f\r\nx-shoal-wake-ms: %.1f\r\n"
_NOT_WAITED = b"x-request-id: %b\r\nx-shoal-overhead-us: %d\r\nx-shoal-queue-ms: 0.0\r\nx-shoal-wake-ms: 0.0\r\n"
_END_OF_BOTH = b"\n\n\r\n"
"""Of an event and of the chunk that it ends with."""
_log = logging.getLogger(__name__)


class Inference(Asking):
    """A request to an engine."""

    response_dropped = _DROPPED
    whole = True

    def identify(self) -> None:
        super().identify()
        if self._anthropic:
            self.response_dropped = _DROPPED_OF_ANTHROPICS

    # -- and back -----------------------------------------------------------------------------------------------------

    def on_head(self, head: ResponseHead, framing: Framing) -> None:
        self._message = ()  # a stream may run for minutes; its request need not stay in memory
        self._relay.circuits.succeeded(self.instance)
        if not framing.done:
            self._reader = reader_for(head, self._strips)
        if self._relay.timed:
            self._relay.set_deadline(self)
        super().on_head(head, framing)

    def came(self, head: ResponseHead, content: bytes) -> None:
        circuits, books = self._relay.circuits, self._books
        if circuits.failing:
            circuits.succeeded(self.instance)
        if content:
            self._tokens = tokens_in(head, content)
            now = self._first_part = monotonic()
            assert books is not None
            books.first_byte.add(now - self.arrived)
            self._bytes_out = len(content)

    def added(self) -> bytes:
        id, overhead = self.id.encode(), int(self._overhead * 1e6)
        if not self._waited:  # as nearly all: without formatting two numbers
            said = _NOT_WAITED % (id, overhead)
        else:
            waited = self._waited * 1000
            said = _WAITED % (id, overhead, *((0.0, waited) if self._held else (waited, 0.0)))
        if self._anthropic:
            said += b"request-id: %b\r\n" % id
        return said if self._manner.origin is None else said + self._relay.cors_fields(self.head)

    def filters(self, response: ResponseHead) -> bool:
        del response
        return self._reader is not None and isinstance(self._reader.events, UsageStripper)

    def passing(self, content: bytes) -> bytes:
        if not content:  # a chunk's head came without its body
            return content
        now, reader = monotonic(), self._reader
        books = self._books
        assert books is not None
        if not self._bytes_out:
            self._first_part = now
            books.first_byte.add(now - self.arrived)
        elif self._events:
            books.inter_chunk.add(now - self._last_part)
        self._last_part = now
        self._bytes_out += len(content)
        if self._relay.timed and self._relay.config.response_timeout:
            self._relay.set_deadline(self)
        return content if reader is None else reader.feed(content)

    def on_body(self, data: bytes, framing: Framing) -> None:
        super().on_body(data, framing)
        upstream = self.upstream
        if upstream is not None:
            upstream.shortcut = self._shortcut() if framing.exact else None

    def _shortcut(self) -> Callable[[bytes], bool] | None:
        """`_pass_events`, where nothing is kept of an event stream so far and no piece of it moves a deadline."""
        events = None if self._reader is None else self._reader.events
        if events is None or not events.between or not self._bytes_out or not self.passes_chunks:
            return None
        return None if self._relay.config.response_timeout else self._pass_events

    def _pass_events(self, data: bytes) -> bool:
        """Pass on one chunk of whole events that tell no usage, as nearly all of a stream are: what `on_body` would do
        with it, in a third of the time. Returns False if it is anything else, and does nothing then."""
        start = data[:4]  # two digits and the line's end
        length = SMALL.get(start)
        if length is None:
            start = data[:5]
            length = SMALL.get(start)
            if length is None:
                return False
        if len(start) + length + 2 != len(data) or data[-4:] != _END_OF_BOTH or tells_usage(data):
            return False
        now = monotonic()
        books, reader = self._books, self._reader
        assert books is not None
        assert reader is not None
        assert reader.events is not None
        books.inter_chunk.add(now - self._last_part)
        self._last_part = now
        self._bytes_out += length
        reader.events.events += data.count(b"\ndata:")  # the first one follows the chunk's size
        self.connection.write(data)
        return True

    def remaining(self) -> bytes:
        return b"" if self._reader is None else self._reader.end()

    def broke_off(self, why: str) -> ShoalError:
        _log.warning("instance %s of %r broke off: %s", self.instance, self.model, why)
        self.outcome = "engine_error"
        when = "before it answered" if self.response is None else "while it answered"
        return ShoalError(
            f"The engine of {self.model!r} broke off {when}; send the request again.", status=502, code="engine_died"
        )

    def on_timeout(self) -> None:
        self.outcome = "engine_error"
        self.break_off(
            ShoalError(
                f"The engine of {self.model!r} took too long; ask for less, or raise the settings `response_timeout` "
                "and `request_timeout`.",
                status=504,
                code="engine_timeout",
            )
        )

    def break_off(self, error: ShoalError) -> None:
        self._error = error
        super().break_off(error)

    def on_refused(self, error: ShoalError) -> bool:
        self._error = error
        if not self.ended and self.outcome == "cancelled":
            refused = error.status in (401, 403, 429)
            self.outcome = "refused" if refused else "client_error" if error.status < 500 else "engine_error"
        return super().on_refused(error)

    def cancel(self) -> None:
        """Somebody who runs this Shoal wants it to end."""
        self.break_off(
            ShoalError("The request was cancelled by whoever runs this Shoal.", status=503, code="request_cancelled")
        )

    # -- the end ------------------------------------------------------------------------------------------------------

    def end(self, status: int | None) -> None:
        relay, job, now = self._relay, self._job, monotonic()
        if self.instance:
            relay.routes.end(self.instance)
        if status is not None:
            self.outcome = "ok" if status < 400 else "client_error" if status < 500 else "engine_error"
        outcome = self.outcome
        if job is None:
            if self in relay.stranded:
                self._waited += now - self._stranded_at
                relay.stranded.leave(self)
        elif job.state == "waiting":
            self._waited += now - job.submitted
        took_part = self._waited or (job is not None and job.state == "running")
        relay.over(self, job, now)
        tokens = self._tokens if self._reader is None else self._reader.tokens
        prompt, completion = (0, 0) if tokens is None else (tokens.prompt, tokens.completion)
        books = self._books
        if books is None or books.forgotten:
            # What has left the table meanwhile is not counted by its name.
            books = relay.measures.of(self.model if self.model in relay.routes else UNKNOWN, self.priority)
            took_part = took_part and self.model in relay.routes
        if not took_part:
            books.ended(outcome)
        else:
            books.took(outcome, self._waited, now - self.arrived, self._overhead)
            if status is not None and not self._bytes_out and not self._raw:  # the head was all there is
                books.first_byte.add(now - self.arrived)
            books.bytes_in += self._bytes_in
            books.bytes_out += self._bytes_out
            books.prompt_tokens += prompt
            books.completion_tokens += completion
        key, named = self.key, self._named
        if self.instance and named is not None and self.model in relay.routes:
            relay.keeping.ended(self.model, named.keep_alive, relay.wall)
        if key is not None and self._charged and named is not None:
            relay.keyring.end(key, named.cost, None if tokens is None else prompt + completion, now)
        if outcome == "ok" or tokens is not None:
            of = "" if key is None else key.id
            relay.link.used((of, self.model, relay.day), prompt, completion, relay.wall)
        if relay.tracing is not None:
            self._end_trace(relay.tracing, now)

    def _end_trace(self, tracing: Tracing, now: float) -> None:
        trace = self._trace or self._begin_trace(tracing)
        tokens = self._tokens if self._reader is None else self._reader.tokens
        trace.end(
            now,
            self.outcome,
            status=None if self.response is None else self.response.status,
            error=self._error,
            served="" if self._resolved is None else self._resolved.name,
            instance=self.instance,
            priority=self.priority,
            held=self._held,
            waited=self._waited,
            first=self._first_part,
            tokens=None if tokens is None else (tokens.prompt, tokens.completion),
        )

    # -- seen by others -----------------------------------------------------------------------------------------------

    @property
    def streams(self) -> bool:
        """Whether the answer is an event stream."""
        return self._reader is not None and self._reader.events is not None

    @property
    def phase(self) -> Phase:
        """Where it is."""
        job = self._job
        if self in self._relay.stranded:
            return "held"
        if job is None or job.state == "waiting":
            route = self._relay.routes.find(self.model)
            return "held" if route is not None and not route.targets else "queued"
        return "waiting" if self.response is None else "answering"

    def view(self, now: float, position: int | None) -> RequestView:
        """As people see it."""
        return RequestView(
            id=self.id,
            model=self.model,
            tenant=self.tenant,
            key=None if self.key is None else self.key.name,
            priority=self.priority,
            phase=self.phase,
            age=now - self.arrived,
            tokens=0 if self._reader is None or self._reader.events is None else self._reader.events.events,
            instance=self.instance or None,
            position=position,
            path=self._path,
        )

    # -- websockets ---------------------------------------------------------------------------------------------------

    def on_upgraded(self, head: ResponseHead, rest: bytes) -> None:
        if not self._manner.websocket:
            super().on_upgraded(head, rest)
            return
        self.response = head
        self._raw = True
        self.connection.deadline = 0.0
        self.connection.write(b"\r\n".join((b"HTTP/1.1 101 Switching Protocols", *head.lines, b"", rest)))
        self.connection.raw(self.on_raw)
        if self.upstream is not None and self.connection.full:
            self.upstream.pause(True)

    def on_raw(self, data: bytes) -> None:
        """From the client."""
        if self.upstream is not None:
            self._bytes_in += len(data)
            self.upstream.write(data)

    def on_raw_back(self, data: bytes) -> None:
        """From the engine."""
        self._bytes_out += len(data)
        self.connection.write(data)

    def on_broken(self, why: str) -> None:
        if not self._raw:
            super().on_broken(why)
            return
        self.upstream = None
        self._finish(101)
        self.connection.exchange = None
        self.connection.close()
