"""Slots that are kept for quiet tenants, whatever happens: against plain lists, and in simulated time."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal.errors import ShoalError
from shoal.gateway.admission import Admission, Job
from shoal.gateway.reserve import SMALLEST_SHARED
from shoal.gateway.slots import KEPT
from shoal.gateway.waiting import OVERDUE
from shoal.messages import PRIORITIES, Priority
from tests.gateway.admitting import simulate


class Kept(RuleBasedStateMachine):
    """Tenants, an engine that finishes, and books of our own about who runs what."""

    def __init__(self) -> None:
        super().__init__()
        self.admission = Admission(queue_length=20, age_bound=10.0, reserve=0.25)
        self.now = 0.0
        self.limit = 8
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.tenant: str | None = None
        self.kept_until = -math.inf
        self.admission.limit("m", self.limit, 0.0)

    @property
    def open(self) -> int:
        if not (self.now < self.kept_until and self.limit >= SMALLEST_SHARED):
            return self.limit
        reserve = self.admission._models["m"].reserve
        reserve.settle(self.now)
        assert max(1, self.limit // 4) <= reserve.kept <= self.limit // 2
        return self.limit - reserve.kept

    def below_share(self, tenant: str) -> bool:
        counts = Counter(job.tenant for job in self.running)
        return counts[tenant] < self.limit / (len(counts) + 1)

    def begun(self, jobs: list[Job]) -> None:
        for job in jobs:
            assert job.state == "running"
            assert len(self.running) < self.limit
            if job in self.waiting:
                self.waiting.remove(job)
            if len(self.running) >= self.open and job.level != OVERDUE:
                assert self.below_share(job.tenant)
                assert all(other.level >= job.level for other in self.waiting), "a class goes before the next"
            self.running.append(job)

    def settled(self) -> None:
        """Nobody who may start waits."""
        if len(self.running) < self.limit and self.waiting:
            assert len(self.running) >= self.open
            first = min(job.level for job in self.waiting)
            assert first != OVERDUE
            assert not any(self.below_share(job.tenant) for job in self.waiting if job.level == first)

    @rule(tenant=st.sampled_from("aaaabcd"), priority=st.sampled_from([*PRIORITIES, "normal"]), count=st.integers(1, 5))
    def submit(self, tenant: str, priority: Priority, count: int) -> None:
        for _ in range(count):
            job = Job("m", tenant, priority)
            if self.tenant not in (None, tenant):
                self.kept_until = self.now + KEPT
            self.tenant = tenant
            contended = len(self.running) >= self.admission._models["m"].open
            if contended and any(other.tenant != tenant for other in self.running):
                self.kept_until = self.now + KEPT
            free = len(self.running) < self.open
            try:
                runs = self.admission.submit(job, self.now)
            except ShoalError:
                assert len(self.waiting) == 20
                continue
            assert runs or not free or self.waiting
            for other in self.admission.take_evicted():
                self.waiting.remove(other)
            if runs:
                self.begun([job])
            else:
                self.waiting.append(job)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 99))
    def done(self, which: int) -> None:
        job = self.running.pop(which % len(self.running))
        self.begun(self.admission.done(job, self.now))
        self.settled()

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0, 99))
    def leave(self, which: int) -> None:
        self.admission.leave(self.waiting.pop(which % len(self.waiting)))

    @rule(limit=st.integers(0, 12))
    def change_limit(self, limit: int) -> None:
        self.limit = limit
        self.begun(self.admission.limit("m", limit, self.now))
        if limit:
            self.settled()

    @rule(seconds=st.sampled_from([0.5, 6.0, 70.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def settle(self) -> None:
        self.begun(self.admission.settle(self.now))
        if self.limit:
            self.settled()

    @invariant()
    def books_agree(self) -> None:
        assert self.admission.running("m") == len(self.running)
        assert self.admission.waiting("m") == len(self.waiting)
        books = self.admission._models["m"]
        assert books.tenants == Counter(job.tenant for job in self.running)


TestKept = Kept.TestCase
TestKept.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


def beside(floods: int, limit: int, seed: int) -> list[float]:
    """How long each request of a quiet tenant waits, of one a second that is shorter than that, beside so many tenants
    that would fill any number of slots."""
    rng = random.Random(seed)
    flood = [Job("m", f"flood{n % floods}", cost=rng.uniform(1, 500)) for n in range(20 * limit)]
    quiet = [Job("m", "quiet", cost=rng.uniform(1, 500)) for _ in range(40)]
    service = {job: rng.uniform(0.5, 8.0) for job in flood} | {job: rng.uniform(0.1, 0.9) for job in quiet}
    arrivals = [(rng.uniform(0, 5), job) for job in flood] + [(float(n), job) for n, job in enumerate(quiet, 20)]
    early = Job("m", "early")
    service[early] = 0.1
    simulate(Admission(reserve=0.125), [(0.0, early), *arrivals], service, limit, least=1)
    assert all(job.state == "ended" for job in flood)
    return [job.started - job.submitted for job in quiet]


def overlapping(limit: int, seed: int) -> list[float]:
    """The same of one whose requests take up to 1.8 s, so that often two of them run, and seldom more."""
    rng = random.Random(seed)
    flood = [Job("m", "flood", cost=rng.uniform(1, 500)) for _ in range(40 * limit)]
    quiet = [Job("m", "quiet", cost=rng.uniform(1, 500)) for _ in range(100)]
    service = {job: rng.uniform(4.0, 12.0) for job in flood} | {job: rng.uniform(0.7, 1.8) for job in quiet}
    arrivals = [(rng.uniform(0, 5), job) for job in flood] + [(float(n), job) for n, job in enumerate(quiet, 20)]
    early = Job("m", "early")
    service[early] = 0.1
    started = simulate(Admission(reserve=0.125), [(0.0, early), *arrivals], service, limit, least=1)
    assert len(started) == len(service)
    return [job.started - job.submitted for job in quiet]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([4, 6, 8, 16]))
def test_a_quiet_tenant_whose_requests_overlap_waits_only_until_that_is_known(seed: int, limit: int) -> None:
    """While the flood gives back the slots that it has. With a kept slot and no more, it waits every few requests."""
    waits = overlapping(limit, seed)
    assert set(waits[15:]) == {0.0}
    assert max(waits) < 4.0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([4, 8, 16, 31]))
def test_a_quiet_tenant_never_waits_beside_a_flood(seed: int, limit: int) -> None:
    assert set(beside(1, limit, seed)) == {0.0}


@pytest.mark.parametrize("seed", range(5))
def test_a_quiet_tenant_seldom_waits_beside_several(seed: int) -> None:
    """They are below their shares by turns, and may then take a kept slot too."""
    waits = beside(3, 32, seed)
    assert waits.count(0.0) >= 36
    assert max(waits) < 2.0


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 60), st.sampled_from("aaaabcd"), st.sampled_from(PRIORITIES), st.floats(0.01, 4))),
    st.integers(1, 12),
    st.sampled_from([0.5, 3.0]),
)
def test_nobody_starves_by_it(jobs: list[tuple[float, str, Priority, float]], limit: int, age_bound: float) -> None:
    """Each runs in the end; how long that may take is promised in `waiting.py`, and at most that."""
    admission = Admission(queue_length=200, age_bound=age_bound, reserve=0.5)
    arrivals = [(at, Job("m", tenant, priority)) for at, tenant, priority, _ in jobs]
    service = {job: seconds for (_, job), (_, _, _, seconds) in zip(arrivals, jobs, strict=True)}
    started = simulate(admission, arrivals, service, limit, least=1)
    assert len(started) == len(jobs)
    longest = max(service.values(), default=0.0)
    for job in started:
        line = [o for o in started if (o.tenant, o.priority) == (job.tenant, job.priority)]
        before = sum(0 < o.ticket < job.ticket and o.started > job.submitted for o in line)
        turns = before + 1 + PRIORITIES.index(job.priority)
        assert job.started - job.submitted <= turns * age_bound + longest * math.ceil(200 / limit) + 1e-6
