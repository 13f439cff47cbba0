"""What admission promises, whatever is sent: as a state machine against plain lists, and in simulated time."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal.errors import ShoalError
from shoal.gateway.admission import Admission, Job
from shoal.gateway.waiting import LEVELS, OVERDUE
from shoal.messages import PRIORITIES, Priority
from tests.gateway.admitting import simulate

QUEUE = 8
MODELS = ("m", "n")

models = st.sampled_from(MODELS)
priorities = st.sampled_from(PRIORITIES)


class Gate(RuleBasedStateMachine):
    """Clients that come and go, engines that finish, limits that change; and three lists of who should be where."""

    def __init__(self) -> None:
        super().__init__()
        self.admission = Admission(queue_length=QUEUE, age_bound=10.0)
        self.now = 0.0
        self.limits: dict[str, int | None] = dict.fromkeys(MODELS)
        self.waiting: list[Job] = []
        self.running: list[Job] = []

    def at(self, model: str, jobs: Iterable[Job]) -> list[Job]:
        return [job for job in jobs if job.model == model]

    def take(self, jobs: Iterable[Job], state: str = "ended") -> None:
        """These wait no longer; each did, once."""
        for job in jobs:
            assert job.state == state
            self.waiting.remove(job)

    def started(self, jobs: list[Job], predicted: list[Job]) -> None:
        self.take(jobs, "running")
        assert jobs == predicted[: len(jobs)]
        self.running += jobs

    def grow_older(self, model: str) -> list[Job]:
        """The order in which jobs would start, with all that have risen until now; nobody starts by this."""
        assert self.admission.limit(model, self.limits[model], self.now) == []
        return self.admission.order(model)

    @rule(
        model=models,
        tenant=st.sampled_from("aaab" + "cdef"),
        priority=priorities,
        weight=st.sampled_from([0.5, 1.0, 2.0]),
        cost=st.integers(1, 50),
        patience=st.none() | st.floats(0, 30),
        count=st.integers(1, 4),
    )
    def submit(
        self, model: str, tenant: str, priority: Priority, weight: float, cost: int, patience: float | None, count: int
    ) -> None:
        deadline = math.inf if patience is None else self.now + patience
        for _ in range(count):
            self._submit(Job(model, tenant, priority, weight, cost, deadline, owner=self))

    def _submit(self, job: Job) -> None:
        order = self.grow_older(job.model)
        limit = self.limits[job.model]
        free = limit is None or len(self.at(job.model, self.running)) < limit
        full = len(order) == QUEUE
        counts = Counter(other.tenant for other in order if other.level != OVERDUE)
        heavier = {tenant for tenant, n in counts.items() if n == max(counts.values()) and n > counts[job.tenant] + 1}
        losers = heavier or {job.tenant}
        able = [other for other in order if other.tenant in losers and other.level != OVERDUE]
        lowest = {tenant: max((o.level for o in able if o.tenant == tenant), default=OVERDUE) for tenant in losers}
        able = [
            other
            for other in able
            if other.level == lowest[other.tenant] and (heavier or other.level > LEVELS[job.priority])
        ]
        try:
            runs = self.admission.submit(job, self.now)
        except ShoalError:
            assert not free and full and not able
            assert job.state == "new"
            assert self.admission.take_evicted() == []
            return
        assert runs == free
        (self.running if runs else self.waiting).append(job)
        evicted = self.admission.take_evicted()
        assert len(evicted) == (full and not free)
        for other in evicted:
            assert other in able
            mates = [o for o in able if o.tenant == other.tenant and LEVELS[o.priority] == other.level]
            assert not mates or other.ticket == max(o.ticket for o in mates), "the newest goes"
        self.take(evicted)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 99))
    def done(self, which: int) -> None:
        job = self.running.pop(which % len(self.running))
        order = self.grow_older(job.model)
        started = self.admission.done(job, self.now)
        assert self.admission.done(job, self.now) == []
        self.started(started, order)

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0, 99))
    def leave(self, which: int) -> None:
        job = self.waiting[which % len(self.waiting)]
        order = self.admission.order(job.model)
        self.admission.leave(job)
        self.admission.leave(job)
        self.take([job])
        if len({other.tenant for other in order}) == 1:
            order.remove(job)
            assert self.admission.order(job.model) == order

    @rule(model=models, limit=st.none() | st.integers(0, 4))
    def limit(self, model: str, limit: int | None) -> None:
        order = self.grow_older(model)
        self.limits[model] = limit
        self.started(self.admission.limit(model, limit, self.now), order)

    @rule(seconds=st.floats(0, 15))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def expire(self) -> None:
        expired = self.admission.expired(self.now)
        assert expired == sorted(expired, key=lambda job: job.deadline)
        self.take(expired)
        assert {job for job in self.waiting if job.deadline <= self.now} == set()
        assert all(job.deadline <= self.now for job in expired)

    @rule(model=models)
    def drop(self, model: str) -> None:
        order = self.admission.order(model)
        assert self.admission.drop(model) == order
        self.take(order)
        self.limits[model] = None

    @invariant()
    def books_agree(self) -> None:
        for model in MODELS:
            waiting, running = self.at(model, self.waiting), self.at(model, self.running)
            assert self.admission.waiting(model) == len(waiting) <= QUEUE
            assert self.admission.running(model) == len(running)
            limit = self.limits[model]
            assert not waiting or (limit is not None and len(running) >= limit), "a free slot while a job waits"
            order = self.admission.order(model)
            assert len(order) == len(waiting)
            assert set(order) == set(waiting)
            assert [self.admission.position(job) for job in order] == list(range(1, len(order) + 1))
            self._ordered(order)
            estimate = self.admission.estimate(model, self.now)
            assert (estimate == 0.0) or estimate is None or limit is not None
        assert set(self.admission.waiting_models()) == {job.model for job in self.waiting}

    def _ordered(self, order: list[Job]) -> None:
        assert [job.level for job in order] == sorted(job.level for job in order), "a class goes before the next"
        assert all(job.level <= LEVELS[job.priority] for job in order)
        lines: dict[tuple[str, Priority, int], int] = {}
        for job in order:
            line = job.tenant, job.priority, job.level
            assert lines.get(line, 0) < job.ticket, "first come, first served"
            lines[line] = job.ticket

    @invariant()
    def nothing_piles_up(self) -> None:
        admission = self.admission
        assert len(admission._deadlines) <= 2 * len(self.waiting) + 64
        for model, books in admission._models.items():
            assert books.running or books.waiting or self.limits[model] is not None
            assert books.last is None or books.last in self.running
            if books.waiting is not None:
                aging = {job for job in self.at(model, self.waiting) if job.level != OVERDUE}
                firsts = {(job.tenant, job.level) for job in aging if job.level == LEVELS[job.priority]}
                risen = [job for job in aging if job.level < LEVELS[job.priority]]
                assert len(books.waiting._ages) == len(firsts) + len(risen)
                assert list(books.waiting._ages.values()) == sorted(books.waiting._ages.values())
                assert books.waiting._tenants._counts == Counter(job.tenant for job in aging)

    def teardown(self) -> None:
        for model in MODELS:
            self.drop(model)
        for job in self.running:
            assert self.admission.done(job, self.now) == []
        assert not self.admission._models
        assert not self.admission._deadlines
        assert not self.admission._waiting
        assert not self.admission._evicted


TestGate = Gate.TestCase
TestGate.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


@pytest.mark.parametrize(("limit", "spread"), [(1, 0.0), (2, 0.0), (8, 0.0), (8, 0.37)])
@pytest.mark.parametrize("phase", [0.0, 0.1, 0.25, 0.499])
def test_a_flood_delays_nobody_else_by_more_than_what_runs(phase: float, limit: int, spread: float) -> None:
    """A thousand requests of one tenant, and one a second of another: that is always the next to start."""
    rng = random.Random(1)
    seconds = 0.5
    flood = [Job("m", "flood", cost=rng.choice([100.0, 100.0 + 900 * spread])) for _ in range(1000)]
    quiet = [Job("m", "quiet", cost=rng.choice([100.0, 100.0 + 900 * spread])) for _ in range(60)]
    service = {job: seconds * (1 - spread * rng.random()) for job in (*flood, *quiet)}
    arrivals = [(0.0, job) for job in flood] + [(phase + n, job) for n, job in enumerate(quiet)]
    order = simulate(Admission(queue_length=2000), arrivals, service, limit)
    assert len(order) == 1060
    for job in quiet:
        between = [o for o in order[: order.index(job)] if o.started > job.submitted]
        assert between == [], "nobody starts before it"
        assert job.started - job.submitted <= seconds


def test_a_steady_flood_of_many_delays_a_quiet_one_by_a_turn_of_each_at_most() -> None:
    rng = random.Random(2)
    floods = [Job("m", f"flood{n % 10}", cost=rng.uniform(50, 500)) for n in range(2000)]
    quiet = [Job("m", "quiet", cost=200.0) for _ in range(60)]
    service = dict.fromkeys((*floods, *quiet), 0.5)
    arrivals = [(n / 40, job) for n, job in enumerate(floods)] + [(n + 0.3, job) for n, job in enumerate(quiet)]
    simulate(Admission(queue_length=3000), arrivals, service, 8)
    delays = sorted(job.started - job.submitted for job in quiet)
    assert delays[-1] <= 0.5 * (1 + 10 / 8)
    assert delays[len(delays) // 2] <= 0.5


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 60),
            st.sampled_from("aaaaabcdefghijkl"),
            st.sampled_from(["high", "high", "normal", "low"]),
            st.floats(0.01, 4.0),
            st.sampled_from([1.0, 1.0, 50.0]),
        ),
        max_size=120,
    ),
    st.integers(1, 4),
    st.integers(1, 60),
    st.sampled_from([0.5, 3.0, 10.0]),
)
def test_nobody_waits_for_longer_than_is_promised(
    jobs: list[tuple[float, str, Priority, float, float]], limit: int, queue: int, age_bound: float
) -> None:
    """(n - 1 + k) * age_bound + S * ceil(Q / L) for the n-th of its tenant, in the k-th class from the top."""
    admission = Admission(queue_length=queue, age_bound=age_bound)
    service, arrivals = {}, []
    for at, tenant, priority, seconds, cost in jobs:
        job = Job("m", tenant, priority, cost=cost)
        service[job] = seconds
        arrivals.append((at, job))
    longest = max(service.values(), default=0.0)
    started = simulate(admission, arrivals, service, limit)
    evicted = admission.take_evicted()
    assert {job.state for job in (*started, *evicted)} <= {"ended"}
    assert len(set(started) | set(evicted)) == len(started) + len(evicted)
    assert all(job in started or job in evicted or job.state == "new" for job in service), "nobody is forgotten"
    for job in started:
        before = [
            o
            for o in started + evicted
            if (o.tenant, o.priority) == (job.tenant, job.priority)
            and 0 < o.ticket < job.ticket
            and (o in evicted or o.started > job.submitted)
        ]
        turns = len(before) + 1 + LEVELS[job.priority]
        promised = turns * age_bound + longest * math.ceil(queue / limit)
        assert job.started - job.submitted <= promised + 1e-6


def test_low_priority_goes_on_under_a_flood_that_never_ends() -> None:
    """The bound is met where it bites: high priority takes more than all there is, from ever new tenants."""
    low = [Job("m", f"low{n}", "low") for n in range(3)]
    floods = [Job("m", f"t{n}", "high") for n in range(3000)]
    service = dict.fromkeys((*low, *floods), 1.0)
    arrivals = [(5.0, job) for job in low] + [(n / 10, job) for n, job in enumerate(floods)]
    simulate(Admission(queue_length=50, age_bound=10.0), arrivals, service, 4)
    bound = 1.0 * math.ceil(50 / 4)
    assert all(30.0 <= job.started - job.submitted <= 30.0 + bound for job in low)


def test_a_tenant_in_a_lower_class_starts_a_job_each_age_bound() -> None:
    """Against one that floods the higher class, and could have all there is."""
    low = [Job("m", "low", "low") for _ in range(4)]
    flood = [Job("m", "flood", "high") for _ in range(2000)]
    service = dict.fromkeys((*low, *flood), 1.0)
    simulate(Admission(queue_length=3000, age_bound=10.0), [(0.0, job) for job in (*flood, *low)], service, 4)
    delays = [job.started - job.submitted for job in low]
    # In `high` they share with the flood by weight, so none has to become overdue.
    assert delays == pytest.approx([20.0, 30.0, 40.0, 50.0], abs=1.0)
