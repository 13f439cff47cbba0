"""Which blocks that left vLLM's pool may lose their memory: those that no step under way can still touch. Pure.

Steps are scheduled and leave the device in the same order. What left the pool before a step was scheduled is not in
that step; so it is enough to count both.
"""

from __future__ import annotations

from collections import deque


class Fence:
    """Blocks on their way out, in the order in which they left."""

    __slots__ = ("_processed", "_scheduled", "_waiting", "blocks")

    def __init__(self) -> None:
        self._scheduled = self._processed = 0
        self._waiting: deque[tuple[int, list[int]]] = deque()
        self.blocks = 0
        """How many left and still have their memory."""

    def scheduled(self) -> None:
        """A step was scheduled that runs something."""
        self._scheduled += 1

    def processed(self) -> bool:
        """The oldest step that was under way has left the device. Returns whether `passed` has something now."""
        self._processed += 1
        return bool(self._waiting) and self._waiting[0][0] <= self._processed

    def all_processed(self) -> None:
        """No step is under way."""
        self._processed = self._scheduled

    def left(self, ids: list[int]) -> None:
        """These blocks have left vLLM's pool."""
        if ids:
            self._waiting.append((self._scheduled, ids))
            self.blocks += len(ids)

    def passed(self) -> list[int]:
        """Blocks that left together and that nothing under way can touch, the oldest first; empty if there are none.
        They count among `blocks` until `unbacked`."""
        if not self._waiting or self._waiting[0][0] > self._processed:
            return []
        return self._waiting.popleft()[1]

    def unbacked(self, count: int) -> None:
        """So many of those that had passed have lost their memory."""
        self.blocks -= count
