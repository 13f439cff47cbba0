"""What the relay says when an engine dies under many requests."""

from __future__ import annotations

import os
import re
import signal
import threading

import httpx2

from tests.system.harness import Shoal, until

STREAMS = 12


def test_an_engine_that_dies_under_many_requests_is_a_line_and_a_count(shoal: Shoal) -> None:
    shoal.add("m", "--tokens-per-second", "5", "--max-num-seqs", str(STREAMS))
    shoal.load("m")
    (instance,) = shoal.wait("m", "ready")
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 500, "ignore_eos": True}
    statuses: list[int] = []

    def ask() -> None:
        with shoal.http() as http:
            statuses.append(http.post("/v1/chat/completions", json=body).status_code)

    def running() -> int:
        with shoal.client as client:
            return len(client.requests(phase="waiting")["requests"])

    threads = [threading.Thread(target=ask) for _ in range(STREAMS)]
    for thread in threads:
        thread.start()
    until(lambda: running() == STREAMS, "the requests at the engine")
    os.kill(instance["pid"], signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert statuses == [httpx2.codes.BAD_GATEWAY] * STREAMS

    def told() -> list[str]:
        return [line for line in shoal.text.splitlines() if f"{instance['id']} of 'm' broke off" in line]

    def counted() -> int:
        return sum(int(match[1]) if (match := re.search(r"one of (\d+) more", line)) else 1 for line in told())

    until(lambda: counted() == STREAMS, "the count")
    assert len(told()) == 2
    assert shoal.stop() == 0
