"""What the relay counts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.gateway.measures import BOUNDS, Measures
from shoal.messages import PRIORITIES, Distribution, DistributionName, ModelCount, Priority, Traffic

NAMES = st.sampled_from(sorted(BOUNDS))
MODELS = st.sampled_from(["", "a", "b"])
CLASSES = st.sampled_from(PRIORITIES)


def add(measures: Measures, name: DistributionName, model: str, priority: Priority, seconds: float) -> None:
    getattr(measures.of(model, priority), name).add(seconds)


@pytest.mark.parametrize(("name", "low", "high"), [
    ("queue", 0.001, 600.0),
    ("first_byte", 0.001, 600.0),
    ("duration", 0.001, 600.0),
    ("inter_chunk", 0.001, 10.0),
    ("overhead", 10e-6, 0.1),
])  # fmt: skip
def test_bounds_ascend_over_their_range(name: DistributionName, low: float, high: float) -> None:
    bounds = BOUNDS[name]
    assert (bounds[0], bounds[-1]) == (low, high)
    assert list(bounds) == sorted(set(bounds))


@pytest.mark.parametrize("name", sorted(BOUNDS))
def test_a_value_on_a_bound_is_within_it(name: DistributionName) -> None:
    bounds = BOUNDS[name]
    for index, bound in enumerate(bounds):
        for value, bucket in ((bound, index), (math.nextafter(bound, math.inf), index + 1)):
            measures = Measures()
            add(measures, name, "m", "normal", value)
            (found,) = measures.distributions()
            assert [i for i, count in enumerate(found.counts) if count] == [bucket]
    measures = Measures()
    add(measures, name, "m", "normal", 0.0)
    assert measures.distributions()[0].counts == (1, *[0] * len(bounds))


@given(st.lists(st.tuples(NAMES, MODELS, CLASSES, st.floats(0, 1000)), max_size=60))
def test_no_value_is_lost_or_in_another_bucket(
    values: list[tuple[DistributionName, str, str, float]],
) -> None:
    measures = Measures()
    for name, model, priority, seconds in values:
        add(measures, name, model, priority, seconds)  # type: ignore[arg-type]
    found = {(d.name, d.model, d.priority): d for d in measures.distributions()}
    assert set(found) == {value[:3] for value in values}
    for key, distribution in found.items():
        mine = [value[3] for value in values if value[:3] == key]
        bounds = BOUNDS[distribution.name]
        assert sum(distribution.counts) == len(mine)
        assert distribution.total == pytest.approx(sum(mine))
        for index, bound in enumerate(bounds):
            assert sum(distribution.counts[: index + 1]) == sum(value <= bound for value in mine)


def test_what_is_told_does_not_change_afterwards_and_the_next_is_new() -> None:
    measures = Measures()
    add(measures, "queue", "m", "normal", 1.0)
    before = measures.distributions()
    assert measures.distributions()[0] is before[0], "what did not change is not made anew"
    add(measures, "queue", "m", "normal", 1.0)
    assert sum(before[0].counts) == 1
    (after,) = measures.distributions()
    assert (sum(after.counts), after.total) == (2, 2.0)


def test_counts_and_traffic_add_up() -> None:
    measures = Measures()
    for _ in range(3):
        measures.of("m", "high").ended("ok")
    measures.of("m", "low").ended("ok")
    measures.of("m", "high").ended("cancelled")
    assert set(measures.counts()) == {
        ModelCount("m", "ok", 3, "high"),
        ModelCount("m", "ok", 1, "low"),
        ModelCount("m", "cancelled", 1, "high"),
    }
    books = measures.of("m", "normal")
    books.bytes_in, books.bytes_out, books.prompt_tokens, books.completion_tokens = 10, 2**40, 5, 6
    measures.of("m", "low").bytes_in = 1
    measures.of("n", "normal").prompt_tokens = 1
    assert set(measures.traffic()) == {Traffic("m", 11, 2**40, 5, 6), Traffic("n", 0, 0, 1, 0)}


def test_models_that_left_are_forgotten_and_begin_anew() -> None:
    measures = Measures()
    for model in ("gone", "stays", ""):
        add(measures, "queue", model, "normal", 1.0)
        measures.of(model, "normal").ended("ok")
        measures.of(model, "normal").bytes_in += 1
    measures.forget(["gone", "never there"])
    assert {d.model for d in measures.distributions()} == {"stays", ""}
    assert {c.model for c in measures.counts()} == {"stays", ""}
    assert {t.model for t in measures.traffic()} == {"stays", ""}
    add(measures, "queue", "gone", "normal", 0.0)
    fresh: list[Distribution] = [d for d in measures.distributions() if d.model == "gone"]
    assert [sum(d.counts) for d in fresh] == [1]


def test_what_a_request_took() -> None:
    measures = Measures()
    books = measures.of("m", "normal")
    books.took("ok", 0.0, 2.0, 1e-5)
    books.took("ok", 1.0, 3.0, 0.0)
    found = {d.name: (sum(d.counts), d.total) for d in measures.distributions()}
    assert found == {"queue": (2, 1.0), "duration": (2, 5.0), "overhead": (1, 1e-5)}
