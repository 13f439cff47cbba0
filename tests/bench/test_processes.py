"""Processes of a benchmark end with it, and all they started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from shoal.bench.processes import DiedError, Processes, tail

FAMILY = """
import subprocess, sys, signal, time
if len(sys.argv) > 1: signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("stubborn", [False, True])
def test_all_are_ended_even_those_that_ignore_it(tmp_path: Path, stubborn: bool) -> None:
    with Processes(tmp_path / "logs") as processes:
        arguments = ["x"] if stubborn else []
        running = processes.start("family", [sys.executable, "-c", FAMILY, *arguments], stdout=subprocess.PIPE)
        assert running.process.stdout is not None
        child = int(running.process.stdout.readline())
        running.check()
        processes.stop(running, patience=0.5 if stubborn else 30)
        assert not running.alive
        assert gone(child)
        assert list(processes) == []


def test_they_end_when_the_benchmark_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="failed"), Processes(tmp_path) as processes:
        running = processes.start("one", [sys.executable, "-c", "import time; time.sleep(600)"])
        raise RuntimeError("failed")
    assert not running.alive


def test_one_that_died_is_told_with_its_last_words(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        running = processes.start(
            "sad", [sys.executable, "-c", "import os; print(os.environ['WORD']); raise SystemExit(3)"], {"WORD": "alas"}
        )
        running.process.wait()
        with pytest.raises(DiedError, match=r"sad ended with 3(.|\n)*alas"):
            running.check()
    assert tail(tmp_path / "none.log") == ""
