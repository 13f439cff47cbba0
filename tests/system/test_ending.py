"""How a Shoal ends: running requests to their end, and what was used stored to the last of them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import pytest

from tests.system.harness import PATIENCE, Shoal, a_shoal, until

TOKENS = 40
"""Of the stream that runs meanwhile."""


@pytest.fixture(params=["native", "aiohttp"])
def either(request: pytest.FixtureRequest) -> Iterator[Shoal]:
    """A Shoal with either relay, and a model of which a stream takes two seconds."""
    with a_shoal(relay=request.param) as shoal:
        shoal.start()
        shoal.add("m", "--tokens-per-second", "20")
        shoal.load("m")
        yield shoal


@pytest.fixture
def keyed(shoal: Shoal) -> tuple[Shoal, dict[str, str]]:
    """A Shoal with a model and a key, and the headers that show it."""
    shoal.add("m", "--tokens-per-second", "20")
    shoal.load("m")
    with shoal.client as client:
        key = client.create_key({"name": "me"})["key"]
    until(lambda: shoal.chat("m").status_code == 401, "the key at the relay")
    return shoal, {"Authorization": f"Bearer {key}"}


@contextmanager
def streaming(shoal: Shoal, headers: dict[str, str] | None = None) -> Iterator[Iterator[str]]:
    """A stream that has begun; the rest of its lines."""
    messages = [{"role": "user", "content": "x"}]
    body = {"model": "m", "messages": messages, "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
    with (
        shoal.http(headers=headers or {}) as http,
        http.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        assert response.status_code == 200
        lines = response.iter_lines()
        next(lines)
        yield lines


def used(shoal: Shoal) -> tuple[int, int]:
    """Requests and tokens of answers that are stored, as the next `shoal serve` knows them."""
    shoal.start()
    with shoal.client as client:
        total = client.usage(key="me")["total"]
    assert shoal.stop() == 0
    return total["requests"], total["completion_tokens"]


def ask(shoal: Shoal, headers: dict[str, str], times: int) -> None:
    """Requests one after the other, of which all but the first are not reported before a second has passed."""
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    with shoal.http(headers=headers) as http:
        for _ in range(times):
            assert http.post("/v1/chat/completions", json=body).status_code == 200


def test_what_was_used_in_the_last_second_is_stored(keyed: tuple[Shoal, dict[str, str]]) -> None:
    shoal, headers = keyed
    with streaming(shoal, headers) as lines:
        ask(shoal, headers, 3)
        assert shoal.process is not None
        shoal.process.send_signal(signal.SIGTERM)
        assert list(lines)[-2:] == ["data: [DONE]", ""]
    assert shoal.process.wait(PATIENCE) == 0
    assert used(shoal) == (4, 3 + TOKENS)


def test_it_is_stored_even_if_the_controller_is_down(keyed: tuple[Shoal, dict[str, str]]) -> None:
    shoal, headers = keyed
    ask(shoal, headers, 1)
    time.sleep(0.2)  # its report is on its way alone
    ask(shoal, headers, 3)
    os.kill(shoal.pid("shoal.controller"), signal.SIGKILL)
    assert shoal.process is not None
    shoal.process.send_signal(signal.SIGTERM)
    assert shoal.process.wait(PATIENCE) == 0
    assert used(shoal) == (4, 4)


def test_streams_end_whole_while_nobody_new_is_let_in(either: Shoal) -> None:
    with streaming(either) as lines:
        assert either.process is not None
        either.process.send_signal(signal.SIGTERM)

        def refused() -> bool:
            try:
                either.chat("m")
            except httpx2.ConnectError:
                return True
            except httpx2.HTTPError:
                return False
            return False

        until(refused, "the refusal of new connections")
        answer = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert answer[-1]["choices"][0]["finish_reason"] == "length"
    assert either.process.wait(PATIENCE) == 0
    assert not either.fleet_processes()


def test_who_watches_events_holds_up_no_end(either: Shoal) -> None:
    with either.http() as http, http.stream("GET", "/api/v1/events") as response:
        assert response.status_code == 200
        next(response.iter_lines())
        began = time.monotonic()
        assert either.stop() == 0
        assert time.monotonic() - began < 20, "not the 30 s that running requests get"


def test_a_request_that_lasts_too_long_is_told_so() -> None:
    with a_shoal(drain_timeout=0.5) as shoal:
        shoal.start()
        shoal.add("m", "--tokens-per-second", "2")
        shoal.load("m")
        with streaming(shoal) as lines:
            assert shoal.process is not None
            shoal.process.send_signal(signal.SIGTERM)
            said: list[str] = []
            with pytest.raises(httpx2.RemoteProtocolError):  # nothing that looks whole
                said += (line for line in lines if line)
        assert json.loads(said[-1].removeprefix("data: "))["error"]["code"] == "relay_stopping"
        assert shoal.process.wait(PATIENCE) == 0
