"""When requests are due."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.bench.arrivals import bursts, lasts, ramp, ramp_rates, rate_over_time
from shoal.bench.phases import Phase, parse

peaks = st.tuples(st.integers(1, 40), st.integers(1, 10)).filter(lambda pair: pair[0] >= pair[1])


def test_a_ramp_goes_up_and_down() -> None:
    assert ramp_rates(6, 2) == [2, 4, 6, 4, 2]
    assert ramp(4, 2) == [0, 0.5, 1, 1.25, 1.5, 1.75, 2, 2.5]


@given(peaks)
def test_a_ramp_has_as_many_requests_each_second_as_its_rate(pair: tuple[int, int]) -> None:
    rates, times = ramp_rates(*pair), ramp(*pair)
    assert len(times) == sum(rates)
    assert rates == rates[::-1]
    for second, rate in enumerate(rates):
        assert sum(second <= time < second + 1 for time in times) == rate
    assert times == sorted(times)


@pytest.mark.parametrize(("peak", "step"), [(0, 1), (3, 4), (5, 0), (-2, -2)])
def test_a_ramp_that_cannot_be(peak: int, step: int) -> None:
    with pytest.raises(ValueError, match="peak"):
        ramp_rates(peak, step)


@given(peaks, st.integers(1, 5), st.floats(0, 20))
def test_bursts_in_turn_do_not_overlap_and_bursts_together_do(pair: tuple[int, int], models: int, gap: float) -> None:
    planned = bursts(models, *pair, gap=gap)
    assert [burst.model for burst in planned] == list(range(models))
    for one, following in pairwise(planned):
        assert max(one.due) < one.begin + one.length <= following.begin
    at_once = bursts(models, *pair, gap=gap, together=True)
    assert {burst.due for burst in at_once} == {planned[0].due}
    assert lasts(at_once) <= lasts(planned)
    assert sum(count for _, count in rate_over_time(planned)) == sum(len(burst.due) for burst in planned)


@given(st.integers(1, 9999), st.integers(1, 99999), st.booleans())
def test_a_phase_is_what_it_is_called(peak: int, tokens: int, together: bool) -> None:
    phase = Phase(peak, tokens, together)
    assert parse(str(phase)) == phase


def test_short_names_of_phases() -> None:
    assert parse(" 56 ") == Phase(56, 256, False)
    assert parse("16+", tokens=32) == Phase(16, 32, True)


@pytest.mark.parametrize("text", ["", "x1024", "0", "5x0", "5x", "-3", "5++", "5 6", "99999", "1e3"])
def test_what_is_no_phase(text: str) -> None:
    with pytest.raises(ValueError, match="no phase"):
        parse(text)
