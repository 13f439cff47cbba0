"""CPU time, memory and descriptors of a family of processes, and which core they run on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.bench.relay import usage
from shoal.bench.relay.cores import Cores, share_out, starting_on

# Parent and child each burn so much CPU time as they measure themselves, then wait to be looked at.
BURN = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], ""], stdout=subprocess.PIPE) if sys.argv[1] else None
while time.process_time() < 0.3: pass
if child: child.stdout.readline()
print("done", flush=True)
time.sleep(600)
"""


def test_cpu_time_is_that_of_all_of_the_family_and_no_one_elses() -> None:
    with subprocess.Popen([sys.executable, "-c", BURN, BURN], stdout=subprocess.PIPE) as parent:
        try:
            assert parent.stdout is not None
            parent.stdout.readline()
            family = usage.family([parent.pid, parent.pid])
            assert len(family) == 2
            first, second = usage.read(family), usage.read(family)
            assert 0.5 <= first.cpu <= 3
            assert second.cpu - first.cpu <= 0.05, "they only sleep by now"
            assert first.rss == sum(one.memory_info().rss for one in family)
            assert first.fds >= 6
        finally:
            for one in psutil.Process(parent.pid).children(recursive=True):
                one.kill()
            parent.kill()
    psutil.wait_procs(family, timeout=60)
    assert usage.read(family) == usage.Usage(), "gone is nothing"
    with pytest.raises(psutil.NoSuchProcess):
        usage.family([parent.pid])


def test_each_ones_part() -> None:
    assert usage.micros_each(0.5, 25_000) == 20
    with pytest.raises(ValueError, match="nothing was served"):
        usage.micros_each(0.5, 0)


def test_no_proxy_uses_nothing() -> None:
    assert usage.read(usage.family([])) == usage.Usage()


@given(st.sets(st.integers(0, 200), min_size=1))
def test_the_proxy_shares_its_core_only_if_there_is_one(available: set[int]) -> None:
    cores = share_out(available)
    assert {cores.proxy, cores.load, cores.upstream} <= available
    assert (cores.proxy in (cores.load, cores.upstream)) == (len(available) == 1)
    assert (cores.load == cores.upstream) == (len(available) < 3)


def test_cores_as_they_are_handed_out() -> None:
    assert share_out({5, 3, 9, 7}) == Cores(proxy=3, load=5, upstream=7)
    assert share_out({0, 1}).describe() == {"proxy": 0, "load": 1, "upstream": 1}


def test_what_is_started_inside_runs_on_that_core_and_this_process_does_not_stay_there() -> None:
    before = os.sched_getaffinity(0)
    core = max(before)
    with starting_on(core):
        found = subprocess.run(
            [sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"], capture_output=True, text=True
        )
    assert found.stdout.strip() == f"{{{core}}}"
    with pytest.raises(RuntimeError), starting_on(core):
        raise RuntimeError
    assert os.sched_getaffinity(0) == before


def test_a_signal_to_end_waits_until_what_was_started_is_known() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), starting_on(max(os.sched_getaffinity(0))):
        signal.raise_signal(signal.SIGINT)
        done.append("started")
    assert done == ["started"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
