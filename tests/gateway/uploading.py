"""Forms, and engines that read them as slowly as a test likes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from shoal.gateway.relay_native import NativeRelay
from shoal.gateway.server import ClientConnection
from shoal.gateway.uploads import Upload
from shoal.messages import RoutingTable
from tests.gateway.harness import PATIENCE, Message, World, read_head

PATH = "/v1/audio/transcriptions"
FORM = b"Content-Type: multipart/form-data; boundary=XyZ\r\n"
END = b"--XyZ--\r\n"


def part(name: str, value: bytes, more: str = "") -> bytes:
    return f'--XyZ\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"


def file(size: int) -> bytes:
    content = bytes(range(256)) * (size // 256 + 1)
    return part("file", content[:size], '; filename="a.wav"')


MODEL = part("model", b"m")


def head(length: int | None, extra: bytes = b"") -> bytes:
    framing = b"Transfer-Encoding: chunked" if length is None else b"Content-Length: %d" % length
    return b"POST %s HTTP/1.1\r\nHost: shoal.test\r\n%s%s%s\r\n\r\n" % (PATH.encode(), FORM, extra, framing)


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)


LARGE = MODEL + file(3_000_000) + END


def relay_of(world: World) -> NativeRelay:
    assert isinstance(world.relay, NativeRelay)
    return world.relay


def upload_of(world: World) -> Upload:
    (upload,) = relay_of(world).requests.values()
    assert isinstance(upload, Upload)
    return upload


def paused(world: World) -> list[ClientConnection]:
    """Connections whose clients are not read from."""
    return [connection for connection in relay_of(world).connections if connection.paused]


def nothing_is_left(world: World) -> bool:
    relay = relay_of(world)
    waiting = relay.admission.waiting_models() or relay.admission.running("m")
    return not (relay.requests or world.outstanding or waiting)


def renew(world: World, new: RoutingTable) -> None:
    relay = relay_of(world)
    assert relay.routes.replace(new)
    relay._on_table()


class Slow:
    """An engine that reads as its test says."""

    def __init__(self) -> None:
        self.came: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self.came.put_nowait((reader, writer))

    async def request(self) -> tuple[Message, asyncio.StreamReader, asyncio.StreamWriter]:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await self.came.get()
            return await read_head(reader), reader, writer

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


@contextlib.asynccontextmanager
async def slow_engine(path: Path) -> AsyncIterator[Slow]:
    slow = Slow()
    server = await asyncio.start_unix_server(slow.serve, path, limit=2**16)
    try:
        yield slow
    finally:
        server.close()
        slow.close()


async def exactly(reader: asyncio.StreamReader, size: int) -> bytes:
    async with asyncio.timeout(PATIENCE):
        return await reader.readexactly(size)


async def gone(reader: asyncio.StreamReader) -> None:
    """Wait until the relay has broken off its connection to the engine."""
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(ConnectionError):
            while await reader.read(2**16):
                pass
