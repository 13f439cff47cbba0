"""The jobs that wait for one model: priority classes, age, and who has to go when there are too many. Pure.

A class goes before the next; inside a class tenants share by weight (`fair.py`). Age breaks that order, so that nobody
starves. What ages is the *first* of a tenant's jobs in a class, because the others wait for their own tenant's: if all
of them aged, a thousand requests sent at once would half a minute later outrank everyone who sends one now.

- A job that has been its tenant's first in its class for `age_bound` seconds rises: low to normal to high. There it
  goes before its tenant's other jobs, at its tenant's turn, and its tenant pays for it; the clock starts again.
- One that has been in `high` for `age_bound` seconds is overdue. The overdue go before everyone, the longest overdue
  first, and nobody pays for it.

So, with a limit of L jobs that each run at most S seconds and at most Q jobs waiting, a job that is n-th of its
tenant in its class, with k = 1, 2, 3 for high, normal, low, starts within (n - 1 + k) * age_bound + S * ceil(Q / L)
seconds, unless it is refused, whatever else is submitted: each of those before it starts, leaves or rises within
`age_bound`, and once it is overdue only those that were so already go before it.

While the limit is 0 nobody overtakes anybody, so that time does not count as age.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from shoal.messages import PRIORITIES, Priority

from .fair import FairQueue

State = Literal["new", "waiting", "running", "ended"]

LEVELS: dict[Priority, int] = {priority: level for level, priority in enumerate(PRIORITIES)}
OVERDUE = -1
"""The level of a job that goes before all classes; these are 0, 1, 2 for high, normal, low."""


@dataclass(slots=True, eq=False)
class Job:
    """One request as admission sees it. What the caller sets may not change while it waits or runs.

    `cost` is in estimated tokens. Tenants of one model and class share by `weight`. `deadline` is the time of the
    caller's clock from which it waits no longer. `owner` is the caller's and not looked at.
    """

    model: str
    tenant: str
    priority: Priority = "normal"
    weight: float = 1.0
    cost: float = 1.0
    deadline: float = math.inf
    owner: Any = None

    state: State = field(default="new", init=False)
    """This and what follows is kept by `Admission`, for others to read."""
    submitted: float = field(default=0.0, init=False)
    started: float = field(default=0.0, init=False)
    """When it began to run; `started - submitted` is how long it waited."""
    level: int = field(default=0, init=False)
    """The class that it waits in now: 0, 1, 2 for high, normal, low, or `OVERDUE`."""
    ticket: int = field(default=0, init=False)
    """Tells this wait from earlier ones of the same job."""


class Heaviest:
    """How many jobs each tenant has, and who has the most; everything in O(1)."""

    __slots__ = ("_counts", "_groups", "_most")

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._groups: dict[int, OrderedDict[str, None]] = {}  # tenants by how many they have
        self._most = 0

    def count(self, tenant: str) -> int:
        """How many jobs `tenant` has."""
        return self._counts.get(tenant, 0)

    def top(self) -> tuple[str, int]:
        """A tenant with the most jobs, and how many; `("", 0)` if there are none."""
        return (next(iter(self._groups[self._most])), self._most) if self._most else ("", 0)

    def add(self, tenant: str, by: Literal[1, -1]) -> None:
        """`tenant` has one job more, or less."""
        old = self._counts.get(tenant, 0)
        new = old + by
        groups = self._groups
        if old:
            group = groups[old]
            del group[tenant]
            if not group:
                del groups[old]
        if new:
            self._counts[tenant] = new
            if new not in groups:
                groups[new] = OrderedDict()
            groups[new][tenant] = None
        else:
            del self._counts[tenant]
        if new > self._most or (old == self._most and old not in groups):
            self._most = new


class Waiting:
    """The jobs that wait for one model. Times are the caller's clock, and never go back."""

    __slots__ = ("_age_bound", "_ages", "_classes", "_clock", "_overdue", "_size", "_skipped", "_stopped", "_tenants")

    def __init__(self, age_bound: float, now: float) -> None:
        self._age_bound = age_bound
        self._classes = tuple(FairQueue[Job]() for _ in PRIORITIES)
        self._overdue: OrderedDict[Job, None] = OrderedDict()
        self._ages: OrderedDict[Job, float] = OrderedDict()  # those that age, since when, which is their order too
        self._tenants = Heaviest()  # of those that are not overdue
        self._size = 0
        self._clock = now  # how far age has come; `_skipped` behind the caller's clock
        self._skipped = 0.0
        self._stopped = False

    def __len__(self) -> int:
        return self._size

    def follows(self, running: Job) -> None:
        """Before anyone waits: `running` was the last to start without waiting, and its tenant owes for it."""
        self._classes[LEVELS[running.priority]].charge(running)

    def stop(self, now: float) -> None:
        """From `now` on nobody can start, and nobody ages."""
        self.advance(now)
        self._stopped = True

    def resume(self, now: float) -> None:
        """Jobs age again."""
        if self._stopped:
            self._stopped = False
            self._skipped = now - self._clock

    def advance(self, now: float) -> None:
        """Let those rise whose time has come. To be called with the time before a push or a pop."""
        if self._stopped:
            return
        now = max(self._clock, now - self._skipped)
        ages, bound = self._ages, self._age_bound
        while ages:
            job, since = next(iter(ages.items()))
            if since + bound > now:
                break
            self._clock = max(self._clock, since + bound)
            self._rise(job)
        self._clock = now

    def count(self, tenant: str) -> int:
        """How many jobs of `tenant` wait, but for the overdue."""
        return self._tenants.count(tenant)

    def push(self, job: Job) -> None:
        """`job` begins to wait."""
        level = LEVELS[job.priority]
        self._classes[level].push(job)
        job.level = level
        self._size += 1
        self._tenants.add(job.tenant, 1)
        self._watch(level, job.tenant)

    def pop(self) -> Job:
        """Take out the job whose turn it is. Raises IndexError if none waits."""
        if self._overdue:
            job, _ = self._overdue.popitem(last=False)
        else:
            job = self._first_class().pop()
            self._forget(job)
        self._size -= 1
        return job

    def pop_of(self, may: Callable[[str], bool]) -> Job | None:
        """Take out the job whose turn it is among those that are overdue, or else of the first class in which any waits
        and of a tenant that `may` start one. None if there is none: a class waits for those before it even then."""
        if self._overdue:
            return self.pop()
        jobs = self._first_class()
        job = jobs.pop_of(may)
        if job is not None:
            self._forget(job)
            self._size -= 1
        return job

    def is_next(self, job: Job, may: Callable[[str], bool]) -> bool:
        """Whether `job`, which waits here, is what `pop_of` would take out."""
        return not self._overdue and self._first_class().next(may) is job

    def remove(self, job: Job) -> None:
        """Take out a job that waits here. Raises KeyError if it does not."""
        if job.level == OVERDUE:
            del self._overdue[job]
        else:
            self._classes[job.level].remove(job)
            self._forget(job)
        self._size -= 1

    def order(self) -> Iterator[Job]:
        """All jobs in the order in which they would start if no other came and none grew older. O(n log n)."""
        yield from self._overdue
        for jobs in self._classes:
            yield from jobs.order()

    def gives_way(self, job: Job) -> Job | None:
        """Which waiting job is to be refused so that `job` can wait in its place; None: `job` itself is.

        Places are shared equally: if the tenant with the most has at least two more than that of `job`, it loses the
        newest of its lowest class. Else `job` may take the place of one of its own tenant's that is in a lower class.
        The overdue keep their places, and do not count.
        """
        heaviest, most = self._tenants.top()
        if self._tenants.count(job.tenant) + 1 < most:
            return self._newest(heaviest)
        own = self._newest(job.tenant)
        return own if own is not None and own.level > LEVELS[job.priority] else None

    def _first_class(self) -> FairQueue[Job]:
        """The first class in which a job waits; the first of all if there is none."""
        return next((jobs for jobs in self._classes if jobs), self._classes[0])

    def _newest(self, tenant: str) -> Job | None:
        return next((job for jobs in reversed(self._classes) if (job := jobs.last(tenant)) is not None), None)

    def _forget(self, job: Job) -> None:
        """`job` has left its class."""
        self._tenants.add(job.tenant, -1)
        self._ages.pop(job, None)
        self._watch(job.level, job.tenant)

    def _watch(self, level: int, tenant: str) -> None:
        """The first of a tenant's own jobs in a class ages, from the moment it is the first."""
        first = self._classes[level].first(tenant)
        if first is not None and first not in self._ages:
            self._ages[first] = self._clock

    def _rise(self, job: Job) -> None:
        level = job.level
        self._classes[level].remove(job)
        self._forget(job)
        job.level = level - 1
        if job.level == OVERDUE:
            self._overdue[job] = None
            return
        self._classes[job.level].push(job, risen=True)
        self._tenants.add(job.tenant, 1)
        self._ages[job] = self._clock
