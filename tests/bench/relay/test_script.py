"""The benchmark as it is called."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "relay" / "run.py"


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_it_says_what_it_takes_and_refuses_what_means_nothing(tmp_path: Path) -> None:
    assert "--quick" in call("--help").stdout
    assert "known are direct" in call("--systems", "direct,magic").stderr
    assert "at least 1" in call("--passes", 0).stderr
    assert "at least 0" in call("--aborts", -1, "--out", tmp_path).stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_rehearsal_leaves_a_result_with_every_measure(tmp_path: Path) -> None:
    done = call(
        *("--quick", "--load", "own", "--systems", "aiohttp", "--aborts", 50),
        *("--out", tmp_path, "--logs", tmp_path / "logs"),
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "results").glob("*-quick.json")
    result = json.loads(path.read_text())
    rows = {(row["what"], row["system"], row.get("number"), row.get("model")): row for row in result["rows"]}
    for number in (1, 64):
        assert rows["requests", "aiohttp", number, "answers"]["rate"] > 0
        assert rows["requests", "aiohttp", number, "answers"]["cpu_us"] >= 0  # the kernel counts in hundredths
    for model in ("spread", "steps"):
        assert rows["streams", "aiohttp", 100, model]["cpu_us"] >= 0
        assert rows["streams", "aiohttp", 100, model]["rss_mib"] > 0
    aborted = rows["aborts", "aiohttp", 50, None]
    assert aborted["left_running"] == aborted["carried"] == 0
    assert aborted["engine_saw_cancelled"] == aborted["reached_engine"] > 0
    assert aborted["blocks_before"] > 10_000 > abs(aborted["blocks_more"])
    assert result["machine"]["load"] == "shoal.bench.relay.load"
    assert set(result["machine"]["cores_used"]) == {"proxy", "load", "upstream"}
    assert "100 streams × 50 events/s, spread\n  aiohttp " in done.stdout
    assert result["checks"] == [], "nothing is promised of the other relay"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_what_it_started_and_keeps_what_it_measured(tmp_path: Path, number: signal.Signals) -> None:
    arguments = ["--passes", "1000", "--seconds", "1", "--systems", "direct", "--load", "own"]
    argv = [sys.executable, str(SCRIPT), *arguments, "--out", str(tmp_path), "--logs", str(tmp_path / "logs")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as script:
        assert script.stdout is not None
        for line in script.stdout:
            if '"requests"' in line:
                break
        started = psutil.Process(script.pid).children(recursive=True)
        script.send_signal(number)
        script.communicate(timeout=60)
    assert script.returncode != 0
    assert started
    assert not [one for one in started if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    (path,) = (tmp_path / "results").glob("*.json")
    assert json.loads(path.read_text())["rows"]
