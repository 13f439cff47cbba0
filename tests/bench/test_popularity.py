"""Traffic to many models, and what is promised of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.bench.load import Served
from shoal.bench.popularity import arrivals, at_once, described, many_checks, together, zipf


def test_popularity_falls_with_rank() -> None:
    assert zipf(3, 1.0) == pytest.approx([6 / 11, 3 / 11, 2 / 11])
    assert zipf(2, 0.0) == [0.5, 0.5]
    with pytest.raises(ValueError, match="no models"):
        zipf(0, 1.0)


@given(st.integers(1, 12), st.floats(0, 40), st.floats(0, 20), st.integers(0, 9), st.integers(0, 5))
def test_requests_come_in_order_in_time_and_the_same_again(
    models: int, seconds: float, rate: float, burst: int, seed: int
) -> None:
    told: dict[str, Any] = {"exponent": 1.1, "every": 7.0, "burst": burst, "seed": seed}
    found = arrivals(models, seconds, rate, **told)
    assert found == sorted(found)
    assert all(0 <= at < seconds + 1 and 0 <= model < models for at, model in found)
    assert found == arrivals(models, seconds, rate, **told)


def test_bursts_go_to_one_model_each_and_come_on_top() -> None:
    found = arrivals(5, 20, 0.0, exponent=1.0, every=6.0, burst=4, seed=1)
    assert len(found) == 3 * 4
    for begin in (6.0, 12.0, 18.0):
        assert len({model for at, model in found if begin <= at < begin + 1}) == 1
    assert arrivals(5, 20, 0.0, exponent=1.0, every=0.0, burst=4, seed=1) == []


def test_the_popular_are_asked_most() -> None:
    counts = Counter(model for _, model in arrivals(4, 1000, 5.0, exponent=1.5, every=0, burst=0, seed=2))
    assert [model for model, _ in counts.most_common()] == [0, 1, 2, 3]
    assert counts.total() == pytest.approx(5000, rel=0.1)


def served(first: float, *, woken: float = 0.0, queued: float = 0.0, tokens: int = 4) -> Served:
    finished = tokens == 4
    end = 11 + first
    return Served(0, 10.0, 10.0, 10 + first, end, end, tokens, queued=queued, finished=finished, woken=woken)


def test_requests_are_told_apart_by_whether_they_were_held() -> None:
    found = described([served(0.02), served(0.5, woken=0.4, queued=0.05), served(0.6, woken=0.5, tokens=1)], 4)
    assert (found["all"]["requests"], found["awake"]["requests"], found["held"]["requests"]) == (3, 1, 2)
    assert found["all"]["failed"] == 1
    assert found["held_until_awake"] == {"p50": 400.0, "p99": 400.0}
    assert found["held_beyond"]["p50"] == pytest.approx(50.0)
    assert found["held_together"] == {"p50": 2.0, "p99": 2.0}, "50 ms apart"
    assert described([], 4)["held_beyond"] == {}
    unanswered = described([served(0.02), Served(0, 10.0, error="not over")], 4)
    assert (unanswered["all"]["failed"], unanswered["awake"]["requests"], unanswered["held"]["requests"]) == (1, 1, 0)


def test_who_was_held_for_one_model_came_to_it_together() -> None:
    def held(model: int, due: float, woken: float) -> Served:
        return Served(model, due, woken=woken)

    found = together([held(0, 1.0, 3.0), held(0, 2.0, 2.01), held(1, 2.0, 2.0), held(0, 9.0, 1.0), held(0, 3.95, 0.1)])
    assert sorted(found) == [1, 1, 3, 3, 3]
    assert together([]) == []


def test_the_wait_of_many_at_once_lies_between_those_measured() -> None:
    sizes: dict[str, dict[str, Any]] = {"4": {"ttft_p99": 20.0}, "16": {"ttft_p99": 80.0}, "32": {"failed": 32}}
    assert [at_once(sizes, count) for count in (1, 4, 10, 16, 40)] == [20, 20, 50, 80, 80]
    with pytest.raises(ValueError, match="no volley"):
        at_once({"4": {"failed": 4}}, 4)


def row(what: str, **more: Any) -> dict[str, Any]:
    like = {"ttft_p50": 20.0, "ttft_p99": 40.0, "failed": 0}
    held = {"held_beyond": {"p50": 20, "p99": 40}, "held_together": {"p50": 2, "p99": 6}}
    return {"system": "sleep", "what": what, "all": like, "awake": like, **held, **more}


VOLLEYS = {"system": "sleep", "what": "volleys", "sizes": {"4": {"ttft_p99": 20.0}, "8": {"ttft_p99": 60.0}}}


@pytest.mark.parametrize(
    ("more", "broken"),
    [
        ({}, None),
        ({"all": {"failed": 1}}, "not answered"),
        ({"awake": {"ttft_p50": 22.1, "ttft_p99": 59.0}}, "TTFT p50"),
        ({"awake": {"ttft_p50": 21.9, "ttft_p99": 60.1}}, "TTFT p99"),
        ({"held_beyond": {"p50": 1, "p99": 60.1}}, "held"),
    ],
)
def test_promises_hold_or_do_not(more: dict[str, Any], broken: str | None) -> None:
    checks = many_checks(
        [row("calm"), VOLLEYS, row("traffic", **more), row("traffic", system="unload", all={"failed": 9})]
    )
    assert len(checks) == 4
    wrong = [check.name for check in checks if not check.holds]
    assert (len(wrong), broken in wrong[0]) == (1, True) if broken is not None else wrong == []


def test_what_is_missing_makes_no_check() -> None:
    assert many_checks([]) == []
    assert len(many_checks([row("traffic")])) == 1
    nobody: dict[str, Any] = {"awake": {}, "held_beyond": {}, "held_together": {}}
    assert len(many_checks([row("calm"), VOLLEYS, row("traffic", **nobody)])) == 1
    assert len(many_checks([row("calm"), VOLLEYS, row("traffic", held_beyond={})])) == 3, "held, and never answered"
    silent = {**VOLLEYS, "sizes": {"4": {"failed": 4}}}
    assert len(many_checks([row("calm"), silent, row("traffic")])) == 3


def test_what_was_measured_with_the_other_system_will_do() -> None:
    checks = many_checks([row("calm", system="unload"), {**VOLLEYS, "system": "unload"}, row("traffic")])
    assert len(checks) == 4
