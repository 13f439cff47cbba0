"""A controller killed in the middle of a load and of a rolling change, with the real engine and a client that asks all
the time: one copy serves at every moment, nothing is started twice, and no request fails."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from shoal.errors import ShoalError
from tests.e2e.conftest import settings
from tests.e2e.elastic import ANSWER, START
from tests.system.harness import Shoal, a_shoal, until

LOOK = 0.5
"""Seconds between two looks: the engine needs the machine."""
BODY = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "Count from one to ten."}],
    "max_tokens": 12,
    "temperature": 0,
    "ignore_eos": True,
}


class Steady:
    """A client that asks without a pause until it is told to stop. `wrong`: every answer that was not whole."""

    def __init__(self, shoal: Shoal) -> None:
        self.answered = 0
        self.wrong: list[str] = []
        self._url = shoal.url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def __enter__(self) -> Steady:
        self._thread.start()
        until(lambda: self.answered, "the first answer", ANSWER)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(ANSWER)
        assert not self._thread.is_alive()
        assert not self.wrong, self.wrong[:3]

    def more(self) -> None:
        """Until another request was answered that begins from now on."""
        before = self.answered
        until(lambda: self.answered > before + 1, "another answer", ANSWER)

    def _ask(self) -> None:
        with httpx2.Client(base_url=self._url, timeout=ANSWER, trust_env=False) as http:
            while not self._stop.is_set():
                try:
                    answer = http.post("/v1/chat/completions", json=BODY)
                    tokens = answer.json()["usage"]["completion_tokens"] if answer.status_code == 200 else None
                    fault = "" if tokens == 12 else f"{answer.status_code} {answer.text}"
                except Exception as error:  # whatever it is, the test is to see it
                    fault = repr(error)
                self.answered += 1
                if fault:
                    self.wrong.append(fault)


def kill_controller(shoal: Shoal) -> None:
    """With -9; returns when the next one answers and knows the fleet."""
    killed = shoal.pid("shoal.controller")
    os.kill(killed, signal.SIGKILL)
    until(lambda: not psutil.pid_exists(killed), "its end")

    def back() -> bool:
        with contextlib.suppress(ShoalError):
            return bool(shoal.model("smollm2")["instances"])
        return False

    until(back, "the next controller")


def serving(shoal: Shoal) -> list[tuple[str, int]]:
    """The instances that serve, with the process of each."""
    return [(i["id"], i["pid"]) for i in shoal.model("smollm2")["instances"] if i["state"] == "ready"]


def engines(shoal: Shoal) -> set[int]:
    """The processes that are an engine's first."""
    return {
        pid
        for pid, command in shoal.fleet_processes().items()
        if "vllm.entrypoints" in command or "vllm serve" in command
    }


def comes(shoal: Shoal, state: str) -> dict[str, Any]:
    """The model's only instance in a state, once there is one."""

    def look() -> list[dict[str, Any]]:
        time.sleep(LOOK)
        return [i for i in shoal.model("smollm2")["instances"] if i["state"] == state]

    (one,) = until(look, f"one that is {state}", START)
    return one


def finished(shoal: Shoal, id: str) -> dict[str, Any]:
    """The move, once it has ended."""

    def look() -> dict[str, Any] | None:
        time.sleep(LOOK)
        with shoal.client as client:
            move = client.move(id)
        return move if move["state"] not in ("waiting", "running") else None

    return until(look, "the end of the move", START) or {}


@pytest.fixture(scope="module")
def shoal(source: Path) -> Iterator[Shoal]:
    """A running Shoal that knows the model."""
    with a_shoal(health_interval=1, drain_timeout=60) as shoal:
        shoal.start()
        with shoal.client as client:
            client.add_model({"name": "smollm2", **settings(source)})
        yield shoal
        assert shoal.stop() == 0


def test_killed_in_the_middle_of_a_load_and_of_a_rolling_change_one_copy_serves(shoal: Shoal) -> None:
    with shoal.client as client:
        client.load("smollm2")
    started = comes(shoal, "starting")
    begun = until(lambda: engines(shoal), "its process")
    kill_controller(shoal)
    comes(shoal, "ready")
    ((id, pid),) = serving(shoal)
    assert id == started["id"], "the start goes on under its id"
    assert shoal.model("smollm2")["instances"][0]["restarts"] == 0
    assert begun <= engines(shoal), "nothing was ended and started again"

    with Steady(shoal) as asking:
        # The old one answers until the new one does, with nobody killed ...
        with shoal.client as client:
            move = client.begin_move("smollm2", changes={"context_length": 1024})["id"]
        assert finished(shoal, move)["state"] == "done"
        ((second, other),) = serving(shoal)
        assert (second, other) != (id, pid)
        asking.more()
        assert not asking.wrong, asking.wrong[:3]

        # ... and with the controller killed while the next one loads.
        until(lambda: len(shoal.model("smollm2")["instances"]) == 1, "the end of the first", START)
        old = engines(shoal)
        with shoal.client as client:
            move = client.begin_move("smollm2", changes={"context_length": 1536})["id"]
        third = comes(shoal, "starting")
        begun = until(lambda: engines(shoal) - old, "its process")
        kill_controller(shoal)
        assert begun <= engines(shoal)
        assert serving(shoal) == [(second, other)], "the old one was not touched"
        asking.more()
        found = finished(shoal, move)
        assert found["state"] == "done", found["message"]
        ((last, process),) = serving(shoal)
        assert last == third["id"], "the one that was loading took its place"
        assert psutil.pid_exists(process)
        asking.more()
    model = shoal.model("smollm2")
    assert [i["id"] for i in model["instances"]] == [last], "exactly one is left"
    assert model["instances"][0]["restarts"] == 0, shoal.text
    assert (model["spec"]["context_length"], model["desired"]) == (1536, 1)
