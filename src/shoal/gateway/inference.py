"""One inference request: whom it is from, what it names, when its turn is, and how it ends."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING

from shoal.errors import ShoalError
from shoal.gateway.admission import LARGEST, Job
from shoal.gateway.framing import Framing
from shoal.gateway.http1 import RequestHead, ResponseHead
from shoal.gateway.inspect import Named, read_request
from shoal.gateway.manner import DROPPED, REQUEST_ID_HEADER, manner_of
from shoal.gateway.measures import Books
from shoal.gateway.passage import Passage
from shoal.gateway.reading import Reader, reader_for, tokens_in
from shoal.gateway.routes import UNKNOWN
from shoal.gateway.server import ClientConnection
from shoal.gateway.upstream import Parts
from shoal.gateway.usage import Tokens, UsageStripper, with_usage
from shoal.gateway.virtual import Resolved, rewrite, rewrite_target
from shoal.messages import PRIORITIES, Key, Outcome, Phase, Priority, RequestView, Route, Usage

if TYPE_CHECKING:
    from shoal.gateway.relay_native import NativeRelay
    from shoal.gateway.tracing import Trace, Tracing

ATTEMPTS = 2
"""Instances that are tried, if no connection can be made to the first."""
_CORS = frozenset(
    b"access-control-" + word
    for word in (b"allow-origin", b"allow-credentials", b"allow-methods", b"allow-headers", b"expose-headers")
)
"""Engines allow every origin by default; which ones may come is the relay's to say."""
_log = logging.getLogger(__name__)


class Inference(Passage):
    """A request to an engine."""

    response_dropped = _CORS | REQUEST_ID_HEADER
    whole = True

    def __init__(
        self, relay: NativeRelay, connection: ClientConnection, head: RequestHead, target: str, path: str
    ) -> None:
        super().__init__(connection, head, target, relay.config.max_body)
        self._relay = relay
        self._path = path
        self._manner = manner = manner_of(head)
        self.arrived = self._received = monotonic()
        self.id = relay.request_id(manner.id)

    # What a request has before it is known to have anything; most keep most of it.
    model = UNKNOWN
    outcome: Outcome = "cancelled"
    instance = ""
    key: Key | None = None
    tenant = ""
    priority: Priority = "normal"
    _job: Job | None = None
    _held = False
    _charged = False
    _strips = False
    _resolved: Resolved | None = None
    _named: Named | None = None
    _body: bytes | bytearray | None = None
    _trailers: Sequence[bytes] = ()
    _candidates: tuple[str, ...] = ()
    _message: Parts = ()
    _passed_over: tuple[str, ...] = ()
    _reader: Reader | None = None
    _tokens: Tokens | None = None
    _books: Books | None = None
    _bytes_in = 0
    _bytes_out = 0
    _waited = 0.0
    _overhead = 0.0
    _first_part = 0.0
    _last_part = 0.0
    _trace: Trace | None = None
    _error: ShoalError | None = None

    def identify(self) -> None:
        """Find out whose request it is. Raises ShoalError 401."""
        fields, relay, manner = self.head.fields, self._relay, self._manner
        key = relay.keyring.identify(fields.get(b"authorization"), fields.get(b"x-api-key"), relay.wall)
        self.dropped = DROPPED[key is not None or manner.secret][manner.has_id and self.id != manner.id]
        if key is not None:
            self.key = key
            self.tenant = key.id
            self.priority = key.priority
            return
        for name in relay.tenant_headers:
            if (value := fields.get(name)) is not None:
                self.tenant = value[:200].decode("utf-8", "replace")
                return
        self.tenant = self.connection.peer

    # -- what it asks for ---------------------------------------------------------------------------------------------

    def on_request(self, body: bytes | bytearray | None, trailers: list[bytes]) -> None:
        relay, manner = self._relay, self._manner
        now = self._received = monotonic()
        self._bytes_in = 0 if body is None else len(body)
        named = self._named = self._named or read_request(
            self.target,
            body or b"",
            content_type=manner.content_type,
            content_encoding=manner.content_encoding,
            model_header=manner.model,
        )
        self._body = body
        self._trailers = trailers
        key = self.key
        if manner.priority is not None or named.priority is not None:
            self.priority = self._class(manner.priority or named.priority or "normal")
        resolved = self._resolved = relay.names.resolve(
            named.model, None if key is None else relay.keyring.may_see(key)
        )
        self.model = resolved.model
        if key is not None:
            relay.keyring.allow(key, resolved.name)
            try:
                relay.keyring.begin(key, named.cost, now)
            except ShoalError:
                self.outcome = "refused"
                raise
            self._charged = True
        if resolved.virtual is None:
            route = relay.names.route(resolved)
            if route.targets:  # as nearly all are
                self._enter(resolved, route, now)
                return
            self._candidates = (resolved.name,)
        else:
            self._candidates = relay.names.candidates(resolved)
        self._submit()

    def _class(self, wanted: Priority) -> Priority:
        """The priority class: as the request says, but none above that of its key."""
        return wanted if self.key is None else max(wanted, self.key.priority, key=PRIORITIES.index)

    def _submit(self, refusal: ShoalError | None = None) -> None:
        """Wait for a turn at the first of the candidates that serves, or will. Raises ShoalError if none does: what
        the first of them was refused with, which is `refusal` if that was before."""
        relay = self._relay
        patient = self._manner.patient
        while self._candidates:
            name, *rest = self._candidates
            self._candidates = tuple(rest)
            try:
                resolved = relay.names.resolve(name)
            except ShoalError as error:  # it has left the table since the request came
                refusal = refusal or error
                continue
            route = relay.names.route(resolved)
            if route.targets or (route.comes and patient):
                self._enter(resolved, route, monotonic())
                return
            if refusal is None:
                self.model = route.model
                refusal = relay.unready(route)
            if route.comes:
                relay.wish(route.model)
        assert refusal is not None
        self.outcome = "unavailable"
        raise refusal

    def _enter(self, resolved: Resolved, route: Route, now: float) -> None:
        relay, named = self._relay, self._named
        assert named is not None
        self.model = route.model
        if self._resolved is not resolved:
            virtual = None if self._resolved is None else self._resolved.virtual
            self._resolved = Resolved(resolved.name, resolved.model, virtual=virtual)
        if route.targets:
            patience = relay.config.queue_timeout
        else:
            self._held = True
            patience = relay.config.hold_timeout
        job = self._job = Job(
            route.model,
            self.tenant,
            self.priority,
            1.0 if self.key is None else self.key.weight,
            min(max(1.0, named.cost), LARGEST),
            now + patience,
            self,
        )
        try:
            runs = relay.admission.submit(job, now)
        except ShoalError:
            self.outcome = "refused"
            raise
        if runs:
            self.start()
            return
        relay.waits(route)

    def start(self) -> None:
        """Its turn has come. Raises ShoalError."""
        job, named, resolved = self._job, self._named, self._resolved
        assert job is not None
        assert named is not None
        assert resolved is not None
        self._waited += job.started - job.submitted
        body, rewritten = self._body, False
        if resolved.virtual is not None or resolved.name != named.model:
            body = self._renamed(resolved, body)
            rewritten = body is not self._body
        if self.key is not None and named.streams_usage and not named.include_usage and body:
            asking = with_usage(body)
            self._strips = asking is not body
            if self._strips:
                self.whole = False  # something will be taken out
            rewritten, body = rewritten or self._strips, asking
        if self._relay.tracing is not None:
            self._pass_trace(self._relay.tracing)
        self._message = self.message(body, self._trailers, rewritten=rewritten)
        self._body = None
        self._go()

    def _renamed(self, resolved: Resolved, body: bytes | bytearray | None) -> bytes | bytearray | None:
        self.target = rewrite_target(self.target, resolved.name)
        if not body:
            return body
        fields = self.head.fields
        return rewrite(
            body,
            resolved.virtual,
            resolved.name,
            path=self._path,
            content_type=fields.get(b"content-type", b"").decode("latin-1"),
            content_encoding=fields.get(b"content-encoding", b"").decode("latin-1"),
        )

    def start_later(self) -> None:
        """Its turn has come while something else was going on."""
        if self.ended:
            return
        try:
            self.start()
        except ShoalError as error:
            self.connection.refuse(error)

    def refuse_waiting(self, error: ShoalError, outcome: Outcome) -> None:
        """It waits no longer: another model may stand in, or it is refused."""
        if self.ended:
            return
        job, self._job = self._job, None
        if job is not None:
            self._waited += monotonic() - job.submitted
            self._relay.waits_no_more(job.model)
        if self._candidates and outcome != "refused":
            try:
                self._submit(error)
            except ShoalError as refusal:
                self.connection.refuse(refusal)
            return
        self.outcome = outcome
        self.connection.refuse(error)

    def refuse_gone(self) -> None:
        """The model that it waits for is not there any more."""
        relay, key = self._relay, self.key
        visible = None if key is None else relay.keyring.may_see(key)
        self.refuse_waiting(relay.names.missing(self.model, visible), "client_error")

    # -- to an engine -------------------------------------------------------------------------------------------------

    def _go(self) -> None:
        relay = self._relay
        try:
            engine = relay.pick(self.model, self._passed_over)
        except ShoalError as error:
            if not self._passed_over:
                self.outcome = "unavailable" if error.status == 503 else "client_error"
                raise
            raise self._unreachable_error() from None
        self.instance = engine.instance
        self._books = relay.measures.of(self.model, self.priority)
        relay.routes.begin(engine.instance)
        self._overhead = monotonic() - self._received - self._waited
        if relay.timed:
            relay.set_deadline(self)
        self.forward(relay.pools.of(engine.address), self._message, keep=not self._manner.websocket)

    @property
    def awaits_engine(self) -> bool:
        """Whether it is the engine's turn, so that `response_timeout` holds."""
        return True

    def own_lines(self) -> list[bytes]:
        lines = [] if self.id == self._manner.id else [b"X-Request-Id: " + self.id.encode()]
        if self._manner.websocket:
            lines += [b"Connection: Upgrade", b"Upgrade: websocket"]
        return lines if self._trace is None else lines + self._trace.lines

    def unreachable(self, error: OSError) -> None:
        _log.warning("no connection to instance %s of %r: %s", self.instance, self.model, error)
        relay, instance = self._relay, self.instance
        relay.circuits.failed(instance, monotonic())
        relay.routes.end(instance)
        self._passed_over = (*self._passed_over, instance)
        self.instance = ""
        try:
            if len(self._passed_over) >= ATTEMPTS:
                raise self._unreachable_error()
            self._go()
        except ShoalError as refusal:
            self.connection.refuse(refusal)

    def _unreachable_error(self) -> ShoalError:
        self.outcome = "engine_error"
        return ShoalError(
            f"The engine of {self.model!r} does not take connections; send the request again in a moment.",
            status=502,
            code="engine_connection_failed",
        )

    # -- and back -----------------------------------------------------------------------------------------------------

    def on_head(self, head: ResponseHead, framing: Framing) -> None:
        self._message = ()  # a stream may run for minutes; its request need not stay in memory
        self._relay.circuits.succeeded(self.instance)
        if not framing.done:
            self._reader = reader_for(head, self._strips)
        if self._relay.timed:
            self._relay.set_deadline(self)
        super().on_head(head, framing)

    def on_whole(self, head: ResponseHead, content: bytes) -> None:
        self._message = ()
        self._relay.circuits.succeeded(self.instance)
        if content:
            self._tokens = tokens_in(head, content)
            now = self._first_part = self._last_part = monotonic()
            assert self._books is not None
            self._books.first_byte.add(now - self.arrived)
            self._bytes_out = len(content)
        super().on_whole(head, content)

    def lines(self, response: ResponseHead) -> list[bytes]:
        del response
        waited = self._waited * 1000
        queued, woken = (0.0, waited) if self._held else (waited, 0.0)
        said = b"x-request-id: %b\r\nx-shoal-queue-ms: %.1f\r\nx-shoal-wake-ms: %.1f\r\nx-shoal-overhead-us: %d" % (
            self.id.encode(),
            queued,
            woken,
            self._overhead * 1e6,
        )
        return [said] if self._manner.origin is None else [said, *self._relay.cors_lines(self.head)]

    def filters(self, response: ResponseHead) -> bool:
        del response
        return self._reader is not None and isinstance(self._reader.events, UsageStripper)

    def passing(self, content: bytes) -> bytes:
        if not content:  # a chunk's head came without its body
            return content
        now = monotonic()
        books = self._books
        assert books is not None
        if not self._bytes_out:
            self._first_part = now
            books.first_byte.add(now - self.arrived)
        elif self._events:
            books.inter_chunk.add(now - self._last_part)
        self._last_part = now
        self._bytes_out += len(content)
        if self._relay.config.response_timeout:
            self._relay.set_deadline(self)
        return content if self._reader is None else self._reader.feed(content)

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
        if job is not None and job.state == "waiting":
            self._waited += now - job.submitted
        took_part = self._waited or (job is not None and job.state == "running")
        relay.over(self, job, now)
        tokens = self._tokens if self._reader is None else self._reader.tokens
        known = self.model in relay.routes  # what has left the table meanwhile is forgotten
        books = relay.measures.of(self.model if known else UNKNOWN, self.priority)
        books.ended(self.outcome)
        if known and took_part:
            books.took(self._waited, now - self.arrived, self._overhead)
            if status is not None and not self._bytes_out and not self._raw:  # the head was all there is
                books.first_byte.add(now - self.arrived)
            books.bytes_in += self._bytes_in
            books.bytes_out += self._bytes_out
            if tokens is not None:
                books.prompt_tokens += tokens.prompt
                books.completion_tokens += tokens.completion
        key, named = self.key, self._named
        if key is not None and self._charged and named is not None:
            used = None if tokens is None else tokens.prompt + tokens.completion
            relay.keyring.end(key, named.cost, used, now)
        if self.outcome == "ok" or tokens is not None:
            prompt, completion = (0, 0) if tokens is None else (tokens.prompt, tokens.completion)
            of = "" if key is None else key.id
            relay.link.used(Usage(of, self.model, relay.day, 1, prompt, completion, relay.wall))
        if relay.tracing is not None:
            self._end_trace(relay.tracing, now)

    def _pass_trace(self, tracing: Tracing) -> None:
        """Have the engine's spans belong to this request's."""
        self.dropped = self.dropped | tracing.headers
        self._trace = self._begin_trace(tracing)
        self._trace.to_engine(monotonic())

    def _begin_trace(self, tracing: Tracing) -> Trace:
        asked = "" if self.model == UNKNOWN or self._named is None else self._named.model
        return tracing.begin(self.head.fields, self.method, self._path, asked, self.id, self.arrived)

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
