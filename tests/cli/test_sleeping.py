"""`shoal sleep` and `shoal wake` against a scripted Shoal."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.cli.scripted import ScriptedShoal, instance


def bodies(shoal: ScriptedShoal, path: str) -> list[Any]:
    return [body for method, asked, body in shoal.requests if (method, asked) == ("POST", path)]


def test_sleep_waits_until_it_sleeps_and_says_what_came_back(shoal: ScriptedShoal, run: Run) -> None:
    shoal.add("m", instance("m-1", "m", "ready"))
    result = run("sleep", "m", "--level", "2", "--force")
    assert result.exit_code == 0, result.output
    assert "m sleeps: slept after 0.3 s, 4.1 GiB came back." in result.stdout.replace("\n", " ")
    assert bodies(shoal, "/api/v1/models/m/sleep") == [{"level": 2, "force": True}]


def test_wake_waits_until_it_serves(shoal: ScriptedShoal, run: Run) -> None:
    shoal.add("m", instance("m-1", "m", "sleeping"))
    result = run("wake", "m")
    assert result.exit_code == 0, result.output
    assert "m is ready: awake after 0.5 s and answers as before." in result.stdout.replace("\n", " ")


@pytest.mark.parametrize(("command", "state"), [("sleep", "draining"), ("wake", "waking")])
def test_nobody_has_to_wait(shoal: ScriptedShoal, run: Run, command: str, state: str) -> None:
    shoal.add("m", instance("m-1", "m", "ready" if command == "sleep" else "sleeping"))
    shoal.naps[command] = [{"state": state}]
    result = run(command, "m", "--no-wait")
    assert result.exit_code == 0, result.output
    assert f"m is {state}" in result.stdout


def test_a_sleep_that_was_none_fails_with_its_reason(shoal: ScriptedShoal, run: Run) -> None:
    shoal.add("m", instance("m-1", "m", "ready"))
    shoal.naps["sleep"] += [{"state": "waking"}, {"state": "ready", "reason": "it kept its memory"}]
    shoal.naps["sleep"].pop(1)
    result = run("sleep", "m")
    assert result.exit_code == 1
    assert "m does not sleep" in result.stderr
    assert "see shoal events" in result.stderr


def test_one_that_dies_on_the_way_is_told(shoal: ScriptedShoal, run: Run) -> None:
    shoal.add("m", instance("m-1", "m", "ready"))
    shoal.naps["sleep"][1] = {"state": "stopped", "reason": "killed"}
    result = run("sleep", "m")
    assert result.exit_code == 1
    assert "m ended while it was to sleep" in result.stderr


def test_a_wake_that_was_none_fails_with_its_reason(shoal: ScriptedShoal, run: Run) -> None:
    shoal.add("m", instance("m-1", "m", "sleeping"))
    shoal.naps["wake"][1] = {"state": "stopping", "reason": "it answers otherwise than before"}
    result = run("wake", "m")
    assert result.exit_code == 1
    assert "it answers otherwise than before" in " ".join(result.stderr.split())


@pytest.mark.parametrize(("command", "state"), [("sleep", "sleeping"), ("wake", "ready")])
def test_what_is_so_already_needs_no_waiting_and_json_is_pure(
    shoal: ScriptedShoal, run: Run, command: str, state: str
) -> None:
    shoal.add("m", instance("m-1", "m", state))
    shoal.naps[command] = []
    result = run(command, "m", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["instances"][0]["state"] == state


def test_an_unknown_model_and_a_wrong_level(shoal: ScriptedShoal, run: Run) -> None:
    assert run("sleep", "x").exit_code == 4
    assert run("wake", "x").exit_code == 4
    shoal.add("m", instance("m-1", "m", "ready"))
    assert run("sleep", "m", "--level", "3").exit_code == 2
