"""Who runs of one model, whose share is not used up, and what is kept for those; see `admission.py`. Pure."""

from __future__ import annotations

import math

from .reserve import Reserve
from .waiting import Job, Waiting

MEMORY = 16
"""Jobs over which the mean of how long they run is taken, exponentially weighted."""
KEPT = 60.0
"""Seconds for which slots are kept for others after two tenants met."""


class Slots:
    """The books of one model. Times are the caller's clock."""

    __slots__ = (
        "ended",
        "full_since",
        "kept_until",
        "last",
        "last_end",
        "limit",
        "mean",
        "open",
        "reserve",
        "running",
        "tenant",
        "tenants",
        "waiting",
    )

    def __init__(self) -> None:
        self.limit: float = math.inf
        self.open: float = math.inf  # the limit without the reserve
        self.reserve = Reserve()
        self.running = 0
        self.tenants: dict[str, int] = {}  # how many jobs of each run
        self.tenant: str | None = None  # who sent the last job
        self.kept_until = -math.inf  # until when the reserve is kept
        self.waiting: Waiting | None = None  # never empty; then `running` is not below `open`
        self.last: Job | None = None  # the last to start, if it still runs
        self.full_since = 0.0  # since when jobs have been waiting
        self.ended = 0
        self.last_end = 0.0
        self.mean = 0.0  # seconds that a job runs

    def begin(self, job: Job, now: float) -> None:
        """`job` runs from now on."""
        job.started = now
        job.state = "running"
        self.running += 1
        self.tenants[job.tenant] = self.tenants.get(job.tenant, 0) + 1
        self.last = job

    def end(self, job: Job, now: float) -> None:
        """`job` runs no more."""
        job.state = "ended"
        self.running -= 1
        left = self.tenants[job.tenant] - 1
        if left:
            self.tenants[job.tenant] = left
        else:
            del self.tenants[job.tenant]
        if self.last is job:
            self.last = None
        self.last_end = now
        if self.ended < MEMORY:
            self.ended += 1
        self.mean += (now - job.started - self.mean) / self.ended

    def below_share(self, tenant: str) -> bool:
        """Whether a tenant runs less than an equal share of the slots would be if one more tenant came."""
        return self.tenants.get(tenant, 0) * (len(self.tenants) + 1) < self.limit

    def startable(self, now: float) -> float:
        """How many may run before only those below their share may start."""
        if now >= self.kept_until:
            return self.limit
        self.reserve.settle(now)
        self.open = self.limit - self.reserve.kept
        return self.open

    def weigh(self, tenant: str, now: float) -> None:
        """A job of `tenant` comes that does not find a slot open to all. If its tenant asks for less than its share, as
        many slots are of use as such tenants have jobs, and one more, for the next."""
        if len(self.tenants) > (tenant in self.tenants):
            self.kept_until = now + KEPT
        mine, shares = self.outstanding(tenant) + 1, len(self.tenants) + 1
        if mine * shares >= self.limit:
            return
        others = sum(
            count
            for other, count in self.tenants.items()
            if other != tenant and self.outstanding(other) * shares < self.limit
        )
        self.reserve.need(mine + others + 1, now)

    def outstanding(self, tenant: str) -> int:
        """How many jobs of a tenant run or wait."""
        return self.tenants.get(tenant, 0) + (0 if self.waiting is None else self.waiting.count(tenant))
