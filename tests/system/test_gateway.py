"""The gateway in a whole Shoal: models that requests wake, keys, the list of requests, and load with models coming and
going beneath."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import psutil
import pytest
from typer.testing import CliRunner

from shoal.cli.app import app
from shoal.errors import ShoalError
from tests.system.harness import PATIENCE, Shoal, until

Run = Callable[..., str]
CHAT = "/v1/chat/completions"
REFUSALS = {(429, "queue_full"), (429, "queue_timeout"), (503, "model_not_ready")}
"""What a client may be told, as documented, while models come and go and there is no key."""


@pytest.fixture
def run(shoal: Shoal, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `shoal …` against the test's Shoal; what it prints."""
    monkeypatch.setenv("SHOAL_URL", shoal.url)
    monkeypatch.setenv("COLUMNS", "160")

    def invoke(*args: str) -> str:
        result = CliRunner().invoke(app, list(args), prog_name="shoal")
        assert result.exit_code == 0, result.stderr
        return str(result.stdout)

    return invoke


def asks(model: str, **options: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": model, "messages": [{"role": "user", "content": "hello there"}], "max_tokens": 4, **options}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def requests(shoal: Shoal) -> list[dict[str, Any]]:
    """What waits or runs."""
    with shoal.client as client:
        found: list[dict[str, Any]] = client.requests()["requests"]
        return found


# -- models that come --------------------------------------------------------------------------------------------------


def test_a_request_has_its_model_loaded_and_is_answered(shoal: Shoal, run: Run) -> None:
    shoal.add("m", "--start-seconds", "1")
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(shoal.chat, "m") for _ in range(5)]
        until(lambda: len([one for one in requests(shoal) if one["phase"] == "held"]) == 5, "five held requests")
        assert "held" in run("requests", "ls")
        answers = [one.result() for one in waiting]
    assert [answer.status_code for answer in answers] == [200] * 5
    assert all(float(answer.headers["x-shoal-wake-ms"]) > 0 for answer in answers)
    with shoal.client as client:
        assert len([event for event in client.history() if event["kind"] == "load_on_request"]) == 1
        client.unload("m")
        until(lambda: not shoal.model("m")["instances"], "its end")
    with shoal.http() as http:
        answer = http.post(CHAT, json=asks("m"), headers={"x-shoal-hold": "off"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_ready")
        assert int(answer.headers["retry-after"]) >= 1
        shoal.wait("m", "ready")  # it was asked for all the same
        with http.stream("POST", CHAT, json=asks("m", stream=True)) as stream:
            assert stream.read().endswith(b"data: [DONE]\n\n")


def test_a_model_that_cannot_start_lets_nobody_wait(shoal: Shoal) -> None:
    shoal.add("m", "--fail", "start-exit")
    for _ in range(2):
        answer = shoal.chat("m")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_ready")
        assert "could not be run" in answer.json()["error"]["message"]


# -- keys --------------------------------------------------------------------------------------------------------------


def test_a_key_from_the_command_line_to_the_usage_that_it_had(shoal: Shoal, run: Run) -> None:
    shoal.add("m")
    shoal.add("n")
    shoal.load("m")
    key = run("keys", "create", "alice", "--model", "m").strip()
    until(lambda: shoal.chat("m").status_code == 401, "the key at the relay")
    with shoal.http(headers=bearer(key)) as http:
        answer = http.post(CHAT, json=asks("m"))
        assert answer.status_code == 200
        with http.stream("POST", CHAT, json=asks("m", stream=True)) as stream:
            events = stream.read()
        assert b'"usage":{' not in events.replace(b" ", b"")
        assert http.post(CHAT, json=asks("n")).json()["error"]["code"] == "model_not_allowed"
        assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["m"]
        seen = http.post("/v1/echo", json={"model": "m"}).json()
        assert not [name for name, _ in seen["headers"] if name.lower() in ("authorization", "x-api-key")]
        assert key not in json.dumps(seen)
    prompt = answer.json()["usage"]["prompt_tokens"]

    def counted() -> Any:
        total = json.loads(run("usage", "--by", "key,model", "--key", "alice", "--json"))
        return total if total["total"] and total["total"]["requests"] == 3 else None

    usage = until(counted, "the usage")["usage"]
    (row,) = usage
    assert (row["key_name"], row["model"], row["prompt_tokens"], row["completion_tokens"]) == (
        "alice", "m", 2 * prompt, 8,
    )  # fmt: skip
    assert "alice" in run("usage", "--by", "key")
    run("keys", "revoke", "alice")
    until(lambda: shoal.chat("m").status_code == 200, "the last key's end at the relay")


def test_a_new_relay_asks_for_keys_while_the_controller_is_away(shoal: Shoal, run: Run) -> None:
    shoal.add("m")
    shoal.load("m")
    key = run("keys", "create", "me").strip()
    until(lambda: shoal.chat("m").status_code == 401, "the key at the relay")
    before = psutil.Process(shoal.pid("shoal.gateway"))
    os.kill(shoal.pid("shoal.controller"), signal.SIGSTOP)  # it is there and says nothing
    try:
        before.kill()
        until(lambda: not before.is_running(), "its end")
        assert shoal.chat("m").json()["error"]["code"] == "key_required"
        with shoal.http() as http:
            assert http.post(CHAT, json=asks("m"), headers=bearer(key + "x")).json()["error"]["code"] == "invalid_key"
            assert http.post(CHAT, json=asks("m"), headers=bearer(key)).status_code == 200
            assert http.get("/v1/models").status_code == 401
    finally:
        os.kill(shoal.pid("shoal.controller"), signal.SIGCONT)
    until(lambda: json.loads(run("usage", "--key", "me", "--json"))["total"], "usage from that time")


# -- requests ----------------------------------------------------------------------------------------------------------


def test_a_stream_is_listed_and_cancelled(shoal: Shoal, run: Run) -> None:
    shoal.add("m", "--tokens-per-second", "5")
    shoal.load("m")
    body = asks("m", stream=True, max_tokens=10_000)
    with shoal.http() as http, http.stream("POST", CHAT, json=body, headers={"x-request-id": "mine"}) as stream:
        chunks = stream.iter_bytes()
        got = next(chunks)

        def shown() -> dict[str, Any] | None:
            (one,) = json.loads(run("requests", "--json"))["requests"]
            return one if one["tokens"] >= 2 else None

        one = until(shown, "two tokens")
        assert one is not None
        assert (one["id"], one["model"], one["phase"], one["path"]) == ("mine", "m", "answering", CHAT)
        assert "mine" in run("requests", "ls", "--model", "m")
        run("requests", "cancel", "mine")
        with pytest.raises(httpx2.RemoteProtocolError):  # it does not look whole
            for chunk in chunks:
                got += chunk
        assert b'"code":"request_cancelled"' in got
    assert CliRunner().invoke(app, ["requests", "cancel", "mine"]).exit_code == 4
    until(lambda: not requests(shoal), "its end")
    with shoal.http() as http:
        until(
            lambda: "shoal_engine_requests_running" not in _running(http.get("/metrics").text), "its end in the engine"
        )


def _running(text: str) -> str:
    """The lines of engines that have a request."""
    lines = [line for line in text.splitlines() if line.startswith("shoal_engine_requests_running{")]
    return "\n".join(line for line in lines if not line.endswith(" 0.0"))


# -- everything at once ------------------------------------------------------------------------------------------------


class Crowd:
    """Clients that send streams, plain requests and requests that they do not wait for, until told to stop."""

    def __init__(self, shoal: Shoal, models: list[str], seed: int) -> None:
        self._shoal = shoal
        self._models = models
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self.ends: Counter[object] = Counter()
        """How requests ended: "whole", "left", or status and code of a refusal."""
        self.wrong: list[str] = []

    @contextlib.contextmanager
    def at_work(self, clients: int) -> Iterator[None]:
        """So many of them, for as long as the block runs."""
        with ThreadPoolExecutor(clients) as pool:
            works = [pool.submit(self._work, random.Random(self._random.random())) for _ in range(clients)]
            try:
                yield
            finally:
                self._stop.set()
            for work in works:
                work.result()

    def _work(self, chance: random.Random) -> None:
        with self._shoal.http() as http:
            while not self._stop.is_set():
                try:
                    self._one(http, chance)
                except httpx2.HTTPError as error:
                    self.wrong.append(repr(error))

    def _one(self, http: httpx2.Client, chance: random.Random) -> None:
        streams, leaves = chance.random() < 0.6, chance.random() < 0.2
        body = asks(chance.choice(self._models), stream=streams, max_tokens=chance.randint(1, 20))
        headers = {"x-shoal-hold": "off"} if chance.random() < 0.2 else {}
        with http.stream("POST", CHAT, json=body, headers=headers) as answer:
            if answer.status_code != 200:
                answer.read()
                self.ends[answer.status_code, answer.json()["error"]["code"]] += 1
                return
            if leaves:
                next(answer.iter_bytes(1))
                self.ends["left"] += 1
                return
            content = answer.read()
        if streams:
            whole = content.endswith(b"data: [DONE]\n\n") and b'"error"' not in content
        else:
            whole = json.loads(content)["choices"][0]["finish_reason"] in ("stop", "length")
        if not whole:
            self.wrong.append(content[-300:].decode())
        self.ends["whole"] += 1


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_load_of_all_kinds_with_models_coming_and_going_ends_in_documented_ways_only(shoal: Shoal) -> None:
    models = ["a", "b", "c", "d"]
    for name in models:
        shoal.add(name, "--start-seconds", "0.2", "--max-num-seqs", "4", "--tokens-per-second", "200")
    crowd = Crowd(shoal, models, seed=4)
    chance = random.Random(5)
    changes = 0
    with crowd.at_work(16), shoal.client as client:
        end = time.monotonic() + 15
        while time.monotonic() < end:
            with contextlib.suppress(ShoalError):  # such as a load of what still ends
                name = chance.choice(models)
                client.load(name, instances=chance.randint(1, 2)) if chance.random() < 0.5 else client.unload(name)
                changes += 1
            time.sleep(chance.uniform(0.1, 0.8))
        for name in models:  # nobody is left waiting
            with contextlib.suppress(ShoalError):
                client.load(name)
    print(f"{dict(crowd.ends)} with {changes} changes")
    assert crowd.wrong == []
    assert set(crowd.ends) - {"whole", "left"} <= REFUSALS
    assert crowd.ends["whole"] > 100
    assert crowd.ends["left"] > 10
    assert changes > 10
    until(lambda: not requests(shoal), "the end of all requests", PATIENCE)
    assert "Traceback" not in shoal.text
    assert shoal.stop() == 0
