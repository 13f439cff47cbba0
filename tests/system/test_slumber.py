"""Sleep and wake in a whole Shoal: what comes back, what is held meanwhile, and what is said of engines that fail."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from shoal.errors import ShoalError
from tests.system.harness import Shoal, a_shoal, until
from tests.system.test_break_controller import engines, kill_controller

MIB = 2**20
SLEEPS = ("--enable-sleep-mode", "--memory", "96MiB")


def history(shoal: Shoal, kind: str) -> list[str]:
    """What was said of one kind of event, the newest first."""
    with shoal.client as client:
        return [event["message"] for event in client.history() if event["kind"] == kind]


def resident(shoal: Shoal) -> int:
    """Bytes of memory that the only engine really holds."""
    (pid,) = [pid for pid, command in shoal.fleet_processes().items() if "-m shoal.engines.simulated" in command]
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024 + int(fields["RssShmem"].split()[0]) * 1024


def text_of(answer: httpx2.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize("level", [1, 2])
def test_a_model_sleeps_gives_its_memory_back_and_is_woken_by_a_request(shoal: Shoal, level: int) -> None:
    shoal.add("m", *SLEEPS)
    shoal.load("m")
    before, answer = resident(shoal), text_of(shoal.chat("m"))
    with shoal.client as client:
        client.sleep("m", level=level)
        (instance,) = shoal.wait("m", "sleeping")
        assert instance["sleep_level"] == level
        assert client.model("m")["state"] == "sleeping"
        assert resident(shoal) < before - 90 * MIB
        assert "MiB came back" in instance["reason"]
        with shoal.http() as http:
            assert {m["id"] for m in http.get("/v1/models").json()["data"]} == {"m"}
            assert 'shoal_model_instances{model="m",state="sleeping"} 1.0' in http.get("/metrics").text
        assert text_of(shoal.chat("m")) == answer, "it was held until the model was awake"
        (awake,) = shoal.wait("m", "ready")
        assert awake["id"] == instance["id"]
        assert "answers as before" in awake["reason"]
        assert resident(shoal) > before - 8 * MIB
        client.sleep("m", level=level)
        shoal.wait("m", "sleeping")
        client.wake("m")
        shoal.wait("m", "ready")
    with shoal.http() as http:
        assert 'shoal_naps_total{model="m",outcome="woke"} 2.0' in http.get("/metrics").text
    assert shoal.stop() == 0


def test_running_requests_finish_first_and_new_ones_wait(shoal: Shoal) -> None:
    shoal.add("m", *SLEEPS, "--tokens-per-second", "20", on_request=False)
    shoal.load("m")
    answers: list[httpx2.Response] = []
    running = threading.Thread(target=lambda: answers.append(shoal.chat("m", max_tokens=30, ignore_eos=True)))
    running.start()
    with shoal.client as client:
        until(lambda: client.requests()["requests"], "the request")
        client.sleep("m")
        assert client.model("m")["state"] == "draining"
        shoal.wait("m", "sleeping")
        running.join()
        assert answers[0].json()["usage"]["completion_tokens"] == 30
        refused = shoal.chat("m")
        assert refused.status_code == 503
        assert "shoal wake m" in refused.json()["error"]["message"]
        client.wake("m")
        shoal.wait("m", "ready")
    assert shoal.chat("m").status_code == 200


def test_no_request_is_lost_however_often_it_is_put_to_sleep(shoal: Shoal) -> None:
    shoal.add("m", *SLEEPS, "--sleep-seconds", "0.1")
    shoal.load("m")
    answers: list[httpx2.Response] = []

    def ask() -> None:
        answers.extend(shoal.chat("m", max_tokens=20, ignore_eos=True) for _ in range(12))

    clients = [threading.Thread(target=ask) for _ in range(3)]
    for thread in clients:
        thread.start()
    with shoal.client as client:
        while any(thread.is_alive() for thread in clients):
            with contextlib.suppress(ShoalError):  # it wakes just now
                client.sleep("m")
            time.sleep(0.15)
    assert [answer.status_code for answer in answers] == [200] * 36
    assert {answer.json()["usage"]["completion_tokens"] for answer in answers} == {20}
    assert len(history(shoal, "draining")) > 1
    assert not [text for text in history(shoal, "waking") if "did not sleep" in text]
    assert shoal.model("m")["instances"][0]["restarts"] == 0


def test_one_instance_sleeps_while_another_serves(shoal: Shoal) -> None:
    shoal.add("m", *SLEEPS)
    shoal.load("m", instances=2)
    first, second = [instance["id"] for instance in shoal.model("m")["instances"]]
    with shoal.http() as http:
        assert http.post(f"/api/v1/instances/{first}/sleep", json={"level": 3}).status_code == 400
        assert http.post("/api/v1/instances/nobody/sleep").status_code == 404
        asleep = http.post(f"/api/v1/instances/{first}/sleep", json={"level": 2})
        assert (asleep.status_code, asleep.json()["sleep_level"]) == (202, 2)
        shoal.wait("m", "sleeping")
        assert http.post(f"/api/v1/instances/{first}/sleep", json={"level": 2}).status_code == 200
        assert http.post(f"/api/v1/instances/{first}/sleep").status_code == 409, "at another level"
        assert shoal.model("m")["state"] == "ready"
        assert shoal.chat("m").status_code == 200
        assert http.post(f"/api/v1/instances/{second}/wake").status_code == 200
        assert http.post(f"/api/v1/instances/{first}/wake").status_code == 202
        shoal.wait("m", "ready", count=2)
        assert http.post("/api/v1/models/m/wake").status_code == 200
        assert http.post("/api/v1/models/nobody/wake").status_code == 404


def test_an_engine_that_cannot_sleep_says_so(shoal: Shoal) -> None:
    shoal.add("m")
    shoal.load("m")
    with shoal.client as client, pytest.raises(ShoalError, match=r"cannot sleep.*shoal unload m") as caught:
        client.sleep("m")
    assert (caught.value.status, caught.value.code) == (409, "cannot_sleep")
    assert shoal.chat("m").status_code == 200


@pytest.mark.parametrize(
    ("fault", "said"),
    [("sleep-keeps-memory", "says that it sleeps, but"), ("sleep-fails", "answered /sleep with 500")],
)
def test_a_sleep_that_is_none_is_undone_and_told(shoal: Shoal, fault: str, said: str) -> None:
    shoal.add("m", *SLEEPS, "--fail", fault)
    shoal.load("m")
    with shoal.client as client:
        client.sleep("m")
    until(lambda: history(shoal, "waking"), "the wake")
    assert said in history(shoal, "waking")[0]
    shoal.wait("m", "ready")
    assert shoal.chat("m").status_code == 200
    assert history(shoal, "sleeping") == []


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("wake-fails", "answered /wake_up with 500"),
        ("wake-oom", "out of memory"),
        ("canary-differs", "answers the canary with"),
    ],
)
def test_a_wake_that_is_none_ends_in_a_restart_and_requests_wait_for_it(shoal: Shoal, fault: str, said: str) -> None:
    shoal.add("m", *SLEEPS, "--fail", fault)
    shoal.load("m")
    answer = text_of(shoal.chat("m"))
    with shoal.client as client:
        client.sleep("m")
        shoal.wait("m", "sleeping")
    assert text_of(shoal.chat("m")) == answer
    (instance,) = shoal.wait("m", "ready")
    assert instance["restarts"] == 1
    told = " ".join([*history(shoal, "stopping"), *history(shoal, "queued")])
    assert said in told or (fault == "wake-oom" and "exited" in told)
    assert engines(shoal) == 1


def test_one_that_dies_asleep_is_loaded_again_when_it_is_asked_for(shoal: Shoal) -> None:
    shoal.add("m", *SLEEPS, "--fail", "dies-asleep=1")
    shoal.load("m")
    with shoal.client as client:
        client.sleep("m")
    shoal.wait("m", "sleeping")
    until(lambda: shoal.model("m")["state"] == "unloaded", "its end")
    assert "while it slept" in history(shoal, "stopped")[0]
    assert not engines(shoal)
    assert shoal.chat("m").status_code == 200


def test_an_unload_ends_one_that_sleeps(shoal: Shoal) -> None:
    shoal.add("m", *SLEEPS)
    shoal.load("m")
    with shoal.client as client:
        client.sleep("m")
        shoal.wait("m", "sleeping")
        client.unload("m")
    until(lambda: not shoal.model("m")["instances"], "the end")
    until(lambda: not shoal.fleet_processes(), "the processes' end")


def test_what_a_sleep_and_a_wake_took_is_known_after_the_controller_was_killed(shoal: Shoal) -> None:
    shoal.add("m", *SLEEPS, "--sleep-seconds", "0.3")
    shoal.load("m")

    def measured() -> tuple[float, float] | None:
        with shoal.http() as http:
            found = http.get("/api/v1/profiles", params={"model": "m"}).json()["profiles"]
        times = [(one["sleep_seconds"], one["wake_seconds"]) for one in found]
        return times[0] if times and None not in times[0] else None

    with shoal.client as client:
        client.sleep("m")
        shoal.wait("m", "sleeping")
        client.wake("m")
        shoal.wait("m", "ready")
        before = until(measured, "what they took")
        assert before is not None
        assert min(before) >= 0.3
        until(lambda: client.status()["store"]["unsaved"] == 0, "all saved")
        kill_controller(shoal)
    assert measured() == before


def test_models_take_turns_on_a_device_that_holds_one_of_them() -> None:
    with a_shoal(simulated_devices=["1GiB"], min_awake=0) as shoal:
        shoal.start()
        for name in ("a", "b"):
            shoal.add(name, "--enable-sleep-mode", "--device-memory", "700MiB", devices=["simulated:0"], elastic="off")
        shoal.load("a")
        with shoal.client as client:
            client.sleep("a")
            shoal.wait("a", "sleeping")
            shoal.load("b")
            client.change_model("b", {"pin": True})
            with pytest.raises(ShoalError, match=r"a needs 700\.0 MiB on simulated:0") as caught:
                client.wake("a")
            assert caught.value.code == "too_little_memory"
            client.change_model("b", {"pin": False})
            answers: list[httpx2.Response] = []
            held = threading.Thread(target=lambda: answers.append(shoal.chat("a")))
            held.start()
            held.join()
            assert answers[0].status_code == 200
            assert (client.model("a")["state"], client.model("b")["state"]) == ("ready", "sleeping")
            client.wake("b")
            shoal.wait("b", "ready")
            assert client.model("a")["state"] == "sleeping", "whoever wakes one has the other make room"
        assert shoal.stop() == 0


def test_an_elastic_model_gives_its_cache_back_and_nothing_drifts(shoal: Shoal) -> None:
    shoal.add("m", *SLEEPS, "--simulated-resident", "--simulated-block-bytes", "1MiB", elastic="required")
    shoal.load("m")
    prompt = "many words " * 200
    sizes = []
    with shoal.client as client:
        for _ in range(6):
            answer = shoal.chat("m", messages=[{"role": "user", "content": prompt}])
            assert answer.status_code == 200
            client.sleep("m")
            (instance,) = shoal.wait("m", "sleeping")
            until(lambda: not client.model("m")["instances"][0]["memory"]["lease"], "the lease's end")
            sizes.append(resident(shoal))
            client.wake("m")
            shoal.wait("m", "ready")
    assert max(sizes[1:]) - min(sizes[1:]) < 4 * MIB, sizes
    assert instance["memory"]["mode"] == "elastic"


def test_a_controller_that_was_killed_takes_a_sleeping_model_back_as_sleeping(shoal: Shoal) -> None:
    shoal.add("m", *SLEEPS)
    shoal.load("m")
    answer = text_of(shoal.chat("m"))
    with shoal.client as client:
        client.sleep("m")
    (before,) = shoal.wait("m", "sleeping")
    kill_controller(shoal)
    (after,) = shoal.wait("m", "sleeping")
    assert (after["id"], after["sleep_level"]) == (before["id"], 1)
    assert text_of(shoal.chat("m")) == answer
    assert shoal.stop() == 0


def test_one_that_died_asleep_while_the_controller_was_away_is_unloaded(shoal: Shoal) -> None:
    shoal.add("m", *SLEEPS)
    shoal.load("m")
    with shoal.client as client:
        client.sleep("m")
    shoal.wait("m", "sleeping")
    controller = shoal.pid("shoal.controller")
    os.kill(controller, signal.SIGSTOP)
    for pid, command in shoal.fleet_processes().items():
        if "-m shoal.engines.simulated" in command:
            os.kill(pid, signal.SIGKILL)
    os.kill(controller, signal.SIGKILL)
    with shoal.http() as http:
        until(lambda: http.get("/api/v1/models").status_code == 200, "the next controller")
    until(lambda: shoal.model("m")["state"] == "unloaded", "its end")
    assert shoal.chat("m").status_code == 200


@pytest.mark.parametrize("moment", ["asked", "draining", "falling asleep", "asleep unknown"])
def test_a_sleep_goes_on_although_the_controller_is_killed(shoal: Shoal, moment: str) -> None:
    slow = ("--sleep-seconds", "1") if moment in ("falling asleep", "asleep unknown") else ()
    shoal.add("m", *SLEEPS, *slow, "--tokens-per-second", "20", on_request=False)
    shoal.load("m")
    answer = text_of(shoal.chat("m"))
    if moment == "draining":
        threading.Thread(target=lambda: shoal.chat("m", max_tokens=40, ignore_eos=True)).start()
        with shoal.client as client:
            until(lambda: client.requests()["requests"], "the request")
    with shoal.client as client:
        client.sleep("m")
    if slow:
        until(lambda: "falling asleep" in log(shoal), "the engine's sleep")
    if moment == "asleep unknown":
        os.kill(shoal.pid("shoal.controller"), signal.SIGSTOP)
        until(lambda: resident(shoal) < 90 * MIB, "the engine's sleep")
    kill_controller(shoal)
    shoal.wait("m", "sleeping")
    assert resident(shoal) < 90 * MIB
    with shoal.client as client:
        client.wake("m")
    shoal.wait("m", "ready")
    until(lambda: shoal.chat("m").status_code == 200, "an answer")
    assert text_of(shoal.chat("m")) == answer
    assert engines(shoal) == 1


def test_a_sleep_that_is_none_is_undone_although_the_controller_is_killed(shoal: Shoal) -> None:
    shoal.add("m", *SLEEPS, "--fail", "sleep-keeps-memory", on_request=False)
    shoal.load("m")
    with shoal.client as client:
        client.sleep("m")
    until(lambda: "/sleep" in log(shoal), "what the engine calls a sleep")
    kill_controller(shoal)
    until(lambda: history(shoal, "waking"), "the wake")
    assert "says that it sleeps, but" in history(shoal, "waking")[0]
    shoal.wait("m", "ready")
    until(lambda: shoal.chat("m").status_code == 200, "an answer")
    assert engines(shoal) == 1


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("again", [1, 3])
def test_a_wake_goes_on_although_the_controller_is_killed(shoal: Shoal, level: int, again: int) -> None:
    shoal.add("m", *SLEEPS, "--sleep-seconds", "1")
    shoal.load("m")
    answer = text_of(shoal.chat("m"))
    with shoal.client as client:
        client.sleep("m", level=level)
        shoal.wait("m", "sleeping")
        client.wake("m")
    until(lambda: "waking up" in log(shoal), "the engine's wake")
    for _ in range(again):
        kill_controller(shoal)
    shoal.wait("m", "ready")
    until(lambda: shoal.chat("m").status_code == 200, "an answer")
    assert text_of(shoal.chat("m")) == answer
    assert engines(shoal) == 1


def log(shoal: Shoal) -> str:
    """What the engines have printed."""
    return "".join(file.read_text() for file in (shoal.state / "logs").glob("*/engine.log"))
