"""The controller is killed while models are moved: at every step, again and again, while they wait or are undone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.harness import Shoal, until
from tests.system.moving import HERE, THERE, Clients, alone, at, finished, loaded, three_devices
from tests.system.test_break_controller import kill_controller


@pytest.fixture
def shoal() -> Iterator[Shoal]:
    with three_devices() as shoal:
        yield shoal


@pytest.mark.parametrize("step", ["asking", "loading", "checking", "draining"])
def test_the_controller_killed_at_every_step(shoal: Shoal, step: str) -> None:
    slow = {"loading": ("--start-seconds", "1.5"), "draining": ("--slow-shutdown", "1")}.get(step, ("--ttft", "1"))
    loaded(shoal, "m", *slow)
    with shoal.client as client:
        id = client.begin_move("m", to=[THERE])["id"]
        at(client, id, step)
        kill_controller(shoal)
        move = finished(client, id)
        assert move["state"] == "done", move
    alone(shoal, devices=[THERE], id=move["legs"][0]["target"])
    assert shoal.stop() == 0


def test_the_controller_killed_again_and_again_under_load(shoal: Shoal) -> None:
    loaded(shoal, "m", "--start-seconds", "1", "--ttft", "0.2")
    with shoal.client as client, Clients(shoal, 3):
        id = client.begin_move("m", to=[THERE])["id"]
        for _ in range(5):
            kill_controller(shoal)
        move = finished(client, id)
        assert move["state"] == "done", move
    alone(shoal, devices=[THERE])


@pytest.mark.parametrize("step", ["undoing", "waiting", "restoring", "loading"])
def test_the_controller_killed_while_a_move_waits_or_is_undone(shoal: Shoal, step: str) -> None:
    slow = ("--ttft", "1") if step == "undoing" else ("--start-seconds", "1")
    old = loaded(shoal, "m", *slow, "--slow-shutdown", "1")
    with shoal.client as client:
        if step == "waiting":
            shoal.add("b", "--start-seconds", "1", devices=["simulated:2"])
            shoal.load("b")
            client.begin_move("b", to=[THERE])
        stop_first = step in ("restoring", "loading")
        id = client.begin_move("m", to=[THERE], stop_first=stop_first)["id"]
        if step in ("undoing", "restoring"):
            at(client, id, "checking" if step == "undoing" else "loading")
            client.cancel_move(id)
        at(client, id, step)
        kill_controller(shoal)
        move = finished(client, id)
        if step == "waiting":
            client.unload("b")
            until(lambda: not shoal.model("b")["instances"], "the end of b")
    assert move["state"] == ("cancelled" if step in ("undoing", "restoring") else "done"), move
    if step == "undoing":
        alone(shoal, devices=[HERE], id=old)
    else:
        alone(shoal, devices=[HERE] if step == "restoring" else [THERE])
    assert shoal.stop() == 0
