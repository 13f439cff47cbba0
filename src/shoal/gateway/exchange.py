"""What a client's connection and what answers its requests know of each other."""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Protocol

from shoal.errors import ShoalError
from shoal.gateway.http1 import RequestHead

if TYPE_CHECKING:
    from shoal.gateway.server import ClientConnection


class State(Enum):
    """What a connection does."""

    HEAD = auto()
    """Waits for a request, or reads its head."""
    BODY = auto()
    BUSY = auto()
    """A request is being answered."""
    RAW = auto()
    """Another protocol (a websocket) is spoken; bytes go to the exchange."""
    CLOSING = auto()
    """What comes is thrown away."""


class Exchange(Protocol):
    """One request and its response, from the head to the end."""

    max_body: int

    def on_part(self, content: bytes) -> bool:
        """A part of the body. False: it need not be kept, the exchange has taken it."""

    def on_request(self, body: bytes | bytearray | None, trailers: list[bytes]) -> None:
        """The request is there, whole; `body` is None if it has none. The answer may be written from now on."""

    def on_gone(self) -> None:
        """The client has left."""

    def on_refused(self, error: ShoalError) -> bool:
        """The connection is about to answer with `error` in its place. True: it need not; a part of the answer was
        written already, and the exchange has ended it."""

    def on_full(self, full: bool) -> None:
        """The client does not read as fast as is written, or does again."""

    def on_raw(self, data: bytes) -> None:
        """Bytes of another protocol."""

    def on_timeout(self) -> None:
        """`deadline` of the connection has passed while the request was being answered."""


class Front(Protocol):
    """What connections belong to."""

    header_timeout: float
    body_timeout: float
    idle_timeout: float
    stopping: bool
    connections: set[ClientConnection]

    def open(self, connection: ClientConnection, head: RequestHead) -> Exchange:
        """Begin an exchange. Raises ShoalError to refuse it before its body is read."""

    def fault(self, error: BaseException) -> None:
        """A fault of the relay's own is to be logged."""

    def full(self) -> bool:
        """Whether there are as many connections as are allowed."""
