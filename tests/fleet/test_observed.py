"""The busiest window of the last day, out of readings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.fleet import facts
from shoal.fleet.memory import Terms
from shoal.fleet.observed import KEPT, LEAST, WINDOW, Observed, Seen
from shoal.fleet.occupancy import seen_now
from shoal.fleet.peaks import Load
from tests.fleet.fakes import World, books, gpu

TOKEN = 1000


def watch(observed: Observed, begin: float, seconds: float, seen: Seen | None, step: float = 2.0) -> float:
    """Readings every `step` seconds; the time of the last one."""
    at = begin
    while at <= begin + seconds:
        observed.take(at, {} if seen is None else {"m": seen})
        at += step
    return at - step


def test_requests_and_their_tokens_are_averaged_over_time() -> None:
    observed = Observed()
    at = watch(observed, 0, 100, Seen(4, 4 * 300 * TOKEN))
    watch(observed, at + 2, 98, Seen(8, 8 * 600 * TOKEN))
    found = observed.load("m", TOKEN)
    assert found is not None
    assert found.concurrency == pytest.approx(6, rel=0.02)
    assert found.tokens == pytest.approx((4 * 300 + 8 * 600) / 12, rel=0.02), "longer requests hold more of the time"
    assert found.observed


def test_the_busiest_window_counts_and_only_for_a_day() -> None:
    observed = Observed()
    at = watch(observed, 0, WINDOW - 2, Seen(9, 9 * 100 * TOKEN))
    at = watch(observed, at + 2, WINDOW * 3, Seen(1, 100 * TOKEN))
    found = observed.load("m", TOKEN)
    assert found is not None
    assert found.concurrency == pytest.approx(9)
    watch(observed, KEPT + 1, WINDOW - 2, Seen(1, 100 * TOKEN))
    calm = observed.load("m", TOKEN)
    assert calm is not None
    assert calm.concurrency == pytest.approx(1)


def test_too_little_was_seen() -> None:
    observed = Observed()
    assert observed.load("m", TOKEN) is None
    watch(observed, 0, LEAST - 2, Seen(1, TOKEN))
    assert observed.load("m", TOKEN) is None
    watch(observed, LEAST, 4, Seen(1, TOKEN))
    assert observed.load("m", TOKEN) is not None
    assert observed.load("m", 0) is None
    assert observed.load("other", TOKEN) is None


def test_a_model_that_nobody_asked_for() -> None:
    observed = Observed()
    watch(observed, 0, 100, Seen(0, 0))
    assert observed.load("m", TOKEN) == Load(0.0, 1.0, observed=True)


def test_a_gap_is_not_taken_for_traffic() -> None:
    observed = Observed()
    observed.take(0, {"m": Seen(5, TOKEN)})
    observed.take(300, {"m": Seen(5, TOKEN)})
    assert observed.load("m", TOKEN) is None, "5 minutes passed, of which 15 seconds count"


def test_a_model_that_is_gone_is_forgotten_after_a_day() -> None:
    observed = Observed()
    at = watch(observed, 0, 100, Seen(1, TOKEN))
    observed.take(at + KEPT, {})
    assert observed.load("m", TOKEN) is not None or not observed._windows
    observed.take(at + 2 * KEPT, {})
    assert not observed._windows


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(0, 100), st.integers(0, 10**9)), max_size=50))
def test_no_clock_confuses_it(readings: list[tuple[float, int, int]]) -> None:
    observed = Observed()
    for now, requests, kv in readings:
        observed.take(now, {"m": Seen(requests, kv)})
    found = observed.load("m", TOKEN)
    if found is not None:
        assert found.concurrency >= 0
        assert found.tokens >= 1


def test_what_the_fleet_sees() -> None:
    world = World(gpu(0), gpu(1))
    first = world.ready("a")
    second = world.ready("b")
    world.tell(facts.BooksRead(books(world, {first: Terms()}, used=700)))
    world.report({first: 3, second: 5})
    assert seen_now(world.manager.fleet) == {"a": Seen(3, 700)}, "of what leases nothing nothing is known"
    for _ in range(40):
        world.effects.clock += 2
        world.tell(facts.DevicesRead(world.manager.fleet.devices, {}))
    found = world.manager.fleet.observed.load("a", 10)
    assert found is not None
    assert (found.concurrency, found.tokens) == pytest.approx((3, 700 / 3 / 10))
