"""What an engine tells the broker of its memory."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from shoal.memory.ages import AGES

from .demand import View
from .pool import ElasticPool

AGED_IDLE, AGED_BUSY = 1.0, 4.0
"""Seconds after which ages are read off vLLM's queue again. The walk is cheap when nobody waits for it."""

SAY_EVERY = 0.2
"""Seconds between two reports that tell of nothing pressing."""

MUCH = 128 << 20
"""Bytes more or less backed that press: the broker takes what it was not told of for other programs' memory."""


class Told(Protocol):
    """What hears of it: the leases."""

    releases: int

    def report(self, *, used: int, cached: tuple[int, ...], backed: int, waiting: int) -> None: ...


class Report:
    """Says what is held, when that has changed."""

    def __init__(self, pool: ElasticPool, leases: Told, block: int) -> None:
        self._pool = pool
        self._leases = leases
        self._block = block
        self._said: tuple[int, ...] = ()
        self._said_at = float("-inf")
        self._ages = [0] * len(AGES)
        self._aged_at = 0.0

    def say(self, view: View, now: float, lock: AbstractContextManager[object]) -> bool:
        """Report `view` at `now`, in seconds. `lock` is held while the queue is walked.

        False: there is news that does not press, to be said a little later.
        """
        work = view.work
        if now - self._aged_at >= (AGED_IDLE if work.idle else AGED_BUSY):
            self._aged_at = now
            with lock:
                self._ages = self._pool.cached_by_age(now)
        ages = scaled(self._ages, max(0, view.free - view.fresh))
        # Those that wait for a place in the batch do not wait for memory.
        short = work.queued if work.waiting > view.free else 0
        held = (view.used * self._block, view.backed, short, self._leases.releases, *ages)
        if held == self._said:
            return True
        if self._said and not self._presses(view.backed, short) and now - self._said_at < SAY_EVERY:
            return False
        self._said, self._said_at = held, now
        self._leases.report(
            used=view.used * self._block,
            cached=tuple(count * self._block for count in ages),
            backed=view.backed,
            waiting=short,
        )
        return True

    def _presses(self, backed: int, short: int) -> bool:
        """Whether this is to be said at once: memory is short or no more so, or much has come or gone."""
        _, told, waiting, *_ = self._said
        return short != waiting or abs(backed - told) >= MUCH


def scaled(ages: list[int], total: int) -> list[int]:
    """The buckets of an earlier count, brought to what there is now: what is new is young, what went was old."""
    result = list(ages)
    surplus = total - sum(result)
    if surplus > 0:
        result[0] += surplus
    index = len(result) - 1
    while surplus < 0:
        part = min(result[index], -surplus)
        result[index] -= part
        surplus += part
        index -= 1
    return result
