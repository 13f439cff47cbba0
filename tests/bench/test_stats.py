"""Percentiles, and what a group of requests was like."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.bench.load import Served
from shoal.bench.stats import mean, median, percentile, ratios, summary

numbers = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=50)


@given(numbers, st.floats(0, 1))
def test_a_percentile_lies_among_the_values_and_grows_with_its_part(values: list[float], part: float) -> None:
    found = percentile(values, part)
    assert min(values) <= found <= max(values)
    assert percentile(values, 0) == min(values)
    assert percentile(values, 1) == max(values)
    assert percentile(values, part / 2) <= found + 1e-6


@given(numbers)
def test_the_median_is_the_usual_one(values: list[float]) -> None:
    assert median(values) == pytest.approx(statistics.median(values), abs=1e-3)


@pytest.mark.parametrize(("values", "part"), [([], 0.5), ([1.0], -0.1), ([1.0], 1.1)])
def test_no_percentile_of_nothing_or_beyond(values: list[float], part: float) -> None:
    with pytest.raises(ValueError):
        percentile(values, part)
    with pytest.raises(ValueError):
        mean([])


def test_ratios_are_of_pairs() -> None:
    assert ratios([2.0, 9.0, 5.0], [4.0, 3.0]) == [0.5, 3.0]
    assert ratios([1.0], [0.0]) == []


def served(due: float, first: float, last: float, tokens: int, *, finished: bool = True) -> Served:
    return Served(0, due, due + 0.001, first, last, end=last, tokens=tokens, finished=finished)


def test_a_summary_counts_time_from_when_requests_were_due_and_short_answers_as_failures() -> None:
    row = summary(
        [
            served(10, 10.1, 11.1, 11),
            served(20, 20.3, 21.3, 11),
            served(30, 30.1, 30.2, 3),
            served(40, 0, 0, 0, finished=False),
        ],
        11,
    )
    assert row["requests"] == 4
    assert row["failed"] == 2
    assert row["ttft_mean"] == pytest.approx(200)
    assert row["ttft_max"] == pytest.approx(300)
    assert row["itl_mean"] == pytest.approx(100)
    assert row["e2e_mean"] == pytest.approx(1200)
    assert row["lag_max"] == pytest.approx(1, abs=0.01)


def test_a_summary_of_failures_has_no_times() -> None:
    row = summary([served(10, 0, 0, 0, finished=False)], 5)
    assert (row["requests"], row["failed"]) == (1, 1)
    assert "ttft_mean" not in row
