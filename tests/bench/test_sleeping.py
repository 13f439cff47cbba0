"""What is promised of sleep, over rows; and an engine that is told to sleep."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from shoal.bench import rig as rigs
from shoal.bench.processes import Processes
from shoal.bench.sleeping import Engine, SleeperError, first_token, host_memory, sleep_checks


def nap(what: str, **more: Any) -> dict[str, Any]:
    row = {"sleep_s": 0.05, "wake_s": 0.3, "wake_to_first_s": 0.32, "kv_asleep_mib": 0.0, "same_answers": True}
    return {"system": "shoal", "what": what, **row, **more}


ENDPOINT = {"system": "shoal", "what": "endpoint", "first_token_s": [0.36, 0.34, 0.4]}
CYCLES = {"system": "shoal", "what": "cycles", "cycles": 200, "device_drift_mib": 0.0, "host_drift_mib": 3.0}


def broken(*rows: dict[str, Any]) -> list[str]:
    return [check.name for check in sleep_checks(rows) if not check.holds]


def test_rows_that_keep_every_promise() -> None:
    stock = nap("first", system="stock", asleep_gib=1.9)
    rows = [stock, nap("after the copy", asleep_gib=1.8), nap("later"), CYCLES, ENDPOINT]
    assert broken(*rows) == []
    found = {check.name: check.value for check in sleep_checks(rows)}
    assert found["a held request over the engine's own wake"] == pytest.approx(40)
    assert len(found) == 9


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (nap("after the copy", sleep_s=0.11), "first sleep"),
        (nap("later", sleep_s=0.11), "later sleeps"),
        (nap("without a copy", same_answers=False), "answers that differ"),
        (nap("later", kv_asleep_mib=2.0), "KV cache held"),
        (nap("later", asleep_gib=2.0), "device memory of stock's"),
        ({**CYCLES, "device_drift_mib": 17}, "200 cycles: device"),
        ({**CYCLES, "host_drift_mib": 65}, "200 cycles: host"),
        ({**ENDPOINT, "first_token_s": [0.33, 0.33, 0.51]}, "through the endpoint"),
        ({**ENDPOINT, "first_token_s": [0.38]}, "a held request"),
    ],
)
def test_each_promise_can_be_broken(row: dict[str, Any], name: str) -> None:
    rows = [nap("first", system="stock", asleep_gib=1.9), nap("later"), row]
    (found,) = broken(*rows)
    assert name in found


def test_what_is_missing_makes_no_check() -> None:
    assert sleep_checks([]) == []
    assert [check.name for check in sleep_checks([ENDPOINT])] == ["wake to first token through the endpoint"]


def test_an_engine_is_put_to_sleep_woken_and_asked(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "shoal.engines.simulated", "--served-model-name", "m", "--port", "0"]
    argv += ["--enable-sleep-mode", "--memory", "4MiB", "--copy-seconds", "0.1"]
    with Processes(tmp_path) as processes:
        running = processes.start("simulated", argv)
        deadline = time.monotonic() + 50
        while not (said := re.search(r"http://127\.0\.0\.1:(\d+)", running.log.read_text())):
            running.check()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        port = int(said[1])
        rigs.wait_healthy([(running, port)], 50)
        engine = Engine(port)
        before = engine.answers([[1, 2, 3], [4]], 5)
        assert engine.take_copy()[1] == 4 << 20
        assert engine.sleep() > 0
        assert "these are its weights" in engine.copies("forget")["reason"]
        assert engine.wake() > 0
        assert engine.first_token([1, 2, 3]) > 0
        assert engine.answers([[1, 2, 3], [4]], 5) == before
        assert engine.copies("forget")["held"] == 0
        with pytest.raises(SleeperError, match="404"):
            first_token("127.0.0.1", port, b'{"model": "other", "prompt": "x", "stream": true}')
        with pytest.raises(SleeperError, match="/collective_rpc was answered with 400"):
            engine.copies("other")


def test_a_copy_that_cannot_be_is_told() -> None:
    class Refusing(Engine):
        def copies(self, what: str) -> dict[str, Any]:
            return {"size": 5, "held": 0, "reason": f"no memory to {what}"}

    with pytest.raises(SleeperError, match="no memory to take"):
        Refusing(1).take_copy()


def test_memory_of_a_process_and_its_children() -> None:
    assert host_memory(os.getpid()) > 1 << 20
