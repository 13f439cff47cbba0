"""Memory brokers as processes, and engines that lease from them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from shoal.memory.client import Lease, Rank
from shoal.memory.tools import BrokerError, BrokerTool

MIB = 2**20
GPU = 1024 * MIB
KEY = "GPU-11111111-2222-3333-4444-555555555555"
SHOAL = [sys.executable, "-m", "shoal.cli"]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def answers(path: Path) -> bool:
    try:
        BrokerTool(path).close()
    except BrokerError:
        return False
    return True


class Brokers:
    """Broker processes that do not outlive the test."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *args: str) -> subprocess.Popen[str]:
        process = subprocess.Popen([*SHOAL, "memory", "broker", *args], stderr=subprocess.PIPE, text=True)
        self.started.append(process)
        return process

    def end(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        return process.returncode, errors


class Engines:
    """Leases that are closed when the test ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.leases: list[Lease] = []

    def start(self, name: str, need: int = 0, *, device: str = KEY, want: int = 0, **terms: int) -> Lease:
        lease = Lease(self._path, Rank(name, device, GPU, **terms))
        self.leases.append(lease)
        lease.wait_connected(60)
        lease.ask(need, want)
        assert lease.wait_lease(min(max(need, want), terms.get("ceiling", GPU)), 60)
        lease.report(used=need, cached=(0, max(0, lease.lease - need)), backed=lease.lease)
        lease.ask(need, want)
        assert lease.wait_answered(60)  # and so the report was read
        return lease
