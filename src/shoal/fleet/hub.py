"""One stream of what changes, for everyone who watches: a snapshot first, then deltas, each encoded once.

Server-sent events. Changes are gathered (`deltas.py`) and told at most four times a second, the first after a quiet
time at once. Every event has an id; a watcher that comes back with `Last-Event-ID` gets what it missed, or a new
snapshot if that is no longer known. What was told lies in one ring for all, in which each watcher only has a place: one
that does not keep up leaves no queue behind, and gets a new snapshot as soon as it takes something again. That is
encoded once for all that need one at that time.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable
from itertools import islice
from typing import Any

import msgspec
from pydantic import BaseModel

from shoal.fleet.deltas import SPACING, Deltas, supersedes

HEARTBEAT = 15.0
RING = 2000
RING_BYTES = 8 * 2**20
BEHIND = 256 * 2**10
"""Bytes that a watcher may have missed, or as many as a snapshot takes, before it gets a snapshot instead."""


def encode(data: object) -> bytes:
    """JSON of the fleet's records."""
    return msgspec.json.encode(data, enc_hook=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} has no JSON form")


class Hub:
    """Events to watchers. `snapshot()` gives the data of a snapshot event."""

    def __init__(self, snapshot: Callable[[], object], spacing: float = SPACING) -> None:
        self._snapshot = snapshot
        self._epoch = secrets.token_hex(4)
        self._deltas = Deltas(spacing)
        self._timer: asyncio.Handle | None = None
        self._ring = _Ring()
        self._news = asyncio.Event()
        self._changed = asyncio.Event()
        self._watchers = 0
        self._whole = (-1, float("-inf"), b"")
        self._joined = (-1, -1, b"")

    @property
    def watchers(self) -> int:
        """How many watch now."""
        return self._watchers

    def publish(self, event: str, data: object) -> None:
        """Tell every watcher, soon. Never blocks. What `supersedes` must not change any more; the rest may."""
        self._deltas.add(event, data if supersedes(event, data) else msgspec.Raw(encode(data)))
        if self._timer is None:
            # Not at once even after a quiet time: what one step of the manager changes is told together.
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._deltas.due(loop.time()) or 0.0, self._tell)
        self._changed.set()
        self._changed = asyncio.Event()

    async def change(self) -> None:
        """Wait until something is published. For those in this process, who need not wait until it is told."""
        await self._changed.wait()

    def _tell(self) -> None:
        self._timer = None
        self._ring.begin()
        for event, data in self._deltas.take(asyncio.get_running_loop().time()):
            self._ring.add(self._frame(event, encode(data), self._ring.last + 1))
        self._news.set()
        self._news = asyncio.Event()

    async def stream(self, last_event_id: str | None = None) -> AsyncIterator[bytes]:
        """The events as bytes of an event stream, one or more at a time, for ever."""
        self._watchers += 1
        try:
            at = self._place(last_event_id)
            if at is None:
                frame = self._snapshot_frame()
                at = self._ring.last
                yield frame
            while True:
                if at == self._ring.last:
                    try:
                        async with asyncio.timeout(HEARTBEAT):
                            await self._news.wait()
                    except TimeoutError:
                        yield b": still here\n\n"
                    continue
                lost = self._ring.behind(at, max(BEHIND, len(self._whole[2])))
                frames = self._snapshot_frame() if lost else self._since(at)
                at = self._ring.last
                yield frames
        finally:
            self._watchers -= 1

    def _place(self, last_event_id: str | None) -> int | None:
        """The number of the last event that somebody has who comes back; None if what came after is not known."""
        epoch, _, number = (last_event_id or "").partition("-")
        if epoch == self._epoch and number.isdecimal() and len(number) < 20 and self._ring.reaches(int(number)):
            return int(number)
        return None

    def _since(self, number: int) -> bytes:
        """The frames after that of a number, joined once for all that are there."""
        if self._joined[:2] != (number, self._ring.last):
            self._joined = (number, self._ring.last, self._ring.since(number))
        return self._joined[2]

    def _snapshot_frame(self) -> bytes:
        """All as it is. One that was just made serves as long as nothing was told since: what changed meanwhile is told
        to whoever takes it. Not for longer, for what it says of Shoal itself is told by nothing else."""
        number, made, frame = self._whole
        now = asyncio.get_running_loop().time()
        if number != self._ring.last or now - made > SPACING:
            if self._timer is not None:  # what is older than the snapshot must not come after it
                self._timer.cancel()
                self._tell()
            frame = self._frame("snapshot", encode(self._snapshot()), self._ring.last)
            self._whole = (self._ring.last, now, frame)
        return frame

    def _frame(self, event: str, data: bytes, number: int) -> bytes:
        return b"id: %s-%d\nevent: %s\ndata: %s\n\n" % (self._epoch.encode(), number, event.encode(), data)


class _Ring:
    """The frames that were told last, numbered from 1; bounded in number and bytes."""

    def __init__(self) -> None:
        self.last = 0
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._batch = 0

    def begin(self) -> None:
        """What is added from here on is told together."""
        self._batch = self.last

    def add(self, frame: bytes) -> None:
        self.last += 1
        self._frames.append(frame)
        self._bytes += len(frame)
        while len(self._frames) > RING or self._bytes > RING_BYTES:
            self._bytes -= len(self._frames.popleft())

    def reaches(self, number: int) -> bool:
        """Whether all frames after that of a number are here."""
        return self.last - len(self._frames) <= number <= self.last

    def since(self, number: int) -> bytes:
        """The frames after that of a number, which is reached."""
        return b"".join(islice(self._frames, len(self._frames) - (self.last - number), None))

    def behind(self, number: int, limit: int) -> bool:
        """Whether one who has the frames up to a number has missed too much; never one who lacks but the last batch."""
        if not self.reaches(number):
            return True
        if number >= self._batch:
            return False
        missed = islice(self._frames, len(self._frames) - (self.last - number), None)
        return sum(map(len, missed)) > limit
