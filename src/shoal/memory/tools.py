"""The broker from the side of those who look at it and steer it: `BrokerTool` blocks, `AsyncBrokerTool` does not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from . import messages as m
from .answers import (
    Answer,
    Answers,
    Books,
    BrokerError,
    DeviceBook,
    Order,
    books_of,
    checked,
    connect,
    done,
    said_clearly,
    terms_of,
)

__all__ = ["TIMEOUT", "AsyncBrokerTool", "Books", "BrokerError", "BrokerTool", "DeviceBook"]

log = logging.getLogger(__name__)

TIMEOUT = 10.0
"""Seconds that an answer may take."""
MIN_BACKOFF, MAX_BACKOFF = 0.05, 1.0
"""Seconds between attempts to reach a broker that is away."""


class BrokerTool:
    """One blocking connection, in the order of its calls. What it holds back is free when it is closed.

    Raises BrokerError here and from every method; after one that is no refusal by the broker the tool is of no use.
    """

    def __init__(self, path: Path, *, timeout: float = TIMEOUT) -> None:
        self._path = path
        self._timeout = timeout
        self._socket = connect(path, timeout)
        self._answers = Answers(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def list(self) -> Books:
        """The books now."""
        return books_of(self._say(m.List()))

    def watch(self, interval: float = 1.0) -> Iterator[Books]:
        """The books now and after every change, at most once in `interval` seconds, on a connection of its own."""
        with BrokerTool(self._path, timeout=self._timeout) as tool:
            yield books_of(tool._say(m.Watch(interval=interval)))
            tool._socket.settimeout(None)  # a quiet broker is none that is away
            while True:
                for found in tool._hear():
                    yield books_of(found)

    def set_terms(
        self,
        engine: str,
        *,
        floor: int | None = None,
        ceiling: int | None = None,
        unlimited: bool = False,
        priority: int | None = None,
    ) -> None:
        """Change an engine's terms (bytes) on all its ranks; what is None stays, `unlimited` takes the ceiling away."""
        done(self._say(terms_of(engine, floor, ceiling, unlimited, priority)))

    def set_budget(
        self, device: str, *, limit: int | None = None, unlimited: bool = False, headroom: int | None = None
    ) -> None:
        """Change what of a device may be leased (bytes); what is None stays, `unlimited` takes the limit away."""
        done(self._say(m.SetBudget(device=device, limit=limit, unlimited=unlimited, headroom=headroom)))

    def trim(self, engine: str, lease: int = 0) -> None:
        """Have an engine come down to `lease` bytes on every rank, once, as far as its requests do not need them."""
        done(self._say(m.Trim(engine=engine, lease=lease)))

    def reserve(
        self, device: str, size: int, device_size: int | None = None, *, holder: str = m.TOOL, arriving: bool = False
    ) -> None:
        """Hold `size` bytes of a device back while this tool is open; 0 ends it. See `messages.Reserve`."""
        done(self._say(_reserve(device, size, device_size, holder, arriving)))

    def _say(self, message: Order | m.List | m.Watch) -> Answer:
        with said_clearly(self._path):
            self._socket.sendall(checked(message))
        while True:
            for found in self._hear():
                return found

    def _hear(self) -> Sequence[Answer]:
        with said_clearly(self._path):
            return self._answers.feed(self._socket.recv(65536))


class AsyncBrokerTool:
    """The same for an event loop, and for longer than a broker lives: it connects when it has to, and again.

    What it holds back is held back anew at the next broker, as soon as one is reached. Raises BrokerError as BrokerTool
    does, and can be used again after each.
    """

    def __init__(self, path: Path, *, timeout: float = TIMEOUT) -> None:
        self._path = path
        self._timeout = timeout
        self._stream: _Stream | None = None
        self._reserved: dict[tuple[str, str], m.Reserve] = {}
        self._lock = asyncio.Lock()
        self.problem: str | None = None
        """Why `listings` has no broker at the moment."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection; what is held back is free."""
        self._reserved.clear()
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()

    async def list(self) -> Books:
        """The books now."""
        return books_of(await self._say(m.List()))

    async def listings(self, interval: float = 1.0) -> AsyncGenerator[Books | None]:
        """The books now and after every change, at most once in `interval` seconds, for ever.

        None says, once, that no broker can be reached; `problem` says why.
        """
        backoff, away = MIN_BACKOFF, False
        while True:
            stream: _Stream | None = None
            try:
                if self._reserved:
                    await self._say(m.List())
                stream = await _Stream.open(self._path)
                found: Sequence[Answer] = [await stream.say(m.Watch(interval=interval), self._timeout)]
                while True:
                    for one in found:
                        books = books_of(one)
                        self.problem, away, backoff = None, False, MIN_BACKOFF
                        yield books
                    found = await stream.hear()
            except BrokerError as error:
                self.problem = str(error)
                log.debug("%s", error)
            finally:
                if stream is not None:
                    stream.abandon()
            if not away:
                away = True
                yield None
            await asyncio.sleep(backoff * random.uniform(0.5, 1.0))
            backoff = min(MAX_BACKOFF, backoff * 2)

    async def set_terms(
        self,
        engine: str,
        *,
        floor: int | None = None,
        ceiling: int | None = None,
        unlimited: bool = False,
        priority: int | None = None,
    ) -> None:
        """As `BrokerTool.set_terms`."""
        done(await self._say(terms_of(engine, floor, ceiling, unlimited, priority)))

    async def set_budget(
        self, device: str, *, limit: int | None = None, unlimited: bool = False, headroom: int | None = None
    ) -> None:
        """As `BrokerTool.set_budget`."""
        done(await self._say(m.SetBudget(device=device, limit=limit, unlimited=unlimited, headroom=headroom)))

    async def trim(self, engine: str, lease: int = 0) -> None:
        """As `BrokerTool.trim`."""
        done(await self._say(m.Trim(engine=engine, lease=lease)))

    async def reserve(
        self, device: str, size: int, device_size: int | None = None, *, holder: str = m.TOOL, arriving: bool = False
    ) -> None:
        """As `BrokerTool.reserve`, and again at every broker that follows, until this tool is closed.

        It is kept for the next broker even if none can be reached now, but not if it was refused.
        """
        message = _reserve(device, size, device_size, holder, arriving)
        answer: Answer | None = None
        try:
            answer = await self._say(message)
        finally:
            if not isinstance(answer, BrokerError):
                self._reserved.pop((device, holder), None)
                if size:
                    self._reserved[device, holder] = message
        done(answer)

    async def _say(self, message: Order | m.List) -> Answer:
        async with self._lock:
            if self._stream is not None:
                try:
                    return await self._exchange(message)
                except BrokerError as error:
                    if error.code != "closed":
                        raise
                    # That broker has gone since; all that is ever said can be said twice.
            self._stream = await self._open()
            return await self._exchange(message)

    async def _exchange(self, message: Order | m.List) -> Answer:
        assert self._stream is not None
        try:
            return await self._stream.say(message, self._timeout)
        except BaseException:
            # An answer that comes late must not be taken for that of the next question.
            self._stream.abandon()
            self._stream = None
            raise

    async def _open(self) -> _Stream:
        stream = await _Stream.open(self._path)
        try:
            for reservation in list(self._reserved.values()):
                answer = await stream.say(reservation, self._timeout)
                if isinstance(answer, BrokerError):
                    log.warning("memory of %s is no longer held back: %s", reservation.device, answer)
                    del self._reserved[reservation.device, reservation.holder]
        except BaseException:
            stream.abandon()
            raise
        return stream


def _reserve(device: str, size: int, device_size: int | None, holder: str, arriving: bool) -> m.Reserve:
    return m.Reserve(device=device, size=size, device_size=device_size, holder=holder, arriving=arriving)


class _Stream:
    """One connection on an event loop."""

    def __init__(self, path: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._path = path
        self._reader = reader
        self._writer = writer
        self._answers = Answers(path)

    @classmethod
    async def open(cls, path: Path) -> _Stream:
        # On a Unix socket this is done at once, or refused, or there are so many waiting that nobody seems to listen.
        connected = connect(path, 0.0)
        return cls(path, *await asyncio.open_unix_connection(sock=connected))

    async def say(self, message: Order | m.List | m.Watch, timeout: float) -> Answer:
        with said_clearly(self._path):
            async with asyncio.timeout(timeout):
                self._writer.write(checked(message))
                while True:
                    for found in await self.hear():
                        return found

    async def hear(self) -> Sequence[Answer]:
        with said_clearly(self._path):
            return self._answers.feed(await self._reader.read(65536))

    def abandon(self) -> None:
        self._writer.close()

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
