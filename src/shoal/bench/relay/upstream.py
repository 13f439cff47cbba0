"""A fake engine that costs next to nothing: `python -m shoal.bench.relay.upstream --fd N --uds PATH`.

It reads which of the models of `bodies` a chat request names and answers at once, or streams events without end, each
with the moment it was made, until the client goes away. `GET /stats` says how many it streams and how many were left.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import httptools
import msgspec
import uvloop

from shoal.ending import asked_to_end

from . import bodies

_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


class _Asked(msgspec.Struct):
    model: str


_ASKED = msgspec.json.Decoder(_Asked)


def _json(status: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


@dataclass(slots=True)
class Stats:
    """Streams begun, running now, and ended because the client left; connections open now."""

    begun: int = 0
    running: int = 0
    cancelled: int = 0
    connections: int = 0


class Upstream:
    """What the connections share: the numbers, and which streams are in step."""

    def __init__(self, interval: float = 1 / bodies.RATE) -> None:
        """`interval`: seconds between two events of a stream."""
        self.interval = interval
        self.stats = Stats()
        self.answer = _json(b"200 OK", bodies.answer())
        self._in_step: set[Connection] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self) -> Connection:
        """A protocol for a new connection."""
        return Connection(self)

    def join(self, connection: Connection) -> None:
        """From now on send this stream its events together with the others that are in step."""
        self._in_step.add(connection)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(loop.time() + self.interval, self._step, loop.time() + self.interval)

    def leave(self, connection: Connection) -> None:
        """This stream has ended."""
        self._in_step.discard(connection)

    def _step(self, due: float) -> None:
        self._timer = None
        for connection in list(self._in_step):
            connection.send_event()
        if self._in_step:
            loop = asyncio.get_running_loop()
            due = max(due + self.interval, loop.time())
            self._timer = loop.call_at(due, self._step, due)


class Connection(asyncio.Protocol):
    """One connection; its requests one after the other."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._url = b""
        self._body = b""
        self._model = ""
        self._paused = False
        self._due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one, without the base class
        self._upstream.stats.connections += 1

    def connection_lost(self, _error: Exception | None) -> None:
        self._upstream.stats.connections -= 1
        if self._timer is not None:
            self._timer.cancel()
        self._upstream.leave(self)
        self._transport = None
        if self._model:
            self._upstream.stats.running -= 1
            self._upstream.stats.cancelled += 1

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._send(_json(b"400 Bad Request", b'{"error":{"message":"This is no HTTP/1.1."}}'))
            if self._transport is not None:
                self._transport.close()

    # What httptools calls.

    def on_message_begin(self) -> None:
        self._url, self._body = b"", b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._url == bodies.PATH.encode():
            self._answer()
        elif self._url == b"/stats":
            self._send(_json(b"200 OK", msgspec.json.encode(asdict(self._upstream.stats))))
        else:
            self._send(_json(b"200 OK", b'{"object":"list","data":[]}'))

    def _answer(self) -> None:
        try:
            model = _ASKED.decode(self._body).model
        except msgspec.DecodeError:
            self._send(_json(b"400 Bad Request", b'{"error":{"message":"The body names no model."}}'))
            return
        if model not in bodies.STREAMS:
            self._send(self._upstream.answer)
            return
        self._model = model
        self._upstream.stats.begun += 1
        self._upstream.stats.running += 1
        if model == bodies.LATE:
            self._timer = self._loop.call_later(bodies.FIRST_WAIT, self._begin)
        else:
            self._begin()

    def _begin(self) -> None:
        """Head and first event in one write, as engines send them."""
        self._send(_STREAM_HEAD + bodies.chunk(bodies.event(self._model, time.monotonic_ns())))
        if self._model == bodies.STEPS:
            self._upstream.join(self)
        else:
            self._due = self._loop.time() + self._upstream.interval
            self._timer = self._loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        self.send_event()
        # From when it was due, so that the rate stays; but what was missed is not made up for in a burst.
        self._due = max(self._due + self._upstream.interval, self._loop.time())
        self._timer = self._loop.call_at(self._due, self._tick)

    def send_event(self) -> None:
        """The next event, unless the client does not read."""
        if not self._paused:
            self._send(bodies.chunk(bodies.event(self._model, time.monotonic_ns())))

    def _send(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


async def _serve(sock: socket.socket, path: Path) -> None:
    ended = asked_to_end()
    loop, upstream = asyncio.get_running_loop(), Upstream()
    servers = (
        await loop.create_server(upstream, sock=sock, backlog=2048),
        await loop.create_unix_server(upstream, path, backlog=2048),
    )
    await ended.wait()
    for server in servers:
        server.close()


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m shoal.bench.relay.upstream", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="inherited TCP socket to serve on")
    parser.add_argument("--uds", type=Path, required=True, help="Unix socket to serve on too")
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(socket.socket(fileno=options.fd), options.uds))


if __name__ == "__main__":
    main()
