"""The memory broker of `shoal serve`: one runs, comes back, and goes with its supervisor."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.system.harness import PATIENCE, Shoal, a_shoal, until


def broker(shoal: Shoal) -> int:
    """Its pid, 0 while none runs."""
    with contextlib.suppress(AssertionError):
        return shoal.pid("broker")
    return 0


def answers(path: Path) -> bool:
    """Whether somebody listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def test_a_killed_broker_is_started_again_and_ends_with_the_rest(shoal: Shoal) -> None:
    path = shoal.runtime / "memory.sock"
    until(lambda: answers(path), "the broker")
    assert path.stat().st_mode & 0o777 == 0o600
    old = broker(shoal)
    os.kill(old, signal.SIGKILL)
    until(lambda: broker(shoal) not in (0, old) and answers(path), "the next broker")
    last = broker(shoal)
    assert shoal.stop() == 0
    assert not psutil.pid_exists(last)
    assert not path.exists()


def test_a_killed_controller_leaves_the_broker(shoal: Shoal) -> None:
    pid = until(lambda: broker(shoal), "the broker")
    os.kill(shoal.pid("shoal.controller"), signal.SIGKILL)
    with shoal.http() as http:
        until(lambda: http.get("/api/v1/models").status_code == 200, "the next controller")
    assert broker(shoal) == pid


def test_a_killed_supervisor_takes_the_broker_along_and_the_next_one_has_its_own(shoal: Shoal) -> None:
    pid = until(lambda: broker(shoal), "the broker")
    assert shoal.process is not None
    shoal.process.kill()
    shoal.process.wait()
    until(lambda: not psutil.pid_exists(pid), "its end")
    shoal.start()
    until(lambda: answers(shoal.runtime / "memory.sock"), "the next broker")
    assert shoal.stop() == 0


def test_a_broker_that_runs_already_is_used() -> None:
    with a_shoal() as shoal:
        path = shoal.folder / "mine.sock"
        mine = subprocess.Popen([sys.executable, "-m", "shoal.cli", "memory", "broker", "--socket", str(path)])
        try:
            until(lambda: answers(path), "my broker")
            shoal.settings["memory_socket"] = str(path)
            shoal.start()
            assert broker(shoal) == 0
            assert not (shoal.runtime / "memory.sock").exists()
            assert shoal.stop() == 0
            assert mine.poll() is None, "it is not Shoal's to end"
        finally:
            mine.terminate()
            mine.wait(PATIENCE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"memory_limits": {"cuda:77": "1GiB"}}, "there is no device cuda:77"),
        ({"memory_limits": {"host": "150%"}}, "more than the whole device"),
        ({"memory_headroom": "a lot"}, "is not a size"),
        ({"memory_limits": {"host": "1GiB"}, "memory_socket": "/x.sock"}, "memory_socket names another"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused(settings: dict[str, object], message: str) -> None:
    with a_shoal(**settings) as shoal:
        process = shoal.launch()
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode in (1, 2)
        assert message in output
