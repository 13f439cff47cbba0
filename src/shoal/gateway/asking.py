"""An inference request on its way to an engine: whom it is from, what it names, and when its turn is."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING

from shoal.errors import ShoalError
from shoal.gateway.admission import LARGEST, Job
from shoal.gateway.http1 import Place, RequestHead
from shoal.gateway.inspect import FIELDS, Named, read_request
from shoal.gateway.manner import DROPPED, Manner
from shoal.gateway.measures import Books
from shoal.gateway.passage import Passage
from shoal.gateway.reading import Reader
from shoal.gateway.routes import UNKNOWN
from shoal.gateway.server import ClientConnection
from shoal.gateway.skim import SkimError, Skimmer
from shoal.gateway.upstream import Parts
from shoal.gateway.usage import Tokens, ask_for_usage, with_usage
from shoal.gateway.virtual import Resolved, rewrite, rewrite_target
from shoal.messages import PRIORITIES, Key, Outcome, Priority, Route

if TYPE_CHECKING:
    from shoal.gateway.relay_native import NativeRelay
    from shoal.gateway.tracing import Trace, Tracing

ATTEMPTS = 2
"""Instances that are tried, if no connection can be made to the first."""
LARGE_BODY = 1024 * 1024
"""Bytes of a JSON body from which on it is read while it comes, because to read it in one go would keep others waiting
(some milliseconds for each megabyte)."""
_log = logging.getLogger(__name__)


class Asking(Passage):
    """A request to an engine, until it is sent. `Inference` is the rest of it."""

    __slots__ = (
        "_anthropic", "_body", "_books", "_bytes_in", "_bytes_out", "_charged", "_first_part", "_job", "_last_part",
        "_manner", "_message", "_named", "_overhead", "_path", "_reader", "_received", "_relay", "_resolved",
        "_tokens", "_trailers", "_waited", "arrived", "id", "instance", "key", "model", "outcome", "priority",
        "tenant",
    )  # fmt: skip
    _last_part: float

    def __init__(
        self, relay: NativeRelay, connection: ClientConnection, head: RequestHead, place: Place, manner: Manner
    ) -> None:
        super().__init__(connection, head, place.target, relay.config.max_body)
        self._relay = relay
        self._path = place.path
        self._manner = manner
        self._anthropic = place.anthropic
        self.arrived = monotonic()
        self.id = relay.request_id(manner.id)
        self.model = UNKNOWN
        self.outcome: Outcome = "cancelled"
        self.instance = ""
        self.key: Key | None = None
        self.tenant = ""
        self.priority: Priority = "normal"
        self._named: Named | None = None
        self._resolved: Resolved | None = None
        self._job: Job | None = None
        self._books: Books | None = None
        self._reader: Reader | None = None
        self._tokens: Tokens | None = None
        self._charged = False
        self._trailers: Sequence[bytes] = ()
        self._message: Parts = ()
        self._bytes_in = self._bytes_out = 0
        self._waited = self._overhead = self._first_part = 0.0

    # What few have.
    _held = False
    _strips = False
    _skimmer: Skimmer | None = None
    _candidates: tuple[str, ...] = ()
    _passed_over: tuple[str, ...] = ()
    _stranded_at = 0.0
    held_until = 0.0
    """Until when it may be held; 0 if it was not stranded."""
    _trace: Trace | None = None
    _error: ShoalError | None = None

    def identify(self) -> None:
        """Find out whose request it is. Raises ShoalError 401."""
        relay, manner = self._relay, self._manner
        key = relay.keyring.bearer(manner.token, relay.wall)
        self.dropped = DROPPED[key is not None or manner.secret][manner.has_id and self.id != manner.id]
        if key is not None:
            self.key = key
            self.tenant = key.id
            self.priority = key.priority
            return
        for name in relay.tenant_headers:
            if (value := self.head.fields.get(name)) is not None:
                self.tenant = value[:200].decode("utf-8", "replace")
                return
        self.tenant = self.connection.peer

    # -- what it asks for ---------------------------------------------------------------------------------------------

    def on_part(self, content: bytes) -> bool:
        skimmer = self._skimmer
        if skimmer is None:
            before = self.connection.collected
            if len(before) + len(content) < LARGE_BODY and (self.head.length or 0) < LARGE_BODY:
                return True
            if not self._manner.readable:
                return True
            skimmer = self._skimmer = Skimmer(FIELDS)
            content = bytes(before) + content
        try:
            skimmer.feed(content)
        except SkimError as error:
            raise _broken(error) from None
        self.connection.breathe()
        return True

    def _readable(self, body: bytes | bytearray) -> bytes | bytearray:
        """The body, or one of what was found in a large one."""
        skimmer = self._skimmer
        if skimmer is None:
            return body
        try:
            skimmer.end()
        except SkimError as error:
            raise _broken(error) from None
        if skimmer.gave_up:
            return body
        return b"{%b}" % b",".join(b'"%b":%b' % (name.encode(), value) for name, value in skimmer.fields.items())

    def on_request(self, body: bytes | bytearray | None, trailers: list[bytes]) -> None:
        relay, manner = self._relay, self._manner
        now = self._received = monotonic()
        self._bytes_in = 0 if body is None else len(body)
        named = self._named
        if named is None:
            named = self._named = read_request(
                self.target,
                self._readable(body or b""),
                content_type=manner.content_type if manner.form else "",
                content_encoding=manner.content_encoding,
                model_header=manner.model,
                size=self._bytes_in,
            )
        self._body: bytes | bytearray | None = body
        self._trailers = trailers
        key = self.key
        if manner.priority is not None or named.priority is not None:
            self.priority = self._class(manner.priority or named.priority or "normal")
        resolved = self._resolved = relay.names.find(named.model)
        if resolved is None:
            raise relay.names.missing(named.model, None if key is None else relay.keyring.may_see(key))
        self.model = resolved.model
        if key is not None:
            if key.models:
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
            patience = self.held_until - now if self.held_until else relay.config.hold_timeout
        job = self._job = Job(
            route.model,
            self.tenant,
            self.priority,
            1.0 if self.key is None else self.key.weight,
            named.cost if 1.0 <= named.cost <= LARGEST else min(max(1.0, named.cost), LARGEST),
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
        if self._message:  # it was on its way before
            self._go()
            return
        body, rewritten = self._body, False
        if resolved.virtual is not None or resolved.name != named.model:
            body = self._renamed(resolved, body)
            rewritten = body is not self._body
        if self.key is not None and named.streams_usage and not named.include_usage and body:
            if named.options or len(body) < LARGE_BODY:
                asking = with_usage(body)
                self._strips = asking is not body
            else:
                asking = ask_for_usage(body)
                self._strips = True
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
            self._strand(error)
            return
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

    def own_fields(self) -> bytes:
        manner = self._manner
        fields = b"" if self.id == manner.id else b"X-Request-Id: %b\r\n" % self.id.encode()
        if manner.websocket:
            fields += b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
        if self._trace is not None:
            fields += b"".join(line + b"\r\n" for line in self._trace.lines)
        return fields

    def _pass_trace(self, tracing: Tracing) -> None:
        """Have the engine's spans belong to this request's."""
        self.dropped = self.dropped | tracing.headers
        self._trace = self._begin_trace(tracing)
        self._trace.to_engine(monotonic())

    def _begin_trace(self, tracing: Tracing) -> Trace:
        asked = "" if self.model == UNKNOWN or self._named is None else self._named.model
        return tracing.begin(self.head.fields, self.method, self._path, asked, self.id, self.arrived)

    def unreachable(self, error: OSError) -> None:
        _log.warning("no connection to instance %s of %r: %s", self.instance, self.model, error)
        relay, instance = self._relay, self.instance
        relay.circuits.failed(instance, monotonic())
        relay.routes.end(instance)
        self._passed_over = (*self._passed_over, instance)
        self.instance = ""
        try:
            if len(self._passed_over) >= ATTEMPTS:
                self._strand(None)
            else:
                self._go()
        except ShoalError as refusal:
            self.connection.refuse(refusal)

    def on_unsent(self, error: OSError) -> None:
        self.upstream = None
        if not self.ended:
            self.unreachable(error)

    def reached(self) -> None:
        if self._relay.stranded:
            self._relay.resume(self.model)

    def _strand(self, refusal: ShoalError | None) -> None:
        """No instance takes the request (`refusal`: there is none), and none has seen anything of it: it is held as for
        a model that is waking. Raises ShoalError if that cannot be, or was for too long."""
        relay, now = self._relay, monotonic()
        route = relay.routes.find(self.model)
        if route is None or not (route.targets or route.comes):
            assert refusal is not None
            self.outcome = "unavailable" if route is not None else "client_error"
            raise refusal
        if not self._manner.patient or 0 < self.held_until <= now:
            self.outcome = "unavailable"
            raise relay.unreachable(self.model)
        self.held_until = self.held_until or now + relay.config.hold_timeout
        self._held = True
        self._stranded_at = now
        self._passed_over = ()
        job, self._job = self._job, None
        self.connection.limit(0.0)
        relay.free(job, now)
        if route.targets:
            relay.strand(self)
        else:  # the table knows already
            relay.loop.call_soon(self.resume)

    def resume(self) -> None:
        """There is another table, or an engine may take connections again: it asks for its turn once more."""
        if self.ended:
            return
        resolved = self._resolved
        assert resolved is not None
        self._waited += monotonic() - self._stranded_at
        self._candidates = (resolved.name,)
        try:
            self._submit()
        except ShoalError as error:
            self.connection.refuse(error)

    def refuse_stranded(self, error: ShoalError) -> None:
        """It was held for as long as it may."""
        self.outcome = "unavailable"
        self.connection.refuse(error)


def _broken(error: SkimError) -> ShoalError:
    return ShoalError(f"The body is not valid JSON: {error}.", code="invalid_json")
