"""The controller killed at every step, and starts that come after other starts."""

from __future__ import annotations

import os
import signal

import pytest

from tests.system.harness import Shoal, a_shoal, until


def kill_controller(shoal: Shoal) -> None:
    """Kill it, and wait for the next one's answer."""
    old = shoal.pid("shoal.controller")
    os.kill(old, signal.SIGKILL)
    with shoal.http() as http:
        until(lambda: http.get("/api/v1/models").status_code == 200, "the next controller")


def engines(shoal: Shoal) -> int:
    return sum("shoal.engines.simulated" in command for command in shoal.fleet_processes().values())


@pytest.mark.parametrize("moment", ["at once", "shim", "engine"])
def test_a_load_goes_on_although_the_controller_is_killed(shoal: Shoal, moment: str) -> None:
    shoal.add("m", "--start-seconds", "1")
    with shoal.client as client:
        client.load("m")
    if moment == "shim":
        until(shoal.fleet_processes, "a process")
    elif moment == "engine":
        until(lambda: engines(shoal), "the engine")
    kill_controller(shoal)
    shoal.wait("m", "ready")
    # The relay looks for the new controller five times a second, and knows of the new engine only then.
    until(lambda: shoal.chat("m").status_code == 200, "an answer")
    assert engines(shoal) == 1, "two engines of one instance"
    assert shoal.stop() == 0


@pytest.mark.parametrize("again", [1, 3])
def test_an_unload_goes_on_although_the_controller_is_killed(shoal: Shoal, again: int) -> None:
    shoal.add("m", "--slow-shutdown", "1")
    shoal.load("m")
    with shoal.client as client:
        client.unload("m")
    for _ in range(again):
        kill_controller(shoal)
    until(lambda: not shoal.model("m")["instances"], "the end")
    assert not shoal.fleet_processes()


def test_everything_killed_again_and_again_while_it_loads_ends_with_one_engine() -> None:
    with a_shoal() as shoal:
        shoal.start()
        shoal.add("m", "--start-seconds", "0.5")
        with shoal.client as client:
            client.load("m")
        for _ in range(5):
            assert shoal.process is not None
            shoal.process.kill()
            shoal.process.wait()
            shoal.start()
        shoal.wait("m", "ready")
        assert engines(shoal) == 1
        assert shoal.stop() == 0


def test_a_second_start_is_not_explained_by_the_log_of_the_first(shoal: Shoal) -> None:
    shoal.add("m", "--fail", "oom")
    with shoal.client as client:
        client.load("m")
        (first,) = shoal.wait("m", "failed")
        assert first["failure"]["code"] == "out_of_memory"
        client.change_model("m", {"args": ["--fail", "start-exit"]})
        client.load("m")

        def changed() -> bool:
            (instance,) = client.model("m")["instances"]
            failure = instance["failure"]
            return bool(instance["state"] == "failed" and failure["code"] != "out_of_memory")

        until(changed, "another reason")


def test_a_flooded_log_holds_nothing_up(shoal: Shoal) -> None:
    shoal.add("m", "--fail", "log-flood=100000")
    with shoal.client as client:
        client.load("m")
        until(lambda: engines(shoal), "the engine")
        assert client.model("m")["state"] in ("starting", "ready")
    (instance,) = shoal.wait("m", "ready")
    logs = sum(file.stat().st_size for file in (shoal.state / "logs" / instance["id"]).iterdir())
    assert logs <= 33 * 2**20
