"""Processes that are killed, or hang, or belong to another user."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shoal.memory import messages as m
from shoal.memory.broker import Broker
from shoal.memory.client import Lease, LeaseError, Rank
from shoal.memory.listening import listen

from .engines import GPU, MIB
from .tool import Tool, eventually

ENGINE = """
import sys, time
from pathlib import Path
from shoal.memory.client import Lease, Rank
lease = Lease(Path(sys.argv[1]), Rank(sys.argv[2], "gpu", int(sys.argv[3])))
lease.wait_connected(60)
lease.ask(int(sys.argv[4]))
assert lease.wait_lease(int(sys.argv[4]), 60)
print("ready", flush=True)
time.sleep(600)
"""


class Processes:
    """Child processes that do not outlive the test."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.started.append(process)
        return process

    def broker(self, path: Path) -> subprocess.Popen[str]:
        return self.start("-m", "shoal.cli", "memory", "broker", "--socket", path, "--headroom", "0")

    def end(self, process: subprocess.Popen[str]) -> None:
        process.kill()
        process.communicate()


@pytest.fixture
def processes() -> Iterator[Processes]:
    processes = Processes()
    yield processes
    for process in processes.started:
        if process.poll() is None:
            processes.end(process)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def _until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


async def test_the_lease_of_an_engine_killed_with_9_is_free_for_others(
    broker: Broker, path: Path, processes: Processes
) -> None:
    victim = processes.start("-c", ENGINE, path, "victim", str(GPU), str(GPU))
    assert victim.stdout is not None
    assert await asyncio.to_thread(victim.stdout.readline) == "ready\n"
    heir = Lease(path, Rank("heir", "gpu", GPU))
    heir.ask(GPU)
    await asyncio.to_thread(heir.wait_connected, 30)
    assert await asyncio.to_thread(heir.wait_answered, 30)
    assert heir.missing > 0
    start = time.monotonic()
    victim.send_signal(signal.SIGKILL)
    await eventually(lambda: heir.lease == GPU)
    print(f"the lease of a killed engine was leased anew after {(time.monotonic() - start) * 1000:.1f} ms")
    await asyncio.to_thread(heir.close)


async def test_a_name_that_is_taken_is_waited_for_until_its_holder_is_gone(
    broker: Broker, path: Path, processes: Processes
) -> None:
    victim = processes.start("-c", ENGINE, path, "a", str(GPU), str(MIB))
    assert victim.stdout is not None
    assert await asyncio.to_thread(victim.stdout.readline) == "ready\n"
    heir = Lease(path, Rank("a", "gpu", GPU))
    with pytest.raises(LeaseError, match="already connected; every engine needs its own name"):
        await asyncio.to_thread(heir.wait_connected, 0.5)
    waiting = asyncio.create_task(asyncio.to_thread(heir.wait_connected, 60))
    victim.send_signal(signal.SIGKILL)
    await waiting
    assert heir.connected
    await asyncio.to_thread(heir.close)


def test_a_broker_killed_with_9_learns_the_truth_from_the_engines(path: Path, processes: Processes) -> None:
    first = processes.broker(path)
    leases = [Lease(path, Rank(name, "gpu", GPU, floor=10 * MIB)) for name in ("a", "b", "c")]
    try:
        for lease, size in zip(leases, (500, 300, 100), strict=True):
            lease.wait_connected(60)
            lease.ask(size * MIB)
            assert lease.wait_lease(size * MIB, 60)
            lease.report(used=size * MIB, backed=size * MIB)
        first.send_signal(signal.SIGKILL)
        first.wait()
        _until(lambda: not any(lease.connected for lease in leases))
        # The engines serve on with what they have: give back, ask for more, and end.
        leases[0].ask(300 * MIB)
        leases[0].release(200 * MIB)
        leases[0].report(used=300 * MIB, backed=300 * MIB)
        leases[1].ask(700 * MIB)
        assert [lease.lease for lease in leases] == [300 * MIB, 300 * MIB, 100 * MIB]
        leases[2].close()
        assert path.exists()
        processes.broker(path)
        for lease in leases[:2]:
            lease.wait_connected(60)
        # Nothing was lost and nothing invented; what was asked while the broker was away is answered now.
        assert leases[1].wait_lease(700 * MIB, 60)
        assert (leases[0].lease, leases[1].lease) == (300 * MIB, 700 * MIB)
        tool = Tool(path)
        device, members = tool.list()["gpu"]
        tool.close()
        assert {member.engine: member.lease for member in members} == {"a": 300 * MIB, "b": 700 * MIB}
        assert {member.engine: member.used for member in members} == {"a": 300 * MIB, "b": 300 * MIB}
        assert device.leased == 1000 * MIB
    finally:
        for lease in leases:
            lease.close()


def test_what_was_asked_of_a_killed_broker_is_asked_again_of_the_next(path: Path, processes: Processes) -> None:
    first = processes.broker(path)
    holder, asker = (Lease(path, Rank(name, "gpu", GPU)) for name in ("holder", "asker"))
    try:
        holder.wait_connected(60)
        holder.ask(GPU)
        assert holder.wait_lease(GPU, 60)
        holder.report(used=GPU, backed=GPU)
        asker.wait_connected(60)
        asker.ask(300 * MIB)
        assert asker.wait_answered(60)
        assert asker.missing == 300 * MIB
        first.send_signal(signal.SIGKILL)
        first.wait()
        processes.broker(path)
        _until(lambda: holder.excess == 300 * MIB)
        holder.release(holder.excess)
        assert asker.wait_lease(300 * MIB, 60)
    finally:
        holder.close()
        asker.close()


@pytest.mark.parametrize("end", ["killed", "ended in order"])
async def test_a_broker_after_another_grants_nothing_until_all_could_say_what_they_hold(path: Path, end: str) -> None:
    if end == "killed":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    else:
        first = Broker(path)
        await first.start()
        tool = await asyncio.to_thread(Tool, path)
        await asyncio.to_thread(tool.say, m.Hello(engine="a", device="gpu", device_size=GPU))
        answer = await asyncio.to_thread(tool.say, m.Ask(need=GPU, seq=1))
        assert answer == m.Grant(size=GPU, seq=1, most=GPU)  # nobody was there before the first: it need not wait
        tool.close()
        await first.stop()
        assert not path.exists()
    broker = Broker(path)
    await broker.start()
    quick, slow = await asyncio.to_thread(Tool, path), await asyncio.to_thread(Tool, path)
    await asyncio.to_thread(quick.say, m.Hello(engine="quick", device="gpu", device_size=GPU))
    answer = await asyncio.to_thread(quick.say, m.Ask(need=GPU, seq=1))
    assert answer == m.Grant(size=0, missing=GPU, seq=1, most=GPU)
    await asyncio.to_thread(slow.say, m.Hello(engine="slow", device="gpu", device_size=GPU, held=900 * MIB))
    slow.socket.sendall(m.frame(m.Report(used=900 * MIB, backed=900 * MIB)))
    grant = await asyncio.to_thread(quick.hear)
    assert isinstance(grant, m.Grant)
    assert grant.size == GPU - 900 * MIB
    assert broker.ledger.devices["gpu"].owed == 0
    for tool in (quick, slow):
        tool.close()
    await broker.stop()


def test_a_lock_file_of_an_earlier_boot_makes_nobody_wait(path: Path) -> None:
    lock = path.with_name(f"{path.name}.lock")
    lock.write_text("6f1c1c5e-0000-4000-8000-000000000000, and more than any boot's id has, from who knows where\n")
    listening = listen(path)
    assert not listening.replaced
    listening.close()
    listening = listen(path)
    assert listening.replaced
    listening.close()


def test_what_engines_hold_beyond_the_budget_of_a_new_broker_is_owed_and_asked_back(
    path: Path, processes: Processes
) -> None:
    leases = [Lease(path, Rank(name, "gpu", GPU), held=800 * MIB) for name in ("a", "b")]
    try:
        processes.broker(path)
        for lease in leases:
            lease.wait_connected(60)
            lease.report(used=300 * MIB, cached=(500 * MIB,), backed=800 * MIB)
        _until(lambda: sum(lease.excess for lease in leases) == 2 * 800 * MIB - GPU)
        tool = Tool(path)
        assert tool.list()["gpu"][0].owed == 2 * 800 * MIB - GPU
        for lease in leases:
            lease.release(lease.excess)
        _until(lambda: tool.list()["gpu"][0].owed == 0)
        tool.close()
    finally:
        for lease in leases:
            lease.close()


def test_a_second_broker_says_that_one_runs_and_ends(path: Path, processes: Processes) -> None:
    first = processes.broker(path)
    _until(path.exists)
    second = processes.broker(path)
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 1
    assert f"a memory broker already runs on {path}" in errors
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 0
    assert not path.exists()


def test_a_broker_that_hangs_does_not_stop_an_engine(path: Path, processes: Processes) -> None:
    hung = processes.broker(path)
    lease = Lease(path, Rank("a", "gpu", GPU))
    try:
        lease.wait_connected(60)
        hung.send_signal(signal.SIGSTOP)
        slowest = 0.0
        for i in range(20_000):
            start = time.monotonic()
            lease.ask(i)
            lease.report(used=i)
            slowest = max(slowest, time.monotonic() - start)
        assert slowest < 5
        hung.send_signal(signal.SIGCONT)
        assert lease.wait_lease(19_999, 60)
    finally:
        hung.send_signal(signal.SIGCONT)
        lease.close()


STRANGER = """
import os, socket, sys
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
peer = socket.socket(socket.AF_UNIX)
try:
    peer.connect(sys.argv[1])
except PermissionError:
    sys.exit("no permission")
peer.settimeout(60)
data = b""
while more := peer.recv(65536):
    data += more
sys.exit(data.decode(errors="replace"))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_another_user_is_refused_by_the_mode_and_by_its_credentials(
    broker: Broker, path: Path, processes: Processes
) -> None:
    path.parent.chmod(0o755)
    stranger = processes.start("-c", STRANGER, path)
    assert "no permission" in (await asyncio.to_thread(stranger.communicate))[1]
    path.chmod(0o666)
    stranger = processes.start("-c", STRANGER, path)
    assert "this broker serves user 0, not user 65534" in (await asyncio.to_thread(stranger.communicate))[1]
    await eventually(lambda: broker.connections == 0)
