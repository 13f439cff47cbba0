"""The whole path with a real engine and a real model, through the official client."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil
import pytest
from platformdirs import user_cache_path

from shoal.errors import ShoalError
from tests.e2e.conftest import settings
from tests.e2e.elastic import START, cache_resident
from tests.system.harness import Shoal, until

FRANCE: Any = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
GIB = 2**30


@pytest.fixture
def client(real: Shoal) -> Any:
    with openai.OpenAI(base_url=f"{real.url}/v1", api_key="none", timeout=300) as client:
        yield client


def direct(real: Shoal) -> httpx2.Client:
    """Straight to the engine, past the relay."""
    (instance,) = real.wait("smollm2", "ready")
    return httpx2.Client(
        transport=httpx2.HTTPTransport(uds=instance["address"].removeprefix("unix:")), base_url="http://x", timeout=300
    )


def without_names(answer: Any) -> Any:
    """An answer less what is different every time."""
    if isinstance(answer, dict):
        return {
            key: without_names(value)
            for key, value in answer.items()
            if key not in ("id", "created", "system_fingerprint", "metrics")
        }
    return [without_names(item) for item in answer] if isinstance(answer, list) else answer


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="smollm2", messages=FRANCE, max_tokens=32, temperature=0)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 10


def test_a_stream_has_the_same_words_and_comes_in_pieces(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="smollm2", messages=FRANCE, max_tokens=32, temperature=0)
    pieces = list(
        client.chat.completions.create(
            model="smollm2",
            messages=FRANCE,
            max_tokens=32,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == whole.choices[0].message.content
    assert len(pieces) > 4
    assert pieces[-1].usage is not None


def test_completions_and_models(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="smollm2", prompt="The sea is", max_tokens=8, temperature=0)
    assert answer.choices[0].text.strip()
    (model,) = client.models.list()
    assert model.id == "smollm2"
    assert model.model_extra is not None
    assert model.model_extra["state"] == "ready"
    assert model.model_extra["context_length"] == 2048


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather at a place",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": FRANCE, "tools": [TOOL], "tool_choice": "none"}),
    ("/v1/chat/completions", {"messages": FRANCE, "tools": [TOOL], "tool_choice": "auto"}),
    ("/v1/chat/completions", {"messages": FRANCE, "logprobs": True, "top_logprobs": 2, "x_unknown_field": {"a": [1]}}),
    (
        "/v1/chat/completions",
        {
            "messages": [
                *FRANCE,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
                },
                {"role": "tool", "tool_call_id": "1", "content": "sunny"},
                {"role": "user", "content": [{"type": "text", "text": "And now?"}]},
            ]
        },
    ),
    ("/v1/completions", {"prompt": [1, 2, 3], "n": 2, "seed": 7}),
    ("/v1/chat/completions", {"messages": []}),
    ("/v1/chat/completions", {"messages": FRANCE, "max_tokens": -4}),
    ("/v1/embeddings", {"input": "hello"}),
    ("/v1/no/such/path", {}),
    ("/tokenize", {"prompt": "hello"}),
]


@pytest.mark.parametrize(("path", "body"), BODIES, ids=[f"{path}-{sorted(body)}" for path, body in BODIES])
def test_any_field_arrives_as_if_sent_to_the_engine_directly(real: Shoal, path: str, body: dict[str, Any]) -> None:
    sent = {"model": "smollm2", "max_tokens": 8, "temperature": 0, **body}
    with direct(real) as engine, real.http() as http:
        straight = engine.post(path, json=sent)
        relayed = http.post(path, json=sent)
    assert relayed.status_code == straight.status_code
    assert without_names(relayed.json()) == without_names(straight.json())
    assert relayed.headers["content-type"] == straight.headers["content-type"]


def test_embeddings_of_a_text_model_are_refused_in_the_engines_own_words(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model="smollm2", input="hello")
    assert "model_not_found" not in str(caught.value), "it is the engine that refuses, not Shoal"


def test_nothing_of_the_engine_listens_beyond_loopback(real: Shoal) -> None:
    (instance,) = real.wait("smollm2", "ready")
    engine = psutil.Process(instance["pid"])
    addresses = {
        connection.laddr.ip
        for process in (engine, *engine.children(recursive=True))
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses <= {"127.0.0.1", "::1"}


def test_its_memory_is_elastic_and_can_be_seen_and_steered(real: Shoal, client: openai.OpenAI) -> None:
    def memory() -> dict[str, Any]:
        (instance,) = real.model("smollm2")["instances"]
        found: dict[str, Any] = instance["memory"]
        return found

    def resident() -> int:
        (instance,) = real.model("smollm2")["instances"]
        found = (cache_resident(process.pid) for process in psutil.Process(instance["pid"]).children(recursive=True))
        return sum(size or 0 for size in found)

    assert (memory()["mode"], memory()["ceiling"]) == ("elastic", None)
    # Four different prompts, of 300 tokens and more, leave more than an idle engine keeps ready.
    for number in range(4):
        client.completions.create(model="smollm2", prompt=f"{number} a b c d e f g" * 40, max_tokens=1)
    cached = until(lambda: memory()["cached"], "cached prefixes")
    until(lambda: memory()["backed"] == resident() >= cached, "what the engine's process has, in the API")
    (lease,) = memory()["leases"]
    assert lease["device"] == "host"
    with real.http() as http:
        assert 'model="smollm2"' in next(
            line for line in http.get("/metrics").text.splitlines() if line.startswith("shoal_memory_backed_bytes{")
        )
    with real.client as api:
        api.change_model("smollm2", {"ceiling": cached})
        try:
            until(lambda: memory()["ceiling"] == cached and resident() <= cached, "the ceiling")
        finally:
            api.change_model("smollm2", {"ceiling": None})
    assert real.chat("smollm2").status_code == 200


def test_a_client_that_leaves_frees_the_engine(real: Shoal, client: openai.OpenAI) -> None:
    def running() -> float:
        with direct(real) as engine:
            lines = engine.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running{"))

    stream = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Count to one thousand."}],
        max_tokens=1500,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    until(lambda: running() == 1, "the request in the engine")
    stream.close()
    until(lambda: running() == 0, "the end of the request in the engine")


def test_the_controller_killed_under_load_costs_no_request(real: Shoal) -> None:
    before = real.model("smollm2")["instances"][0]
    statuses: list[int | str] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                statuses.append(real.chat("smollm2").status_code)
            except httpx2.HTTPError as error:
                statuses.append(repr(error))

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    until(lambda: len(statuses) >= 3, "the load")
    killed = real.pid("shoal.controller")
    os.kill(killed, signal.SIGKILL)
    until(lambda: not psutil.pid_exists(killed), "its end")

    def back() -> bool:
        with contextlib.suppress(ShoalError), real.client as client:
            return bool(client.status())
        return False

    until(back, "the new controller")
    count = len(statuses)
    until(lambda: len(statuses) >= count + 4, "more answers")
    stop.set()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200}
    (after,) = real.wait("smollm2", "ready")
    assert (after["id"], after["pid"]) == (before["id"], before["pid"])


def test_a_wrong_argument_fails_with_the_engines_reason(real: Shoal, source: Path) -> None:
    with real.client as client:
        client.add_model({"name": "wrong", **settings(source), "args": ["--no-such-flag"]})
        client.load("wrong")
    (instance,) = real.wait("wrong", "failed", seconds=START)
    assert instance["failure"]["code"] == "bad_argument"
    assert "--no-such-flag" in instance["failure"]["message"]
    with real.client as client:
        assert "--no-such-flag" in client.logs(instance["id"])
        client.remove_model("wrong", unload=True)


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"context_length": 10**7}, "context_too_long"), ({"source": "/does/not/exist"}, "source_not_found")],
)
def test_what_cannot_start_is_refused_before_the_engine_starts(
    real: Shoal, source: Path, changes: dict[str, Any], code: str
) -> None:
    with real.client as client:
        client.add_model({"name": "wrong", **settings(source), **changes})
        client.load("wrong")
        (instance,) = real.wait("wrong", "failed", seconds=20)
        assert instance["failure"]["code"] == code
        assert instance["pid"] is None
        client.remove_model("wrong", unload=True)


def test_an_engine_that_is_killed_comes_back(real: Shoal) -> None:
    (before,) = real.wait("smollm2", "ready")
    os.kill(before["pid"], signal.SIGKILL)
    until(lambda: real.model("smollm2")["instances"][0]["restarts"] == 1, "the crash")
    until(lambda: before["pid"] not in real.fleet_processes(), "its end")
    (after,) = real.wait("smollm2", "ready", seconds=START)
    assert after["id"] == before["id"]
    assert real.chat("smollm2").status_code == 200


def test_the_demo_answers_twice_within_its_memory_and_leaves_nothing(source: Path, real: Shoal) -> None:
    """Runs beside the Shoal of the other tests, as a person would run it: port 8000 or a free one."""
    del real
    demo = subprocess.Popen(
        [sys.executable, "-m", "shoal.cli", "demo", "--once"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    peak = 0

    def watch() -> None:
        nonlocal peak
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(demo.pid)
            while demo.poll() is None:
                used = 0
                for child in process.children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                        memory = child.memory_info()
                        used += memory.rss - memory.shared
                peak = max(peak, used)
                demo_done.wait(0.5)

    demo_done = threading.Event()
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    output, errors = demo.communicate(timeout=START)
    demo_done.set()
    watcher.join()
    assert demo.returncode == 0, errors
    assert "sardine → The capital of France is Paris" in output
    assert "herring → " in output
    print(f"the demo's processes held at most {peak / GIB:.2f} GiB")
    assert 0 < peak < 8 * GIB
    assert not demo_processes()


def test_ctrl_c_ends_the_demo_and_leaves_nothing(source: Path) -> None:
    del source
    demo = subprocess.Popen([sys.executable, "-m", "shoal.cli", "demo"], stdout=subprocess.PIPE, text=True)
    try:
        assert demo.stdout is not None
        for line in demo.stdout:
            if line.startswith("Endpoint "):
                break
        assert demo_processes(), "it stays up"
        demo.send_signal(signal.SIGINT)
        assert demo.wait(START) == 0
    finally:
        demo.kill()
        demo.wait()
        if demo.stdout is not None:
            demo.stdout.close()
    assert not demo_processes()


def demo_processes() -> list[int]:
    """What runs of the demo's own Shoal, engines included."""
    fleet_id = user_cache_path("shoal") / "demo" / "state" / "fleet-id"
    mark = f"SHOAL_FLEET={fleet_id.read_text()}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found
