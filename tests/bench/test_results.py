"""Results of benchmarks: what is written, and what the report makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoal.bench.results import Check, report, rows_of, show, write


def benchmark(folder: Path, *checks: Check, quick: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.py").touch()
    return write(folder, [{"what": "x", "seconds": [1, 2]}], checks, quick=quick)


def test_a_result_says_where_it_comes_from(tmp_path: Path) -> None:
    path = benchmark(tmp_path / "one", Check("latency", 3.0, "ms", 5.0), Check("rate", 3.0, "1/s", 5.0, "at least"))
    result = json.loads(path.read_text())
    assert result["machine"]["cores"] >= 1
    assert result["versions"]["shoal"]
    assert result["command"]
    assert [check["holds"] for check in result["checks"]] == [True, False]


def test_the_report_names_every_benchmark_and_fails_with_a_broken_promise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark(tmp_path / "good", Check("latency", 1.0, "ms", 5.0))
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "run.py").touch()
    assert report(tmp_path)
    printed = capsys.readouterr().out
    assert "good" in printed
    assert "no result yet" in printed
    benchmark(tmp_path / "bad", Check("latency", 9.0, "ms", 5.0))
    assert not report(tmp_path)
    assert "NO" in capsys.readouterr().out


def test_a_rehearsal_is_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark(tmp_path / "one", Check("latency", 9.0, "ms", 5.0), quick=True)
    assert report(tmp_path)
    assert "no result yet" in capsys.readouterr().out


def test_results_of_several_sittings_count_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "run.py").touch()
    a = write(folder, [{"n": 1}], [Check("first", 9.0, "ms", 5.0)], label="a", extra={"gpu": "x"})
    b = write(folder, [{"n": 2}], [Check("second", 1.0, "ms", 5.0)], label="b", packages=("shoal", "no-such-package"))
    assert a != b
    assert [row["n"] for row in rows_of([a, b])] == [1, 2]
    assert json.loads(a.read_text())["machine"]["gpu"] == "x"
    assert json.loads(b.read_text())["versions"]["no-such-package"] == "unknown"
    assert not report(tmp_path)
    printed = capsys.readouterr().out
    assert "first" in printed
    assert "second" in printed
    show([Check("third", 9.0, "ms", 5.0)])
    assert "DOES NOT HOLD" in capsys.readouterr().out
