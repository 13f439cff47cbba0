"""A key's limits hold for the endpoint, however many relays serve it: also when one is killed, and when they change."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

from tests.system.harness import PATIENCE, Shoal, a_shoal, until
from tests.system.test_relay_workers import relays

WORKERS = 3
REQUESTS = 60
"""So many connections that one worker gets none: (2 / 3) ** 60 is 3e-11, three times that for any of them."""


class Stream:
    """A request with a connection of its own, whose answer is not read to its end."""

    def __init__(self, shoal: Shoal, key: str) -> None:
        host, port = urlsplit(shoal.url).hostname, urlsplit(shoal.url).port
        body = msgspec.json.encode(
            {
                "model": "m",
                "stream": True,
                "max_tokens": 2000,
                "ignore_eos": True,
                "messages": [{"role": "user", "content": "hello"}],
            }
        )
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: shoal\r\nAuthorization: Bearer {key}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.socket = socket.create_connection((host, port), timeout=PATIENCE)
        self.socket.sendall(head.encode() + body)
        self.status = int(self.socket.makefile("rb", buffering=0).readline().split()[1])

    @property
    def ended(self) -> bool:
        """Whether the relay has gone; what has come is read."""
        self.socket.setblocking(False)
        try:
            while self.socket.recv(65536):
                pass
        except BlockingIOError:
            return False
        except ConnectionError:
            pass
        return True

    def close(self) -> None:
        self.socket.close()


@pytest.fixture(params=["native", "aiohttp"])
def shoal(request: pytest.FixtureRequest) -> Iterator[Shoal]:
    with a_shoal(relay_workers=WORKERS, relay=request.param) as shoal:
        shoal.start()
        shoal.add("m", "--tokens-per-second", "20")
        shoal.load("m")
        yield shoal


def make_key(shoal: Shoal, name: str, **limits: Any) -> str:
    """A key that every relay knows, as far as so many connections tell."""
    with shoal.client as client:
        key = str(client.create_key({"name": name, **limits})["key"])
    in_a_row = 0

    def known() -> bool:
        nonlocal in_a_row
        with shoal.http() as http:
            without = http.get("/v1/models").status_code
            listed = http.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code
        in_a_row = in_a_row + 1 if (without, listed) == (401, 200) else 0
        return in_a_row == 30

    until(known, "the key at every relay")
    return key


def ask(shoal: Shoal, key: str) -> int:
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
    with shoal.http(headers={"Authorization": f"Bearer {key}"}) as http:
        return http.post("/v1/chat/completions", json=body).status_code


def all_without(shoal: Shoal, killed: int) -> bool:
    """Whether as many relays run as should, and none of them is the one that was killed."""
    return len(relays(shoal) - {killed}) == WORKERS


def test_requests_a_minute_over_all_connections(shoal: Shoal) -> None:
    limit = 10
    key = make_key(shoal, "alice", requests_per_minute=limit)
    began = time.monotonic()
    answers = Counter(ask(shoal, key) for _ in range(REQUESTS // 2))
    os.kill(min(relays(shoal)), signal.SIGKILL)  # what it let in stays counted
    with contextlib.suppress(Exception):  # the connection may be that one's
        answers[ask(shoal, key)] += 1
    answers += Counter(ask(shoal, key) for _ in range(REQUESTS // 2))
    paid = math.ceil(limit * (time.monotonic() - began) / 60)
    assert set(answers) == {200, 429}
    assert limit <= answers[200] <= limit + paid
    with shoal.client as client:
        client.edit_key("alice", {"requests_per_minute": None})
    until(lambda: Counter(ask(shoal, key) for _ in range(20)) == {200: 20}, "the end of the limit")


def test_requests_at_once_over_all_connections(shoal: Shoal) -> None:
    limit = 4
    key = make_key(shoal, "alice", concurrent=limit)
    with contextlib.ExitStack() as stack:
        streams: list[Stream] = []

        def fill(times: int = 20) -> Counter[int]:
            """Begin so many more, and keep those that were let in; what they were told."""
            asked = [stack.enter_context(contextlib.closing(Stream(shoal, key))) for _ in range(times)]
            streams.extend(stream for stream in asked if stream.status == 200)
            return Counter(stream.status for stream in asked)

        assert fill(REQUESTS) == {200: limit, 429: REQUESTS - limit}
        for killed in sorted(relays(shoal)):
            os.kill(killed, signal.SIGKILL)
            until(partial(all_without, shoal, killed), "its successor")
            lost = sum(stream.ended for stream in streams)
            streams[:] = [stream for stream in streams if not stream.ended]
            assert fill() == Counter({200: lost, 429: 20 - lost})
        with shoal.client as client:
            client.edit_key("alice", {"concurrent": limit + 2})
        more = 0

        def raised() -> bool:
            nonlocal more
            more += fill()[200]
            return more == 2

        until(raised, "the higher limit")
        other = make_key(shoal, "bob", concurrent=1)
        with shoal.client as client:
            client.revoke_key("alice")
        assert not any(stream.ended for stream in streams)
        until(lambda: Counter(ask(shoal, key) for _ in range(20)) == {401: 20}, "the end of the key")
        assert not any(stream.ended for stream in streams), "a revoked key's requests end by themselves"
        with contextlib.closing(Stream(shoal, other)) as stream:
            assert stream.status == 200
