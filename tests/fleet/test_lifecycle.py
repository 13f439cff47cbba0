"""The lifecycle table, as a whole and by random walks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import ConflictError
from shoal.fleet.lifecycle import TABLE, WITH_PROCESS, Effect, Event, RestartPolicy, step
from shoal.fleet.state import InstanceState as S


def test_what_is_not_in_the_table_is_refused_with_both_names() -> None:
    with pytest.raises(ConflictError, match="stopped cannot healthy") as caught:
        step(S.STOPPED, Event.HEALTHY)
    assert caught.value.status == 409


def test_every_state_can_be_reached_and_left() -> None:
    reached = {S.QUEUED}
    while more := {t.state for (state, _), t in TABLE.items() if state in reached} - reached:
        reached |= more
    assert reached == set(S)
    for state in set(S) - {S.STOPPED}:
        assert any(s is state and t.state is not state for (s, _), t in TABLE.items()), state


def test_everything_that_is_not_stopped_can_be_unloaded() -> None:
    for state in S:
        assert (state, Event.UNLOAD) in TABLE


@given(st.lists(st.sampled_from(list(Event)), max_size=60))
def test_a_process_exists_exactly_in_the_states_that_say_so(events: list[Event]) -> None:
    """Only SPAWN makes one; only the facts that it has ended, or was refused, take it away."""
    state, process = S.QUEUED, False
    for event in events:
        if (state, event) not in TABLE:
            continue
        transition = step(state, event)
        if event in (Event.CRASH, Event.EXHAUST, Event.END, Event.END_RESTART, Event.END_FAILED, Event.REFUSE):
            process = False
        if Effect.SPAWN in transition.effects:
            assert not process
            process = True
        state = transition.state
        assert process == (state in WITH_PROCESS)


@given(st.integers(0, 20), st.floats(0, 1e4) | st.none(), st.integers(0, 10))
def test_restarts_are_bounded_and_delays_grow_to_a_limit(restarts: int, served: float | None, limit: int) -> None:
    policy = RestartPolicy(limit=limit, delay=1, delay_max=30, reset=300)
    again = policy.after_crash(restarts, served)
    if again is None:
        assert restarts >= limit or (served is None and restarts == 0)
        return
    count, delay = again
    assert 1 <= count <= limit
    assert 1 <= delay <= 30
    assert count == (1 if served is not None and served >= 300 else restarts + 1)


def test_a_start_that_never_served_is_not_tried_again() -> None:
    assert RestartPolicy().after_crash(0, None) is None


def test_long_service_forgets_crashes() -> None:
    assert RestartPolicy(limit=2, reset=100).after_crash(2, 99) is None
    assert RestartPolicy(limit=2, reset=100).after_crash(2, 100) == (1, 1.0)
