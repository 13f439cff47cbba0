"""The supervisor at bad moments: nothing is left behind, nothing that was asked for is forgotten."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from tests.system.harness import PATIENCE, Shoal, a_shoal, until


def kill_controller(shoal: Shoal) -> int:
    """Kill it; its pid."""
    pid = shoal.pid("shoal.controller")
    os.kill(pid, signal.SIGKILL)
    return pid


def test_a_stop_while_the_controller_is_down_leaves_no_engine(shoal: Shoal) -> None:
    shoal.add("m")
    shoal.load("m")
    assert shoal.process is not None
    kill_controller(shoal)
    shoal.process.send_signal(signal.SIGTERM)
    assert shoal.process.wait(PATIENCE) == 0
    assert not shoal.fleet_processes()


def test_a_controller_that_dies_over_a_stop_is_followed_by_one_that_finishes_it(shoal: Shoal) -> None:
    shoal.add("m", "--slow-shutdown", "3")
    shoal.load("m")
    assert shoal.process is not None
    shoal.process.send_signal(signal.SIGTERM)
    until(lambda: "no request runs any more" in shoal.text, "the stop")
    kill_controller(shoal)
    assert shoal.process.wait(PATIENCE) == 0
    assert not shoal.fleet_processes()


def test_signals_while_the_controller_starts_are_kept_for_it(shoal: Shoal) -> None:
    shoal.add("m")
    shoal.load("m")
    assert shoal.process is not None
    old = kill_controller(shoal)

    def new() -> int:
        with contextlib.suppress(AssertionError):
            pid = shoal.pid("shoal.controller")
            return pid if pid != old else 0
        return 0

    pid = until(new, "the next controller")
    for _ in range(20):
        shoal.process.send_signal(signal.SIGHUP)
        time.sleep(0.01)
    with shoal.http() as http:
        until(lambda: http.get("/api/v1/models").status_code == 200, "the next controller's answer")
    shoal.wait("m", "ready")
    assert new() == pid, "a SIGHUP ended a controller that was starting"
    assert shoal.stop() == 0


def test_a_first_controller_that_dies_before_it_serves_loses_no_wish() -> None:
    with a_shoal(models={"m": {"source": "x", "load_on_start": True}}) as shoal:
        shoal.process = shoal.launch()
        pid = until(lambda: _controller(shoal), "the controller")
        os.kill(pid, signal.SIGKILL)
        process = shoal.process
        output = process.stdout
        assert output is not None
        shoal.url = until(lambda: _address(output.readline()), "the address")
        try:
            shoal.wait("m", "ready")
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=PATIENCE)


def test_a_file_of_a_thousand_models_can_be_served() -> None:
    with a_shoal(models={f"model-{number}": {"source": "x" * 200} for number in range(1000)}) as shoal:
        shoal.start()
        with shoal.client as client:
            assert len(client.models()) == 1000
        assert shoal.stop() == 0


def _controller(shoal: Shoal) -> int:
    try:
        return shoal.pid("shoal.controller")
    except AssertionError:
        return 0


def _address(line: str) -> str:
    return line.split()[3] if "serves on" in line else ""
