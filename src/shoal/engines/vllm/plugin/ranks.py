"""The memory of all ranks of one engine, as the pager sees it: a block is backed on every rank, or on none."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from shoal.memory.pages import Geometry, Run

from . import messages as m
from . import rank as here
from .rank import RankMemory

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 30.0

Call = Callable[[], None]


class RankError(RuntimeError):
    """A rank's memory failed in a way that is no shortage; the engine cannot go on."""


class OneRank(Protocol):
    """What the pager needs of one rank, near or far. Raises RankError."""

    description: m.Description

    def begin(self, message: m.Back | m.Unback) -> None:
        """Have it done; `end` waits for it."""
        ...

    def end(self) -> int:
        """How many blocks were done, in their order."""
        ...

    def watch(self, suspend: Call, resume: Call, close: Call) -> None:
        """Have `suspend` and `resume` called when the worker sleeps and wakes, and `close` before it ends if near."""
        ...

    def close(self) -> None: ...


class Ranks:
    """All ranks. Calls may come from several threads."""

    def __init__(self, ranks: Sequence[OneRank]) -> None:
        self._ranks = tuple(ranks)
        self.descriptions = tuple(rank.description for rank in self._ranks)
        # A single near rank is its arena, whose threads take turns by themselves, page by page.
        near = len(self._ranks) == 1 and isinstance(self._ranks[0], _Near)
        self._turn: AbstractContextManager[object] = nullcontext() if near else threading.Lock()

    @property
    def reason(self) -> str:
        """Why the engine is not elastic; empty if it is."""
        return next((d.reason or "a rank has no arena" for d in self.descriptions if not d.runs), "")

    def geometry(self) -> Geometry:
        """Where blocks lie, on every rank alike. Raises RankError if ranks differ."""
        first = self.descriptions[0]
        for other in self.descriptions[1:]:
            if (other.blocks, other.page_size, other.runs) != (first.blocks, first.page_size, first.runs):
                raise RankError("the ranks' caches are laid out differently; use the same kind of GPU for all ranks")
        runs = tuple(Run(run.offset, run.stride, run.length) for run in first.runs)
        return Geometry(first.blocks, first.page_size, runs)

    def back(self, ids: Sequence[int]) -> int:
        """Back `ids` on every rank, in order, as far as memory goes on each, and say how many. Raises RankError."""
        done = 0
        for part in _parts(ids):
            with self._turn:
                count = self._back(part)
            done += count
            if count < len(part):
                break
        return done

    def _back(self, ids: Sequence[int]) -> int:
        for rank in self._ranks:
            rank.begin(m.Back(ids))
        counts = [rank.end() for rank in self._ranks]
        done = min(counts)
        more = [(rank, count) for rank, count in zip(self._ranks, counts, strict=True) if count > done]
        for rank, count in more:
            rank.begin(m.Unback(ids[done:count]))
        for rank, _ in more:
            rank.end()
        return done

    def unback(self, ids: Sequence[int]) -> None:
        """Unback `ids` on every rank. Raises RankError."""
        for part in _parts(ids):
            with self._turn:
                for rank in self._ranks:
                    rank.begin(m.Unback(part))
                for rank in self._ranks:
                    rank.end()

    def watch(self, suspend: Call, resume: Call, close: Call) -> None:
        """Have `suspend` and `resume` called when workers sleep and wake, once for each rank.

        `close` is called before an arena in this process goes; one in another process may go at any time.
        """
        for rank in self._ranks:
            rank.watch(suspend, resume, close)

    def close(self) -> None:
        """Let go of the workers."""
        for rank in self._ranks:
            rank.close()


def _parts(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """`ids` in parts that fit a message."""
    return (list(ids[at : at + m.MAX_IDS]) for at in range(0, len(ids), m.MAX_IDS))


def find_ranks(engine: str, count: int) -> Ranks:
    """The ranks of this process's engine. Raises RankError if one cannot be reached."""
    found: list[OneRank] = []
    for number in range(count):
        local = here.find(engine, number)
        found.append(_Near(local) if local is not None else _Far(m.address(engine, os.getpid(), number)))
    return Ranks(found)


class _Near:
    """A rank in this process."""

    def __init__(self, memory: RankMemory) -> None:
        self._memory = memory
        self._done = threading.local()
        self.description = memory.describe()

    def begin(self, message: m.Back | m.Unback) -> None:
        if isinstance(message, m.Back):
            self._done.count = self._memory.back(message.ids)
        else:
            self._memory.unback(message.ids)
            self._done.count = len(message.ids)

    def end(self) -> int:
        return int(self._done.count)

    def watch(self, suspend: Call, resume: Call, close: Call) -> None:
        self._memory.suspend, self._memory.resume, self._memory.closing = suspend, resume, close

    def close(self) -> None:
        self._memory.suspend = self._memory.resume = self._memory.closing = None


class _Far:
    """A rank in another process. One request at a time: `Ranks` takes care."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel = _connect(address)
        self._calls: socket.socket | None = None
        m.send(self._channel, m.Describe())
        answer = m.receive(self._channel)
        if not isinstance(answer, m.Description):
            raise RankError("a worker does not describe its memory; are all processes of one version of Shoal?")
        self.description = answer

    def begin(self, message: m.Back | m.Unback) -> None:
        m.send(self._channel, message)

    def end(self) -> int:
        answer = m.receive(self._channel)
        if not isinstance(answer, m.Done):
            raise m.ChannelError("a worker is gone")
        if answer.error is not None:
            raise RankError(answer.error)
        return answer.count

    def watch(self, suspend: Call, resume: Call, close: Call) -> None:  # noqa: ARG002 - it is far
        self._calls = channel = _connect(self._address)
        m.send(channel, m.Listen())
        m.receive(channel)
        threading.Thread(
            target=_answer_calls, args=(channel, suspend, resume), name="shoal-sleep-calls", daemon=True
        ).start()

    def close(self) -> None:
        for channel in (self._channel, self._calls):
            if channel is not None:
                with contextlib.suppress(OSError):
                    channel.shutdown(socket.SHUT_RDWR)
                channel.close()


def _connect(address: str) -> socket.socket:
    deadline = time.monotonic() + CONNECT_TIMEOUT
    while True:
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            channel.connect(address)
        except OSError as error:
            channel.close()
            if time.monotonic() > deadline:
                raise RankError(
                    f"a worker's memory does not answer ({error}); was the engine started with both --worker-cls and "
                    "--scheduler-cls of Shoal?"
                ) from error
            time.sleep(0.05)
            continue
        if not m.is_ours(channel):
            channel.close()
            raise RankError("another user's process listens in the place of this engine's worker")
        return channel


def _answer_calls(channel: socket.socket, suspend: Callable[[], None], resume: Callable[[], None]) -> None:
    try:
        while (message := m.receive(channel)) is not None:
            error = None
            try:
                (suspend if isinstance(message, m.Suspend) else resume)()
            except Exception as failure:
                log.exception("sleep or wake failed")
                error = str(failure)
            m.send(channel, m.Done(error=error))
    except m.ChannelError as error:
        log.debug("%s", error)
