"""A benchmark's broker in its own process, looked at and asked."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.bench import devices
from shoal.bench.broker import connect, members, wait_lease
from shoal.bench.processes import Processes
from shoal.bench.recording import Recorder
from shoal.memory.client import Lease, Rank
from shoal.memory.tools import BrokerError

MIB = 2**20


@pytest.fixture
def socket(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "s"
    with Processes(tmp_path / "logs") as processes:
        processes.start(
            "broker",
            [
                *(sys.executable, "-m", "shoal.bench.broker", "--socket", str(path)),
                *("--device", devices.HOST, "--limit", str(100 * MIB)),
            ],
        )
        connect(path, 30).close()
        yield path


def test_leases_are_seen_and_waited_for(socket: Path) -> None:
    device = devices.host()
    lease = Lease(socket, Rank("one", device.key, device.size))
    try:
        lease.wait_connected(30)
        with connect(socket) as tool:
            assert members(tool)["one"].lease == 0
            lease.ask(200 * MIB)
            assert lease.wait_lease(100 * MIB, 30), "the limit is what may be leased"
            assert members(tool)["one"].lease == 100 * MIB
            with pytest.raises(TimeoutError, match="one still has a lease of"):
                wait_lease(tool, "one", 0, 0.05)
            with pytest.raises(TimeoutError, match="other is not connected"):
                wait_lease(tool, "other", 0, 0.05)
            lease.ask(0)
            lease.release(60 * MIB)
            assert wait_lease(tool, "one", 40 * MIB, 30) >= 0
            lease.report(used=10, backed=20 * MIB)
            recorder = Recorder(device, tool, interval=0.01)
            recorder.start()
            while not any(sample.backed.get("one") == 20 * MIB for sample in list(recorder.samples)):
                assert recorder.samples == [] or recorder.samples[0].used > 0
            recorder.stop()
            at = recorder.samples[0].at
            assert recorder.between(at, at) == recorder.samples[:1]
    finally:
        lease.close()


def test_no_broker(tmp_path: Path) -> None:
    with pytest.raises(BrokerError):
        connect(tmp_path / "none", 0.05)
