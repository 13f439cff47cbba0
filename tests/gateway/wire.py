"""Both ends of a relay as bytes: parsers that forgive nothing, and the native relay with its sockets taken away.

A `Bench` feeds the connections of a real relay by hand, so that ten thousand streams, each cut where one likes, are a
matter of seconds. What an engine gets is read by h11, which shares no line with the relay.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import h11
import uvloop

from shoal.gateway.relay_native import NativeRelay
from shoal.gateway.server import ClientConnection
from shoal.gateway.upstream import EngineConnection, Pool
from tests.gateway.harness import Engine, World, route

_OWN = re.compile(rb"x-shoal-.*|(?:x-)?request-id").fullmatch
"""Names of fields that the relay adds to say how it went."""
_OWN_ID = re.compile(rb"req-[0-9a-f]{8}-[0-9a-f]+|req-[0-9a-f]+").fullmatch
"""Ids that relays give to requests without one."""
Headers = tuple[tuple[bytes, bytes], ...]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
MARKER = b"-the-end-"
PROBE = b"GET /v1/probe?model=m HTTP/1.1\r\nHost: h\r\n\r\n"
"""A last request: its answer, which has `MARKER` for its body, shows that the connection is still in order."""
PROBED = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n" + MARKER


@dataclass(frozen=True)
class Seen:
    """A request as an engine reads it."""

    method: bytes
    target: bytes
    headers: Headers
    body: bytes
    trailers: Headers = ()

    def values(self, name: bytes) -> list[bytes]:
        """The values of a header (lower case)."""
        return [value for key, value in self.headers if key == name]


class Requests:
    """Reads requests; asserts that each is framed in one way only."""

    def __init__(self) -> None:
        self.pending = b""
        """Bytes of a request that is not there, whole."""
        self._begin()

    def _begin(self) -> None:
        self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=2**20)
        self._head: h11.Request | None = None
        self._body = b""

    def feed(self, data: bytes) -> list[Seen]:
        """The requests that end in `data`."""
        self.pending += data
        self._parser.receive_data(data)
        seen = []
        while True:
            event = self._parser.next_event()
            if isinstance(event, h11.Request):
                self._check(event)
                self._head = event
            elif isinstance(event, h11.Data):
                self._body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert self._head is not None
                head = self._head
                headers = tuple(field for field in head.headers if not _OWN_ID(field[1]))
                seen.append(Seen(head.method, head.target, headers, self._body, tuple(event.headers)))
                self.pending, _ = self._parser.trailing_data
                self._begin()
                if self.pending:
                    self._parser.receive_data(self.pending)
            else:
                assert event is h11.NEED_DATA
                return seen

    def _check(self, request: h11.Request) -> None:
        head = self.pending[: self.pending.index(b"\r\n\r\n")]
        lines = head.split(b"\r\n")
        assert all(b"\r" not in line and b"\n" not in line and b"\0" not in line for line in lines)
        names = [line.partition(b":")[0].lower() for line in lines[1:]]
        assert names == [name for name, _ in request.headers]
        assert request.http_version == b"1.1"
        assert names.count(b"host") == 1
        assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1


@dataclass(frozen=True)
class Answer:
    """A response as a client reads it."""

    status: int
    reason: bytes
    headers: Headers
    body: bytes
    complete: bool
    trailers: Headers = ()

    def get(self, name: bytes) -> bytes | None:
        """The value of a header (lower case)."""
        values = [value for key, value in self.headers if key == name]
        return b", ".join(values) if values else None


def read_answers(raw: bytes, methods: Iterable[bytes], *, closed: bool) -> list[Answer]:
    """The responses, but for 1xx, to requests of these methods (GET for all after them), and nothing else besides."""
    answers: list[Answer] = []
    rest, following = raw, iter(methods)
    while rest:
        client = h11.Connection(h11.CLIENT, max_incomplete_event_size=2**20)
        client.send(h11.Request(method=next(following, b"GET"), target="/", headers=[("Host", "h")]))
        client.send(h11.EndOfMessage())
        client.receive_data(rest)
        if closed:
            client.receive_data(b"")
        head: h11.Response | None = None
        trailers: Headers = ()
        body, ended, cut_off = b"", False, ""
        try:
            while not ended and (event := client.next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.Response):
                    head = event
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    ended, trailers = True, tuple(event.headers)
                else:
                    assert isinstance(event, h11.InformationalResponse)
        except h11.RemoteProtocolError as error:
            cut_off = str(error)
        assert not cut_off or (head is not None and "closed connection" in cut_off), cut_off
        if head is None:
            assert not closed, rest
            return answers
        answers.append(Answer(head.status_code, bytes(head.reason), tuple(head.headers), body, ended, trailers))
        rest = client.trailing_data[0] if ended else b""
    return answers


@dataclass
class Outcome:
    """What came of a stream of requests."""

    seen: list[Seen]
    raw: bytes
    closed: bool

    def answers(self, methods: Iterable[bytes] = ()) -> list[Answer]:
        """The responses to requests of these methods (see `read_answers`), without what relays add."""
        answers = read_answers(self.raw, methods, closed=self.closed)
        return [replace(answer, headers=tuple(f for f in answer.headers if not _OWN(f[0]))) for answer in answers]


Say = Callable[[Seen], tuple[list[bytes], bool]]
"""What an engine answers: the bytes in the pieces in which they come, and whether it then closes the connection."""


def say_ok(seen: Seen) -> tuple[list[bytes], bool]:
    return [PROBED if seen.target.startswith(b"/v1/probe") else OK], False


class Wire(asyncio.Transport):
    """A transport that is fed by hand and keeps what is written to it."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._waiting: list[bytes] = []
        self._reading = True
        self.written = bytearray()
        self.closed = False
        """Whether the relay has closed it."""
        protocol.connection_made(self)

    def feed(self, data: bytes) -> None:
        """Bytes arrive."""
        self._waiting.append(data)
        while self._waiting and self._reading and not self.closed:
            self._protocol.data_received(self._waiting.pop(0))

    def lose(self) -> None:
        """The other side closes."""
        if not self.closed:
            self.closed = True
            self._protocol.connection_lost(None)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.closed:
            self.written += data

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        for data in list_of_data:
            self.write(data)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._loop.call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        self.close()

    def write_eof(self) -> None:
        self.close()

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self._loop.call_soon(self.feed, b"")

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is ever full."""

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: object = None) -> object:
        return ("127.0.0.1", 1) if name == "peername" else default


class BenchPool(Pool):
    """Makes connections to an engine that is played by a `Bench`."""

    def __init__(self, bench: Bench) -> None:
        super().__init__("unix:/none", 5.0)
        self._bench = bench

    def connect(self, done: Callable[[EngineConnection | OSError], None]) -> Callable[[], object]:
        connection = EngineConnection(self)
        self._bench.engines.append((Wire(connection), Requests()))
        return self._loop.call_soon(done, connection).cancel


class Bench:
    """A native relay whose clients, engine for the model `m` and controller are bytes in the hand."""

    def __init__(self, world: World, runner: asyncio.Runner) -> None:
        assert isinstance(world.relay, NativeRelay)
        self.relay = world.relay
        self.say: Say = say_ok
        self.engines: list[tuple[Wire, Requests]] = []
        self.run = runner.run
        self._seen: list[Seen] = []

    def exchange(self, pieces: Iterable[bytes]) -> Outcome:
        """Send `pieces` over a new connection; what has come of it once nothing happens any more."""
        return self.run(self._exchange(pieces))

    async def _exchange(self, pieces: Iterable[bytes]) -> Outcome:
        self._seen = []
        client = Wire(ClientConnection(self.relay, asyncio.get_running_loop()))
        for piece in pieces:
            if not client.closed:
                client.feed(piece)
            await self._settle(client)
        outcome = Outcome(self._seen, bytes(client.written), client.closed)
        client.lose()
        await self._settle(client)
        assert not self.relay.requests
        assert not any(requests.pending for wire, requests in self.engines if not wire.closed)
        self.engines = [(wire, requests) for wire, requests in self.engines if not wire.closed]
        return outcome

    async def _settle(self, client: Wire) -> None:
        """Until the relay has nothing more to do."""
        still = 0
        while still < 3:
            written = len(client.written)
            await asyncio.sleep(0)
            busy = sum(self._step(wire, requests) for wire, requests in self.engines)
            still = 0 if busy or len(client.written) > written else still + 1

    def _step(self, wire: Wire, requests: Requests) -> bool:
        if wire.closed or not wire.written:
            return False
        data = bytes(wire.written)
        wire.written.clear()
        for seen in requests.feed(data):
            self._seen.append(seen)
            pieces, close = self.say(seen)
            for piece in pieces:
                wire.feed(piece)
            if close:
                wire.lose()
        return True


@contextmanager
def bench(folder: Path) -> Iterator[Bench]:
    """A `Bench`, outside of any event loop, as Hypothesis wants it."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        world = World(folder)
        runner.run(world.start(route("m", Engine(folder / "none.sock"))))
        made = Bench(world, runner)

        async def take_sockets_away() -> None:
            address = made.relay.routes.table.routes[0].targets[0].address
            made.relay.pools._pools[address] = made.relay.controller = BenchPool(made)

        runner.run(take_sockets_away())
        yield made
        runner.run(world.end())


class RawClient(asyncio.Protocol):
    """A client that keeps every byte, whatever comes after it."""

    def __init__(self) -> None:
        self.raw = bytearray()
        self.closed = False
        self._changed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.raw += data
        self._changed.set()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.closed = True
        self._changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


@dataclass
class RawEngine(Engine):
    """An engine on a Unix socket that reads strictly, and answers as `say` does."""

    say: Say = say_ok
    seen: list[Seen] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests, closes = Requests(), False
        self.writers.append(writer)
        try:
            while not closes and (data := await reader.read(2**20)):
                for seen in requests.feed(data):
                    self.seen.append(seen)
                    pieces, closes = self.say(seen)
                    for piece in pieces:
                        writer.write(piece)
                        await asyncio.sleep(0)
        except (h11.RemoteProtocolError, AssertionError) as error:
            self.faults.append(f"{error}: {requests.pending!r}")
        except ConnectionError:
            pass
        writer.close()


async def raw_engine(world: World, name: str = "e", say: Say = say_ok) -> RawEngine:
    """Start a `RawEngine` that ends with the world."""
    engine = RawEngine(world.folder / f"{name}.sock", say=say)
    await engine.start()
    world._engines.append(engine)
    return engine


async def over_sockets(world: World, engine: RawEngine, pieces: Iterable[bytes]) -> Outcome:
    """Send `pieces`, which end with `PROBE`, over a connection to a relay; what came of it once it is answered."""
    loop = asyncio.get_running_loop()
    before = len(engine.seen)
    _, client = await loop.create_connection(RawClient, "127.0.0.1", world.port)
    for piece in pieces:
        client.transport.write(piece)
        await asyncio.sleep(0)
    await client.until(lambda: client.closed or MARKER in client.raw)
    client.transport.abort()
    assert engine.faults == []
    return Outcome(engine.seen[before:], bytes(client.raw), client.closed)
