"""Weighted fair shares between tenants: who goes next of those who wait. Pure.

Deficit round robin (M. Shreedhar and G. Varghese, Efficient fair queueing using deficit round robin, SIGCOMM 1995), in
the form in which a tenant goes into debt: round after round each tenant is credited in proportion to its weight, one
that owes nothing may start a job, and the job's whole cost is then charged to it. The quantum is taken as small as can
be, and the rounds in which nobody could start are skipped: a heap has the tenants by the round in which they will owe
nothing, counted in cost per weight. (With such a quantum this is start-time fair queueing: P. Goyal, H. Vin, H. Cheng,
SIGCOMM 1996.) So a start costs O(log tenants) whatever the costs and weights, and no quantum has to be guessed.

What it promises, with c the cost and w the weight of a job, and b the largest c/w there is:

- Between two tenants that began to wait together, owing nothing, and have waited since, what each was given for its
  weight never differs by more than b. Over any time in which two tenants waited, it differs by at most 2 b.
- A tenant that comes anew goes before everyone who has been served in this round, however much they have sent. One
  that comes again while it owes something waits until the others have had as much for their weight.
- What tenants without a waiting job owe is remembered, or leaving the queue between two requests would pay. They are at
  most as many as the tenants that wait, and a few: those that owe the least are forgiven, and the round moves on to
  where they owed nothing. So a stream of ever new tenants keeps nobody waiting for ever, and nothing piles up. Nothing
  is remembered once nobody waits.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Generic, Protocol, TypeVar

DEBTORS = 16
"""Tenants without a waiting job that are remembered beyond one for each that waits."""


class Charged(Protocol):
    """What `FairQueue` looks at: whose a job is, its share among others, and what it costs. Both are positive."""

    @property
    def tenant(self) -> str: ...
    @property
    def weight(self) -> float: ...
    @property
    def cost(self) -> float: ...


T = TypeVar("T", bound=Charged)


class _Line(Generic[T]):
    """One tenant: its jobs in order, those that rose from a lower class first."""

    __slots__ = ("jobs", "risen", "tenant")

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.jobs: OrderedDict[T, None] = OrderedDict()
        self.risen: OrderedDict[T, None] = OrderedDict()


class FairQueue(Generic[T]):
    """Jobs of many tenants, by weighted fair shares, and first come first served inside a tenant.

    Jobs are told apart by identity or by their own `__eq__`, and have to be hashable; none may be in twice.
    """

    __slots__ = ("_busy", "_heap", "_lines", "_round", "_size", "_ties")

    def __init__(self) -> None:
        self._lines: dict[str, _Line[T]] = {}
        self._heap: list[tuple[float, int, _Line[T]]] = []  # every line, once, by the round when it owes nothing
        self._round = 0.0
        self._ties = 0  # who came first of those that are equal
        self._busy = 0  # lines that have jobs
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, job: T, *, risen: bool = False) -> None:
        """`job` waits behind its tenant's others; if `risen`, only behind those of them that are risen, too."""
        line = self._lines.get(job.tenant) or self._add(job.tenant, self._round)
        if not line.jobs and not line.risen:
            self._busy += 1
        (line.risen if risen else line.jobs)[job] = None
        self._size += 1

    def charge(self, job: T) -> None:
        """`job`'s tenant, not known here yet, had a start: it owes that."""
        self._add(job.tenant, self._round + job.cost / job.weight)

    def pop(self) -> T:
        """Take out the job whose turn it is. Raises IndexError if none waits."""
        if not self._size:
            raise IndexError("nobody waits")
        heap = self._heap
        start, _, line = heap[0]
        while not line.jobs and not line.risen:  # it owes nothing any more
            heapq.heappop(heap)
            del self._lines[line.tenant]
            start, _, line = heap[0]
        job, _ = (line.risen or line.jobs).popitem(last=False)
        self._round = max(self._round, start)
        self._ties += 1
        heapq.heapreplace(heap, (start + job.cost / job.weight, self._ties, line))
        self._removed(line)
        return job

    def next(self, may: Callable[[str], bool]) -> T | None:
        """The job whose turn it is among tenants that `may` start one; None if none waits."""
        at = self._turn(may)
        if at is None:
            return None
        line = self._heap[at][2]
        return next(iter(line.risen or line.jobs))

    def pop_of(self, may: Callable[[str], bool]) -> T | None:
        """Take out the job that `next` tells.

        O(tenants) where others are passed over. Those have waited longer for their turn, and a round does not end
        before they had it: who comes anew does not go behind them.
        """
        at = self._turn(may)
        if at is None:
            return None
        if at == 0:
            return self.pop()
        start, _, line = self._heap[at]
        job, _ = (line.risen or line.jobs).popitem(last=False)
        self._ties += 1
        self._heap[at] = (start + job.cost / job.weight, self._ties, line)
        heapq.heapify(self._heap)
        self._removed(line)
        return job

    def _turn(self, may: Callable[[str], bool]) -> int | None:
        """Where in the heap the first line is that has jobs and `may` start one. O(n log n) in those before it."""
        heap = self._heap
        ahead = [(heap[0], 0)] if heap else []
        while ahead:
            (_, _, line), at = heapq.heappop(ahead)
            if (line.jobs or line.risen) and may(line.tenant):
                return at
            for child in (2 * at + 1, 2 * at + 2):
                if child < len(heap):
                    heapq.heappush(ahead, (heap[child], child))
        return None

    def remove(self, job: T) -> None:
        """Take out a job that waits here; its tenant is not charged. Raises KeyError if it does not wait here."""
        line = self._lines[job.tenant]
        if job in line.jobs:
            del line.jobs[job]
        else:
            del line.risen[job]
        self._removed(line)

    def first(self, tenant: str) -> T | None:
        """The first job of `tenant` that is not risen, or None."""
        line = self._lines.get(tenant)
        return next(iter(line.jobs)) if line is not None and line.jobs else None

    def last(self, tenant: str) -> T | None:
        """The newest job of `tenant`; a risen one only if it has no other."""
        line = self._lines.get(tenant)
        return next(reversed(line.jobs or line.risen), None) if line is not None else None

    def order(self) -> Iterator[T]:
        """All jobs in the order in which they would be taken out if no other came. O(n log n)."""
        heap = [
            (start, tie, chain(line.risen, line.jobs)) for start, tie, line in self._heap if line.risen or line.jobs
        ]
        heapq.heapify(heap)
        ties = self._ties
        while heap:
            start, _, jobs = heap[0]
            job = next(jobs, None)
            if job is None:
                heapq.heappop(heap)
                continue
            yield job
            ties += 1
            heapq.heapreplace(heap, (start + job.cost / job.weight, ties, jobs))

    def _add(self, tenant: str, start: float) -> _Line[T]:
        line = self._lines[tenant] = _Line(tenant)
        self._ties += 1
        heapq.heappush(self._heap, (start, self._ties, line))
        return line

    def _removed(self, line: _Line[T]) -> None:
        self._size -= 1
        if line.jobs or line.risen:
            return
        self._busy -= 1
        if not self._size:
            self._lines.clear()
            self._heap.clear()
            self._round = 0.0
        elif len(self._lines) - self._busy > self._busy + DEBTORS:
            self._forgive(keep=self._busy // 2)

    def _forgive(self, keep: int) -> None:
        """Forget tenants that wait for nothing, but for the `keep` that owe the most. Seldom, so O(log n) a start."""
        idle = sorted(entry for entry in self._heap if not entry[2].jobs and not entry[2].risen)
        gone = idle[: len(idle) - keep]
        for _, _, line in gone:
            del self._lines[line.tenant]
        self._round = max(self._round, gone[-1][0])
        self._heap = [entry for entry in self._heap if entry[2].tenant in self._lines]
        heapq.heapify(self._heap)
