"""A relay as the controller sees it: the other end of a real Unix socket, which says what a test tells it."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from shoal.fleet import facts
from shoal.fleet.relays import Relays
from shoal.messages import (
    MAX_LINE,
    Cancelled,
    CancelRequest,
    ListRequests,
    RelayReport,
    RequestList,
    RequestView,
    ToController,
    ToRelay,
)

WAIT = 20.0
M = TypeVar("M")


def view(id: str, model: str = "m", **fields: Any) -> RequestView:
    """A request in a relay."""
    known: dict[str, Any] = {"tenant": "127.0.0.1", "key": None, "priority": "normal", "phase": "answering", "age": 1.0}
    return RequestView(id=id, model=model, **known | fields)


class FakeRelay:
    """One connection to a `Relays`. Unless `silent`, questions are answered by `requests`."""

    def __init__(self, name: str, requests: Sequence[RequestView] = (), *, silent: bool = False) -> None:
        self.name = name
        self.requests = list(requests)
        self.silent = silent
        self.received: asyncio.Queue[ToRelay] = asyncio.Queue()

    async def connect(self, path: Path) -> None:
        self._reader, self._writer = await asyncio.open_unix_connection(path, limit=MAX_LINE)
        self._task = asyncio.create_task(self._read())
        self.send(RelayReport(self.name, "e", 1, {}))

    def send(self, message: ToController | bytes) -> None:
        self._writer.write(message if isinstance(message, bytes) else msgspec.json.encode(message) + b"\n")

    async def get(self, kind: type[M]) -> M:
        """The next thing that came; it is of this kind."""
        async with asyncio.timeout(WAIT):
            message = await self.received.get()
        assert isinstance(message, kind)
        return message

    async def ended(self) -> None:
        """Until the controller has closed the connection."""
        async with asyncio.timeout(WAIT):
            await self._task

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _read(self) -> None:
        decoder: msgspec.json.Decoder[ToRelay] = msgspec.json.Decoder(ToRelay)
        with contextlib.suppress(ConnectionError):
            while line := await self._reader.readline():
                message = decoder.decode(line)
                self.received.put_nowait(message)
                if not self.silent:
                    self._answer(message)

    def _answer(self, message: ToRelay) -> None:
        if isinstance(message, ListRequests):
            self.send(RequestList(message.ask, tuple(self.requests)))
        elif isinstance(message, CancelRequest):
            left = [request for request in self.requests if request.id != message.id]
            self.send(Cancelled(message.ask, len(left) < len(self.requests)))
            self.requests = left


class Switchboard:
    """A `Relays` on a socket of its own, what it told, and the relays that are connected to it."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        self.told: asyncio.Queue[facts.Fact] = asyncio.Queue()
        self.relays = Relays(path, self.told.put_nowait, **options)
        self.fakes: list[FakeRelay] = []

    async def connect(self, name: str, requests: Sequence[RequestView] = (), *, silent: bool = False) -> FakeRelay:
        """A new relay, once the controller knows it."""
        fake = FakeRelay(name, requests, silent=silent)
        self.fakes.append(fake)
        await fake.connect(self.path)
        report = await self.fact(facts.RelayReported)
        assert report.report.relay == name
        return fake

    async def fact(self, kind: type[M]) -> M:
        """The next thing that was told; it is of this kind."""
        async with asyncio.timeout(WAIT):
            fact = await self.told.get()
        assert isinstance(fact, kind), fact
        return fact


@contextlib.asynccontextmanager
async def switchboard(**options: Any) -> AsyncIterator[Switchboard]:
    """A `Switchboard` that runs while the block does."""
    with tempfile.TemporaryDirectory(prefix="shoal-") as folder:  # short enough for a Unix socket
        board = Switchboard(Path(folder) / "r.sock", **options)
        await board.relays.start()
        try:
            yield board
        finally:
            for fake in board.fakes:
                await fake.close()
            await board.relays.stop()
