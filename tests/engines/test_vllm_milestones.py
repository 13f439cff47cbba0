"""Milestones against the log of a real start."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.engines.progress import ProgressTracker
from shoal.engines.vllm.milestones import MILESTONES, WEIGHTS_LINE

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


@pytest.mark.parametrize(
    ("line", "gib"),
    [
        (
            "(Worker_TP1 pid=9) INFO 11-22 [model_runner.py:305] Model loading took 15.0 GiB and 2.176114 seconds",
            "15.0",
        ),
        ("INFO 11-22 [cpu_worker.py:9] Model loading took 0.25 GiB memory and 1.5 seconds", "0.25"),
        ("INFO Loading weights took 2.00 seconds", None),
    ],
)
def test_what_the_weights_took_is_told(line: str, gib: str | None) -> None:
    found = WEIGHTS_LINE.search(line)
    assert (found and found["gib"]) == gib
