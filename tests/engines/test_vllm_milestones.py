"""Milestones against the log of a real start."""

from __future__ import annotations

from pathlib import Path

from shoal.engines.progress import ProgressTracker
from shoal.engines.vllm.milestones import MILESTONES

LOG = (Path(__file__).parent / "logs" / "start.txt").read_text().splitlines()


def test_percentages_rise() -> None:
    percents = [milestone.percent for milestone in MILESTONES]
    assert percents == sorted(percents)
    assert percents[-1] == 100


def test_a_real_start_passes_through_every_phase_that_a_cpu_has() -> None:
    tracker = ProgressTracker(MILESTONES, started=0.0)
    phases: list[str] = []
    for second, line in enumerate(LOG):
        tracker.feed(line, float(second))
        phase = tracker.progress(float(second)).phase
        if not phases or phases[-1] != phase:
            phases.append(phase)
    assert phases == [
        "starting",
        "reading the configuration",
        "starting processes",
        "loading weights",
        "preparing memory",
        "warming up",
        "opening the server",
        "ready",
    ]
    assert tracker.progress(float(len(LOG))).percent == 100
