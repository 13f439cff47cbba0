"""Who runs and who waits: limits, those who leave, and that nothing is left of those who have gone."""

from __future__ import annotations

import gc
import math
import weakref

import pytest

from shoal.errors import ShoalError
from shoal.gateway.admission import LARGEST, SMALLEST, Admission, Job
from tests.gateway.admitting import assert_empty, full, starts, wait

# -- limits ------------------------------------------------------------------------------------------------------------


def test_a_model_without_a_limit_runs_everything() -> None:
    admission = Admission()
    jobs = [Job("m", "a") for _ in range(100)]
    assert all(admission.submit(job, 1.0) for job in jobs)
    assert (admission.running("m"), admission.waiting("m")) == (100, 0)
    assert all(job.state == "running" for job in jobs)
    assert all(admission.done(job, 2.0) == [] for job in jobs)
    assert admission.running("m") == 0
    assert_empty(admission)


def test_what_is_beyond_the_limit_waits_until_a_job_ends() -> None:
    admission, running = full(2)
    first, second = Job("m", "a"), Job("m", "a")
    assert not admission.submit(first, 1.0)
    assert not admission.submit(second, 2.0)
    assert (admission.running("m"), admission.waiting("m")) == (2, 2)
    assert admission.done(running[1], 3.0) == [first]
    assert (first.submitted, first.started, first.state) == (1.0, 3.0, "running")
    assert admission.done(running[0], 4.0) == [second]
    assert admission.done(first, 5.0) == []
    assert (admission.running("m"), admission.waiting("m")) == (1, 0)


def test_models_do_not_share_limits() -> None:
    admission, _ = full(1)
    wait(admission, "a")
    assert admission.submit(Job("other", "a"), 0.0)
    assert admission.waiting_models() == ["m"]
    assert (admission.waiting("other"), admission.running("unknown"), admission.waiting("unknown")) == (0, 0, 0)


def test_a_limit_that_is_raised_starts_jobs_in_order() -> None:
    admission, _ = full(1)
    jobs = [wait(admission, "a") for _ in range(5)]
    assert admission.limit("m", 3, 1.0) == jobs[:2]
    assert admission.limit("m", 3, 1.0) == []
    assert admission.limit("m", None, 1.0) == jobs[2:]
    assert admission.submit(Job("m", "a"), 1.0)


def test_a_limit_that_is_lowered_stops_nobody_and_lets_nobody_in_until_it_is_met() -> None:
    admission, running = full(3)
    waits = wait(admission, "a")
    assert admission.limit("m", 1, 0.0) == []
    assert admission.running("m") == 3
    assert admission.done(running[0], 1.0) == []
    assert admission.done(running[1], 1.0) == []
    assert not admission.submit(Job("m", "a"), 1.0)
    assert admission.done(running[2], 1.0) == [waits]


def test_a_limit_of_nothing_holds_and_no_limit_lets_go() -> None:
    admission = Admission()
    assert admission.limit("m", 0, 0.0) == []
    jobs = [wait(admission, "a") for _ in range(20)]
    assert admission.running("m") == 0
    assert admission.limit("m", 4, 5.0) == jobs[:4]
    assert admission.limit("m", 0, 5.0) == []
    assert all(admission.done(job, 6.0) == [] for job in jobs[:4])
    assert admission.limit("m", None, 7.0) == jobs[4:]
    for job in jobs[4:]:
        admission.done(job, 8.0)
    assert_empty(admission)


def test_no_limit_for_a_model_that_nobody_named_is_nothing_to_remember() -> None:
    admission = Admission()
    assert admission.limit("m", None, 0.0) == []
    admission.limit("m", 3, 0.0)
    assert admission.limit("m", None, 0.0) == []
    assert_empty(admission)


# -- leaving -----------------------------------------------------------------------------------------------------------


def test_who_leaves_frees_its_place_at_once() -> None:
    admission, running = full(1, queue_length=2)
    first, second = wait(admission, "a"), wait(admission, "a")
    with pytest.raises(ShoalError):
        admission.submit(Job("m", "a"), 0.0)
    admission.leave(first)
    admission.leave(first)
    assert first.state == "ended"
    third = wait(admission, "a")
    assert starts(admission, running[0], 2) == [second, third]


def test_leaving_and_ending_have_no_effect_in_the_wrong_state() -> None:
    admission, running = full(1)
    waits, new = wait(admission, "a"), Job("m", "a")
    admission.leave(running[0])
    admission.leave(new)
    assert admission.done(waits, 1.0) == admission.done(new, 1.0) == []
    assert (admission.running("m"), admission.waiting("m")) == (1, 1)
    assert admission.done(running[0], 1.0) == [waits]
    assert admission.done(running[0], 1.0) == []
    assert (admission.running("m"), admission.waiting("m")) == (1, 0)


def test_a_deadline_is_kept_to_the_moment() -> None:
    admission, _ = full(1)
    late = Job("m", "a", deadline=10.0)
    soon = Job("m", "b", deadline=5.0)
    never = Job("m", "c")
    for job in (late, soon, never):
        assert not admission.submit(job, 0.0)
    assert admission.expired(4.999) == []
    assert admission.expired(5.0) == [soon]
    assert admission.expired(1e9) == [late]
    assert admission.expired(math.inf) == []
    assert late.state == "ended"
    assert admission.order("m") == [never]


def test_deadlines_of_jobs_that_run_or_left_mean_nothing() -> None:
    admission, running = full(1)
    runs, leaves = Job("m", "a", deadline=5.0), Job("m", "a", deadline=5.0)
    wait(admission, "a", count=3)
    admission.submit(runs, 0.0)
    admission.submit(leaves, 0.0)
    admission.leave(leaves)
    starts(admission, running[0], 4)
    assert runs.state == "running"
    assert admission.expired(100.0) == []


def test_a_job_that_ended_can_be_submitted_again() -> None:
    admission, running = full(1)
    job = Job("m", "a", deadline=5.0)
    wait(admission, "b")
    admission.submit(job, 0.0)
    admission.leave(job)
    job.deadline = 50.0
    assert not admission.submit(job, 1.0)
    assert admission.expired(5.0) == [], "that was the deadline of its first wait"
    assert starts(admission, running[0], 2)[1] is job
    admission.done(job, 2.0)
    assert admission.submit(job, 3.0)


def test_a_model_that_is_dropped_returns_who_waits_and_forgets_its_limit() -> None:
    admission, running = full(1)
    jobs = [wait(admission, tenant) for tenant in "aab"]
    assert admission.drop("m") == [jobs[0], jobs[2], jobs[1]]
    assert {job.state for job in jobs} == {"ended"}
    assert admission.drop("m") == admission.drop("unknown") == []
    assert admission.waiting("m") == 0
    assert admission.running("m") == 1
    again = Job("m", "a")
    assert admission.submit(again, 0.0)
    admission.done(again, 1.0)
    assert admission.done(running[0], 1.0) == []
    assert_empty(admission)


# -- bad input and memory ----------------------------------------------------------------------------------------------


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="queue_length"):
        Admission(queue_length=-1)
    for bound in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="age_bound"):
            Admission(age_bound=bound)
    with pytest.raises(ValueError, match="limit"):
        Admission().limit("m", -1, 0.0)


@pytest.mark.parametrize("number", [0.0, -1.0, math.nan, math.inf, SMALLEST / 2, LARGEST * 2])
def test_costs_and_weights_out_of_range_are_refused(number: float) -> None:
    admission, _ = full(1)
    for job in (Job("m", "a", cost=number), Job("m", "a", weight=number), Job("free", "a", cost=number)):
        with pytest.raises(ValueError, match="out of range"):
            admission.submit(job, 0.0)
        assert job.state == "new"
    assert admission.waiting("m") == 0
    assert admission.running("free") == 0


def test_a_job_cannot_be_in_twice() -> None:
    admission, running = full(1)
    waits = wait(admission, "a")
    for job in (running[0], waits):
        with pytest.raises(ValueError, match="already"):
            admission.submit(job, 0.0)


def test_nothing_is_left_of_tenants_that_come_and_go() -> None:
    admission = Admission()
    admission.limit("m", 2, 0.0)
    running = [Job("m", "x"), Job("m", "y")]
    stays = Job("m", "stays", "low", deadline=1e9)
    for job in (*running, stays):
        admission.submit(job, 0.0)
    for number in range(50_000):
        now = number * 1e-4  # too short for `stays` to rise
        admission.submit(served := Job("m", f"s{number}", deadline=now + 600), now)
        admission.submit(leaves := Job("m", f"l{number}", deadline=now + 600), now)
        admission.leave(leaves)
        assert admission.done(running.pop(0), now) == [served]
        running.append(served)
    waiting = admission._models["m"].waiting
    assert waiting is not None
    assert len(waiting) == len(waiting._ages) == len(waiting._tenants._counts) == len(waiting._tenants._groups) == 1
    assert sum(len(jobs._heap) + len(jobs._lines) for jobs in waiting._classes) == 2
    assert len(admission._deadlines) <= 2 + 64
    admission.done(running[0], now)
    admission.done(running[1], now)
    admission.done(stays, now)
    assert admission.limit("m", None, now) == []
    assert_empty(admission)


def test_models_leave_nothing_behind() -> None:
    admission = Admission()
    for number in range(10_000):
        name = f"m{number}"
        admission.limit(name, 1, 0.0)
        runs, waits = Job(name, "a"), Job(name, "b", deadline=5.0)
        assert admission.submit(runs, 0.0)
        assert not admission.submit(waits, 0.0)
        admission.drop(name)
        admission.done(runs, 1.0)
    assert_empty(admission)


def test_jobs_that_ended_are_not_held_on_to() -> None:
    class Owner:
        pass

    admission, running = full(1)
    owners = []
    for _ in range(3):
        owner = Owner()
        owners.append(weakref.ref(owner))
        admission.submit(Job("m", "a", deadline=600.0, owner=owner), 0.0)
    del owner
    (job,) = admission.done(running[0], 1.0)
    admission.leave(admission.order("m")[0])
    (job,) = admission.done(job, 2.0)
    admission.done(job, 3.0)
    del job
    gc.collect()
    assert [ref() for ref in owners] == [None] * 3
    assert admission.running("m") == admission.waiting("m") == 0
