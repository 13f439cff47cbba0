"""Which instances are left alone, and for how long."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.gateway.circuits import FIRST, LONGEST, Circuits


def test_each_failure_in_a_row_doubles_the_time() -> None:
    circuits = Circuits()
    now, pause = 100.0, FIRST
    for _ in range(8):
        circuits.failed("a", now)
        assert list(circuits.open(now + pause - 0.01)) == ["a"]
        assert not circuits.open(now + pause)
        now, pause = now + pause, min(LONGEST, 2 * pause)
    circuits.succeeded("a")
    circuits.failed("a", now)
    assert not circuits.open(now + FIRST)


STEPS = st.lists(
    st.tuples(st.sampled_from(["failed", "succeeded", "keep_only"]), st.sampled_from("abc"), st.floats(0, 20)),
    max_size=30,
)


@given(STEPS)
def test_who_looks_before_asking_misses_none(steps: list[tuple[str, str, float]]) -> None:
    """While nothing is `failing` no instance is to be left alone, and nothing is kept of one that answers."""
    circuits, now, failing = Circuits(), 0.0, set[str]()
    for what, instance, pause in steps:
        now += pause
        if what == "failed":
            circuits.failed(instance, now)
            failing.add(instance)
        elif what == "succeeded":
            circuits.succeeded(instance)
            failing.discard(instance)
        else:
            circuits.keep_only({instance})
            failing &= {instance}
        assert circuits.failing == bool(failing)
        assert set(circuits.open(now)) <= failing
