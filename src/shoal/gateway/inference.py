"""One inference request: whom it is from, what it names, when its turn is, and how it ends."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from shoal.errors import ShoalError
from shoal.gateway.framing import Framing
from shoal.gateway.http1 import RequestHead, ResponseHead
from shoal.gateway.inspect import MODEL_HEADER, model_of
from shoal.gateway.passage import Passage
from shoal.gateway.routes import UNKNOWN
from shoal.gateway.server import ClientConnection
from shoal.gateway.upstream import Parts
from shoal.messages import Outcome

if TYPE_CHECKING:
    from shoal.gateway.relay_native import NativeRelay

_log = logging.getLogger(__name__)
_MODEL_HEADER = MODEL_HEADER.encode()
ATTEMPTS = 2
"""Instances that are tried, if no connection can be made to the first."""


class Inference(Passage):
    """A request to an engine."""

    def __init__(self, relay: NativeRelay, connection: ClientConnection, head: RequestHead, target: str) -> None:
        super().__init__(connection, head, target, relay.config.max_body)
        self._relay = relay
        self.model = UNKNOWN
        self.instance = ""
        self.outcome: Outcome = "cancelled"
        self._message: Parts = ()
        self._passed_over: list[str] = []

    # -- the way there ------------------------------------------------------------------------------------------------

    def on_request(self, body: bytes | bytearray | None, trailers: list[bytes]) -> None:
        fields = self.head.fields
        header = fields.get(_MODEL_HEADER)
        self.model = model_of(
            self.target,
            body or b"",
            content_type=fields.get(b"content-type", b"").decode("latin-1"),
            content_encoding=fields.get(b"content-encoding", b"").decode("latin-1"),
            model_header=None if header is None else header.decode("utf-8", "replace"),
        )
        self._message = self.message(body, trailers)
        self._go()

    def _go(self) -> None:
        try:
            engine = self._relay.routes.pick(self.model, without=self._passed_over)
        except ShoalError as error:
            if not self._passed_over:
                self.outcome = "unavailable" if error.status == 503 else "client_error"
                raise
            raise self._unreachable_error() from None
        self.instance = engine.instance
        self._relay.routes.begin(engine.instance)
        self.forward(self._relay.pools.of(engine.address), self._message)

    def unreachable(self, error: OSError) -> None:
        _log.warning("no connection to instance %s of %r: %s", self.instance, self.model, error)
        self._leave_instance()
        try:
            if len(self._passed_over) >= ATTEMPTS:
                raise self._unreachable_error()
            self._go()
        except ShoalError as refusal:
            self.connection.refuse(refusal)

    def _leave_instance(self) -> None:
        if self.instance:
            self._relay.routes.end(self.instance)
            self._passed_over.append(self.instance)
            self.instance = ""

    def _unreachable_error(self) -> ShoalError:
        self.outcome = "engine_error"
        return ShoalError(
            f"The engine of {self.model!r} does not take connections; send the request again in a moment.",
            status=502,
            code="engine_connection_failed",
        )

    # -- the way back -------------------------------------------------------------------------------------------------

    def on_head(self, head: ResponseHead, framing: Framing) -> None:
        self._message = ()  # a stream may run for minutes; its request need not stay in memory
        super().on_head(head, framing)

    def broke_off(self, why: str) -> ShoalError:
        _log.warning("instance %s of %r broke off: %s", self.instance, self.model, why)
        self.outcome = "engine_error"
        when = "before it answered" if self.response is None else "while it answered"
        return ShoalError(
            f"The engine of {self.model!r} broke off {when}; send the request again.", status=502, code="engine_died"
        )

    def on_refused(self, error: ShoalError) -> None:
        if not self.ended and self.outcome == "cancelled":
            self.outcome = "client_error" if error.status < 500 else "engine_error"
        super().on_refused(error)

    def end(self, status: int | None) -> None:
        relay = self._relay
        relay.running.discard(self)
        if self.instance:
            relay.routes.end(self.instance)
        if status is not None:
            self.outcome = "ok" if status < 400 else "client_error" if status < 500 else "engine_error"
        relay.routes.count(self.model, self.outcome)
