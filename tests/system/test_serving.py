"""The whole path with simulated engines: serve, load, ask, unload, stop."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from shoal.client import Client
from shoal.errors import ShoalError
from tests.system.harness import Shoal, a_shoal, until


def test_two_models_answer_behind_one_endpoint(shoal: Shoal) -> None:
    for name in ("one", "two"):
        shoal.add(name)
        shoal.load(name)
    with openai.OpenAI(base_url=f"{shoal.url}/v1", api_key="none") as client:
        assert {model.id for model in client.models.list()} == {"one", "two"}
        for name in ("one", "two"):
            answer = client.chat.completions.create(
                model=name, messages=[{"role": "user", "content": "Say something"}], max_tokens=5
            )
            assert answer.model == name
            assert answer.choices[0].message.content
            assert answer.usage is not None
            assert answer.usage.completion_tokens == 5
            chunks = list(
                client.chat.completions.create(
                    model=name,
                    messages=[{"role": "user", "content": "Say something"}],
                    max_tokens=5,
                    stream=True,
                    stream_options={"include_usage": True},
                )
            )
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            assert text == answer.choices[0].message.content
            assert chunks[-1].usage is not None
        assert client.completions.create(model="one", prompt="Once", max_tokens=3).choices[0].text
        with pytest.raises(openai.NotFoundError, match="one, two"):
            client.chat.completions.create(model="three", messages=[{"role": "user", "content": "?"}])
    assert shoal.stop() == 0


def test_what_a_client_sends_arrives_untouched(shoal: Shoal) -> None:
    shoal.add("m")
    shoal.load("m")
    body = json.dumps(
        {"tools": [{"type": "function"}], "model": "m", "x-unknown": {"ä": [1.50, None]}, "z": "\u2028"}, indent=3
    ).encode()
    with shoal.http() as http:
        answer = http.post(
            "/v1/echo?a=%2F&b=+%20", content=body, headers={"X-CaSe": "kept", "content-type": "application/json"}
        )
    seen = answer.json()
    import base64

    assert base64.b64decode(seen["body"]) == body
    assert seen["path"].endswith("?a=%2F&b=+%20")
    assert ["x-case", "kept"] in [[name.lower(), value] for name, value in seen["headers"]]


def test_models_given_on_the_command_line_are_loaded() -> None:
    with a_shoal() as shoal:
        shoal.start("small=anything", "other")
        shoal.wait("small", "ready")
        shoal.wait("other", "ready")
        assert shoal.model("small")["origin"] == "command"
        assert shoal.stop() == 0


def test_models_in_the_file_exist_and_follow_a_reload() -> None:
    models = {"a": {"source": "x", "load_on_start": True}, "b": {"source": "x"}}
    with a_shoal(models=models) as shoal:
        shoal.start()
        shoal.wait("a", "ready")
        with shoal.client as client:
            assert client.model("b")["state"] == "unloaded"
            with pytest.raises(ShoalError, match="configuration file") as caught:
                client.remove_model("b")
            assert caught.value.status == 409
            shoal.settings["models"] = {"a": models["a"], "c": {"source": "y"}}
            shoal.settings["drain_timeout"] = 7
            shoal.write_config()
            result = client.reload_settings()
            assert result == {"added": ["c"], "changed": [], "removed": ["b"], "restart_needed": ["drain_timeout"]}
            assert {model["name"] for model in client.models()} == {"a", "c"}
            shoal.settings["models"] = {"a": {"sorce": "x"}}
            shoal.write_config()
            with pytest.raises(ShoalError, match="did you mean source"):
                client.reload_settings()
            assert {model["name"] for model in client.models()} == {"a", "c"}, "a bad file changes nothing"


def test_flags_go_before_the_file_whenever_it_is_read() -> None:
    with a_shoal(models={"a": {"source": "x"}}) as shoal:
        del shoal.settings["engine"]
        shoal.start("--engine", "simulated")
        assert shoal.model("a")["spec"]["engine"] == "simulated"
        shoal.settings["models"]["b"] = {"source": "x"}
        shoal.write_config()
        with shoal.client as client:
            assert client.reload_settings()["added"] == ["b"]
        assert {shoal.model(name)["spec"]["engine"] for name in "ab"} == {"simulated"}


def test_several_instances_of_one_model_share_its_requests(shoal: Shoal) -> None:
    shoal.add("m", "--tokens-per-second", "20")
    shoal.load("m", instances=2)
    with openai.OpenAI(base_url=f"{shoal.url}/v1", api_key="none") as client:
        streams = [
            client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "go"}], max_tokens=40, stream=True
            )
            for _ in range(4)
        ]
        for stream in streams:
            next(iter(stream))

        def spread() -> bool:
            with shoal.http() as http:
                lines = http.get("/metrics").text.splitlines()
            return sorted(line.split()[-1] for line in lines if line.startswith("shoal_relay_outstanding{")) == [
                "2.0",
                "2.0",
            ]

        until(spread, "two requests on each")
        for stream in streams:
            stream.close()


def test_loads_on_one_device_in_turn_on_two_in_parallel() -> None:
    with a_shoal(simulated_devices=["8GiB", "8GiB"]) as shoal:
        shoal.start()
        for name, device in (("a", 0), ("b", 0), ("c", 1)):
            shoal.add(name, "--start-seconds", "1.5", devices=[f"simulated:{device}"])
        with shoal.client as client:
            for name in "abc":
                client.load(name)
            together = until(
                lambda: [
                    {m["name"] for m in client.models() if m["state"] == "starting"}
                    for _ in range(1)
                    if sum(m["state"] == "starting" for m in client.models()) >= 2
                ],
                "two starts at once",
            )
            assert together[0] == {"a", "c"}
            waiting = client.model("b")["instances"][0]
            assert waiting["state"] == "queued"
            assert "waits for a" in waiting["reason"]
        shoal.wait("b", "ready")
        with shoal.client as client:
            starts = {load["model"]: load for load in client.loads()}
        assert starts["b"]["started_at"] >= starts["a"]["started_at"] + starts["a"]["seconds"] - 0.1
        assert starts["c"]["started_at"] < starts["a"]["started_at"] + starts["a"]["seconds"]


def test_progress_is_shown_and_learns_from_the_first_load(shoal: Shoal) -> None:
    shoal.add("m", "--start-seconds", "2")

    def watch() -> list[dict[str, Any]]:
        seen: list[dict[str, Any]] = []
        with shoal.client as client:
            client.load("m")
            for event in client.events():
                if event.kind == "model" and event.data["name"] == "m":
                    (instance,) = event.data["instances"][-1:]
                    if instance["state"] == "ready":
                        return seen
                    if instance["progress"]:
                        seen.append(instance["progress"])
        return seen

    first = watch()
    percents = [progress["percent"] for progress in first]
    assert percents == sorted(percents)
    assert len(set(percents)) >= 3
    assert len({progress["phase"] for progress in first}) >= 3
    assert all(progress["seconds_left"] is None for progress in first)
    with shoal.client as client:
        client.unload("m")
        until(lambda: client.model("m")["state"] == "unloaded", "the unload")
    assert any(progress["seconds_left"] is not None for progress in watch())


def test_the_event_stream_has_a_snapshot_and_can_be_resumed(shoal: Shoal) -> None:
    with shoal.http() as http, http.stream("GET", "/api/v1/events") as stream:
        lines = stream.iter_lines()
        id = next(line for line in lines if line.startswith("id: ")).removeprefix("id: ")
        assert next(lines) == "event: snapshot"
        snapshot = json.loads(next(lines).removeprefix("data: "))
        assert snapshot["version"] == 1
        assert snapshot["status"]["relays"] == 1
        assert any(device["id"] == "host" for device in snapshot["devices"])
    shoal.add("late")
    with shoal.http() as http, http.stream("GET", "/api/v1/events", headers={"last-event-id": id}) as stream:
        kinds = []
        for line in stream.iter_lines():
            if line.startswith("event: "):
                kinds.append(line.removeprefix("event: "))
            if line.startswith("data: ") and kinds[-1] == "model":
                assert json.loads(line.removeprefix("data: "))["name"] == "late"
                break
    assert "snapshot" not in kinds


def test_probes_metrics_docs_and_the_page(shoal: Shoal) -> None:
    shoal.add("m")
    shoal.load("m")
    shoal.chat("m")
    with shoal.http() as http:
        assert http.get("/health/live").json() == {"status": "live"}
        ready = http.get("/health/ready")
        assert (ready.status_code, ready.json()) == (200, {"status": "ready", "degraded": []})

        def counted() -> str:
            text = http.get("/metrics").text
            return text if 'shoal_relay_requests_total{model="m",outcome="ok"' in text else ""

        text = until(counted, "the request in the metrics")
        assert 'shoal_model_instances{model="m",state="ready"} 1.0' in text
        until(lambda: "shoal_engine_generation_tokens_total{" in http.get("/metrics").text, "the engine's metrics")
        schema = http.get("/api/openapi.json").json()
        assert "/api/v1/models/{name}/load" in schema["paths"]
        for path in ("/", "/api/docs"):
            page = http.get(path)
            assert page.status_code == 200
            assert "default-src 'none'" in page.headers["content-security-policy"]
        missing = http.get("/nothing")
        assert missing.status_code == 404
        assert missing.json()["error"]["code"] == "not_found"


def test_another_web_page_cannot_act(shoal: Shoal) -> None:
    shoal.add("m")
    with shoal.http() as http:
        foreign = http.post("/api/v1/models/m/load", headers={"origin": "https://evil.example"})
        assert foreign.status_code == 403
        rebound = http.get("/api/v1/models", headers={"host": "evil.example"})
        assert rebound.status_code == 403
        own = http.post("/api/v1/models/m/load", headers={"origin": shoal.url})
        assert own.status_code == 202


def test_logs_can_be_read_streamed_and_downloaded(shoal: Shoal) -> None:
    shoal.add("m", "--start-seconds", "0.2")
    shoal.load("m")
    (instance,) = shoal.model("m")["instances"]
    with shoal.client as client, shoal.http() as http:
        assert "Application startup complete" in client.logs(instance["id"])
        assert len(client.logs(instance["id"], tail=1).splitlines()) == 1
        whole = http.get(f"/api/v1/instances/{instance['id']}/logs?download=true")
        assert whole.headers["content-disposition"].endswith('.log"')
        assert "Application startup complete" in whole.text
        client.unload("m")
        lines, end = [], None
        for event in client.follow_logs(instance["id"]):
            if event.kind == "line":
                lines.append(event.data["text"])
            else:
                end = event
        assert any("Application startup complete" in line for line in lines)
        assert end is not None
        assert end.data == {"state": "stopped"}


def test_what_was_loaded_comes_back_after_a_restart() -> None:
    with a_shoal() as shoal:
        shoal.start()
        shoal.add("kept")
        shoal.add("idle")
        shoal.load("kept")
        assert shoal.stop() == 0
        shoal.start()
        shoal.wait("kept", "ready")
        assert shoal.model("idle")["state"] == "unloaded"
        with shoal.client as client:
            kinds = [event["kind"] for event in client.history()]
        assert "ready" in kinds
        assert "model_added" in kinds


@pytest.mark.slow
def test_an_idle_controller_with_a_hundred_models_is_small_and_quiet() -> None:
    models = {f"model-{number}": {"source": "anything"} for number in range(100)}
    with a_shoal(models=models) as shoal:
        shoal.start()
        controller = psutil.Process(shoal.pid("shoal.controller"))
        time.sleep(3)
        before, began = sum(controller.cpu_times()[:2]), time.monotonic()
        time.sleep(5)
        used = (sum(controller.cpu_times()[:2]) - before) / (time.monotonic() - began)
        memory = controller.memory_info().rss
        print(f"controller: {used:.2%} of a core, {memory / 2**20:.0f} MiB")
        assert memory <= 150 * 2**20
        assert used <= 0.03, "three times what is promised: other work on this machine must not fail the test"


def test_start_to_the_first_answer(tmp_path: Path) -> None:
    """What is promised is 2 s; the benchmark measures it, this only sees that it is no longer than a slow machine's."""
    with a_shoal(models={"m": {"source": "x", "load_on_start": True}}) as shoal:
        began = time.monotonic()
        shoal.start()
        until(lambda: shoal.chat("m").status_code == 200, "an answer")
        took = time.monotonic() - began
        print(f"start to first answer: {took:.2f} s")
        assert took < 20


def test_the_client_says_where_nothing_listens() -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(ShoalError, match="shoal serve"):
        client.models()
