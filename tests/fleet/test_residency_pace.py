"""How soon another model may give way: what holds however they come."""

from __future__ import annotations

from itertools import pairwise
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.fleet.residency import Rules
from shoal.fleet.residency_pace import FREE, at_once, pace

RULES = Rules()


def waits(rules: Rules, wanted: list[float]) -> list[float]:
    """When models give way that are wanted to at these times, one after the other; each looks again when it is told."""
    gave_way: list[float] = []
    for now in wanted:
        if gave_way:
            now = max(now, gave_way[-1])
        while (until := pace(gave_way, rules, now)[1]) > now:
            now = until
        gave_way.append(now)
    return gave_way


def test_a_few_follow_each_other_at_once_and_a_steady_demand_never_waits_for_long() -> None:
    times = waits(RULES, [0.0] * 100)
    assert times[: at_once(RULES)] == [0.0] * 12
    assert [after - before for before, after in pairwise(times[11:])] == pytest.approx([1.25] * 88)


def test_after_a_quiet_time_a_few_may_follow_each_other_again() -> None:
    times = waits(RULES, [*[0.0] * 20, *[100.0] * 20])
    assert times[20:32] == [100.0] * 12
    assert times[32] == pytest.approx(101.25)


def test_a_demand_below_the_bound_does_not_wait() -> None:
    wanted = [1.25 * number for number in range(100)]
    assert waits(RULES, wanted) == pytest.approx(wanted)


def test_a_small_bound_knows_no_pace() -> None:
    rules = Rules(switches=FREE - 1, switch_window=60)
    assert waits(rules, [0.0] * 4) == [0.0, 0.0, 0.0, 60.0]
    assert pace([], rules, 5.0) == (0, -inf)


@given(
    wanted=st.lists(st.floats(0, 600), max_size=120).map(sorted),
    switches=st.integers(1, 40),
    window=st.floats(1, 300),
)
def test_never_more_than_the_bound_in_any_window(wanted: list[float], switches: int, window: float) -> None:
    rules = Rules(switches=switches, switch_window=window)
    times = waits(rules, wanted)
    for first, later in zip(times, times[switches:], strict=False):
        assert later >= first + window
