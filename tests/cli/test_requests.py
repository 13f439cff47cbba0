"""`shoal requests`, with relays on a real socket behind the admin API."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvicorn

from shoal.api.app import make_app
from shoal.settings import Settings
from tests.cli.conftest import Run
from tests.fleet.relay import FakeRelay, Switchboard, switchboard, view

REQUESTS = (
    view("r-2", "other", tokens=7, instance="other-0", age=75.0),
    view("r-1", key="team", priority="high", phase="held", age=3.5, position=2),
)


class Served:
    """An admin API that has relays and nothing else, in a thread of its own."""

    def __init__(self, patience: float) -> None:
        self.board: Switchboard
        self.url = ""
        self._patience = patience
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._run()))

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(30)

    def connect(self, name: str, *requests: Any, silent: bool = False) -> FakeRelay:
        work = self.board.connect(name, requests, silent=silent)
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(30)
        self._loop.close()

    async def _run(self) -> None:
        async with switchboard(patience=self._patience) as self.board:
            controller = SimpleNamespace(
                settings=Settings(), store=SimpleNamespace(problem=None), relays=self.board.relays
            )
            config = uvicorn.Config(make_app(cast("Any", controller)), port=0, log_level="warning", lifespan="off")
            self._server = uvicorn.Server(config)
            serving = asyncio.create_task(self._server.serve())
            while not self._server.started:
                await asyncio.sleep(0.01)
            port = self._server.servers[0].sockets[0].getsockname()[1]
            self.url = f"http://127.0.0.1:{port}"
            self._ready.set()
            await serving


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    server = Served(patience=0.3)
    server.start()
    monkeypatch.setenv("SHOAL_URL", server.url)
    yield server
    server.stop()


def test_requests_are_listed_the_oldest_first(served: Served, run: Run) -> None:
    served.connect("a", *REQUESTS)
    for words in (("requests",), ("requests", "ls")):
        done = run(*words)
        assert done.exit_code == 0, done.stderr
        lines = [line.split() for line in done.stdout.splitlines()]
        assert lines[0] == ["REQUEST", "MODEL", "TENANT", "CLASS", "PHASE", "AGE", "TOKENS", "POSITION"]
        assert [line[0] for line in lines[1:3]] == ["r-2", "r-1"]
        assert lines[2][2:] == ["team", "high", "held", "3.5", "s", "0", "2"]
        assert "127.0.0.1" in lines[1]


def test_one_models_requests_as_json(served: Served, run: Run) -> None:
    served.connect("a", *REQUESTS)
    for words in (("requests", "--model", "m", "--json"), ("requests", "ls", "--model", "m", "--json")):
        found = json.loads(run(*words).stdout)
        assert [one["id"] for one in found["requests"]] == ["r-1"]
        assert found["silent"] == []


def test_nothing_waits(served: Served, run: Run) -> None:
    done = run("requests")
    assert (done.exit_code, done.stdout) == (0, "No request waits or runs.\n")


def test_a_request_is_cancelled_once(served: Served, run: Run) -> None:
    relay = served.connect("a", *REQUESTS)
    done = run("requests", "cancel", "r-1")
    assert (done.exit_code, done.stdout) == (0, "Cancelled r-1.\n")
    assert [request.id for request in relay.requests] == ["r-2"]
    again = run("requests", "cancel", "r-1", "--json")
    assert again.exit_code == 4
    assert json.loads(again.stderr)["error"]["code"] == "request_not_found"
    assert json.loads(run("requests", "cancel", "r-2", "--json").stdout) == {"id": "r-2", "cancelled": True}


def test_a_relay_that_does_not_answer_is_named(served: Served, run: Run) -> None:
    served.connect("a", *REQUESTS)
    served.connect("mute", silent=True)
    done = run("requests")
    assert done.exit_code == 0
    assert "relay mute did not say in time" in done.stderr
    assert "r-1" in done.stdout
    refused = run("requests", "cancel", "r-9")
    assert refused.exit_code == 1
    assert "did not say in time" in refused.stderr


def test_options_before_the_command_are_not_ignored(served: Served, run: Run) -> None:
    done = run("requests", "--model", "m", "cancel", "r-1")
    assert done.exit_code == 2
    assert "options go behind cancel" in done.stderr


def test_without_shoal_it_says_what_to_do(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("requests", "--url", "http://127.0.0.1:1")
    assert done.exit_code == 3
    assert "start Shoal" in done.stderr
