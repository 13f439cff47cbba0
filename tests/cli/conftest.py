"""A scripted Shoal and memory brokers, and the command line run against them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.cli.memory_parts import Brokers
from tests.cli.scripted import ScriptedShoal, scripted

Run = Callable[..., Any]


@pytest.fixture
def shoal(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedShoal]:
    """A server that SHOAL_URL names."""
    for name in list(os.environ):
        if name.startswith("SHOAL_"):
            monkeypatch.delenv(name)
    with scripted() as server:
        monkeypatch.setenv("SHOAL_URL", server.url)
        yield server


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `shoal …` in this process, 80 columns wide; the result has exit_code, stdout and stderr."""
    from shoal.cli.app import app

    monkeypatch.setenv("COLUMNS", "80")

    def invoke(*args: str, input: str | None = None) -> Any:  # noqa: A002
        return CliRunner().invoke(app, list(args), input=input, prog_name="shoal")

    return invoke


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A socket that SHOAL_MEMORY_SOCKET names. Not in tmp_path: its name can be too long for one."""
    with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
        monkeypatch.setenv("SHOAL_MEMORY_SOCKET", f"{folder}/m.sock")
        yield Path(folder, "m.sock")


@pytest.fixture
def brokers() -> Iterator[Brokers]:
    brokers = Brokers()
    yield brokers
    for process in brokers.started:
        if process.returncode is None:
            process.kill()
            process.communicate()
