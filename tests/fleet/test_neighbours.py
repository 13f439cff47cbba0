"""Who on a device may have taken memory, or given it back, between two looks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.fleet.neighbours import gave, look, took
from shoal.fleet.state import Instance
from shoal.fleet.state import InstanceState as S

ME = Instance("i", "m", "vllm", S.DRAINING, ("cuda:0", "cuda:1"), 0.0, 0.0)


def other(state: S, since: float = 0.0, *, name: str = "n", device: str = "cuda:1") -> Instance:
    return Instance(name, "m", "vllm", state, (device,), 0.0, since)


def between(before: Instance | None, now: Instance | None, *, fell: tuple[bool, bool] = (False, False)) -> str:
    """What a neighbour may have done."""
    first, second = (
        look(ME, [] if one is None else [one], {"n"} if falls else ())
        for one, falls in zip((before, now), fell, strict=True)
    )
    return " ".join(word for word, who in (("took", took), ("gave", gave)) if who(first, second))


@pytest.mark.parametrize(
    ("before", "now", "did"),
    [
        (S.READY, S.READY, ""),  # also one that slept and woke: it holds what it held
        (S.SLEEPING, S.SLEEPING, ""),
        (S.READY, S.DRAINING, ""),  # its requests run to their end
        (None, S.QUEUED, ""),
        (None, S.STARTING, "took"),
        (S.QUEUED, S.READY, "took"),
        (S.STARTING, S.READY, "took gave"),  # what it took to warm up goes again
        (S.SLEEPING, S.WAKING, "took"),
        (S.SLEEPING, S.READY, "took"),
        (S.WAKING, S.READY, "took"),
        (S.WAKING, S.STOPPING, "took gave"),
        (S.READY, S.SLEEPING, "gave"),
        (S.DRAINING, S.STOPPING, "gave"),
        (S.READY, S.STOPPED, "gave"),
        (S.SLEEPING, None, "gave"),
        (S.READY, None, "gave"),
    ],
)
def test_what_becomes_of_a_neighbour_says_what_it_may_have_done(before: S | None, now: S | None, did: str) -> None:
    first, second = (None if state is None else other(state, since) for since, state in enumerate((before, now)))
    assert between(first, second) == did


@pytest.mark.parametrize(
    ("state", "did"),
    [(S.STARTING, "took gave"), (S.WAKING, "took"), (S.STOPPING, "gave"), (S.READY, ""), (S.DRAINING, "")],
)
def test_who_does_the_same_all_the_while_goes_one_way(state: S, did: str) -> None:
    assert between(other(state), other(state)) == did


def test_one_on_its_way_to_sleep_gives_from_when_its_engine_was_told_to() -> None:
    drains = other(S.DRAINING)
    assert between(drains, drains, fell=(False, True)) == "gave"
    assert between(drains, drains, fell=(True, True)) == "gave"
    assert between(drains, other(S.SLEEPING, 1.0), fell=(True, True)) == "gave"
    assert between(drains, other(S.WAKING, 1.0), fell=(True, False)) == "took gave"


@given(st.sampled_from(S), st.sampled_from(S))
def test_only_who_shares_a_device_counts(before: S, now: S) -> None:
    assert not between(other(before, device="cuda:2"), other(now, 1.0, device="cuda:2"))
    assert not between(other(before, name="i"), other(now, 1.0, name="i")), "it is no neighbour of its own"
