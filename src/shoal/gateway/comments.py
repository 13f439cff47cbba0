"""Streams that are held for a model which does not serve yet, and say so meanwhile.

Proxies and clients give up on an answer of which nothing comes for a minute. Who sends `x-shoal-hold: comments` gets
the head of the answer early, and an SSE comment every few seconds, which clients of event streams ignore. From then on
the answer is an event stream whatever happens: the engine's, or one event that holds an error.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from shoal.errors import ShoalError, error_event, told_in_stream
from shoal.gateway.framing import Framing, chunk
from shoal.gateway.http1 import Place, RequestHead, ResponseHead
from shoal.gateway.inference import Inference
from shoal.gateway.manner import Manner
from shoal.gateway.passage import Mode
from shoal.gateway.reading import reader_for
from shoal.gateway.server import ClientConnection
from shoal.gateway.virtual import Resolved
from shoal.messages import Route

if TYPE_CHECKING:
    from shoal.gateway.relay_native import NativeRelay

INTERVAL = 5.0
"""Seconds before the first comment, and between two. A model that is there earlier is answered for as always."""
MAX_ERROR = 64 * 1024
"""Bytes of an engine's refusal that are passed on; of a longer one only its status is."""
_SHOWN = 300
_NO_CODING = frozenset({b"accept-encoding"})
_HEAD = (
    b"HTTP/1.1 200 OK",
    b"Content-Type: text/event-stream; charset=utf-8",
    b"Cache-Control: no-cache",
    b"X-Accel-Buffering: no",  # what is in front is to pass comments on, for which it is to be told
    b"Server: shoal",
)
_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")


def comment(model: str, detail: str) -> bytes:
    """An SSE comment that says what is waited for, on one line whatever is in it."""
    text = f"waiting for {model}: {detail}"
    line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return f": {line[:_SHOWN]}\n\n".encode()


def engine_error(path: str, status: int, body: bytes) -> bytes:
    """An SSE event for an engine's answer on `path` that is no stream: its own words, if they are JSON that says
    `error`."""
    if status < 400:
        message = f"The engine answered with {status} and no event stream, which `stream` asks for."
        return told_in_stream(path, ShoalError(message, status=502, code="not_a_stream"))
    try:
        said = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        said = None
    if isinstance(said, dict) and said.get("error"):
        return error_event(path, body.translate(_ONE_LINE))  # there are no line ends within JSON strings
    told = said.get("message") or said.get("detail") if isinstance(said, dict) else said
    if told is not None and not isinstance(told, str):
        told = msgspec.json.encode(told).decode()
    message = f"The engine refused with {status}" + (f": {told[:_SHOWN]}" if told else ".")
    return told_in_stream(path, ShoalError(message, status=status, code="engine_refused"))


class Commented(Inference):
    """A request that wants to be told that it is held. If it is no stream, or is not held, it is one like others."""

    whole = False  # an answer has to be looked at before it is passed on

    def __init__(
        self, relay: NativeRelay, connection: ClientConnection, head: RequestHead, place: Place, manner: Manner
    ) -> None:
        super().__init__(relay, connection, head, place, manner)
        self._begun = False  # the head of an event stream has been written
        self._timer: asyncio.TimerHandle | None = None
        self._other: ResponseHead | None = None  # the engine's answer, if it is no stream
        self._said = bytearray()

    # -- while it is held ---------------------------------------------------------------------------------------------

    def _enter(self, resolved: Resolved, route: Route, now: float) -> None:
        super()._enter(resolved, route, now)
        named = self._named
        if named is not None and named.stream and (self._begun or not route.targets) and self._timer is None:
            self._timer = self._relay.loop.call_later(INTERVAL, self._tick)

    def _strand(self, refusal: ShoalError | None) -> None:
        super()._strand(refusal)
        if self._named is not None and self._named.stream and self._timer is None:
            self._timer = self._relay.loop.call_later(INTERVAL, self._tick)

    def _tick(self) -> None:
        self._timer = None
        job, stranded = self._job, self in self._relay.stranded
        if self.ended or not (stranded or (job is not None and job.state == "waiting")):
            return
        self._timer = self._relay.loop.call_later(INTERVAL, self._tick)
        if self.connection.full:  # a client that reads nothing needs no more of it
            return
        if not self._begun:
            self._begin()
        route = self._relay.routes.find(self.model)
        detail = "" if route is None else "its turn comes" if route.targets else route.detail or route.state
        detail = "its engine takes no connections" if stranded else detail
        self._put(comment(self.model, detail))

    def _begin(self) -> None:
        """Write the head of the answer, which may be all that is known of it for long."""
        self._begun = True
        self._keep_alive = self.head.keep_alive and not self.closes
        lines = [*_HEAD, b"x-request-id: " + self.id.encode()]
        if self._anthropic:
            lines.append(b"request-id: " + self.id.encode())
        if self.head.minor:
            self._mode = Mode.CHUNKED
            lines.append(b"Transfer-Encoding: chunked")
        else:
            self._mode = Mode.PLAIN
            self._keep_alive = False
        if not self._keep_alive:
            lines.append(b"Connection: close")
        self.connection.write(b"\r\n".join((*lines, self._relay.cors_fields(self.head) + b"\r\n")))

    def _put(self, content: bytes) -> None:
        self.connection.write(chunk(content) if self._mode is Mode.CHUNKED else content)

    def _close(self, event: bytes) -> None:
        """End the answer with an event."""
        self._put(event)
        if self._mode is Mode.CHUNKED:
            self.connection.write(b"0\r\n\r\n")
        self.connection.finish(keep_alive=self._keep_alive)

    def start(self) -> None:
        if self._begun or (self._named is not None and self._named.stream):
            # No coding was announced, or will have been if it is to be held after all.
            self.dropped = self.dropped | _NO_CODING
        super().start()

    # -- the engine's answer ------------------------------------------------------------------------------------------

    def on_interim(self, head: ResponseHead) -> None:
        if not self._begun:  # later there is no place for it
            super().on_interim(head)

    def on_head(self, head: ResponseHead, framing: Framing) -> None:
        if not self._begun:
            super().on_head(head, framing)
            return
        self._message = ()
        self._relay.circuits.succeeded(self.instance)
        if self._relay.timed:
            self._relay.set_deadline(self)
        if self.connection.full and self.upstream is not None:
            self.upstream.pause(True)
        kind = head.fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
        coding = head.fields.get(b"content-encoding", b"identity").lower()
        if head.status != 200 or kind != b"text/event-stream" or coding != b"identity":
            self._other = head
            return
        self.response = head
        self._events = True
        if not framing.done:
            self._reader = reader_for(head, self._strips)

    def on_body(self, data: bytes, framing: Framing) -> None:
        if self._other is None:
            super().on_body(data, framing)
            return
        if len(self._said) <= MAX_ERROR:
            self._said += framing.content

    def on_complete(self) -> None:
        head = self._other
        if head is None:
            super().on_complete()
            return
        self.upstream = None
        self._finish(head.status if head.status >= 400 else 502)
        self._close(engine_error(self._path, head.status, bytes(self._said) if len(self._said) <= MAX_ERROR else b""))

    # -- the end ------------------------------------------------------------------------------------------------------

    def on_refused(self, error: ShoalError) -> bool:
        if super().on_refused(error):
            return True
        if self._begun:
            self._close(told_in_stream(self._path, error))
        return self._begun

    def end(self, status: int | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super().end(status)
