"""How fast memory is used, how little of it was needed, and what is written down about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.engines.vllm.plugin.pace import Pace, Window
from shoal.engines.vllm.plugin.statistics import Statistics


def test_a_steady_pace_is_measured_and_forgotten_after_a_second() -> None:
    pace, now = Pace(), 0.0
    for _ in range(100):
        pace.per_second(now)
        pace.count += 5
        now += 0.05
    assert pace.per_second(now) == pytest.approx(100, rel=0.1)
    for _ in range(30):
        now += 0.05
        last = pace.per_second(now)
    assert last == 0


def test_a_burst_counts_at_once() -> None:
    pace = Pace()
    for tenth in range(20):
        pace.per_second(tenth / 10)
    pace.count += 200
    assert pace.per_second(2.0) >= 200


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 2), st.integers(0, 100)), max_size=40))
def test_a_pace_is_never_negative_and_never_above_what_happened_in_its_shortest_span(
    turns: list[tuple[float, int]],
) -> None:
    pace, now = Pace(), 0.0
    for passed, more in turns:
        now += passed
        pace.count += more
        assert 0 <= pace.per_second(now) <= pace.count / 0.05


def test_nothing_is_spare_before_a_window_has_passed() -> None:
    window = Window()
    assert window.least(50, 0.0, 10.0) == 0
    assert window.least(50, 9.9, 10.0) == 0
    assert window.least(50, 10.0, 10.0) == 50
    assert window.least(7, 15.0, 10.0) == 7, "less counts at once"
    assert window.least(50, 20.0, 10.0) == 7
    assert window.least(50, 30.0, 10.0) == 50
    assert window.least(-5, 31.0, 10.0) == 0


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 3), st.integers(-10, 100)), min_size=1, max_size=40))
def test_what_is_spare_was_spare_all_the_last_window(turns: list[tuple[float, int]]) -> None:
    window, now, seen = Window(), 0.0, []
    for passed, value in turns:
        now += passed
        seen.append((now, value))
        spare = window.least(value, now, 4.0)
        assert spare >= 0
        assert spare <= max(0, min(value for at, value in seen if at > now - 4.0))


def test_waits_are_shares_of_all_steps_that_took_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_MEMORY_STATS", str(tmp_path / "stats.json"))
    statistics = Statistics()
    for _ in range(1000):
        statistics.stepped()
    for number in range(20):
        statistics.waited((number + 1) / 1000)
    statistics.backed(30, 0.5)
    statistics.unbacked(10, 0.25)
    statistics.full = 2
    statistics.close()
    said = json.loads((tmp_path / "stats.json").read_text())
    assert said == statistics.summary()
    assert said["waits"] == {
        "count": 20,
        "steps_needing": 1000,
        "p50_us": 0.0,
        "p99_us": 11000.0,
        "p999_us": 20000.0,
        "max_us": 20000.0,
    }
    assert (said["blocks_backed"], said["blocks_unbacked"], said["device_full"]) == (30, 10, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["stats.json"], "nothing half-written stays"


def test_without_a_file_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOAL_MEMORY_STATS", raising=False)
    monkeypatch.chdir(tmp_path)
    statistics = Statistics()
    statistics.close()
    assert statistics.summary()["waits"]["max_us"] == 0.0
    assert not list(tmp_path.iterdir())
