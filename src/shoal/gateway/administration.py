"""Requests that are not inference: to the controller, as they came; and those that the relay answers itself."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from shoal.errors import ShoalError
from shoal.gateway.answers import answer
from shoal.gateway.heads import PEER_HEADER, body_limit
from shoal.gateway.http1 import RequestHead
from shoal.gateway.local import controller_away, health_without_controller
from shoal.gateway.passage import Passage
from shoal.gateway.server import ClientConnection

if TYPE_CHECKING:
    from shoal.gateway.relay_native import NativeRelay

HEALTH_TIMEOUT = 2.0
"""Seconds after which a controller that does not answer a health probe counts as away."""
_DROPPED = frozenset({b"expect", PEER_HEADER})
_log = logging.getLogger(__name__)


class Administration(Passage):
    """A request to the controller."""

    def __init__(
        self, relay: NativeRelay, connection: ClientConnection, head: RequestHead, target: str, path: str
    ) -> None:
        super().__init__(connection, head, target, body_limit(path, relay.config.max_body))
        self.dropped = _DROPPED
        self._relay = relay
        self._health = health_without_controller(path, relay.routes)
        self._sent = False

    def on_request(self, body: bytes | bytearray | None, trailers: list[bytes]) -> None:
        if self._health is not None:
            self.connection.deadline = self._relay.now() + HEALTH_TIMEOUT
        # A connection of its own: one that idles may close just as a request comes, and these are few.
        self.forward(self._relay.controller, self.message(body, trailers), keep=False)

    def own_fields(self) -> bytes:
        return b"X-Shoal-Peer: %b\r\n" % (self.connection.peer or "unknown").encode("ascii", "replace")

    def unreachable(self, error: OSError) -> None:
        _log.debug("no connection to the controller: %s", error)
        self._away(sent=False)

    def on_broken(self, why: str) -> None:
        self.upstream = None
        if self.ended:
            return
        if self.response is None:
            self._away(sent=True)
        else:
            self.break_off(self.broke_off(why))

    def broke_off(self, why: str) -> ShoalError:
        _log.warning("the controller broke off: %s", why)
        return controller_away(sent=True)

    def on_timeout(self) -> None:
        if self.response is None:
            self._drop_upstream()
            self._away(sent=True)

    def end(self, status: int | None) -> None:
        del status
        self._relay.errands.discard(self)

    def _away(self, *, sent: bool) -> None:
        self._finish(None)
        if self._health is None:
            self.connection.refuse(controller_away(sent=sent))
        else:
            say(self.connection, self.head, *self._health)


class Told:
    """A request that the relay answers from its own knowledge; a body that it may have is read and thrown away."""

    def __init__(
        self,
        connection: ClientConnection,
        head: RequestHead,
        status: int,
        body: dict[str, Any] | None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self._connection = connection
        self._head = head
        self._status = status
        self._body = body
        self._headers = headers
        self.max_body = 2**20

    def on_part(self, content: bytes) -> bool:
        """Thrown away."""
        del content
        return False

    def on_request(self, body: bytes | bytearray | None, trailers: list[bytes]) -> None:
        """Answer it."""
        del body, trailers
        say(self._connection, self._head, self._status, self._body, self._headers)

    def on_gone(self) -> None:
        """Nothing runs for it."""

    def on_refused(self, error: ShoalError) -> bool:
        """Nothing runs for it."""
        del error
        return False

    def on_full(self, full: bool) -> None:
        """All is written already."""

    def on_raw(self, data: bytes) -> None:
        """There is no other protocol."""

    def on_timeout(self) -> None:
        """It takes no time."""


def say(
    connection: ClientConnection,
    head: RequestHead,
    status: int,
    body: dict[str, Any] | None,
    headers: dict[str, str] | None = None,
) -> None:
    """Answer with JSON of the relay's own, or without a body (204)."""
    keep = head.keep_alive and not connection.front.stopping
    connection.write(answer(status, body, headers, head, close=not keep))
    connection.finish(keep_alive=keep)
