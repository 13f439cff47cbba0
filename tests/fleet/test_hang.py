"""When an engine counts as hung."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.engines.base import EngineMetrics
from shoal.fleet.hang import HangDetector


def busy(steps: float) -> EngineMetrics:
    return EngineMetrics(requests_running=2, steps_total=steps)


def test_silence_counts_from_the_last_answer() -> None:
    detector = HangDetector(10)
    assert detector.look(0, busy(1)) is None
    assert detector.look(9.9, None) is None
    assert detector.look(10, None) == "no answer for 10 s"


def test_running_requests_without_a_step_count_as_hung() -> None:
    detector = HangDetector(10)
    assert detector.look(0, busy(1)) is None
    assert detector.look(5, busy(2)) is None
    assert detector.look(14, busy(2)) is None
    assert detector.look(15, busy(2)) == "2 request(s) run but no step was made for 10 s"


@given(st.lists(st.tuples(st.floats(0.1, 9), st.sampled_from([0, 1, 5])), min_size=1, max_size=50))
def test_an_engine_that_answers_and_is_idle_or_moves_never_hangs(looks: list[tuple[float, int]]) -> None:
    detector = HangDetector(10)
    now, steps = 0.0, 0.0
    for passed, running in looks:
        now += passed
        steps += 1
        assert detector.look(now, EngineMetrics(requests_running=running, steps_total=steps)) is None
        assert detector.look(now, EngineMetrics(requests_running=0, steps_total=steps)) is None


def test_an_engine_that_reports_no_counts_is_judged_by_its_answers_alone() -> None:
    detector = HangDetector(10)
    assert detector.look(0, EngineMetrics(requests_running=1)) is None
    assert detector.look(100, EngineMetrics(requests_running=1)) is None
