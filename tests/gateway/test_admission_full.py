"""A full queue: who is refused, who loses a place, and how long the others are told to wait."""

from __future__ import annotations

import pytest

from shoal.errors import ShoalError
from shoal.gateway.admission import RETRY_UNKNOWN, Admission, Job
from shoal.gateway.waiting import OVERDUE
from tests.gateway.admitting import full, wait

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
