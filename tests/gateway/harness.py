"""A scripted engine and a raw client: both ends of the relay with every byte in view."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from shoal.gateway.link import save_table
from shoal.gateway.relay import RelayConfig
from shoal.gateway.relay_aiohttp import AiohttpRelay
from shoal.gateway.relay_native import NativeRelay
from shoal.gateway.routes import Routes
from shoal.messages import Route, RoutingTable, Target

PATIENCE = 20.0
"""Seconds after which a test gives up waiting; nothing is expected to take that long."""


@dataclass
class Message:
    """An HTTP message as it came over the wire."""

    start: str
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""
    complete: bool = True
    """Whether the body came to the end that its framing announced."""
    trailers: bytes = b""

    @property
    def others(self) -> list[tuple[bytes, bytes]]:
        """The headers without those that the relay adds to say how it went."""
        return [header for header in self.headers if not header[0].lower().startswith((b"x-request-id", b"x-shoal-"))]

    @property
    def status(self) -> int:
        return int(self.start.split(" ")[1])

    @property
    def target(self) -> str:
        return self.start.split(" ")[1]

    def get(self, name: str) -> str | None:
        values = [v.decode("latin-1") for k, v in self.headers if k.lower() == name.lower().encode()]
        return ", ".join(values) if values else None

    @property
    def json(self) -> dict[str, object]:
        return msgspec.json.decode(self.body, type=dict[str, object])

    @property
    def error(self) -> dict[str, object]:
        return msgspec.convert(self.json["error"], dict[str, object])


async def read_head(reader: asyncio.StreamReader) -> Message:
    raw = await reader.readuntil(b"\r\n\r\n")
    lines = raw[:-4].split(b"\r\n")
    headers = []
    for line in lines[1:]:
        name, _, value = line.partition(b": ")
        headers.append((name, value))
    return Message(lines[0].decode("latin-1"), headers)


async def read_message(reader: asyncio.StreamReader, *, head_only: bool = False, to_eof: bool = False) -> Message:
    """Read a message whole, or as far as it goes."""
    message = await read_head(reader)
    if head_only:
        return message
    length = message.get("content-length")
    body = bytearray()
    try:
        if "chunked" in (message.get("transfer-encoding") or ""):
            while size := int((await reader.readuntil(b"\r\n"))[:-2].split(b";")[0], 16):
                body += await reader.readexactly(size)
                assert await reader.readexactly(2) == b"\r\n"
            while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
                message.trailers += line
        elif length is not None:
            body += await reader.readexactly(int(length))
        elif to_eof:
            body += await reader.read()
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        body += getattr(error, "partial", b"")
        message.complete = False
    message.body = bytes(body)
    return message


Script = Callable[[Message, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def reply(writer: asyncio.StreamWriter, *, head: str = "HTTP/1.1 200 OK", body: bytes = b"{}") -> None:
    writer.write(f"{head}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()


async def say_ok(_: Message, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reply(writer)


@dataclass
class Engine:
    """A server on a Unix socket that answers as its script says."""

    path: Path
    script: Script = say_ok
    received: list[Message] = field(default_factory=list)
    connections: int = 0
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a peer closes its connection while a script waits in `until_left`, or between requests."""
    server: asyncio.Server | None = None
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"unix:{self.path}"

    async def start(self) -> None:
        self.server = await asyncio.start_unix_server(self._serve, self.path, limit=2**20)

    async def stop(self) -> None:
        if self.server is not None:
            self.server.close()
            self.server = None
        for writer in self.writers:
            writer.close()
        self.path.unlink(missing_ok=True)

    async def until_left(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        self.left.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while not writer.is_closing():
                message = await read_message(reader)
                self.received.append(message)
                await self.script(message, reader, writer)
        self.left.set()
        writer.close()


def table(*routes: Route, epoch: str = "e1", version: int = 1) -> RoutingTable:
    return RoutingTable(epoch=epoch, version=version, routes=routes)


def route(model: str, *engines: Engine, detail: str = "", retry_after: int | None = None) -> Route:
    targets = tuple(Target(f"{model}-{i}", engine.address) for i, engine in enumerate(engines))
    state = "ready" if engines else "unloaded"
    return Route(model, state, 1700000000, targets, detail, retry_after, 4096 if engines else None)


class Client:
    """A client of the relay's port, one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def response(self, *, head_only: bool = False, to_eof: bool = False) -> Message:
        async with asyncio.timeout(PATIENCE):
            return await read_message(self.reader, head_only=head_only, to_eof=to_eof)

    async def ask(self, data: bytes, *, head_only: bool = False) -> Message:
        await self.send(data)
        return await self.response(head_only=head_only)

    async def closed(self) -> bytes:
        """Wait for the relay to close, and return what came before."""
        async with asyncio.timeout(PATIENCE):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    def close(self) -> None:
        self.writer.close()


def post(
    path: str = "/v1/chat/completions", body: bytes = b'{"model":"m"}', extra: bytes = b"", host: bytes = b"shoal.test"
) -> bytes:
    head = b"POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n%s\r\n" % (path.encode(), host, len(body), extra)
    return head + body


def get(path: str, extra: bytes = b"", method: bytes = b"GET") -> bytes:
    return b"%s %s HTTP/1.1\r\nHost: shoal.test\r\n%s\r\n" % (method, path.encode(), extra)


class World:
    """A relay on a loopback port, with engines and a controller under the test's control."""

    def __init__(self, folder: Path, kind: str = "native") -> None:
        self.folder = folder
        self.kind = kind
        self.config = RelayConfig(
            controller=folder / "c.sock", relay_socket=folder / "r.sock", table=folder / "table.json"
        )
        self.relay: AiohttpRelay | NativeRelay | None = None
        self.port = 0
        self._engines: list[Engine] = []
        self._clients: list[Client] = []

    async def engine(self, name: str = "e", script: Script = say_ok) -> Engine:
        engine = Engine(self.folder / f"{name}.sock", script)
        await engine.start()
        self._engines.append(engine)
        return engine

    async def controller(self, script: Script = say_ok) -> Engine:
        return await self.engine("c", script)

    async def start(self, *routes: Route) -> None:
        if routes:
            save_table(self.config.table, table(*routes))
        sock = socket.create_server(("127.0.0.1", 0))
        self.port = sock.getsockname()[1]
        self.relay = NativeRelay(self.config) if self.kind == "native" else AiohttpRelay(self.config)
        await self.relay.start(sock)

    async def client(self) -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**20)
        client = Client(reader, writer)
        self._clients.append(client)
        return client

    async def ask(self, data: bytes, *, head_only: bool = False) -> Message:
        client = await self.client()
        return await client.ask(data, head_only=head_only)

    @property
    def native(self) -> bool:
        return self.kind == "native"

    @property
    def routes(self) -> Routes:
        assert self.relay is not None
        return self.relay.routes

    @property
    def counts(self) -> dict[tuple[str, str], int]:
        assert self.relay is not None
        counts: dict[tuple[str, str], int] = {}
        for count in self.relay.counts if isinstance(self.relay, NativeRelay) else self.routes.counts:
            key = (count.model, count.outcome)
            counts[key] = counts.get(key, 0) + count.requests
        return counts

    @property
    def outstanding(self) -> dict[str, int]:
        return self.routes.outstanding

    async def end(self) -> None:
        for client in self._clients:
            client.close()
        if self.relay is not None:
            await self.relay.stop(0)
        for engine in self._engines:
            await engine.stop()


async def eventually(condition: Callable[[], object]) -> None:
    """Wait until `condition` holds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)
