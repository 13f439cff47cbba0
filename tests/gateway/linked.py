"""The controller's end of the relay socket, by a script, and links to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from shoal.gateway.link import Link
from shoal.gateway.routes import Routes
from shoal.messages import (
    RelayReport,
    Route,
    Target,
    ToController,
    ToRelay,
)
from tests.gateway.harness import PATIENCE

ROUTE = Route("m", "ready", 1, (Target("m-0", "unix:/x"),))
COMES = Route("m", "unloaded", 1, comes=True)
M = TypeVar("M")


class Controller:
    """The controller's end of the relay socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.peers: asyncio.Queue[asyncio.StreamReader] = asyncio.Queue()
        self.writers: list[asyncio.StreamWriter] = []
        self.server: asyncio.Server | None = None
        self.reader: asyncio.StreamReader | None = None

    async def start(self) -> None:
        self.server = await asyncio.start_unix_server(self._connected, self.path)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        self.peers.put_nowait(reader)

    async def accept(self) -> None:
        async with asyncio.timeout(PATIENCE):
            self.reader = await self.peers.get()

    async def send(self, data: bytes | ToRelay) -> None:
        self.writers[-1].write(data if isinstance(data, bytes) else msgspec.json.encode(data) + b"\n")
        await self.writers[-1].drain()

    async def next(self) -> ToController:
        """What the relay says next."""
        assert self.reader is not None
        async with asyncio.timeout(PATIENCE):
            message: ToController = msgspec.json.decode(await self.reader.readline(), type=ToController)
            return message

    async def report(self) -> RelayReport:
        while not isinstance(message := await self.next(), RelayReport):
            pass
        return message

    async def until(self, kind: type[M]) -> M:
        """The next message of a kind, whatever came before."""
        while not isinstance(message := await self.next(), kind):
            pass
        return message

    async def stop(self) -> None:
        if self.server is not None:
            self.server.close()
            self.server = None
        for writer in self.writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        self.path.unlink(missing_ok=True)


@contextlib.asynccontextmanager
async def linked(folder: Path, **callbacks: Any) -> AsyncIterator[Link]:
    """A link that runs."""
    link = Link(Routes(), folder / "r.sock", folder / "table.json", **callbacks)
    task = asyncio.create_task(link.run())
    yield link
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
