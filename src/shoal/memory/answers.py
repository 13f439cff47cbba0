"""What a tool says to the broker and hears from it, and what its failures mean. Shared by the kinds of tools."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import messages as m
from .connection import credentials


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


def connect(path: Path, timeout: float) -> socket.socket:
    """A connection to the broker at `path`, if it is one of this user or of root. Raises BrokerError."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with said_clearly(path):
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
def said_clearly(path: Path) -> Iterator[None]:
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


def checked(message: m.ToBroker) -> bytes:
    """The frame of an order that a broker will accept. Raises BrokerError, with what is wrong with it."""
    data = m.frame(message)
    try:
        m.to_broker(data[m.Frames.HEADER :])
    except m.ProtocolError as error:
        raise BrokerError(f"that cannot be asked: {error}", "invalid") from None
    return data


def terms_of(engine: str, floor: int | None, ceiling: int | None, unlimited: bool, priority: int | None) -> m.SetTerms:
    return m.SetTerms(engine=engine, floor=floor, ceiling=ceiling, unlimited=unlimited, priority=priority)


def books_of(answer: Answer) -> Books:
    if isinstance(answer, BrokerError):
        raise answer
    if isinstance(answer, m.Done):
        raise BrokerError("the memory broker answered something else than its books", "protocol")
    return answer


def done(answer: Answer) -> None:
    if isinstance(answer, BrokerError):
        raise answer
