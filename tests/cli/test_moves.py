"""`shoal move`, `shoal change` and `shoal moves`, against a real Shoal with simulated engines and devices."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.cli.conftest import Run
from tests.system.harness import Shoal, a_shoal, until

HERE, THERE = "simulated:0", "simulated:1"


@pytest.fixture(scope="module")
def served() -> Iterator[Shoal]:
    """A Shoal with two pretended devices and a model that is loaded on the first."""
    with a_shoal(simulated_devices=["80GiB", "80GiB"]) as there:
        there.start()
        there.add("m", "--device-memory", "10GiB", devices=[HERE])
        there.load("m")
        yield there


@pytest.fixture
def at(served: Shoal, run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `shoal …` for that Shoal."""
    monkeypatch.setenv("SHOAL_URL", served.url)
    return run


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_a_model_moves_and_is_changed_and_the_way_is_told(at: Run, served: Shoal) -> None:
    assert "No moves yet" in at("moves", "ls").stdout
    done = at("move", "m", "--to", THERE)
    assert done.exit_code == 0, done.stderr
    assert f"m was moved to {THERE}." in done.stdout
    assert served.wait("m", "ready")[0]["devices"] == [THERE]
    again = at("move", "m", "--to", THERE)
    assert again.exit_code == 5
    assert f"m runs on {THERE} already" in one_line(again.stderr)
    changed = at("change", "m", "--set", "context_length=4096", "--set", 'env={"A": "b"}', "--json")
    assert changed.exit_code == 0, changed.stderr
    view = json.loads(changed.stdout)
    assert view["state"] == "done"
    assert view["changes"] == {"context_length": 4096, "env": {"A": "b"}}
    assert served.model("m")["spec"]["env"] == {"A": "b"}
    assert at("change", "m").exit_code == 5, "nothing is outdated"
    with served.client as client:
        client.change_model("m", {"context_length": 2048})
    rolled = at("change", "m")
    assert rolled.exit_code == 0, rolled.stderr
    assert f"m was replaced on {THERE}." in rolled.stdout
    listed = one_line(at("moves", "ls").stdout)
    assert f"{HERE} →" in listed
    assert "context_length, env" in listed
    shown = one_line(at("moves", "show", view["id"]).stdout)
    assert "done: m was replaced" in shown
    assert json.loads(at("moves", "show", view["id"], "--json").stdout) == json.loads(changed.stdout)
    assert len(json.loads(at("moves", "ls", "--json").stdout)["moves"]) == 3


def test_what_fails_is_said_and_what_is_under_way_can_be_cancelled(at: Run, served: Shoal) -> None:
    here = served.wait("m", "ready")[0]["devices"][0]
    there = HERE if here == THERE else THERE
    failed = at("change", "m", "--set", "args=[--device-memory, 10GiB, --fail, start-exit]")
    assert failed.exit_code == 5
    assert "m was not replaced: the new one failed" in one_line(failed.stdout)
    slow = at("change", "m", "--set", "args=[--device-memory, 10GiB, --start-seconds, '2']")
    assert slow.exit_code == 0, slow.stderr
    begun = at("move", "m", "--to", there, "--no-wait")
    assert begun.exit_code == 0
    assert "is under way" in begun.stdout
    id = begun.stdout.split()[0]
    cancelled = at("moves", "cancel", id)
    assert cancelled.exit_code == 0, cancelled.stderr
    assert "m was not moved: cancelled" in cancelled.stdout
    assert at("moves", "cancel", id).exit_code == 5
    assert at("moves", "show", "move-x").exit_code == 4
    assert at("move", "nobody", "--to", THERE).exit_code == 4
    assert "this machine has simulated:0" in one_line(at("move", "m", "--to", "cuda:9").stderr)
    until(lambda: len(served.model("m")["instances"]) == 1, "one instance")


def test_what_cannot_be_read_is_refused(at: Run) -> None:
    assert at("change", "m", "--set", "context_length").exit_code == 2
    assert at("change", "m", "--set", "args=[").exit_code == 2
    assert at("move", "m").exit_code == 2
    assert "did you mean context_length" in one_line(at("change", "m", "--set", "contextlength=5").stderr)
