"""Models that are moved in a whole Shoal, and clients that ask them meanwhile."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx2

from shoal.client import Client
from tests.system.harness import PATIENCE, Shoal, a_shoal, until
from tests.system.test_break_controller import engines

GIB = 2**30
HERE, THERE = "simulated:0", "simulated:1"


@contextlib.contextmanager
def three_devices() -> Iterator[Shoal]:
    """A running Shoal with three pretended devices."""
    with a_shoal(simulated_devices=["80GiB", "80GiB", "80GiB"], drain_timeout=20) as shoal:
        yield shoal.start()


def loaded(shoal: Shoal, name: str = "m", *args: str, **settings: Any) -> str:
    """A model that serves on the first device; its instance."""
    shoal.add(name, "--device-memory", "10GiB", *args, **{"devices": [HERE], **settings})
    shoal.load(name)
    (one,) = shoal.wait(name, "ready")
    return str(one["id"])


def finished(client: Client, id: str) -> dict[str, Any]:
    """The move, once it has ended."""
    return until(lambda: m if (m := client.move(id))["state"] not in ("waiting", "running") else None, "its end") or {}


def at(client: Client, id: str, step: str) -> None:
    """Until the move is at a step."""
    until(lambda: client.move(id)["legs"][0]["step"] == step, f"the step {step}")


def metrics(shoal: Shoal) -> str:
    """What is measured now."""
    with shoal.http() as http:
        return http.get("/metrics").text


def why(shoal: Shoal, id: str) -> str:
    """Why an instance of the model is as it is."""
    return next((str(i["reason"]) for i in shoal.model("m")["instances"] if i["id"] == id), "")


def alone(shoal: Shoal, name: str = "m", **wanted: Any) -> dict[str, Any]:
    """The model's only instance, which serves; nothing else is left of it."""
    one: dict[str, Any] = {}

    def look() -> bool:
        found = shoal.model(name)["instances"]
        one.update(found[0] if found else {})
        return len(found) == 1 and one["state"] == "ready" and engines(shoal) == 1

    until(look, f"one instance of {name}")
    assert shoal.model(name)["desired"] == 1
    assert shoal.chat(name).status_code == 200
    assert {key: one[key] for key in wanted} == wanted
    return one


class Clients:
    """Clients that ask without a pause until told to stop; half of them for streams. `faults`: what was not well."""

    def __init__(self, shoal: Shoal, count: int, model: str = "m") -> None:
        self.faults: list[str] = []
        self.answered = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._url = shoal.url
        self._model = model
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(count)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        until(lambda: self.answered > len(self._threads), "the first answers")
        return self

    def __exit__(self, *_: object) -> None:
        before = self.answered
        with contextlib.suppress(AssertionError):
            until(lambda: self.answered > before + 2 * len(self._threads) or self.faults, "answers afterwards")
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in self._threads)
        assert not self.faults, self.faults[:3]
        assert self.answered > before, "nobody was answered afterwards"

    def _ask(self, number: int) -> None:
        stream = number % 2 == 1
        body = {
            "model": self._model,
            "prompt": f"hello {number}",
            "max_tokens": 10,
            "ignore_eos": True,
            "stream": stream,
        }
        with httpx2.Client(base_url=self._url, timeout=PATIENCE, trust_env=False) as http:
            while not self._stop.is_set():
                try:
                    answer = http.post("/v1/completions", json=body)
                    wrong = self._wrong(answer, stream)
                except Exception as error:  # whatever it is, the test is to see it
                    wrong = repr(error)
                with self._lock:
                    self.answered += 1
                    if wrong:
                        self.faults.append(wrong)

    def _wrong(self, answer: httpx2.Response, stream: bool) -> str:
        if answer.status_code != 200:
            return f"{answer.status_code} {answer.text}"
        if not stream:
            tokens = answer.json()["usage"]["completion_tokens"]
            return "" if tokens == 10 else f"{tokens} tokens"
        chunks = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
        if not chunks or chunks[-1] != "[DONE]":
            return f"a stream that broke off: {answer.text[-200:]}"
        ids = {json.loads(chunk)["id"] for chunk in chunks[:-1]}
        return "" if len(ids) == 1 else f"answered by several: {ids}"


def answered_by(client: Client, id: str) -> int:
    """Requests that an engine has answered, by its own log."""
    return sum('"POST /v1/completions HTTP/1.1" 200' in line for line in client.logs(id, tail=20_000).splitlines())
