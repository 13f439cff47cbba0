"""Who of those that wait goes next: classes, tenants in turns, and age."""

from __future__ import annotations

from shoal.gateway.admission import Admission, Job
from shoal.gateway.waiting import OVERDUE
from tests.gateway.admitting import full, starts, tenants, wait

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
