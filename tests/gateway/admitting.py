"""Jobs that wait for a model with few slots, by hand and in simulated time."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable

from shoal.errors import ShoalError
from shoal.gateway.admission import Admission, Job
from shoal.messages import Priority


def full(limit: int = 1, *, queue_length: int = 1000, age_bound: float = 30.0) -> tuple[Admission, list[Job]]:
    """Model "m" with all its slots taken since 0 by tenants that send nothing else."""
    admission = Admission(queue_length=queue_length, age_bound=age_bound)
    admission.limit("m", limit, 0.0)
    running = [Job("m", f"before{n}") for n in range(limit)]
    assert all(admission.submit(job, 0.0) for job in running)
    return admission, running


def wait(admission: Admission, tenant: str, now: float = 0.0, *, count: int = 1, priority: Priority = "normal") -> Job:
    """Jobs that have to wait; the last one."""
    for _ in range(count):
        job = Job("m", tenant, priority)
        assert not admission.submit(job, now)
    return job


def starts(admission: Admission, running: Job, count: int, now: float = 0.0) -> list[Job]:
    """The next `count` jobs that start one after the other, the one before them ending at once."""
    result = []
    for _ in range(count):
        (running,) = admission.done(running, now)
        result.append(running)
    return result


def tenants(jobs: list[Job]) -> str:
    return "".join(job.tenant for job in jobs)


def assert_empty(admission: Admission) -> None:
    assert not admission._models
    assert not admission._deadlines
    assert not admission._waiting
    assert not admission._evicted


def simulate(
    admission: Admission,
    arrivals: Iterable[tuple[float, Job]],
    service: dict[Job, float],
    limit: int,
    *,
    least: int | None = None,
) -> list[Job]:
    """Jobs come to model "m" at their times and run for as long as `service` says. Those that ran, as they started.

    While one waits, `least` slots are taken, if that is not the limit.
    """
    admission.limit("m", limit, 0.0)
    ties = itertools.count()
    events: list[tuple[float, int, str, Job]] = [(at, next(ties), "comes", job) for at, job in arrivals]
    heapq.heapify(events)
    started = []
    while events:
        now, _, what, job = heapq.heappop(events)
        if what == "ends":
            begins = admission.done(job, now)
        else:
            try:
                begins = [job] if admission.submit(job, now) else []
            except ShoalError:
                continue
        assert admission.running("m") <= limit
        assert not admission.waiting("m") or admission.running("m") >= (limit if least is None else least)
        for job in begins:
            assert job.started == now
            started.append(job)
            heapq.heappush(events, (now + service[job], next(ties), "ends", job))
    return started
