"""One stream of what changes, for everyone who watches: a snapshot first, then deltas, each encoded once.

Server-sent events. Every event has an id; a watcher that comes back with `Last-Event-ID` gets what it missed, or a new
snapshot if that is no longer known. One that does not keep up gets a new snapshot too, instead of a growing queue.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from pydantic import BaseModel

HEARTBEAT = 15.0
BACKLOG = 256
RING = 2000
RING_BYTES = 8 * 2**20


def encode(data: object) -> bytes:
    """JSON of the fleet's records."""
    return msgspec.json.encode(data, enc_hook=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} has no JSON form")


class Hub:
    """Events to watchers. `snapshot()` gives the data of a snapshot event."""

    def __init__(self, snapshot: Callable[[], object]) -> None:
        self._snapshot = snapshot
        self._epoch = secrets.token_hex(4)
        self._number = 0
        self._ring: deque[tuple[int, bytes]] = deque()
        self._ring_bytes = 0
        self._watchers: set[_Watcher] = set()

    @property
    def watchers(self) -> int:
        """How many watch now."""
        return len(self._watchers)

    def publish(self, event: str, data: object) -> None:
        """Tell every watcher. Never blocks."""
        self._number += 1
        frame = self._frame(event, encode(data))
        self._ring.append((self._number, frame))
        self._ring_bytes += len(frame)
        while len(self._ring) > RING or self._ring_bytes > RING_BYTES:
            self._ring_bytes -= len(self._ring.popleft()[1])
        for watcher in self._watchers:
            watcher.put(frame)

    async def stream(self, last_event_id: str | None = None) -> AsyncIterator[bytes]:
        """The events as bytes of an event stream, for ever."""
        watcher = _Watcher()
        self._watchers.add(watcher)
        try:
            for frame in self._missed(last_event_id):
                yield frame
            while True:
                try:
                    async with asyncio.timeout(HEARTBEAT):
                        frame = await watcher.get()
                except TimeoutError:
                    yield b": still here\n\n"
                    continue
                if watcher.lagging:
                    watcher.reset()
                    yield self._whole()
                else:
                    yield frame
        finally:
            self._watchers.discard(watcher)

    def _missed(self, last_event_id: str | None) -> list[bytes]:
        epoch, _, number = (last_event_id or "").partition("-")
        if epoch == self._epoch and number.isdecimal() and len(number) < 20:
            seen = int(number)
            oldest = self._ring[0][0] if self._ring else self._number + 1
            if oldest - 1 <= seen <= self._number:
                return [frame for n, frame in self._ring if n > seen]
        return [self._whole()]

    def _whole(self) -> bytes:
        return self._frame("snapshot", encode(self._snapshot()))

    def _frame(self, event: str, data: bytes) -> bytes:
        return b"id: %s-%d\nevent: %s\ndata: %s\n\n" % (self._epoch.encode(), self._number, event.encode(), data)


class _Watcher:
    def __init__(self) -> None:
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(BACKLOG)
        self.lagging = False

    def put(self, frame: bytes) -> None:
        try:
            self._queue.put_nowait(frame)
        except asyncio.QueueFull:
            self.lagging = True

    async def get(self) -> bytes:
        return await self._queue.get()

    def reset(self) -> None:
        while not self._queue.empty():
            self._queue.get_nowait()
        self.lagging = False
