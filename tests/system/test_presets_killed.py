"""The controller killed with -9 at each step of applying a preset: what was asked for goes on, the rest is not begun,
the run is interrupted and says so, and the same preset applied again finishes it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from shoal.client import Client
from tests.system.harness import Shoal, until
from tests.system.test_break_controller import kill_controller
from tests.system.test_presets import actions, finished
from tests.system.test_slumber import history

NAPS = ("--enable-sleep-mode", "--sleep-seconds", "0.5")
STEPS = ("stop", "sleep", "change", "wake", "start")
GOAL = {"gone": "unloaded", "napper": "sleeping", "changed": "ready", "waker": "ready", "starter": "ready"}
BEFORE = {"gone": "ready", "napper": "ready", "changed": "ready", "waker": "sleeping", "starter": "unloaded"}
MODEL = {"stop": "gone", "sleep": "napper", "change": "changed", "wake": "waker", "start": "starter"}


def prepare(shoal: Shoal, client: Client) -> None:
    """A fleet, and a preset that has a step of every kind to do to it."""
    shoal.add("gone", "--slow-shutdown", "0.5")
    shoal.add("napper", *NAPS)
    shoal.add("changed", priority=1)
    shoal.add("waker", *NAPS)
    shoal.add("starter", "--start-seconds", "0.5")
    for name, state in BEFORE.items():
        if state != "unloaded":
            client.load(name)
    for name, state in BEFORE.items():
        if state != "unloaded":
            shoal.wait(name, "ready")
    client.sleep("waker")
    shoal.wait("waker", "sleeping")
    specs = {name: client.model(name)["spec"] for name in BEFORE}
    specs["changed"]["priority"] = 7
    models = [
        {"spec": specs[name], "awake": int(state == "ready"), "asleep": int(state == "sleeping")}
        for name, state in GOAL.items()
        if state != "unloaded"
    ]
    client.import_preset(yaml.safe_dump({"shoal_preset": 1, "name": "p", "models": models}))


def begun(client: Client, action: str) -> bool:
    """Whether the step of this kind has begun."""
    return any(one["step"]["action"] == action and one["state"] != "waiting" for one in client.preset_run()["steps"])


@pytest.mark.timeout(180)
@pytest.mark.parametrize("action", STEPS)
def test_a_preset_whose_controller_is_killed_at_a_step_is_interrupted_and_goes_on_as_a_difference(
    shoal: Shoal, action: str
) -> None:
    with shoal.client as client:
        prepare(shoal, client)
        before = {i["id"]: i["pid"] for name in BEFORE for i in client.model(name)["instances"]}
        plan = client.plan_preset("p")
        assert actions(plan) >= {(step, MODEL[step]) for step in STEPS}
        order = [one["action"] for group in plan["groups"] for one in group if one["action"] != "keep"]
        assert set(order) == set(STEPS)
        client.apply_preset("p")
        until(lambda: begun(client, action), f"the step {action}")
        kill_controller(shoal)

    with shoal.client as client:
        last = client.preset("p")["last_run"]
        assert last["state"] == "interrupted"
        assert "Apply it again" in last["message"]
        assert len(history(shoal, "preset_interrupted")) == 1
        # What the step asked for goes on by itself, and so does what came before it.
        for step in order[: order.index(action) + 1]:
            name = MODEL[step]
            until(lambda name=name: client.model(name)["state"] in (GOAL[name], BEFORE[name]), name)  # type: ignore[misc]
        for step in order[: order.index(action)]:  # these were done
            assert client.model(MODEL[step])["state"] == GOAL[MODEL[step]]
        # No engine was lost or made twice by it: what runs is what ran, but for what the preset starts.
        running = {i["id"]: i["pid"] for name in BEFORE for i in client.model(name)["instances"]}
        kept = {id: pid for id, pid in running.items() if id in before}
        assert kept.items() <= before.items()
        assert len(running) - len(kept) <= 1

        client.apply_preset("p")
        try:
            run = finished(client)
        except AssertionError as error:
            raise AssertionError(f"{error}: {client.preset_run()}\n{shoal.text}") from None
        assert run["state"] == "done", run
        assert {name: client.model(name)["state"] for name in GOAL} == GOAL
        assert client.model("changed")["spec"]["priority"] == 7
        assert client.plan_preset("p")["in_place"]
        assert client.preset("p")["last_run"]["state"] == "done"
        engines: list[Any] = [i for name in GOAL for i in client.model(name)["instances"]]
        assert len(engines) == 4
    assert shoal.stop() == 0
