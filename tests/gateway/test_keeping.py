"""What requests say of how long their model is to stay."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.gateway.keeping import Keeping, seconds_of
from shoal.messages import MAX_DEMAND, Demand


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        (0, 0.0), (300, 300.0), (-1, -1.0), (2.5, 2.5), ("0", 0.0), ("-1", -1.0), ("90", 90.0), ("5m", 300.0),
        ("1h30m", 5400.0), ("-1m", -60.0), ("300ms", 0.3), ("1.5h", 5400.0), ("2d", 172_800.0), (" 10s ", 10.0),
    ],
)  # fmt: skip
def test_numbers_and_durations_are_read_as_ollama_reads_them(said: str | float, seconds: float) -> None:
    assert seconds_of(said) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "said", [None, "", "for ever", "5 m", "m5", "5x", "--1s", "1h 30m", float("inf"), float("nan")]
)
def test_what_is_no_duration_counts_as_not_said(said: str | float | None) -> None:
    assert seconds_of(said) is None


@given(st.text(max_size=32))
def test_whatever_is_said_is_finite_or_nothing(said: str) -> None:
    value = seconds_of(said)
    assert value is None or math.isfinite(value)


def test_the_last_request_counts_also_if_it_says_nothing() -> None:
    keeping = Keeping()
    keeping.ended("a", 0, 10.0)
    keeping.ended("b", "5m", 11.0)
    assert keeping.demand() == (Demand("b", 11.0, 300.0), Demand("a", 10.0, 0.0))
    keeping.ended("a", -1, 12.0)
    assert keeping.demand()[0] == Demand("a", 12.0, -1.0)
    keeping.ended("a", None, 13.0)
    assert [one.model for one in keeping.demand()] == ["b"]
    keeping.forget({"b", "unknown"})
    assert keeping.demand() == ()


def test_of_very_many_models_the_least_lately_used_are_forgotten() -> None:
    keeping = Keeping()
    for number in range(MAX_DEMAND + 3):
        keeping.ended(f"m{number}", 1, float(number))
    found = keeping.demand()
    assert len(found) == MAX_DEMAND
    assert found[0].model == f"m{MAX_DEMAND + 2}"
    assert found[-1].model == "m3"
