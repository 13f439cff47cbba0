"""Quantiles of histograms lie where their values do."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.histograms import quantile

BOUNDS = (0.1, 0.2, 0.4)


@given(st.lists(st.integers(0, 1000), min_size=4, max_size=4), st.floats(0.01, 0.99))
def test_a_quantile_lies_in_the_bucket_of_its_value(counts: list[int], q: float) -> None:
    found = quantile(counts, BOUNDS, q)
    if not sum(counts):
        assert found is None
        return
    assert found is not None
    values = [bound for bound, count in zip((*BOUNDS, BOUNDS[-1]), counts, strict=True) for _ in range(count)]
    upper = values[max(0, math.ceil(q * len(values)) - 1)]
    lower = (0.0, *BOUNDS)[BOUNDS.index(upper)]
    # On the border of two buckets, a count that rounding makes a little more belongs to the next.
    assert lower - 1e-6 <= found <= upper + 1e-6 or found in BOUNDS


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=12), st.floats(0, 1))
def test_a_quantile_lies_within_the_bounds(counts: list[int], q: float) -> None:
    bounds = [0.01 * 2**n for n in range(len(counts) - 1)]
    found = quantile(counts, bounds, q)
    if found is not None:
        assert 0 <= found <= bounds[-1]
    if sum(counts) and q and bounds:
        assert found is not None


@pytest.mark.parametrize(
    ("counts", "q", "expected"), [((4, 0, 0, 0), 0.5, 0.05), ((0, 0, 0, 9), 0.5, 0.4), ((1, 1, 0, 0), 0.75, 0.15)]
)
def test_values_lie_evenly_within_a_bucket(counts: tuple[int, ...], q: float, expected: float) -> None:
    assert quantile(counts, BOUNDS, q) == pytest.approx(expected)
