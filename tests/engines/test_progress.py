from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.engines.base import Milestone
from shoal.engines.progress import START, ProgressTracker


def milestone(pattern: str, phase: str, percent: int) -> Milestone:
    return Milestone(re.compile(pattern), phase, percent)


STEPS = (
    milestone("Loading model", "loading", 10),
    milestone("shard 2", "loading", 40),
    milestone("took", "compiling", 60),
    milestone("complete", "serving", 100),
)


def test_without_earlier_loads_the_milestones_alone_move_it() -> None:
    tracker = ProgressTracker(STEPS)
    assert tracker.progress(0).phase == START
    assert tracker.feed("INFO Loading model x", 1)
    assert tracker.progress(500).percent == 10
    assert tracker.progress(500).seconds_left is None
    assert not tracker.feed("shard 2", 501), "the same phase goes on"
    assert tracker.progress(501).percent == 40
    assert tracker.feed("complete", 502)
    assert tracker.progress(502).percent == 100


def test_interpolation_stops_short_of_the_next_milestone() -> None:
    tracker = ProgressTracker(STEPS, [{START: 4, "loading": 10, "compiling": 10}], started=0)
    assert tracker.progress(2).percent == 5
    assert tracker.progress(60).percent == 9
    tracker.feed("Loading model", 60)
    assert tracker.progress(62).percent == 20
    assert tracker.progress(69).percent == 39, "the second milestone of the phase has not been seen"
    tracker.feed("shard 2", 69)
    assert tracker.progress(69).percent == 55
    assert tracker.progress(99).percent == 59
    tracker.feed("took", 100)
    assert tracker.progress(105).percent == 80
    assert tracker.progress(999).percent == 99


def test_seconds_left_come_from_the_median_and_count_what_a_load_skipped_as_nothing() -> None:
    earlier: list[dict[str, float]] = [{"loading": 10, "compiling": 100}, {"loading": 30}, {"loading": 20, START: 6.0}]
    tracker = ProgressTracker(STEPS, earlier, started=0)
    assert tracker.progress(0).seconds_left == 20
    tracker.feed("Loading model", 1)
    assert tracker.progress(6).seconds_left == 15
    assert tracker.progress(600).seconds_left == 0


def test_only_the_newest_loads_teach() -> None:
    tracker = ProgressTracker(STEPS, [{"loading": 10}] * 5 + [{"loading": 1000}] * 50, started=0)
    assert tracker.progress(0).seconds_left == 10


@pytest.mark.parametrize("useless", [{}, {"unknown": 3.0}, {"loading": float("nan")}, {"loading": -1.0}])
def test_loads_that_say_nothing_are_ignored(useless: dict[str, float]) -> None:
    assert ProgressTracker(STEPS, [useless]).progress(0).seconds_left is None
    assert ProgressTracker(STEPS, [useless, {"loading": 5.0}]).progress(0).seconds_left == 5


def test_phases_are_measured_and_teach_the_next_load() -> None:
    tracker = ProgressTracker(STEPS, started=10)
    tracker.feed("Loading model", 12)
    tracker.feed("shard 2", 14)
    tracker.feed("took", 20)
    measured = tracker.phases(25)
    assert measured == {START: 2, "loading": 8, "compiling": 5}
    assert ProgressTracker(STEPS, [measured]).progress(0).seconds_left == 15


def test_a_phase_that_comes_again_adds_up() -> None:
    tracker = ProgressTracker([milestone("a", "x", 10), milestone("b", "y", 20), milestone("c", "x", 30)], started=0)
    for second, line in enumerate("abc"):
        tracker.feed(line, second)
    assert tracker.phases(10) == {START: 0, "x": 9, "y": 1}


@pytest.mark.parametrize(
    "line",
    [
        "\x1b[1;36m(EngineCore pid=3)\x1b[0;0m INFO Loading\x1b[0m model x",
        "\x1b]0;title\x07Loading model",
        "10%\r50%\rLoading model",
        "Loading model" + "x" * 2**20,
        "x" * 2**20 + "Loading model",
    ],
    ids=["colour", "title", "redrawn", "long-head", "long-tail"],
)
def test_lines_as_terminals_get_them(line: str) -> None:
    tracker = ProgressTracker(STEPS)
    assert tracker.feed(line, 0)
    assert tracker.progress(0).phase == "loading"


def test_one_redrawn_line_may_pass_several_milestones() -> None:
    tracker = ProgressTracker(STEPS)
    assert tracker.feed("Loading model\rshard 2\rtook 3 s", 0)
    assert tracker.progress(0).phase == "compiling"


def test_long_lines_are_cheap() -> None:
    tracker = ProgressTracker([milestone(r"a.*c", "x", 10)])
    started = time.process_time()
    for _ in range(20):
        tracker.feed("\x1b[" + "ab" * 2**19, 0)
    assert time.process_time() - started < 30


SECONDS = st.floats(-10, 1e6)
PHASES = st.sampled_from([START, "loading", "compiling", "serving", "other"])
LOADS = st.lists(st.dictionaries(PHASES, st.floats() | st.floats(0, 1e4), max_size=5), max_size=7)
ANY_STEPS = st.lists(
    st.builds(milestone, st.sampled_from("abcdef"), PHASES, st.integers(-50, 150)), min_size=0, max_size=8
)
LINES = st.lists(st.tuples(st.text("abcdef\r\x1b[m", max_size=4), SECONDS), max_size=30)


@given(ANY_STEPS, LOADS, LINES)
def test_it_is_bounded_and_never_goes_back(
    steps: list[Milestone], earlier: list[dict[str, float]], lines: list[tuple[str, float]]
) -> None:
    tracker = ProgressTracker(steps, earlier)
    highest = 0
    previous = tracker.progress(0)
    for line, now in lines:
        changed = tracker.feed(line, now)
        current = tracker.progress(now)
        assert changed == (current.phase != previous.phase)
        assert highest <= current.percent <= 100
        assert current.seconds_left is None or current.seconds_left >= 0
        assert (current.seconds_left is None) == (previous.seconds_left is None)
        assert all(seconds >= 0 for seconds in tracker.phases(now).values())
        assert current.phase in tracker.phases(now)
        highest, previous = current.percent, current


@given(st.lists(st.integers(1, 99), min_size=1, max_size=6, unique=True), st.data())
def test_a_milestone_is_shown_only_once_it_was_seen(percents: list[int], data: st.DataObject) -> None:
    steps = [milestone(f"^m{i}$", f"p{i}", percent) for i, percent in enumerate(sorted(percents))]
    load = {step.phase: data.draw(st.floats(0.1, 100)) for step in steps} | {START: 1.0}
    tracker = ProgressTracker(steps, [load], started=0)
    now = 0.0
    for index, step in enumerate(steps):
        now += data.draw(st.floats(0, 1000))
        assert tracker.progress(now).percent < step.percent
        if data.draw(st.booleans()):
            continue
        tracker.feed(f"m{index}", now)
        assert tracker.progress(now).percent >= step.percent
        assert not tracker.feed(f"m{index}", now), "it counts once"
        if index + 1 < len(steps):
            assert tracker.progress(now).percent < steps[index + 1].percent
    assert tracker.progress(now + 1e6).percent < 100


@given(st.lists(st.floats(0, 1e5), min_size=1, max_size=40))
def test_time_alone_moves_it_forward_only(times: list[float]) -> None:
    tracker = ProgressTracker(STEPS, [{START: 3.0, "loading": 50.0}], started=0)
    seen = [tracker.progress(now).percent for now in times]
    assert seen == sorted(seen)
    assert sum(tracker.phases(max(times)).values()) == pytest.approx(max(times))
