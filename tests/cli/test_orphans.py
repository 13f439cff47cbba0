"""`shoal orphans`, against a real Shoal whose database was lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.system.harness import Shoal, a_shoal, until
from tests.system.test_orphans import lose_the_database


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shoal]:
    """A Shoal that knows nothing of two engines of its own."""
    with a_shoal() as shoal:
        shoal.start()
        shoal.add("m")
        shoal.load("m", 2)
        lose_the_database(shoal)
        monkeypatch.setenv("SHOAL_URL", shoal.url)
        yield shoal


def words(text: str) -> str:
    return " ".join(text.split())


def test_orphans_are_listed_taken_back_and_ended(lost: Shoal, run: Run) -> None:
    def mine() -> list[dict[str, Any]]:
        return [one for one in json.loads(run("orphans", "ls", "--json").stdout)["orphans"] if one["model"] == "m"]

    first, second = (one["instance"] for one in mine())
    listed = words(run("orphans", "ls").stdout)
    assert first in listed
    assert "no record of this Shoal names it" in listed

    adopted = run("orphans", "adopt", first)
    assert adopted.exit_code == 0, adopted.stderr
    assert f"{first} of m is under control again: ready." in words(adopted.stdout)
    assert run("orphans", "adopt", first).exit_code == 4

    refused = run("orphans", "end", second)
    assert refused.exit_code == 5
    assert "loses running requests" in words(refused.stdout)
    assert "nothing was ended" in refused.stderr
    assert [one["instance"] for one in mine()] == [second]
    ended = run("orphans", "end", second, "--yes")
    assert ended.exit_code == 0, ended.stderr
    assert f"Ended {second}" in words(ended.stdout)
    assert mine() == []
    assert run("orphans", "end", second, "--yes").exit_code == 4
    until(lambda: lost.chat("m").status_code == 200, "an answer")
