from __future__ import annotations

import gc
import math
import weakref

import pytest

from shoal.errors import ShoalError
from shoal.gateway.admission import LARGEST, RETRY_UNKNOWN, SMALLEST, Admission, Job
from shoal.gateway.waiting import OVERDUE
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


# -- order -------------------------------------------------------------------------------------------------------------


def test_classes_go_one_before_the_other() -> None:
    admission, running = full(1)
    for priority in ("low", "normal", "high", "low", "high"):
        wait(admission, priority[0], priority=priority)
    assert tenants(starts(admission, running[0], 5)) == "hhnll"


def test_tenants_take_turns_inside_a_class() -> None:
    admission, running = full(1)
    wait(admission, "a", count=5)
    wait(admission, "b", count=2)
    wait(admission, "c")
    assert tenants(starts(admission, running[0], 8)) == "abcabaaa"


def test_weight_and_cost_decide_the_shares() -> None:
    admission, running = full(1)
    for _ in range(40):
        admission.submit(Job("m", "a", weight=2.0, cost=100.0), 0.0)
        admission.submit(Job("m", "b", weight=1.0, cost=200.0), 0.0)
    served = tenants(starts(admission, running[0], 40))
    assert served.count("a") == 32, "twice the weight and half the cost: four times as many"


def test_who_has_taken_the_slots_does_not_go_first_in_the_queue() -> None:
    admission = Admission()
    admission.limit("m", 8, 0.0)
    running = [Job("m", "flood") for _ in range(8)]
    for job in running:
        admission.submit(job, 0.0)
    wait(admission, "flood", count=100)
    quiet = wait(admission, "quiet")
    assert admission.done(running[0], 1.0) == [quiet]


def test_a_start_that_is_over_is_not_held_against_its_tenant() -> None:
    admission = Admission()
    admission.limit("m", 2, 0.0)
    stays, last = Job("m", "other"), Job("m", "a")
    assert admission.submit(stays, 0.0)
    assert admission.submit(last, 0.0)
    admission.done(last, 0.0)
    admission.limit("m", 1, 0.0)
    first, second = wait(admission, "a"), wait(admission, "b")
    assert starts(admission, stays, 2) == [first, second]


def test_positions_are_places_in_the_order_of_now() -> None:
    admission, running = full(1)
    jobs = [wait(admission, "a") for _ in range(3)]
    newcomer = wait(admission, "b")
    low, high = wait(admission, "c", priority="low"), wait(admission, "c", priority="high")
    order = [high, jobs[0], newcomer, jobs[1], jobs[2], low]
    assert admission.order("m") == order
    assert [admission.position(job) for job in order] == [1, 2, 3, 4, 5, 6]
    assert admission.position(running[0]) == admission.position(Job("m", "a")) == 0
    assert admission.order("unknown") == []
    assert starts(admission, running[0], 6) == order


# -- age ---------------------------------------------------------------------------------------------------------------


def test_age_raises_one_class_at_a_time_and_in_the_end_goes_before_all() -> None:
    admission, running = full(1, age_bound=10.0)
    low = wait(admission, "low", priority="low")
    levels = []
    for now in (9.9, 10.0, 19.9, 20.0, 29.9, 30.0):
        admission.limit("m", 1, now)
        levels.append(low.level)
    assert levels == [2, 1, 1, 0, 0, OVERDUE]
    wait(admission, "x", 30.0, count=5, priority="high")
    assert admission.position(low) == 1
    assert admission.done(running[0], 30.0) == [low]


def test_a_job_that_rises_goes_at_its_tenants_turn_and_before_its_tenants_others() -> None:
    admission, running = full(1, age_bound=10.0)
    low = wait(admission, "a", priority="low")
    own = [wait(admission, "a", 9.0) for _ in range(2)]
    others = [wait(admission, "b", 9.0) for _ in range(2)]
    assert admission.done(running[0], 10.0) == [low]
    assert starts(admission, low, 4, 10.0) == [others[0], own[0], others[1], own[1]]


def test_the_overdue_go_by_how_long_they_are() -> None:
    admission, running = full(1, age_bound=10.0)
    first = wait(admission, "a", 1.0, priority="high")
    second = wait(admission, "b", 2.0, priority="high")
    last = wait(admission, "a", 2.0, priority="high")
    third = wait(admission, "c", 5.0, priority="high")
    assert starts(admission, running[0], 4, 16.0) == [first, second, third, last], "the last was its first from 11 on"


def test_only_the_first_of_a_tenant_ages() -> None:
    """Else a flood would outrank everyone who comes later, half a minute after it came."""
    admission, running = full(1, age_bound=10.0)
    wait(admission, "flood", count=100)
    quiet = wait(admission, "quiet", 25.0)
    levels = [job.level for job in admission.order("m")]
    assert levels == [OVERDUE, 0, *[1] * 99], "the first rose at 10 and 20, the second at 20"
    assert starts(admission, running[0], 4, 25.0)[3] is quiet, "after the flood's first turn in each class"


def test_what_was_missed_while_nothing_happened_is_made_up_for() -> None:
    slow, running = full(1, age_bound=10.0)
    often, running_too = full(1, age_bound=10.0)
    for admission in (slow, often):
        wait(admission, "a", 0.0, count=5, priority="low")
        wait(admission, "b", 3.0, count=5)
    for tenth in range(30, 1000):
        often.limit("m", 1, tenth / 10)
    first, second = (
        [(job.tenant, job.level) for job in starts(admission, ran[0], 10, 100.0)]
        for admission, ran in ((slow, running), (often, running_too))
    )
    assert first == second


def test_nobody_ages_while_all_are_held() -> None:
    admission, running = full(1, age_bound=10.0)
    low = wait(admission, "a", 0.0, priority="low")
    admission.limit("m", 0, 5.0)
    admission.limit("m", 0, 50.0)
    high = wait(admission, "b", 500.0, priority="high")
    assert admission.done(running[0], 600.0) == []
    assert low.level == 2
    assert admission.limit("m", 1, 600.0) == [high]
    wait(admission, "b", 604.9, priority="high")
    assert low.level == 2
    wait(admission, "b", 605.0, priority="high")
    assert low.level == 1


def test_held_from_the_first_nobody_ages_either() -> None:
    admission = Admission(age_bound=10.0)
    admission.limit("m", 0, 0.0)
    low = wait(admission, "a", 1.0, priority="low")
    high = wait(admission, "a", 100.0, priority="high")
    assert admission.limit("m", 1, 200.0) == [high]
    assert low.level == 2


def test_who_becomes_first_because_another_left_ages_from_then() -> None:
    admission, _ = full(1, age_bound=10.0)
    first, second = wait(admission, "a", 0.0, priority="low"), wait(admission, "a", 1.0, priority="low")
    wait(admission, "b", 8.0)
    admission.leave(first)
    wait(admission, "b", 17.9)
    assert second.level == 2
    wait(admission, "b", 18.0)
    assert second.level == 1


# -- a full queue ------------------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    admission, running = full(2, queue_length=3)
    wait(admission, "a", count=3)
    with pytest.raises(ShoalError, match=r"'m' \(3\)\. Try again in 10 seconds") as refused:
        admission.submit(job := Job("m", "a"), 1.0)
    assert (refused.value.status, refused.value.code) == (429, "queue_full")
    assert refused.value.headers == {"Retry-After": str(RETRY_UNKNOWN)}
    assert job.state == "new"
    assert admission.take_evicted() == []
    admission.done(running[0], 8.0)  # ran for 8 seconds: two slots, one ends every 4
    wait(admission, "a", 8.0)
    with pytest.raises(ShoalError) as refused:
        admission.submit(job, 8.0)
    assert refused.value.headers == {"Retry-After": "16"}


def test_retry_after_is_a_whole_number_from_1_to_600() -> None:
    for took, expected in ((0.001, "1"), (1.2, "3"), (10_000.0, "600"), (0.0, "1")):
        admission, running = full(1, queue_length=1)
        wait(admission, "a")
        admission.done(running[0], took)
        wait(admission, "a", took)
        with pytest.raises(ShoalError) as refused:
            admission.submit(Job("m", "a"), took)
        assert refused.value.headers == {"Retry-After": expected}


def test_a_queue_of_no_length_never_waits() -> None:
    admission, running = full(1, queue_length=0)
    with pytest.raises(ShoalError):
        admission.submit(Job("m", "a"), 0.0)
    admission.done(running[0], 0.0)
    assert admission.submit(Job("m", "a"), 0.0)


def test_one_tenant_cannot_fill_the_queue_for_others() -> None:
    admission, _ = full(1, queue_length=10)
    flood = [wait(admission, "flood") for _ in range(10)]
    wait(admission, "quiet")
    (evicted,) = admission.take_evicted()
    assert evicted is flood[-1]
    assert evicted.state == "ended"
    assert admission.take_evicted() == []
    assert admission.waiting("m") == 10
    with pytest.raises(ShoalError):
        admission.submit(Job("m", "flood"), 0.0)
    wait(admission, "quiet", count=4)
    assert admission.take_evicted() == flood[-2:-6:-1]
    with pytest.raises(ShoalError):  # five each
        admission.submit(Job("m", "quiet"), 0.0)
    wait(admission, "third", count=2)
    assert sorted(job.tenant for job in admission.take_evicted()) == ["flood", "quiet"]


def test_the_heaviest_tenant_loses_what_is_least_urgent() -> None:
    admission, _ = full(1, queue_length=4)
    old = wait(admission, "flood", priority="low")
    new = wait(admission, "flood", priority="low")
    wait(admission, "flood", priority="normal")
    high = wait(admission, "flood", priority="high")
    wait(admission, "b")
    assert admission.take_evicted() == [new]
    wait(admission, "c")
    assert admission.take_evicted() == [old]
    assert high.state == "waiting"


def test_ones_own_less_urgent_jobs_give_way() -> None:
    admission, _ = full(1, queue_length=3)
    low = [wait(admission, "a", priority="low") for _ in range(3)]
    normal = wait(admission, "a")
    assert admission.take_evicted() == [low[2]]
    assert admission.order("m") == [normal, low[0], low[1]]
    with pytest.raises(ShoalError):
        admission.submit(Job("m", "a", "low"), 0.0)


def test_the_overdue_keep_their_places() -> None:
    admission, _ = full(1, queue_length=2, age_bound=1.0)
    wait(admission, "a", 0.0, count=2, priority="high")
    with pytest.raises(ShoalError):
        admission.submit(Job("m", "b"), 5.0)
    assert [job.level for job in admission.order("m")] == [OVERDUE, OVERDUE]


# -- how long it takes -------------------------------------------------------------------------------------------------


def test_an_estimate_comes_from_the_jobs_that_ended() -> None:
    admission = Admission()
    assert admission.estimate("m", 0.0) == 0.0
    admission.limit("m", 4, 0.0)
    assert admission.estimate("m", 0.0) == 0.0
    running = [Job("m", "a") for _ in range(4)]
    for job in running:
        admission.submit(job, 0.0)
    assert admission.estimate("m", 1.0) is None
    admission.done(running.pop(), 2.0)
    assert admission.estimate("m", 2.0) == 0.0
    admission.submit(Job("m", "a"), 2.0)
    assert admission.estimate("m", 2.0) == pytest.approx(0.5)
    wait(admission, "a", 2.0, count=7)
    assert admission.estimate("m", 2.0) == pytest.approx(4.0)
    admission.limit("m", 2, 2.0)
    assert admission.estimate("m", 2.0) == pytest.approx(10.0), "ten have to end, one a second"
    admission.limit("m", 0, 2.0)
    assert admission.estimate("m", 2.0) is None


def test_an_estimate_follows_what_changes_and_what_does_not_come() -> None:
    admission, running = full(1)
    wait(admission, "a", count=500)
    job, now = running[0], 0.0
    for took, count in ((1.0, 50), (3.0, 100)):
        for _ in range(count):
            now += took
            (job,) = admission.done(job, now)
        left = admission.waiting("m") + 1
        assert admission.estimate("m", now) == pytest.approx(took * left, rel=0.01)
    left = admission.waiting("m") + 1
    assert admission.estimate("m", now + 20.0) == pytest.approx(20.0 * left, rel=0.01)


def test_a_pause_without_work_is_not_a_slow_engine() -> None:
    admission, running = full(1)
    admission.done(running[0], 1.0)
    admission.submit(Job("m", "a"), 1000.0)
    wait(admission, "a", 1000.5)
    assert admission.estimate("m", 1000.5) == pytest.approx(2.0)


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
