"""A scripted Shoal, and the command line run against it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

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
