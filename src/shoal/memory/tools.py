"""The broker from the side of those who look at it and steer it: `BrokerTool` blocks, `AsyncBrokerTool` does not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from . import messages as m
from .connection import credentials

log = logging.getLogger(__name__)

TIMEOUT = 10.0
"""Seconds that an answer may take."""
MIN_BACKOFF, MAX_BACKOFF = 0.05, 1.0
"""Seconds between attempts to reach a broker that is away."""


class BrokerError(Exception):
    """The broker refused something, or cannot be used. `code` is a stable word for programs.

    Beside the broker's own codes: ``no_broker``, ``not_ours`` (another user's), ``protocol``, ``timeout``, ``closed``.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class DeviceBook:
    """One device and the ranks of engines on it."""

    device: m.DeviceState
    members: tuple[m.MemberState, ...]


Books = dict[str, DeviceBook]
"""All devices, by key."""

Answer = Books | m.Done | BrokerError

Order = m.SetTerms | m.SetBudget | m.Trim | m.Reserve


class Answers:
    """Puts what a broker sends together: books from their pages, and what it is done with. No I/O."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._frames = m.Frames()
        self._books: Books = {}

    def feed(self, data: bytes) -> Sequence[Answer]:
        """What `data` completes. Raises BrokerError if no broker of this version can have sent it, or at its end."""
        if not data:
            raise BrokerError(f"the memory broker on {self._path} has closed the connection", "closed")
        found: list[Answer] = []
        try:
            for message in map(m.from_broker, self._frames.feed(data)):
                if isinstance(message, m.Listing):
                    if message.device is not None:
                        known = self._books.get(message.device.key)
                        members = (known.members if known else ()) + message.members
                        self._books[message.device.key] = DeviceBook(message.device, members)
                    if not message.more:
                        found.append(self._books)
                        self._books = {}
                elif isinstance(message, m.Error):
                    found.append(BrokerError(message.message, message.code))
                elif isinstance(message, m.Done):
                    found.append(message)
        except m.ProtocolError as error:
            raise BrokerError(
                f"what listens on {self._path} does not speak as a broker should: {error}", "protocol"
            ) from None
        return found


class BrokerTool:
    """One blocking connection, in the order of its calls. What it holds back is free when it is closed.

    Raises BrokerError here and from every method; after one that is no refusal by the broker the tool is of no use.
    """

    def __init__(self, path: Path, *, timeout: float = TIMEOUT) -> None:
        self._path = path
        self._timeout = timeout
        self._socket = _connect(path, timeout)
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
        return _books(self._say(m.List()))

    def watch(self, interval: float = 1.0) -> Iterator[Books]:
        """The books now and after every change, at most once in `interval` seconds, on a connection of its own."""
        with BrokerTool(self._path, timeout=self._timeout) as tool:
            yield _books(tool._say(m.Watch(interval=interval)))
            tool._socket.settimeout(None)  # a quiet broker is none that is away
            while True:
                for found in tool._hear():
                    yield _books(found)

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
        _done(self._say(_terms(engine, floor, ceiling, unlimited, priority)))

    def set_budget(
        self, device: str, *, limit: int | None = None, unlimited: bool = False, headroom: int | None = None
    ) -> None:
        """Change what of a device may be leased (bytes); what is None stays, `unlimited` takes the limit away."""
        _done(self._say(m.SetBudget(device=device, limit=limit, unlimited=unlimited, headroom=headroom)))

    def trim(self, engine: str, lease: int = 0) -> None:
        """Have an engine come down to `lease` bytes on every rank, once, as far as its requests do not need them."""
        _done(self._say(m.Trim(engine=engine, lease=lease)))

    def reserve(self, device: str, size: int, device_size: int | None = None) -> None:
        """Hold `size` bytes of a device back while this tool is open; 0 ends it. See `messages.Reserve`."""
        _done(self._say(m.Reserve(device=device, size=size, device_size=device_size)))

    def _say(self, message: Order | m.List | m.Watch) -> Answer:
        with _clear(self._path):
            self._socket.sendall(_frame(message))
        while True:
            for found in self._hear():
                return found

    def _hear(self) -> Sequence[Answer]:
        with _clear(self._path):
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
        self._reserved: dict[str, m.Reserve] = {}
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
        return _books(await self._say(m.List()))

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
                        books = _books(one)
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
        _done(await self._say(_terms(engine, floor, ceiling, unlimited, priority)))

    async def set_budget(
        self, device: str, *, limit: int | None = None, unlimited: bool = False, headroom: int | None = None
    ) -> None:
        """As `BrokerTool.set_budget`."""
        _done(await self._say(m.SetBudget(device=device, limit=limit, unlimited=unlimited, headroom=headroom)))

    async def trim(self, engine: str, lease: int = 0) -> None:
        """As `BrokerTool.trim`."""
        _done(await self._say(m.Trim(engine=engine, lease=lease)))

    async def reserve(self, device: str, size: int, device_size: int | None = None) -> None:
        """As `BrokerTool.reserve`, and again at every broker that follows, until this tool is closed.

        It is kept for the next broker even if none can be reached now, but not if it was refused.
        """
        message = m.Reserve(device=device, size=size, device_size=device_size)
        answer: Answer | None = None
        try:
            answer = await self._say(message)
        finally:
            if not isinstance(answer, BrokerError):
                self._reserved.pop(device, None)
                if size:
                    self._reserved[device] = message
        _done(answer)

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
                    del self._reserved[reservation.device]
        except BaseException:
            stream.abandon()
            raise
        return stream


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
        connected = _connect(path, 0.0)
        return cls(path, *await asyncio.open_unix_connection(sock=connected))

    async def say(self, message: Order | m.List | m.Watch, timeout: float) -> Answer:
        with _clear(self._path):
            async with asyncio.timeout(timeout):
                self._writer.write(_frame(message))
                while True:
                    for found in await self.hear():
                        return found

    async def hear(self) -> Sequence[Answer]:
        with _clear(self._path):
            return self._answers.feed(await self._reader.read(65536))

    def abandon(self) -> None:
        self._writer.close()

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def _connect(path: Path, timeout: float) -> socket.socket:
    """A connection to the broker at `path`, if it is one of this user or of root. Raises BrokerError."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _clear(path):
            made.settimeout(timeout)
            made.connect(str(path))
        _, uid = credentials(made)
        if os.geteuid() not in (0, uid) and uid != 0:
            raise BrokerError(
                f"the program that listens on {path} is user {uid}'s, not yours; name another socket with --socket",
                "not_ours",
            )
    except BaseException:
        made.close()
        raise
    return made


@contextlib.contextmanager
def _clear(path: Path) -> Iterator[None]:
    """Say what an operating system's error means here."""
    try:
        yield
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        raise BrokerError(
            f"no memory broker answers on {path}; start one with `shoal memory broker`, or name its socket with "
            "--socket or SHOAL_MEMORY_SOCKET",
            "no_broker",
        ) from None
    except PermissionError:
        raise BrokerError(
            f"{path} belongs to another user; name your own broker's socket with --socket", "not_ours"
        ) from None
    except (TimeoutError, BlockingIOError):
        raise BrokerError(f"the memory broker on {path} does not answer", "timeout") from None
    except OSError as error:
        code = "closed" if isinstance(error, ConnectionError) else "no_broker"
        raise BrokerError(f"the memory broker on {path} cannot be used: {error}", code) from None


def _frame(message: m.ToBroker) -> bytes:
    """The frame of an order that a broker will accept. Raises BrokerError, with what is wrong with it."""
    data = m.frame(message)
    try:
        m.to_broker(data[m.Frames.HEADER :])
    except m.ProtocolError as error:
        raise BrokerError(f"that cannot be asked: {error}", "invalid") from None
    return data


def _terms(engine: str, floor: int | None, ceiling: int | None, unlimited: bool, priority: int | None) -> m.SetTerms:
    return m.SetTerms(engine=engine, floor=floor, ceiling=ceiling, unlimited=unlimited, priority=priority)


def _books(answer: Answer) -> Books:
    if isinstance(answer, BrokerError):
        raise answer
    if isinstance(answer, m.Done):
        raise BrokerError("the memory broker answered something else than its books", "protocol")
    return answer


def _done(answer: Answer) -> None:
    if isinstance(answer, BrokerError):
        raise answer
