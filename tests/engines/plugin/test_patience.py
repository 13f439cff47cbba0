"""When the one request that waits for memory is given up."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.engines.vllm.plugin.patience import Patience


def test_a_request_that_does_not_get_on_ends_after_the_time_given_and_once() -> None:
    patience = Patience(60)
    assert not patience.notice("a", 10, 100.0)
    assert not patience.notice("a", 10, 159.9)
    assert patience.notice("a", 10, 160.0)
    assert not patience.notice("a", 10, 161.0), "it was said before"
    assert patience.take_lost() == ["a"]
    assert patience.take_lost() == []


def test_progress_gives_it_all_its_time_again() -> None:
    patience = Patience(60)
    patience.notice("a", 10, 0.0)
    assert not patience.notice("a", 11, 59.0)
    assert not patience.notice("a", 11, 118.0)
    assert patience.notice("a", 11, 119.0)


def test_a_preempted_request_that_has_no_fewer_tokens_makes_no_progress() -> None:
    patience = Patience(60)
    patience.notice("a", 10, 0.0)
    assert not patience.notice("a", 10, 70.0, served=True), "its memory is there, so it may go on"
    assert patience.notice("a", 10, 70.1), "let in and thrown out again is no progress"


def test_what_can_never_come_ends_it_at_once() -> None:
    patience = Patience(60)
    assert patience.notice("a", 10, 5.0, never=True)
    assert patience.lost == ["a"]


def test_another_request_starts_with_patience_of_its_own() -> None:
    patience = Patience(60)
    patience.notice("a", 10, 0.0)
    assert not patience.notice("b", 10, 59.0)
    assert not patience.notice("a", 10, 70.0), "between, it was not the one that waited"
    assert patience.notice("a", 10, 130.0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2), st.floats(0, 40), st.booleans()), max_size=30))
def test_nobody_ends_before_the_time_since_its_last_progress(turns: list[tuple[str, int, float, bool]]) -> None:
    patience, now, most = Patience(60), 0.0, {"a": 0, "b": 0}
    last, since = "", 0.0
    for who, tokens, passed, served in turns:
        now += passed
        most[who] += tokens
        if who != last or tokens:
            last, since = who, now
        known = list(patience.lost)
        if patience.notice(who, most[who], now, served=served):
            assert who not in known
            assert now - since >= 60
            assert not served
            last = ""
