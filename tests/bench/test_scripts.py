"""The benchmarks as they are called, as far as that needs no engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shoal.bench.results import write

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def call(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    script = BENCHMARKS / name / "run.py"
    return subprocess.run(
        [sys.executable, str(script), *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", ["elastic", "burst", "reclaim"])
def test_each_says_what_it_takes_and_what_is_missing(name: str, tmp_path: Path) -> None:
    assert "--quick" in call(name, "--help").stdout
    refused = call(name, "--cpu", "--python", "/bin/false", "--out", tmp_path)
    assert refused.returncode != 0
    assert "has no vLLM" in refused.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["sleep", "many"])
def test_those_about_sleep_need_a_gpu(name: str, tmp_path: Path) -> None:
    assert "--quick" in call(name, "--help").stdout
    assert "known are" in call(name, "--systems", "magic").stderr
    refused = call(name, "--cpu", "--python", "/bin/false", "--out", tmp_path)
    assert refused.returncode != 0
    assert not list(tmp_path.iterdir())


def test_options_that_mean_nothing_are_refused() -> None:
    assert "no phase" in call("burst", "--phases", "56,x").stderr
    assert "known are" in call("burst", "--systems", "stock,magic").stderr
    assert "known are" in call("elastic", "--systems", "alone").stderr


def test_results_of_two_sittings_become_one(tmp_path: Path) -> None:
    def row(system: str, mean: float) -> dict[str, Any]:
        return {
            "system": system,
            "phase": "56x256",
            "peak": 56,
            "tokens": 256,
            "together": False,
            "died": [],
            "all": {"ttft_mean": mean, "ttft_p99": 2 * mean, "failed": 0},
            "models": [],
        }

    parts = [
        write(tmp_path, [row("stock", 600.0)], [], label="a", extra={"device": "some GPU"}),
        write(tmp_path, [row("shoal", 20.0)], [], label="b"),
    ]
    done = call("burst", "--merge", *parts, "--out", tmp_path, "--label", "both")
    assert done.returncode == 0, done.stderr
    assert "TTFT mean, times better than stock: 30 × (at least 14: holds)" in done.stdout
    (path,) = (tmp_path / "results").glob("*-both.json")
    result = json.loads(path.read_text())
    assert [one["system"] for one in result["rows"]] == ["stock", "shoal"]
    assert result["machine"]["device"] == "some GPU"
    assert len(result["checks"]) == 4
