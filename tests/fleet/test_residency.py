"""The residency policy, case by case: who leaves, who comes, who gives way, and what is said of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from shoal.fleet.residency import NEVER, Device, Kind, Motion, Plan, Resident, Snapshot
from shoal.fleet.residency_plan import decide
from tests.fleet.residency import NOW, RULES, asleep, awake, done, only, plan, snapshot, unloaded, wanted

# Idle


def test_who_is_idle_long_enough_sleeps_and_later_is_unloaded() -> None:
    one = awake("qwen", sleep_after=600.0, unload_after=3600.0, last_use=NOW - 599)
    found = plan(one)
    assert found.actions == () and found.next_look == NOW + 1
    found = plan(dataclasses.replace(one, last_use=NOW - 600))
    assert only(found).reason == "qwen sleeps: idle 10 min 0 s"
    assert found.next_look == NOW + 3000
    found = plan(asleep("qwen", sleep_after=600.0, unload_after=3600.0, last_use=NOW - 3600, awake_since=-9e9))
    assert (only(found).kind, only(found).reason) == (Kind.UNLOAD, "qwen is unloaded: idle 1 h 0 min")


def test_who_was_woken_and_not_used_counts_from_then() -> None:
    assert plan(awake("a", sleep_after=60.0, last_use=0.0, awake_since=NOW - 59)).next_look == NOW + 1


def test_an_engine_that_cannot_sleep_is_unloaded_instead() -> None:
    action = only(plan(awake("a", sleep_level=0, sleep_after=10.0)))
    assert action.kind is Kind.UNLOAD and "cannot sleep" in action.reason


@pytest.mark.parametrize("busy", [{"running": 1}, {"waiting": 1, "waiting_since": NOW}, {"pinned": True}])
def test_who_has_requests_or_is_pinned_does_not_leave_for_being_idle(busy: dict[str, Any]) -> None:
    one = dataclasses.replace(awake("a", sleep_after=0.0, unload_after=0.0), **busy)
    assert plan(one) == Plan()


def test_keep_alive_goes_before_the_settings() -> None:
    assert done(plan(awake("a", keep_alive=0.0, last_use=NOW, awake_since=NOW - 9))) == [("sleep", "a")]
    assert plan(awake("a", keep_alive=NEVER, sleep_after=0.0, unload_after=0.0)) == Plan()
    assert plan(awake("a", keep_alive=90.0, sleep_after=0.0)).next_look == NOW + 30
    assert done(plan(awake("a", keep_alive=500.0, unload_after=60.0))) == [("unload", "a")]


# Room


def test_who_is_asked_for_comes_where_there_is_most_room() -> None:
    found = plan(wanted(unloaded("a", 6)), awake("b", 3), sizes=(10, 10), host=100)
    assert only(found).devices == ("d1",)
    assert only(found).reason == "a loads on d1: 1 request waits"
    assert done(plan(wanted(asleep("a", 6)))) == [("wake", "a")]


def test_memory_of_one_that_goes_to_sleep_counts_until_it_sleeps() -> None:
    going = awake("old", 6, motion=Motion.SLEEPING)
    action = only(plan(going, wanted(unloaded("new", 9))))
    assert (action.kind, action.after) == (Kind.LOAD, ("old",))
    # What remains of it asleep is not free then either.
    found = plan(going, wanted(unloaded("new", 10)))
    assert found.actions == () and found.waits[0].name == "new"


def test_room_is_made_and_the_reason_names_who_for_and_why_this_one() -> None:
    found = plan(awake("qwen", 6, last_use=NOW - 240), wanted(unloaded("llama", 5)))
    first, second = found.actions
    assert (first.kind, first.name, first.gives_way_to) == (Kind.SLEEP, "qwen", "llama")
    assert first.reason == (
        "qwen gives way: llama needs 5 B on d0, qwen has priority 100 and was last used 4 min 0 s ago"
    )
    assert (second.kind, second.name, second.after) == (Kind.LOAD, "llama", ("qwen",))


def test_lower_priority_goes_first_then_the_least_recently_used() -> None:
    claim = wanted(unloaded("new", 4))
    low = awake("low", 5, priority=10, last_use=NOW - 20)
    old = awake("old", 5, last_use=NOW - 500)
    new = awake("young", 5, last_use=NOW - 30)
    assert done(plan(low, old, claim))[0] == ("sleep", "low")
    assert done(plan(new, old, claim))[0] == ("sleep", "old")


def test_who_is_likely_needed_soon_or_slow_to_come_back_stays() -> None:
    claim = wanted(unloaded("new", 4))
    often = awake("often", 5, rate=0.01, last_use=NOW - 90)
    seldom = awake("seldom", 5, rate=0.0001, last_use=NOW - 60)
    assert done(plan(often, seldom, claim))[0] == ("sleep", "seldom")
    slow = awake("slow", 5, rate=0.001, wake_cost=20.0)
    quick = awake("quick", 5, rate=0.002, wake_cost=0.5)
    assert done(plan(slow, quick, claim))[0] == ("sleep", "quick")


def test_the_device_is_chosen_where_the_least_waiting_is_caused() -> None:
    found = plan(
        awake("hot", 8, on="d0", rate=0.01), awake("cold", 8, on="d1", rate=0.00001), wanted(unloaded("new", 8)),
        sizes=(10, 10),
    )  # fmt: skip
    assert done(found)[0] == ("sleep", "cold")
    assert found.actions[1].devices == ("d1",)


def test_no_more_give_way_than_needed() -> None:
    small = awake("small", 2, last_use=NOW - 500)
    large = awake("large", 7, last_use=NOW - 400)
    assert done(plan(small, large, wanted(unloaded("new", 6)))) == [("sleep", "large"), ("load", "new")]


def test_where_sleep_leaves_too_much_behind_models_are_unloaded() -> None:
    found = plan(awake("a", 5), asleep("b", 5), wanted(unloaded("new", 10)))
    assert sorted(done(found)) == [("load", "new"), ("unload", "a"), ("unload", "b")]


def test_tensor_parallel_needs_room_on_each_device() -> None:
    big = unloaded("big", 9)
    big = wanted(dataclasses.replace(big, width=2))
    found = plan(awake("a", 5, on="d1"), awake("b", 1, on="d2"), big, sizes=(10, 10, 10))
    assert found.actions[-1].devices == ("d0", "d2")
    pair = awake("pair", 8, on="d0 d1")
    found = plan(pair, wanted(unloaded("x", 5, "d0")), wanted(unloaded("y", 5, "d1")), sizes=(10, 10))
    assert done(found) == [("sleep", "pair"), ("load", "x"), ("load", "y")]


# In use


def test_who_is_in_use_gives_way_only_to_those_past_their_patience() -> None:
    busy = awake("busy", 8, running=2)
    found = plan(busy, wanted(unloaded("new", 8), since=9))
    assert found.actions == () and found.next_look == NOW + 1
    assert found.waits[0].reason == "new waits for 8 B on d0"
    found = plan(busy, wanted(unloaded("new", 8), since=10))
    assert done(found) == [("sleep", "busy"), ("load", "new")]
    assert "has requests; new has waited 10 s or more" in found.actions[0].reason


def test_a_lull_is_no_idleness() -> None:
    lull = awake("lull", 8, rate=1.0, last_use=NOW - 3)
    found = plan(lull, wanted(unloaded("new", 8)))
    assert found.actions == () and found.next_look == NOW + 2
    assert plan(dataclasses.replace(lull, rate=0.01), wanted(unloaded("new", 8))).actions != ()


def test_who_came_stays_for_a_while() -> None:
    young = awake("young", 8, awake_since=NOW - 4)
    found = plan(young, wanted(unloaded("new", 8), since=50))
    assert found.actions == () and found.next_look == NOW + 1
    # Twice as long as its own return costs.
    slow = awake("slow", 8, awake_since=NOW - 20, sleep_level=0, load_cost=30.0)
    assert plan(slow, wanted(unloaded("new", 8), since=50)).next_look == NOW + 40


def test_the_longest_overdue_goes_first_then_priority() -> None:
    late, later = wanted(unloaded("late", 8), since=11), wanted(unloaded("later", 8), since=12)
    urgent = wanted(unloaded("urgent", 8, priority=900), since=9)
    order = [action.name for action in plan(late, later, urgent, sizes=(10,)).actions]
    assert order == ["later"]
    assert [a.name for a in plan(late, urgent, sizes=(10,)).actions] == ["late"]
    fresh = wanted(unloaded("fresh", 8), since=9.5)
    assert [a.name for a in plan(fresh, urgent).actions] == ["urgent"]


def test_small_models_do_not_keep_a_large_one_out() -> None:
    stays = awake("stays", 4, awake_since=NOW - 1)
    large = wanted(unloaded("large", 9), since=20)
    small = wanted(unloaded("small", 4), since=1)
    found = plan(stays, large, small)
    assert found.actions == ()
    assert {one.name for one in found.waits} == {"large", "small"}
    assert done(plan(stays, wanted(unloaded("large", 9), since=5), small)) == [("load", "small")]


def test_sleeping_models_with_requests_do_not_keep_each_other_from_waking() -> None:
    sleepers = [wanted(asleep(f"m{n}", 9, asleep=2), since=20 + n) for n in range(5)]
    found = plan(*sleepers)
    assert found.actions[-1].kind is Kind.WAKE and found.actions[-1].name == "m4"
    assert all(action.gives_way_to == "m4" for action in found.actions[:-1])


def test_who_wakes_does_not_give_way_to_itself() -> None:
    one = wanted(asleep("one", 10, asleep=3, load_cost=1.0), since=20)
    other = wanted(asleep("other", 10, asleep=2), since=15)
    assert done(plan(one, other)) == [("unload", "other"), ("wake", "one")]


def test_switches_are_bounded() -> None:
    state = snapshot(awake("a", 8), wanted(unloaded("new", 8), since=50))
    busy = dataclasses.replace(state, devices=(Device("d0", 10, (NOW - 59, NOW - 30, NOW - 10)),))
    found = decide(busy, RULES)
    assert found.actions == () and found.next_look == NOW + 1
    assert decide(dataclasses.replace(busy, now=NOW + 1), RULES).actions != ()


def test_a_limit_of_switches_ends_when_it_was_to_be_looked_at_again() -> None:
    then = 231.14230860269166  # with the window added and taken away again it is another number
    old = awake("a", 8, last_use=0.0, awake_since=0.0)
    state = snapshot(old, wanted(unloaded("new", 8), waiting_since=then - 50))
    full = dataclasses.replace(state, now=then + 1, devices=(Device("d0", 10, (then,) * 3),))
    look = decide(full, RULES).next_look
    assert look == then + RULES.switch_window and look - RULES.switch_window < then
    assert decide(dataclasses.replace(full, now=look), RULES).actions != ()


def test_who_is_also_on_a_device_of_which_enough_gave_way_stays() -> None:
    both = awake("both", 2, on="d0 d1")
    lately = (NOW - 30, NOW - 20, NOW - 10)
    state = snapshot(both, wanted(unloaded("new", 9, "d0"), since=50), sizes=(10, 10))
    free, full = (Device("d0", 10), Device("d1", 10)), (Device("d0", 10), Device("d1", 10, lately))
    assert done(decide(dataclasses.replace(state, devices=free), RULES)) == [("sleep", "both"), ("load", "new")]
    found = decide(dataclasses.replace(state, devices=full), RULES)
    assert found.actions == () and found.next_look == NOW + 30


def test_who_is_also_on_a_device_of_which_enough_give_way_now_stays() -> None:
    alone, both = awake("alone", 9, on="d1"), awake("both", 2, on="d0 d1")
    claims = [wanted(unloaded("first", 8, "d1"), since=60), wanted(unloaded("second", 9, "d0"), since=50)]
    devices = (Device("d0", 10), Device("d1", 11, (NOW - 30, NOW - 20)))
    state = dataclasses.replace(snapshot(alone, both, *claims), devices=devices)
    assert done(decide(state, RULES)) == [("sleep", "alone"), ("load", "first")]


def test_switches_of_one_decision_count() -> None:
    claims = [wanted(unloaded(f"new{n}", 3, "d0"), since=5 - n) for n in range(2)]
    state = snapshot(awake("a", 5, host=0), awake("b", 5, host=0), *claims)
    lately = dataclasses.replace(state, devices=(Device("d0", 10, (NOW - 30, NOW - 20)),))
    assert done(decide(state, RULES)) == [("sleep", "a"), ("load", "new0"), ("sleep", "b"), ("load", "new1")]
    assert done(decide(lately, RULES)) == [("sleep", "a"), ("load", "new0")]


def test_many_claims_are_met_a_few_at_a_time() -> None:
    devices = tuple(f"d{n}" for n in range(9))
    some = [awake(f"old{n}", 8, on=device) for n, device in enumerate(devices)]
    claims = [wanted(unloaded(f"new{n}", 8), since=1 + n / 100) for n in range(9)]
    found = plan(*some, *claims, sizes=(10,) * 9)
    assert sum(action.kind is Kind.LOAD for action in found.actions) == RULES.claims_at_once
    assert found.next_look == NOW


def test_a_look_at_once_finds_another_state() -> None:
    """Claims for which nobody can begin to leave yet do not count among the few: the loop would spin."""
    leaves = asleep("leaves", 9, on="d9", motion=Motion.UNLOADING, host=40)
    some = [awake(f"old{n}", 8, on=f"d{n}", host=8) for n in range(4)]
    claims = [wanted(unloaded(f"new{n}", 8, f"d{n}")) for n in range(4)]
    found = plan(leaves, *some, *claims, sizes=(10,) * 10, host=40)
    assert [action.after for action in found.actions if action.kind is Kind.SLEEP] == [("leaves",)] * 4
    assert found.next_look is None


# Pins and refusals


def test_a_pin_never_gives_way_and_what_does_not_fit_beside_it_is_refused() -> None:
    found = plan(awake("pin", 6, pinned=True), wanted(unloaded("new", 5), since=100))
    assert found.actions == () and found.next_look is None
    assert found.refusals[0].reason == (
        "new needs 5 B on d0; d0 has 10 B, of which 6 B are pinned; unpin a model, or give it less memory"
    )


@pytest.mark.parametrize(
    ("resident", "said"),
    [
        (unloaded("new", 11), "new needs 11 B on d0; d0 has 10 B; give it less memory or more devices"),
        (unloaded("new", 1, "d7"), "new needs d7, which this machine does not have"),
        (dataclasses.replace(unloaded("new", 1), width=2), "new needs 2 devices, and this machine has 1"),
    ],
)
def test_what_can_never_fit_is_refused_at_once_with_the_numbers(resident: Resident, said: str) -> None:
    assert plan(wanted(resident, since=0)).refusals[0].reason == said


def test_who_sleeps_beside_a_pin_loads_elsewhere() -> None:
    found = plan(awake("pin", 6, pinned=True), wanted(asleep("a", 6)), sizes=(10, 10))
    assert only(found).kind is Kind.UNLOAD and "loads elsewhere" in only(found).reason


def test_a_pinned_model_that_goes_to_sleep_counts_as_it_will_be() -> None:
    pin = awake("pin", 6, pinned=True, motion=Motion.SLEEPING)
    found = plan(pin, wanted(unloaded("new", 8)))
    assert found.refusals == () and only(found).after == ("pin",)


# Floors


def test_floors_are_lent_before_anybody_sleeps_and_come_back() -> None:
    lender = awake("lender", 6, floor=3, floor_wanted=3, floor_least=1)
    found = plan(lender, wanted(unloaded("new", 6)))
    assert [(a.kind, a.floor) for a in found.actions] == [(Kind.FLOOR, 1), (Kind.LOAD, None)]
    busy = dataclasses.replace(lender, running=1)
    assert plan(busy, wanted(unloaded("new", 6))).actions == ()
    lent = dataclasses.replace(lender, awake=4, floor=1)
    assert plan(lent, awake("new", 6)).actions == ()
    found = plan(lent, asleep("new", 6))
    assert (only(found).kind, only(found).floor) == (Kind.FLOOR, 3)


# As a whole


def test_an_empty_fleet_has_nothing_to_do() -> None:
    assert decide(Snapshot(NOW, (), ())) == Plan()
    assert decide(Snapshot(NOW, (), (wanted(unloaded("a")),))).refusals != ()


# Devices that are lost


def test_who_may_be_on_a_device_that_is_lost_goes_to_another() -> None:
    both = wanted(unloaded("new", 6, "d0 lost"))
    assert only(plan(both)).devices == ("d0",)
    found = plan(both, awake("old", 6))
    assert done(found) == [("sleep", "old"), ("load", "new")] and found.actions[1].devices == ("d0",)
    assert plan(both, awake("young", 6, awake_since=NOW)).waits[0].reason == "new waits for 6 B on d0"


def test_who_is_on_a_device_that_is_lost_disturbs_nobody() -> None:
    pair = awake("pair", 6, on="d0 lost", floor=3, floor_wanted=3, floor_least=0)
    found = plan(pair, wanted(unloaded("new", 7, "d0 lost"), since=20))
    assert done(found) == [("floor", "pair"), ("load", "new")]
    assert plan(awake("there", 6, on="lost", floor=1, floor_wanted=3)) == Plan()
    assert plan(wanted(asleep("pair", 6, on="d0 lost"))).refusals[0].reason == (
        "pair needs lost, which this machine does not have"
    )


# Many at once


def test_the_same_answer_is_given_to_all_that_wait_for_the_same_until_something_changes() -> None:
    claims = [wanted(unloaded(f"m{n}", 4 + n % 2), since=1 + n / 100) for n in range(6)]
    found = plan(awake("young", 5, awake_since=NOW), *claims)
    assert done(found) == [("load", "m5")]  # 5 B are free: the oldest of them has those
    assert [wait.reason for wait in found.waits] == [f"m{n} waits for {4 + n % 2} B on d0" for n in (4, 3, 2, 1, 0)]


def test_who_waits_for_a_limited_device_is_not_looked_at_again_for_what_changes_elsewhere() -> None:
    limited = Device("d1", 10, (NOW - 11,) * 3)
    young = awake("b", on="d0", awake_since=NOW - 4)
    state = Snapshot(NOW, (Device("d0", 10), limited), (young, awake("c", 9, "d1"), wanted(asleep("a", 6, "d1"))), 100)
    found = decide(state, dataclasses.replace(RULES, patience=1000.0))
    assert found.waits[0].name == "a" and found.next_look == NOW + 49
