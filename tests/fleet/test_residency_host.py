"""The residency policy where host memory is short: who leaves it for others to sleep, and what is said of it."""

from __future__ import annotations

import dataclasses

from shoal.fleet.residency import Kind
from shoal.fleet.residency_plan import decide
from tests.fleet.residency import NOW, RULES, asleep, awake, done, only, plan, snapshot, unloaded, wanted


def test_a_full_host_has_the_least_recently_used_sleeping_model_unloaded() -> None:
    old, new = asleep("old", 6, last_use=NOW - 900), asleep("new", 6, last_use=NOW - 90, on="d1")
    going = awake("going", 6, sleep_after=30.0, on="d1")
    found = plan(old, new, going, sizes=(10, 20), host=12)
    assert done(found) == [("unload", "old"), ("sleep", "going")]
    assert found.actions[1].after == ("old",)
    assert "the host's memory is full, going goes to sleep" in found.actions[0].reason


def test_the_least_recently_used_may_be_the_one_that_goes() -> None:
    found = plan(asleep("new", 6, last_use=NOW - 10), awake("old", 3, sleep_after=30.0, host=6), host=7)
    assert done(found) == [("unload", "old")]
    assert "the host's 7 B for sleeping models have no room for its 6 B" in only(found).reason


def test_host_copies_of_models_awake_go_first_and_a_copy_is_not_paid_twice() -> None:
    copied = awake("copied", 2, copied=True, host=6)
    sleeper = asleep("sleeper", 2, host=6, last_use=NOW - 900)
    found = plan(copied, sleeper, awake("going", 2, host=6, sleep_after=0.0), host=12)
    assert done(found) == [("forget", "copied"), ("sleep", "going")]
    assert found.actions[1].after == ("copied",), "dropping takes a moment"
    assert found.next_look == NOW
    assert done(plan(dataclasses.replace(copied, sleep_after=0.0), host=6)) == [("sleep", "copied")]


def test_a_copy_of_one_that_sleeps_without_it_counts_and_goes_before_a_model_does() -> None:
    deep = asleep("deep", 2, host=6, sleep_level=2, copied=True, last_use=NOW - 10)
    sleeper, going = asleep("sleeper", 2, host=6, last_use=NOW - 900), awake("going", 2, host=6, sleep_after=0.0)
    found = plan(deep, sleeper, going, host=12)
    assert done(found) == [("forget", "deep"), ("sleep", "going")]
    assert done(plan(deep, sleeper, going, host=18)) == [("sleep", "going")]


def test_while_readings_of_the_host_are_in_doubt_nobody_makes_room_there() -> None:
    going, sleeper = awake("going", 2, host=6, sleep_after=0.0), asleep("sleeper", 2, host=6, last_use=NOW - 900)
    for host, after in [(11, ("",)), (12, ())]:
        state = dataclasses.replace(snapshot(sleeper, going, host=host), host_settled=False)
        action = only(decide(state, RULES))
        assert (action.kind, action.name, action.after) == (Kind.SLEEP, "going", after)


def test_the_host_has_room_for_one_of_two_that_go_at_once() -> None:
    found = plan(awake("a", 3, host=6, sleep_after=0.0), awake("b", 3, host=6, sleep_after=0.0), host=11)
    assert done(found) == [("sleep", "a"), ("unload", "b")]


def test_one_that_gives_way_too_does_not_lose_its_host_copy_to_another() -> None:
    first = awake("first", 5, host=6, last_use=NOW - 500)
    found = plan(first, awake("copied", 5, host=6, copied=True), wanted(unloaded("new", 8)), host=6)
    assert done(found) == [("unload", "first"), ("sleep", "copied"), ("load", "new")]


def test_of_a_full_host_many_idle_models_take_what_is_used_least() -> None:
    asleep_long = [asleep(f"s{n}", 2, on="d1", last_use=NOW - 900 + n) for n in range(3)]
    copied = awake("copied", 2, on="d1", copied=True)
    idle = [awake(f"i{n}", 2, last_use=NOW - 600 + n, sleep_after=60.0) for n in range(5)]
    found = plan(*asleep_long, copied, *idle, sizes=(10, 10), host=8)
    assert done(found) == [
        ("forget", "copied"), ("sleep", "i0"), ("unload", "s0"), ("sleep", "i1"), ("unload", "s1"), ("sleep", "i2"),
        ("unload", "s2"), ("sleep", "i3"), ("unload", "i4"),
    ]  # fmt: skip
    assert "have no room for its 2 B" in found.actions[-1].reason
