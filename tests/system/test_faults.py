"""Bad input and faults: what goes wrong is said, and nothing else is hurt."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from shoal.errors import ShoalError
from tests.system.harness import PATIENCE, Shoal, a_shoal, until


class Load:
    """Requests to a model, one after the other, until stopped; every answer is kept."""

    def __init__(self, shoal: Shoal, model: str, threads: int = 3) -> None:
        self._shoal, self._model = shoal, model
        self.statuses: list[int | str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        until(lambda: len(self.statuses) >= 3, "the load")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.statuses.append(self._shoal.chat(self._model).status_code)
            except httpx2.HTTPError as error:
                self.statuses.append(repr(error))

    def more(self, count: int = 20) -> None:
        """Wait for so many more answers."""
        target = len(self.statuses) + count
        until(lambda: len(self.statuses) >= target, "more answers")


def test_an_unknown_model_is_answered_with_the_known_ones(shoal: Shoal) -> None:
    shoal.add("known")
    answer = shoal.chat("unknown")
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert error["code"] == "model_not_found"
    assert "known" in error["message"]
    assert "Traceback" not in shoal.text


def test_a_model_that_is_not_loaded_says_how_to_load_it(shoal: Shoal) -> None:
    shoal.add("m", "--start-seconds", "3", on_request=False)
    answer = shoal.chat("m")
    assert answer.status_code == 503
    assert "shoal load m" in answer.json()["error"]["message"]
    with shoal.client as client:
        client.load("m")
    shoal.wait("m", "starting")
    with shoal.http() as http:
        answer = http.post("/v1/completions", json={"model": "m", "prompt": "?"}, headers={"x-shoal-hold": "off"})
    assert answer.status_code == 503
    assert "starting" in answer.json()["error"]["message"]
    assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"{nonsense", 400, "invalid_json"),
        (b"", 400, None),
        (b"[]", 400, None),
        (b'{"messages": []}', 400, "model_required"),
        (b'{"model": 7}', 400, None),
        (b'{"model": "m", "pad": "' + b"x" * 70_000 + b'"}', 413, "body_too_large"),
    ],
)
def test_bodies_that_cannot_be_served(content: bytes, status: int, code: str | None) -> None:
    with a_shoal(max_body="64KiB") as shoal:
        shoal.start()
        with shoal.http() as http:
            answer = http.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == status
        error = answer.json()["error"]
        assert error["message"]
        assert code is None or error["code"] == code


def test_a_slow_client_is_not_waited_for_for_ever() -> None:
    with a_shoal(header_timeout=0.5, body_timeout=0.5) as shoal:
        shoal.start()
        host, port = shoal.url.removeprefix("http://").split(":")
        for sent in (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n",
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
        ):
            with socket.create_connection((host, int(port)), timeout=PATIENCE) as client:
                client.sendall(sent)
                answer = client.recv(65536)
                assert not answer or b" 408 " in answer.splitlines()[0]


def test_a_client_that_leaves_ends_its_request_in_the_engine(shoal: Shoal) -> None:
    shoal.add("m", "--tokens-per-second", "5")
    shoal.load("m")

    def running() -> float:
        with shoal.http() as http:
            for line in http.get("/metrics").text.splitlines():
                if line.startswith("shoal_engine_requests_running{"):
                    return float(line.split()[-1])
        return -1

    with shoal.http() as http:
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 500, "stream": True}
        with http.stream("POST", "/v1/chat/completions", json=body) as stream:
            lines = stream.iter_lines()  # held: a lost iterator closes the stream
            next(lines)
            until(lambda: running() == 1, "the request in the engine")
    until(lambda: running() == 0, "the end of the request in the engine", 10)


FAILURES = [
    ("out_of_memory", {"args": ["--fail", "oom"]}),
    ("unsupported_architecture", {"args": ["--fail", "bad-architecture"]}),
    ("context_too_long", {"args": ["--fail", "context-too-long"]}),
    ("source_not_found", {"source": "/does/not/exist"}),
    ("engine_not_installed", {"engine": "vllm", "source": "."}),
    ("too_little_memory", {"devices": ["simulated:0"], "args": ["--device-memory", "9GiB"]}),
    (None, {"args": ["--fail", "start-exit"]}),
    (None, {"args": ["--no-such-option"]}),
]


@pytest.mark.parametrize(("code", "settings"), FAILURES, ids=[str(settings) for _, settings in FAILURES])
def test_a_start_that_fails_says_why_within_seconds_and_keeps_its_log(
    code: str | None, settings: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    if settings.get("source") == ".":
        settings = {**settings, "source": str(tmp_path)}
    with a_shoal(simulated_devices=["8GiB"], engines_dir=str(tmp_path / "none")) as shoal:
        shoal.start()
        shoal.add("m", *settings.get("args", ()), **{k: v for k, v in settings.items() if k != "args"} | {})
        with shoal.client as client:
            client.load("m")
        (instance,) = shoal.wait("m", "failed")
        failure = instance["failure"]
        assert failure["message"]
        assert code is None or failure["code"] == code
        assert failure["hint"] or any(mark in failure["message"] for mark in ("; ", ". ")), "it says what to do"
        assert not shoal.fleet_processes()
        answer = shoal.chat("m")
        assert answer.status_code == 503
        assert failure["message"] in answer.json()["error"]["message"]
        with shoal.client as client:
            log = client.logs(instance["id"])
        assert log or code in ("source_not_found", "engine_not_installed", "too_little_memory")


def test_a_port_that_is_taken_fails_with_its_number(shoal: Shoal) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        shoal.add("m", port=port)
        with shoal.client as client:
            client.load("m")
        (instance,) = shoal.wait("m", "failed")
        assert instance["failure"]["code"] == "port_taken"
        assert str(port) in instance["failure"]["message"]


def test_commands_against_the_state_are_idempotent_or_refused(shoal: Shoal) -> None:
    shoal.add("m", "--start-seconds", "2")
    with shoal.client as client, shoal.http() as http:
        assert http.post("/api/v1/models/m/load").status_code == 202
        assert http.post("/api/v1/models/m/load").status_code == 200
        shoal.wait("m", "starting")
        (instance,) = shoal.model("m")["instances"]
        assert http.delete("/api/v1/models/m").status_code == 409
        assert http.post("/api/v1/models/m/unload").status_code == 202
        assert http.post("/api/v1/models/m/unload").status_code in (200, 202)
        until(lambda: client.model("m")["state"] == "unloaded", "the unload")
        assert http.post("/api/v1/models/m/unload").status_code == 200
        assert http.delete(f"/api/v1/instances/{instance['id']}").status_code == 200
        for path in ("/api/v1/models/nobody/load", "/api/v1/models/nobody/unload"):
            assert http.post(path).status_code == 404
        assert http.get("/api/v1/instances/nobody/logs").status_code == 404
        assert http.post("/api/v1/models", json={"name": "m", "source": "other"}).status_code == 409
        assert http.post("/api/v1/models", json={"name": "x"}).status_code == 400
        assert "did you mean source" in http.post("/api/v1/models", json={"name": "x", "sorce": "y"}).text
        assert http.post("/api/v1/models", content=b"{").status_code == 400
        assert http.post("/api/v1/models/m/load", json={"instances": 0}).status_code == 400
        assert http.delete("/api/v1/models/m").status_code == 204
    assert not shoal.fleet_processes()


def test_an_engine_that_is_killed_under_load_comes_back_and_others_do_not_notice(shoal: Shoal) -> None:
    for name in ("victim", "other"):
        shoal.add(name, "--tokens-per-second", "200")
        shoal.load(name)
    (before,) = shoal.model("victim")["instances"]
    with Load(shoal, "victim") as load, Load(shoal, "other") as other:
        os.kill(before["pid"], signal.SIGKILL)
        crashed_by = len(load.statuses)
        until(lambda: shoal.model("victim")["instances"][0]["restarts"] == 1, "the crash")
        shoal.wait("victim", "ready")
        load.more()
        other.more()
    assert set(other.statuses) == {200}
    assert set(load.statuses) <= {200, 502, 503}
    assert set(load.statuses[-5:]) == {200}, "back in rotation"
    assert crashed_by < len(load.statuses)
    (after,) = shoal.model("victim")["instances"]
    assert after["id"] == before["id"]
    assert after["pid"] != before["pid"]


def test_requests_that_meet_a_dead_engine_are_held_until_it_is_back(shoal: Shoal) -> None:
    """Also those that come before the relay's table knows, and those that reuse a connection."""
    shoal.add("m", "--start-seconds", "4")  # until then all of them have come, also on a busy machine
    shoal.load("m")
    assert shoal.chat("m").status_code == 200
    (before,) = shoal.model("m")["instances"]
    os.kill(before["pid"], signal.SIGKILL)
    stat = Path(f"/proc/{before['pid']}/stat")
    while True:  # it is dead once it is a zombie, or gone
        try:
            if stat.read_text().rpartition(")")[2].split()[0] == "Z":
                break
        except OSError:
            break
    answers: list[httpx2.Response] = []
    asking = [threading.Thread(target=lambda: answers.append(shoal.chat("m"))) for _ in range(8)]
    for thread in asking:
        thread.start()
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    with shoal.http() as http:
        refused = http.post("/v1/chat/completions", json=body, headers={"x-shoal-hold": "off"})
    for thread in asking:
        thread.join(60)
    assert [answer.status_code for answer in answers] == [200] * 8
    assert any(float(answer.headers["x-shoal-wake-ms"]) > 0 for answer in answers)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    assert shoal.model("m")["instances"][0]["restarts"] == 1


def test_a_stream_whose_engine_dies_ends_with_an_error_and_not_as_if_whole(shoal: Shoal) -> None:
    shoal.add("m", "--tokens-per-second", "20")
    shoal.load("m")
    (instance,) = shoal.model("m")["instances"]
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 500, "stream": True}
    lines: list[str] = []
    broken = contextlib.suppress(httpx2.RemoteProtocolError, httpx2.ReadError)
    with shoal.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as stream, broken:
        for line in stream.iter_lines():
            if not lines:
                os.kill(instance["pid"], signal.SIGKILL)
            lines.append(line)
    assert any('"error"' in line for line in lines)
    assert not any("[DONE]" in line for line in lines)


@pytest.mark.parametrize("fail", ["hang-after=2", "hang-steps=2"])
def test_an_engine_that_hangs_is_found_and_restarted(fail: str) -> None:
    with a_shoal(hang_timeout=1.5) as shoal:
        shoal.start()
        shoal.add("m", "--fail", fail)
        shoal.load("m")
        (before,) = shoal.model("m")["instances"]

        def ask() -> None:
            with contextlib.suppress(httpx2.HTTPError):
                shoal.chat("m")

        for _ in range(4):
            threading.Thread(target=ask, daemon=True).start()
        until(lambda: shoal.model("m")["instances"][0]["restarts"] == 1, "the restart")
        (after,) = shoal.wait("m", "ready")
        assert after["id"] == before["id"]
        assert after["pid"] != before["pid"]
        with shoal.client as client:
            assert any("hangs" in event["message"] for event in client.history())


def test_the_controller_killed_under_load_costs_no_request(shoal: Shoal) -> None:
    for name in ("a", "b"):
        shoal.add(name, "--tokens-per-second", "200")
        shoal.load(name)
    before = {name: shoal.model(name)["instances"][0] for name in ("a", "b")}
    engines = set(shoal.fleet_processes())
    with Load(shoal, "a") as load_a, Load(shoal, "b") as load_b:
        killed = shoal.pid("shoal.controller")
        os.kill(killed, signal.SIGKILL)
        down = time.monotonic()

        def back() -> bool:
            with contextlib.suppress(ShoalError), shoal.client as client:
                return bool(client.status())
            return False

        until(lambda: not psutil.pid_exists(killed), "its end")
        until(back, "the new controller")
        took = time.monotonic() - down
        load_a.more()
        load_b.more()
    assert set(load_a.statuses) | set(load_b.statuses) == {200}, "no request failed"
    print(f"the controller was back after {took:.2f} s")
    for name in ("a", "b"):
        (after,) = shoal.wait(name, "ready")
        assert (after["id"], after["pid"]) == (before[name]["id"], before[name]["pid"])
    assert set(shoal.fleet_processes()) == engines
    assert shoal.stop() == 0


def test_the_relay_killed_is_replaced_on_the_same_port(shoal: Shoal) -> None:
    shoal.add("m")
    shoal.load("m")
    os.kill(shoal.pid("shoal.gateway"), signal.SIGKILL)
    assert shoal.chat("m").status_code == 200, "the connection waited in the supervisor's socket"


def test_everything_of_shoal_killed_leaves_engines_that_the_next_one_takes_back(shoal: Shoal) -> None:
    shoal.add("m")
    shoal.load("m")
    before = shoal.model("m")["instances"][0]
    controller = shoal.pid("shoal.controller")
    assert shoal.process is not None
    shoal.process.kill()
    shoal.process.wait()
    until(lambda: not psutil.pid_exists(controller), "the controller's end")
    assert before["pid"] in shoal.fleet_processes()
    shoal.start()
    (after,) = shoal.wait("m", "ready")
    assert (after["id"], after["pid"]) == (before["id"], before["pid"])
    assert shoal.chat("m").status_code == 200


def test_an_engine_that_died_while_nobody_looked_is_restarted(shoal: Shoal) -> None:
    shoal.add("m")
    shoal.load("m")
    before = shoal.model("m")["instances"][0]
    assert shoal.process is not None
    shoal.process.kill()
    shoal.process.wait()
    os.kill(before["pid"], signal.SIGKILL)
    until(lambda: not shoal.fleet_processes(), "the engine's end")
    shoal.start()
    (after,) = shoal.wait("m", "ready")
    assert after["id"] == before["id"]
    assert after["restarts"] == 1


def test_a_runtime_folder_that_is_removed_is_made_anew_and_models_come_back(shoal: Shoal) -> None:
    shoal.add("m")
    shoal.load("m")
    before = shoal.model("m")["instances"][0]
    shutil.rmtree(shoal.runtime)

    def served() -> bool:
        with contextlib.suppress(httpx2.HTTPError):
            return shoal.chat("m").status_code == 200
        return False

    until(lambda: before["pid"] not in shoal.fleet_processes(), "the end of the engine that nobody can reach")
    until(served, "an answer")
    (after,) = shoal.wait("m", "ready")
    assert after["id"] == before["id"]
    assert shoal.stop() == 0


def test_a_second_shoal_on_the_same_port_or_folder_says_so_and_the_first_goes_on(shoal: Shoal) -> None:
    shoal.add("m")
    shoal.load("m")
    second = shoal.launch()
    output, _ = second.communicate(timeout=PATIENCE)
    assert second.returncode == 1
    assert "already runs with this state folder" in output
    assert str(shoal.process.pid if shoal.process else "") in output
    with a_shoal(state_dir=str(shoal.state)) as elsewhere:
        fourth = elsewhere.launch()
        output, _ = fourth.communicate(timeout=PATIENCE)
        assert fourth.returncode == 1
        assert "already runs with this state folder (in another runtime folder)" in output
    with a_shoal(port=int(shoal.url.rsplit(":", 1)[1])) as other:
        third = other.launch()
        output, _ = third.communicate(timeout=PATIENCE)
        assert third.returncode == 1
        assert "cannot be used: address already in use" in output
        assert "Traceback" not in output
    assert shoal.chat("m").status_code == 200
    assert shoal.model("m")["instances"][0]["restarts"] == 0


def test_bad_settings_end_the_command_with_what_to_do() -> None:
    with a_shoal(prot=9) as shoal:
        process = shoal.launch()
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 2
        assert "did you mean port?" in output
        assert "Traceback" not in output


def test_an_engine_that_ignores_sigterm_is_ended_all_the_same() -> None:
    with a_shoal(stop_timeout=0.5) as shoal:
        shoal.start()
        shoal.add("m", "--fail", "ignore-sigterm", "--spawn-child")
        shoal.load("m")
        assert len(shoal.fleet_processes()) >= 3
        assert shoal.stop() == 0


def test_stopping_twice_does_not_wait_for_running_requests(shoal: Shoal) -> None:
    shoal.add("m", "--tokens-per-second", "1")
    shoal.load("m")
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 500, "stream": True}
    with shoal.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as stream:
        lines = stream.iter_lines()  # held: a lost iterator closes the stream
        next(lines)
        began = time.monotonic()
        assert shoal.stop(signals=3) == 0
        assert time.monotonic() - began < 25, "not the 30 s that a drain may take"


def test_fifty_loads_and_unloads_leak_nothing(shoal: Shoal) -> None:
    shoal.add("m")

    def cycle() -> None:
        with shoal.client as client:
            client.load("m")
            shoal.wait("m", "ready")
            client.unload("m", force=True)
            until(lambda: client.model("m")["state"] == "unloaded", "the unload")

    def held() -> dict[str, tuple[int, int]]:
        processes = {name: psutil.Process(shoal.pid(name)) for name in ("shoal.controller", "shoal.gateway")}
        return {name: (process.num_fds(), process.num_threads()) for name, process in processes.items()}

    for _ in range(3):
        cycle()
    before = held()
    for _ in range(50):
        cycle()

    def settled() -> bool:
        now = held()
        return all(now[name][0] <= before[name][0] and now[name][1] <= before[name][1] + 4 for name in now)

    until(settled, f"no more descriptors than {before}, but {held()}", 15)
    assert not shoal.fleet_processes()
    left = [path for path in shoal.runtime.rglob("*.sock") if path.parent.parent.name == "instances"]
    assert not left, "sockets were left behind"
