"""Connections of the load generator: one request after the other, or one stream read to wherever it is cut."""

from __future__ import annotations

import asyncio
import time
from typing import cast

import httptools

from . import bodies


class Client(asyncio.Protocol):
    """A connection that feeds what comes to a parser; `closed` is set at its end."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self.transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one, without the base class

    def connection_lost(self, _error: Exception | None) -> None:
        self.transport = None
        self.closed.set()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.abort()

    def abort(self) -> None:
        """Close at once, whatever is under way."""
        if self.transport is not None:
            self.transport.abort()


class Asker(Client):
    """Sends the same request again as soon as the last one is answered. `latencies` in nanoseconds."""

    def __init__(self, request: bytes) -> None:
        super().__init__()
        self.latencies: list[int] = []
        self.failed = 0
        self._request = request
        self._sent = 0
        self._over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._send()

    def finish(self) -> None:
        """No more requests; what is under way counts for nothing."""
        self._over = True
        self.abort()

    def connection_lost(self, _error: Exception | None) -> None:
        if self._sent and not self._over:
            self.failed += 1
        super().connection_lost(_error)

    def _send(self) -> None:
        if self.transport is not None:
            self._sent = time.monotonic_ns()
            self.transport.write(self._request)

    def on_message_complete(self) -> None:
        """A response is whole."""
        now = time.monotonic_ns()
        if self._parser.get_status_code() == 200:
            self.latencies.append(now - self._sent)
        else:
            self.failed += 1
        self._sent = 0
        if self._parser.should_keep_alive():
            self._send()
        elif self.transport is not None:
            self.transport.close()


class Reader(Client):
    """Sends one request for a stream and notes when its events come. Times in monotonic nanoseconds."""

    def __init__(self, request: bytes) -> None:
        super().__init__()
        self.begun = asyncio.Event()
        self.sent = self.first = 0
        self.events = 0
        self.delays: list[int] = []
        self.status = 0
        self._request = request
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.sent = time.monotonic_ns()
        assert self.transport is not None
        self.transport.write(self._request)

    @property
    def wrong(self) -> str:
        """What went wrong, if anything did: another answer than a stream, or an end that nobody here asked for."""
        if self.status not in (0, 200):
            return f"status {self.status}"
        return f"closed after {self.events} events" if self.closed.is_set() else ""

    def restart(self) -> None:
        """Count from here on."""
        self.events = 0
        self.delays = []

    def on_headers_complete(self) -> None:
        """A head is whole."""
        self.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        """A part of the stream; an event may be cut anywhere, or come with others."""
        now = time.monotonic_ns()
        whole, mark, self._rest = (self._rest + data).rpartition(b"\n\n")
        if not mark:
            return
        found = bodies.stamps(whole)
        self.events += len(found)
        self.delays += [now - stamp for stamp in found]
        if not self.first:
            self.first = now
            self.begun.set()
