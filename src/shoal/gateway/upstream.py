"""Connections to engines and to the controller: one request at a time on each, kept for the next where that is safe.

An `EngineConnection` turns bytes into a response's head and the parts of its body and hands them to whoever sent the
request (`Sender`). It decides nothing; what is broken it reports once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from typing import Protocol, cast

from shoal.gateway.framing import Framing, FramingError
from shoal.gateway.http1 import BARE, END, MAX_RESPONSE_HEAD, BadResponseError, ResponseHead, parse_response
from shoal.gateway.known import Known, repeated
from shoal.net import UnixAddress, parse_address

KEEPALIVE = 3.0
"""Seconds that an idle connection is kept: less than uvicorn's 5, so that no request meets a closing one."""

_HEADS = Known(parse_response)
Parts = tuple[bytes | bytearray, ...]
"""A message in pieces, of which none is empty."""


class Sender(Protocol):
    """Whoever waits for a response."""

    method: bytes
    whole: bool
    """Whether a response that is there in one piece may be handed over by `on_whole` instead of by what follows."""

    def on_whole(self, head: ResponseHead, content: bytes) -> None:
        """All of the response at once: a head with a length, and a body of that length. The connection is not the
        sender's any more."""

    def on_interim(self, head: ResponseHead) -> None:
        """A 1xx response, which another one follows."""

    def on_head(self, head: ResponseHead, framing: Framing) -> None:
        """The response's head; `framing` will read its body."""

    def on_head_alone(self) -> None:
        """Nothing of the body has come with the head."""

    def on_body(self, data: bytes, framing: Framing) -> None:
        """A part of the body as it is on the wire; `framing` has just read it."""

    def on_complete(self) -> None:
        """The response is there, whole. The connection is not the sender's any more."""

    def on_upgraded(self, head: ResponseHead, rest: bytes) -> None:
        """The engine has switched protocols; `rest` came after the head, and all further bytes go to
        `on_raw_back`."""

    def on_raw_back(self, data: bytes) -> None:
        """Bytes of the other protocol."""

    def on_unsent(self, error: OSError) -> None:
        """The connection had ended before the request was sent: nothing of it has reached the engine."""

    def on_broken(self, why: str) -> None:
        """The connection ended, or what came was no HTTP. Nothing follows."""

    def on_upstream_full(self, full: bool) -> None:
        """The engine does not take bytes as fast as they are written, or does again."""


class EngineConnection(asyncio.Protocol):
    """One connection to an engine."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._sender: Sender | None = None
        self._framing: Framing | None = None
        self._head = b""
        self._last: ResponseHead | None = None
        self._reusable = True
        self._at_once = False  # the request went out in one write, and nothing has come back
        self._raw = False
        self._paused = False
        self.shortcut: Callable[[bytes], bool] | None = None
        """Set by the sender between two whole chunks: it is asked first what it can do with the next bytes. If it
        returns False, it has done nothing; if True, they were whole chunks again, and all is done."""
        self.idle_until = 0.0
        """Loop time after which it is not to be used again."""

    # -- for senders --------------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self._transport is not None

    def send(self, sender: Sender, data: Parts, *, keep: bool = True) -> None:
        """Send a request. `keep`: whether another one may follow on this connection."""
        self._sender = sender
        self._reusable = keep
        transport = self._transport
        assert transport is not None
        if len(data) == 1:
            self._at_once = True
            transport.write(data[0])
        else:
            self._at_once = False
            transport.writelines(data)

    def write(self, data: bytes) -> None:
        """Send more of the request's body, or of another protocol."""
        self._at_once = False
        if self._transport is not None:
            self._transport.write(data)

    def abandon(self) -> None:
        """The sender has no more interest: what runs is to be cancelled."""
        self._sender = self.shortcut = None
        if self._transport is not None:
            self._transport.abort()

    def pause(self, wanted: bool) -> None:
        """Read nothing until told otherwise, so that the engine waits; or go on."""
        transport = self._transport
        if transport is None or wanted == self._paused or transport.is_closing():
            return
        self._paused = wanted
        if wanted:
            transport.pause_reading()
        else:
            transport.resume_reading()

    # -- for asyncio --------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._transport = None
        sender, self._sender = self._sender, None
        if sender is None:
            self._pool.gone(self)
        elif exc is None and self._framing is not None and self._framing.whole:
            sender.on_complete()
        elif isinstance(exc, BrokenPipeError) and self._at_once and self._framing is None and not self._head:
            sender.on_unsent(exc)  # the very first write was refused
        else:
            sender.on_broken(_reason(exc))

    def data_received(self, data: bytes) -> None:
        shortcut = self.shortcut
        if shortcut is not None and shortcut(data):
            return
        sender, framing = self._sender, self._framing
        if sender is None:  # nobody asked
            assert self._transport is not None
            self._transport.abort()
            return
        try:
            if framing is not None:
                end = framing.feed(data)
                sender.on_body(data if end == len(data) else data[:end], framing)
                if framing.done and self._sender is sender:
                    self._complete(sender, clean=end == len(data))
            elif self._raw:
                sender.on_raw_back(data)
            else:
                self._read_head(sender, data)
        except (BadResponseError, FramingError) as error:
            self.abandon()
            sender.on_broken(str(error))

    def pause_writing(self) -> None:
        if self._sender is not None:
            self._sender.on_upstream_full(True)

    def resume_writing(self) -> None:
        if self._sender is not None:
            self._sender.on_upstream_full(False)

    # -- reading ------------------------------------------------------------------------------------------------------

    def _read_head(self, sender: Sender, data: bytes) -> None:
        while True:
            seen = 0
            if self._head:
                seen = max(0, len(self._head) - 3)
                data, self._head = self._head + data, b""
            again = repeated(self._last, data)
            if again is not None:
                head, end = again
            else:
                end = data.find(END, seen) + 4
                if end < 4:
                    if len(data) > MAX_RESPONSE_HEAD:
                        raise BadResponseError("the head of its response is too long")
                    if not b"HTTP/1.".startswith(data[:7]) or BARE.search(data, seen):
                        raise BadResponseError("it answered with no HTTP")
                    self._head = data
                    return
                if end > MAX_RESPONSE_HEAD:
                    raise BadResponseError("the head of its response is too long")
                head = self._last = _HEADS.read(data[:end])
            self._at_once = False
            if head.status == 101:
                self._raw, self._reusable = True, False
                sender.on_upgraded(head, data[end:])
                return
            if head.status >= 200:
                break
            sender.on_interim(head)
            data = data[end:]
            if not data or self._sender is not sender:
                return
        if not head.keep_alive:
            self._reusable = False
        length = head.length
        if (
            length is not None
            and sender.whole
            and len(data) == end + length
            and head.sized
            and sender.method != b"HEAD"
        ):
            self._sender = None
            self._release(clean=True)
            sender.on_whole(head, data[end:])
            return
        framing = self._framing = head.framing(sender.method)
        sender.on_head(head, framing)
        if self._sender is not sender:
            return  # it has lost interest
        if framing.done:
            self._complete(sender, clean=end == len(data))
        elif end < len(data):
            self.data_received(data[end:])
        else:
            sender.on_head_alone()

    def _complete(self, sender: Sender, *, clean: bool) -> None:
        self._sender = self.shortcut = None
        self._framing = None
        self._release(clean=clean)
        sender.on_complete()

    def _release(self, *, clean: bool) -> None:
        """The response is over; `clean`: nothing came after it."""
        transport = self._transport
        assert transport is not None
        # An engine that answers before it has read the whole request would take the rest for another one, and may
        # never read it.
        unsent = transport.get_write_buffer_size()
        if clean and self._reusable and not unsent:
            if self._paused:
                self.pause(False)
            self._pool.keep(self)
        elif unsent:
            transport.abort()
        else:
            transport.close()

    def close(self) -> None:
        """Close it; it is idle."""
        if self._transport is not None:
            self._transport.close()


class Pool:
    """Connections to one address."""

    def __init__(self, address: str, connect_timeout: float) -> None:
        self.address = address
        self._timeout = connect_timeout
        self._loop = asyncio.get_running_loop()
        self._idle: deque[EngineConnection] = deque()
        self._open = True
        self._connecting: set[asyncio.Task[None]] = set()

    def take(self) -> EngineConnection | None:
        """An idle connection, the one used last, if there is one."""
        idle, now = self._idle, self._loop.time()
        while idle:
            connection = idle.pop()
            if connection.idle_until > now:
                return connection
            connection.close()
        return None

    def connect(self, done: Callable[[EngineConnection | OSError], None]) -> Callable[[], object]:
        """Make a connection; `done` gets it, or why there is none. Returns what gives it up, if called before that."""
        task = asyncio.create_task(self._connect(done))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        return task.cancel

    async def _connect(self, done: Callable[[EngineConnection | OSError], None]) -> None:
        parsed = parse_address(self.address)
        connection = EngineConnection(self)
        try:
            async with asyncio.timeout(self._timeout):
                if isinstance(parsed, UnixAddress):
                    await self._loop.create_unix_connection(lambda: connection, str(parsed.path))
                else:  # TCP_NODELAY is asyncio's default
                    await self._loop.create_connection(lambda: connection, parsed.host, parsed.port)
        except TimeoutError:
            done(TimeoutError(f"no connection within {self._timeout:g} s"))
        except OSError as error:
            done(error)
        except asyncio.CancelledError:
            connection.abandon()
            raise
        else:
            done(connection if connection.is_open else ConnectionResetError("it closed the connection at once"))

    def keep(self, connection: EngineConnection) -> None:
        """Keep an idle connection for a while."""
        if not self._open:
            connection.close()
            return
        connection.idle_until = self._loop.time() + KEEPALIVE
        self._idle.append(connection)

    def gone(self, connection: EngineConnection) -> None:
        """An idle connection has ended."""
        if connection in self._idle:
            self._idle.remove(connection)

    def sweep(self, now: float) -> None:
        """Close what has idled for too long."""
        while self._idle and self._idle[0].idle_until <= now:
            self._idle.popleft().close()

    def close(self) -> None:
        """Keep none any more, and close those that idle."""
        self._open = False
        while self._idle:
            self._idle.popleft().close()


class Pools:
    """A pool for each address that the routing table names."""

    def __init__(self, connect_timeout: float) -> None:
        self._timeout = connect_timeout
        self._pools: dict[str, Pool] = {}

    def of(self, address: str) -> Pool:
        """The pool of an address."""
        pool = self._pools.get(address)
        if pool is None:
            pool = self._pools[address] = Pool(address, self._timeout)
        return pool

    def keep_only(self, addresses: Collection[str]) -> None:
        """Close the pools of all others; requests that run on their connections go on."""
        for address in [address for address in self._pools if address not in addresses]:
            self._pools.pop(address).close()

    def sweep(self, now: float) -> None:
        """Close connections that have idled for too long."""
        for pool in self._pools.values():
            pool.sweep(now)

    def close(self) -> None:
        """Close every idle connection."""
        self.keep_only(())


def _reason(exc: BaseException | None) -> str:
    return "it closed the connection" if exc is None else " ".join(str(exc).split())[:300] or type(exc).__name__
