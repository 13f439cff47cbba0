"""An inference request on its way to an engine: what is known of it, which instance takes it, and what if none does."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING

from shoal.errors import ShoalError
from shoal.gateway.admission import Job
from shoal.gateway.http1 import Place, RequestHead
from shoal.gateway.inspect import Named
from shoal.gateway.manner import Manner
from shoal.gateway.measures import Books
from shoal.gateway.passage import Passage
from shoal.gateway.reading import Reader
from shoal.gateway.routes import UNKNOWN
from shoal.gateway.server import ClientConnection
from shoal.gateway.skim import Skimmer
from shoal.gateway.upstream import Parts
from shoal.gateway.usage import Tokens
from shoal.gateway.virtual import Resolved
from shoal.messages import Key, Outcome, Priority

if TYPE_CHECKING:
    from shoal.gateway.relay_native import NativeRelay
    from shoal.gateway.tracing import Trace, Tracing

ATTEMPTS = 2
"""Instances that are tried, if no connection can be made to the first."""
_log = logging.getLogger(__name__)


class Reaching(Passage):
    """A request to an engine, from when its turn has come until it is sent. `Asking` is what comes before that."""

    __slots__ = (
        "_anthropic", "_body", "_books", "_bytes_in", "_bytes_out", "_charged", "_first_part", "_job", "_last_part",
        "_manner", "_message", "_named", "_overhead", "_path", "_reader", "_received", "_relay", "_resolved",
        "_tokens", "_trailers", "_waited", "arrived", "id", "instance", "key", "model", "outcome", "priority",
        "tenant",
    )  # fmt: skip
    _body: bytes | bytearray | None
    _last_part: float
    _received: float

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

    def _submit(self, refusal: ShoalError | None = None) -> None:
        """Wait for a turn at the first of the candidates that serves, or will. Raises ShoalError if none does: what
        the first of them was refused with, which is `refusal` if that was before."""
        raise NotImplementedError

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
            self.outcome = "unavailable" if route is not None else "client_error"
            # Where connections failed before, the table has changed meanwhile.
            raise refusal or (relay.names.missing(self.model) if route is None else relay.unready(route))
        if not self._manner.patient or 0 < self.held_until <= now:
            self.outcome = "unavailable"
            raise relay.unreachable(self.model)
        others = relay.stranded.count(self.model)
        if others + relay.admission.waiting(self.model) >= relay.config.queue_length:
            self.outcome = "refused"
            raise relay.admission.refusal(self.model, now, others=others)
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
