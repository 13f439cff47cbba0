"""Slots that are kept for tenants below their share: who may take them, and what that does to a quiet tenant."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import pytest

from shoal.errors import ShoalError
from shoal.gateway.admission import Admission, Job
from shoal.gateway.reserve import SMALLEST_SHARED
from shoal.gateway.slots import KEPT
from shoal.messages import Priority

LIMIT = 8
OPEN = 6


def shared(limit: int = LIMIT, *, queue_length: int = 1000, age_bound: float = 30.0) -> Admission:
    """A model of which a quarter of the slots is kept, because tenants have just followed each other."""
    admission = Admission(queue_length=queue_length, age_bound=age_bound, reserve=0.25)
    admission.limit("m", limit, 0.0)
    for tenant in ("early", "other"):
        job = Job("m", tenant)
        assert admission.submit(job, 0.0)
        admission.done(job, 0.0)
    return admission


def send(admission: Admission, tenants: str, now: float = 0.0, priority: Priority = "normal") -> list[Job]:
    """One job of each of these tenants after the other."""
    jobs = [Job("m", tenant, priority) for tenant in tenants]
    for job in jobs:
        admission.submit(job, now)
    return jobs


def states(jobs: Sequence[Job]) -> str:
    """`r` for each that runs, `w` for each that waits."""
    return "".join(job.state[0] for job in jobs)


def test_who_floods_leaves_the_kept_slots_and_others_start_in_them_at_once() -> None:
    admission = shared()
    flood = send(admission, "f" * 20)
    assert states(flood) == "r" * OPEN + "w" * 14
    assert states(send(admission, "qp")) == "rr"
    assert states(send(admission, "x")) == "w", "there is no ninth slot"
    assert admission.running("m") == LIMIT


def test_the_kept_slots_are_free_again_before_the_flood_goes_on() -> None:
    admission = shared()
    flood = send(admission, "f" * 20)
    quiet = send(admission, "qp")  # so three are kept now
    assert [admission.done(job, 1.0) for job in flood[:2]] == [[], []]
    assert admission.running("m") == OPEN
    assert states(send(admission, "q", 1.0)) == "r"
    assert [admission.done(job, 1.0) for job in flood[2:4]] == [[], []]
    assert admission.done(quiet[0], 1.0) == [flood[OPEN]]


def test_as_many_slots_are_kept_as_there_was_use_for_and_one_more() -> None:
    """Of four slots one is kept; a tenant whose requests overlap finds the second one taken by the flood no more."""
    admission = Admission(reserve=0.125)
    admission.limit("m", 4, 0.0)
    send(admission, "e")
    flood = send(admission, "f" * 20)
    assert states(flood).count("r") == 2, "with the one of another"
    admission = shared(4)
    flood = send(admission, "f" * 20)
    assert states(flood).count("r") == 3
    (first,) = send(admission, "q")
    assert states(send(admission, "q")) == "w", "there is no slot left"
    assert [job.tenant for job in admission.done(flood[0], 1.0)] == ["q"]
    admission.done(first, 2.0)
    assert admission.done(flood[1], 2.0) == [flood[3]]
    assert admission.running("m") == 3
    for other in admission.order("m")[:2]:
        assert other.tenant == "f"
    admission.done(flood[2], 3.0)
    assert states(send(admission, "q", 3.0)) == "r"


def test_a_tenant_with_many_requests_has_none_kept_for_it() -> None:
    admission = shared(32)
    send(admission, "f" * 60)
    send(admission, "g" * 60)
    counts = Counter(job.tenant for job in admission.order("m"))
    assert counts == {"f": 36, "g": 52}, "a quarter was kept, of which g got all"
    admission.settle(KEPT)
    assert admission.running("m") == 32


def test_half_of_the_slots_are_kept_at_most() -> None:
    admission = shared(8)
    flood = send(admission, "f" * 20)
    send(admission, "abcdefgh")
    for job in flood[:6]:
        admission.done(job, 1.0)
    assert admission._models["m"].open == 4


def test_whoever_is_alone_has_every_slot() -> None:
    admission = Admission(reserve=0.25)
    admission.limit("m", LIMIT, 0.0)
    assert states(send(admission, "f" * 10)) == "r" * LIMIT + "ww"


def test_whoever_is_alone_for_long_has_every_slot_again() -> None:
    admission = shared()
    flood = send(admission, "f" * 20)
    assert admission.settle(KEPT - 0.1) == []
    assert admission.settle(KEPT) == flood[OPEN:LIMIT]
    (late,) = send(admission, "q", KEPT + 1)
    assert late.state == "waiting"
    assert admission.done(flood[0], KEPT + 2) == [late], "it is the next all the same"
    assert admission.done(flood[1], KEPT + 2) == [], "and from now on slots are kept"


def test_a_flood_that_came_at_once_is_not_alone_while_others_come() -> None:
    """Though nothing of it follows a request of theirs any more."""
    admission = shared(age_bound=1e6)
    flood = send(admission, "f" * 20)
    for second in range(1, 200):
        (quiet,) = send(admission, "q", float(second))
        assert quiet.state == "running"
        admission.done(quiet, second + 0.5)
        assert admission.settle(second + 0.6) == []
    assert states(flood).count("r") == OPEN


def test_a_job_that_comes_when_slots_are_no_longer_kept_overtakes_nobody_of_its_tenant() -> None:
    admission = shared()
    flood = send(admission, "f" * 7)
    (late,) = send(admission, "f", KEPT)
    assert (flood[6].state, late.state) == ("waiting", "waiting")
    assert admission.settle(KEPT) == [flood[6], late]


def test_two_that_flood_leave_room_for_a_third() -> None:
    admission = shared()
    assert states(send(admission, "fg" * 10)) == "r" * OPEN + "w" * 14
    assert states(send(admission, "qq")) == "rr"


def test_a_share_is_no_more_than_a_part() -> None:
    admission = shared()
    send(admission, "f" * 20)
    jobs = send(admission, "q")
    assert admission.done(jobs[0], 0.0) == []
    assert states(send(admission, "qqqq")) == "rrww", "no slot is left"
    admission = shared(16)
    send(admission, "f" * 20)
    assert states(send(admission, "qqqq")) == "rrrr"


def test_tenants_with_little_each_use_every_slot() -> None:
    admission = shared()
    assert states(send(admission, "abcdefghij")) == "r" * LIMIT + "ww"


def test_a_class_goes_before_the_next_also_here() -> None:
    admission = shared()
    send(admission, "f" * 10, priority="high")
    assert states(send(admission, "q", priority="normal")) == "w"
    assert states(send(admission, "q", priority="high")) == "r"
    admission = shared()
    send(admission, "f" * 10, priority="low")
    assert states(send(admission, "q", priority="normal")) == "r"


def test_those_that_waited_for_a_class_above_start_once_that_has_left() -> None:
    admission = shared()
    flood = send(admission, "f" * 7, priority="high")
    (low,) = send(admission, "q", priority="low")
    admission.leave(flood[6])
    assert low.state == "waiting"
    assert admission.settle(1.0) == [low]


def test_the_overdue_take_any_slot() -> None:
    admission = shared(age_bound=1.0)
    flood = send(admission, "f" * 7)
    admission.limit("m", LIMIT, 0.5)
    assert admission.settle(1.9) == []
    (quiet,) = send(admission, "q", 2.0)
    assert quiet.state == "waiting", "the flood's first is overdue, and before it"
    assert admission.settle(2.0) == [flood[6], quiet]


def test_a_full_queue_does_not_hinder_one_for_whom_a_slot_is_kept() -> None:
    admission = shared(queue_length=3)
    flood = send(admission, "f" * 9)
    assert states(flood) == "r" * OPEN + "www"
    assert states(send(admission, "q")) == "r"
    assert admission.take_evicted() == []
    with pytest.raises(ShoalError, match="Too many requests wait"):
        send(admission, "f")


def test_a_start_in_a_kept_slot_is_charged() -> None:
    admission = shared()
    flood = send(admission, "f" * 20)
    send(admission, "qq")
    waits = send(admission, "qr")
    assert [job.tenant for job in admission.order("m")[:3]] == ["r", "f", "q"], "q has had two, the flood one"
    for job in flood[:6]:
        admission.done(job, 1.0)
    assert states(waits) == "rr"


@pytest.mark.parametrize(("limit", "part", "kept"), [(3, 0.5, 0), (4, 0.01, 1), (16, 0.125, 2), (31, 0.125, 3)])
def test_how_many_are_kept(limit: int, part: float, kept: int) -> None:
    admission = Admission(reserve=part)
    admission.limit("m", limit, 0.0)
    send(admission, "g")
    assert states(send(admission, "f" * limit)).count("r") == limit - kept - 1
    assert SMALLEST_SHARED == 4


def test_an_estimate_counts_the_slots_that_are_open() -> None:
    admission = shared()
    flood = send(admission, "f" * OPEN, 0.0)
    admission.done(flood[0], 6.0)
    send(admission, "f" * 4, 6.0)
    # Of two that ended at once and one that took 6 s.
    assert admission.estimate("m", 6.0) == pytest.approx(2.0 / OPEN * 4)


@pytest.mark.parametrize("part", [-0.1, 0.51, math.nan])
def test_a_part_that_is_none_is_refused(part: float) -> None:
    with pytest.raises(ValueError, match="reserve"):
        Admission(reserve=part)
