"""How many slots of a model are kept for tenants below their share. Pure; the clock is passed in.

A part of the limit, and where that is less: as many as such tenants had use for at once of late, and one more. A
request that takes longer than the pause before the next is still there when that comes, and with the last kept
slot taken the next would wait for a request of the flood to end. At most half of the slots are kept, as a slot that is
kept is one that nobody uses.
"""

from __future__ import annotations

REMEMBERED = 180.0
"""Seconds for which it is remembered how many slots there was use for; at most twice as long."""
SMALLEST_SHARED = 4
"""The smallest limit of which a slot is kept for others."""


class Reserve:
    """The slots that are kept of one model."""

    __slots__ = ("_before", "_least", "_most", "_needed", "_since", "kept")

    def __init__(self) -> None:
        self.kept = 0
        self._least = self._most = 0
        self._needed = self._before = 0  # since `_since`, and in the span before that
        self._since = 0.0

    def resize(self, limit: float, part: float) -> None:
        """The model has `limit` slots, of which `part` is kept at least; 0: none at all."""
        shared = SMALLEST_SHARED <= limit < float("inf") and part > 0
        self._least = max(1, int(limit * part)) if shared else 0
        self._most = max(self._least, int(limit) // 2) if shared else 0
        self._weigh()

    def need(self, slots: int, now: float) -> None:
        """There is use for so many."""
        self.settle(now)
        if slots > self._needed:
            self._needed = slots
            self._weigh()

    def settle(self, now: float) -> None:
        """Forget what was long ago. To be called before `kept` is looked at."""
        past = now - self._since
        if past >= REMEMBERED:
            self._before = self._needed if past < 2 * REMEMBERED else 0
            self._needed = 0
            self._since = now
            self._weigh()

    def _weigh(self) -> None:
        self.kept = max(self._least, min(self._most, max(self._needed, self._before)))
