"""What comes to a shim at a bad moment, and starts that cannot be."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from shoal.fleet.logs import MAX_LINE, tail
from shoal.fleet.shim import Shim
from shoal.paths import Paths, fleet_id, keep_fresh

NAP = "import time; time.sleep(600)"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_that_comes_while_the_engine_is_being_started_ends_it(tmp_path: Path, number: signal.Signals) -> None:
    """Run in a child: a shim takes over signals and children of its process."""
    pid = os.fork()
    if pid == 0:
        try:
            launch = {"argv": [sys.executable, "-c", NAP], "env": {}, "cwd": "/", "grace": 20.0}
            shim = Shim({**launch, "log": str(tmp_path / "log"), "log_bytes": 8192}, str(tmp_path))
            start = shim._start

            def slow_start() -> None:
                os.kill(os.getpid(), number)
                start()

            shim._start = slow_start  # type: ignore[method-assign]
            shim.run()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert f'"signal": {int(number) if number == signal.SIGTERM else 9}' in (tmp_path / "exit.json").read_text()


def test_the_end_of_one_huge_line_is_shown(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x" * 1_000_000 + b"\n")
    (line,) = tail(log, 5)
    assert len(line) >= MAX_LINE


def test_a_mark_that_a_power_cut_spoilt_is_made_anew(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "state", tmp_path / "run")
    paths.state.mkdir()
    for spoilt in (b"\0" * 32, b"", "ä".encode()):
        (paths.state / "fleet-id").write_bytes(spoilt)
        made = fleet_id(paths)
        assert len(made) == 32 and "\0" not in made
        assert fleet_id(paths) == made


def test_keeping_the_runtime_folder_fresh_touches_all_of_it(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "state", tmp_path / "run")
    file = paths.instances / "a" / "lock"
    file.parent.mkdir(parents=True)
    file.touch()
    every = (paths.runtime, paths.instances, file.parent, file)
    for path in every:
        os.utime(path, (0, 0))
    keep_fresh(paths)
    assert all(path.stat().st_mtime > 0 for path in every)
    keep_fresh(Paths(tmp_path / "state", tmp_path / "gone"))
