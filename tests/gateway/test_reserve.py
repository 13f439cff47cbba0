"""How many slots are kept, and for how long that is remembered."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.gateway.reserve import REMEMBERED, SMALLEST_SHARED, Reserve


def reserve(limit: float, part: float) -> Reserve:
    made = Reserve()
    made.resize(limit, part)
    return made


@pytest.mark.parametrize(
    ("limit", "part", "kept"),
    [(0, 0.5, 0), (3, 0.5, 0), (4, 0.01, 1), (16, 0.125, 2), (31, 0.125, 3), (8, 0.0, 0), (math.inf, 0.5, 0)],
)
def test_what_is_kept_at_least(limit: float, part: float, kept: int) -> None:
    assert reserve(limit, part).kept == kept


def test_what_is_needed_is_kept_for_a_while() -> None:
    kept = reserve(16, 0.125)
    kept.need(5, 10.0)
    kept.need(3, 20.0)
    assert kept.kept == 5
    kept.settle(10.0 + REMEMBERED)
    assert kept.kept == 5
    kept.need(4, 11.0 + REMEMBERED)
    kept.settle(10.0 + 2 * REMEMBERED)
    assert kept.kept == 4
    kept.settle(10.0 + 9 * REMEMBERED)
    assert kept.kept == 2


def test_another_limit_has_other_bounds() -> None:
    kept = reserve(16, 0.125)
    kept.need(99, 0.0)
    assert kept.kept == 8
    kept.resize(4, 0.125)
    assert kept.kept == 2
    kept.resize(3, 0.125)
    assert kept.kept == 0
    kept.resize(100, 0.125)
    assert kept.kept == 50


@given(
    st.integers(0, 64),
    st.floats(0, 0.5),
    st.lists(st.tuples(st.floats(0, REMEMBERED), st.integers(1, 80)), min_size=1, max_size=20),
)
def test_within_bounds_it_is_the_most_of_late(limit: int, part: float, needs: list[tuple[float, int]]) -> None:
    kept, now = reserve(limit, part), 0.0
    seen: list[tuple[float, int]] = []
    for pause, slots in needs:
        now += pause
        kept.need(slots, now)
        seen.append((now, slots))
        if limit < SMALLEST_SHARED or not part:
            assert kept.kept == 0
            continue
        least, most = max(1, int(limit * part)), max(1, int(limit * part), limit // 2)
        fresh = max(n for at, n in seen if at > now - REMEMBERED)
        old = max(n for at, n in seen if at >= now - 2 * REMEMBERED)
        assert max(least, min(most, fresh)) <= kept.kept <= max(least, min(most, old))
