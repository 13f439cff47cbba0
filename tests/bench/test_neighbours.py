"""What others use of the machine is told from what is used here."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from shoal.bench import neighbours
from shoal.bench.neighbours import Neighbours

SPIN = "import time\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass"


def test_children_that_run_or_have_ended_are_no_neighbours() -> None:
    before = neighbours._own()
    subprocess.run([sys.executable, "-c", SPIN], check=True)
    assert neighbours._own() - before >= 0.45
    with subprocess.Popen([sys.executable, "-c", f"{SPIN}\ninput()"], stdin=subprocess.PIPE) as running:
        deadline = time.monotonic() + 40
        while neighbours._own() - before < 0.9 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert neighbours._own() - before >= 0.9
        running.communicate(b"\n")


@pytest.mark.parametrize(("others", "cores"), [(0.0, 0.0), (30.0, 3.0), (-1.0, 0.0)])
def test_what_is_left_is_theirs(others: float, cores: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, busy, own = [100.0], [50.0], [5.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(neighbours, "_all", lambda: busy[0])
    monkeypatch.setattr(neighbours, "_own", lambda: own[0])
    measured = Neighbours()
    clock[0], own[0], busy[0] = 110.0, 12.0, 57.0 + others
    assert measured.cores() == cores
