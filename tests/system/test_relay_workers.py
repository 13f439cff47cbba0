"""Several relays on one port, in a whole Shoal: each ends and comes back alone, and drains wait for all of them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from shoal.settings import Settings
from shoal.supervisor import StartError, listen
from tests.system.harness import PATIENCE, Shoal, a_shoal, children, until

WORKERS = 3
CONNECTIONS = 64
"""So many connections that one worker gets none of them: (2 / 3) ** 64 is 5e-12, three times that for any of them."""


@pytest.fixture
def shoal() -> Iterator[Shoal]:
    with a_shoal(relay_workers=WORKERS, drain_timeout=30) as shoal:
        yield shoal.start()


def relays(shoal: Shoal) -> set[int]:
    """The relay processes that run."""
    assert shoal.process is not None
    found = set()
    for pid in children(shoal.process.pid):
        with contextlib.suppress(OSError):
            if "shoal.gateway" in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
                found.add(pid)
    return found


def connected(shoal: Shoal) -> int:
    with shoal.client as client:
        return int(client.status()["relays"])


def served(shoal: Shoal) -> Counter[int]:
    """Requests for the model `m` that ended well, by the process that carried them."""
    with shoal.http() as http:
        text = http.get("/metrics").text
    line = re.compile(r'^shoal_relay_requests_total\{model="m",outcome="ok",.*relay="(\d+)-\w+"\} (\S+)$', re.MULTILINE)
    return Counter({int(pid): int(float(count)) for pid, count in line.findall(text)})


def ask(shoal: Shoal, times: int) -> None:
    """Requests over connections of their own."""
    for _ in range(times):
        assert shoal.chat("m").status_code == 200


def test_requests_are_spread_and_a_worker_that_dies_comes_back_alone(shoal: Shoal) -> None:
    shoal.add("m")
    shoal.load("m")
    workers = relays(shoal)
    assert len(workers) == WORKERS
    assert connected(shoal) == WORKERS
    ask(shoal, CONNECTIONS)
    until(lambda: served(shoal).total() == CONNECTIONS, "the counts")
    assert set(served(shoal)) == workers

    killed = min(workers)
    os.kill(killed, signal.SIGKILL)
    # Whichever connections came to the dead one's socket wait there for its successor; none is refused.
    ask(shoal, CONNECTIONS)
    until(lambda: len(relays(shoal) - {killed}) == WORKERS, "the successor")
    now = relays(shoal)
    assert now >= workers - {killed}, "the others were started again too"
    until(lambda: connected(shoal) == WORKERS, "its connection")
    ask(shoal, CONNECTIONS)
    until(lambda: set(served(shoal)) == now, "requests on all of them")
    assert shoal.stop() == 0
    assert f"the relay {sorted(workers).index(killed) + 1} ended (-9)" in shoal.text


def test_status_and_readiness_say_how_many_there_are(shoal: Shoal) -> None:
    others = relays(shoal)
    killed = max(others)
    others.discard(killed)

    def degraded() -> list[str] | None:
        """What readiness says of relays. None: the connection was one that waits for the worker that is away."""
        with contextlib.suppress(httpx2.TimeoutException, httpx2.RemoteProtocolError), shoal.http() as http:
            answer = http.get("/health/ready", timeout=1)
            assert answer.status_code == 200
            return [line for line in answer.json()["degraded"] if "relays" in line]
        return None

    until(lambda: degraded() == [], "readiness")

    def said() -> bool:
        """Whether the warning is there. Its successors are killed too, each after a longer delay than the last."""
        for pid in relays(shoal) - others:
            os.kill(pid, signal.SIGKILL)
        return any(line.startswith(f"{WORKERS - 1} of {WORKERS} relays are connected") for line in degraded() or ())

    until(said, "the warning")
    until(lambda: degraded() == [], "the end of the warning")
    assert others < relays(shoal)


def test_an_unload_waits_for_the_requests_of_every_worker(shoal: Shoal) -> None:
    shoal.add("m", "--tokens-per-second", "50")
    shoal.load("m")
    body = {
        "model": "m",
        "stream": True,
        "max_tokens": 100,
        "ignore_eos": True,
        "messages": [{"role": "user", "content": "hello"}],
    }
    with contextlib.ExitStack() as stack:
        streams = []
        for _ in range(12):
            http = stack.enter_context(shoal.http())
            response = stack.enter_context(http.stream("POST", "/v1/chat/completions", json=body))
            assert response.status_code == 200
            streams.append(response)
        with shoal.client as client:
            client.unload("m")
        answers = ["".join(stream.iter_text()) for stream in streams]
    assert all(answer.rstrip().endswith("data: [DONE]") for answer in answers)
    until(lambda: not shoal.model("m")["instances"], "the end of the engine")
    assert "no request runs any more" in shoal.text
    until(lambda: served(shoal).total() == len(answers), "the counts")
    assert len(served(shoal)) > 1


def test_a_second_shoal_on_the_port_is_refused_whatever_its_workers(shoal: Shoal) -> None:
    port = int(shoal.url.rpartition(":")[2])
    for workers in (1, 2):
        with a_shoal(port=port, relay_workers=workers) as other:
            process = other.launch()
            text, _ = process.communicate(timeout=PATIENCE)
            assert process.returncode == 1
            assert f"port {port} on 127.0.0.1 cannot be used" in text


def test_a_stop_ends_all_at_once(shoal: Shoal) -> None:
    workers = relays(shoal)
    assert shoal.stop() == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_flags_name_workers_and_relay() -> None:
    with a_shoal() as shoal:
        shoal.start(
            "--relay-workers", "2", "--relay", "aiohttp", "--hold-timeout", "5", "--cors-origin", "https://a.test"
        )
        assert len(relays(shoal)) == 2
        arguments = Path(f"/proc/{min(relays(shoal))}/cmdline").read_text()
        assert '"hold_timeout": 5.0' in arguments
        assert '"cors_origins": ["https://a.test"]' in arguments
        assert "\0--relay\0aiohttp\0" in arguments
        shoal.add("m")
        shoal.load("m")
        ask(shoal, 4)
        assert shoal.stop() == 0


def test_a_relay_that_does_not_exist_is_refused_by_name() -> None:
    with a_shoal() as shoal:
        process = shoal.launch("--relay", "haproxy", "--relay-workers", "0")
        text, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 2
        assert "relay: Input should be 'native' or 'aiohttp'" in text
        assert "relay_workers: Input should be greater than or equal to 1" in text


# -- the sockets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [1, 3])
@pytest.mark.parametrize("second", [1, 3])
def test_nobody_else_gets_the_port(first: int, second: int) -> None:
    ours = listen(Settings(port=0, relay_workers=first))
    try:
        ports = {listener.getsockname()[1] for listener in ours}
        assert len(ports) == 1
        assert len(ours) == first
        with pytest.raises(StartError, match="does another Shoal run there"):
            listen(Settings(port=ports.pop(), relay_workers=second))
    finally:
        for listener in ours:
            listener.close()


def test_one_that_has_the_port_shared_is_seen_too() -> None:
    """A program that lets others share its port must not get half of the requests."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(StartError):
            listen(Settings(port=other.getsockname()[1], relay_workers=2))


def test_a_port_is_free_again_at_once() -> None:
    with contextlib.ExitStack() as stack:
        first = [stack.enter_context(listener) for listener in listen(Settings(port=0, relay_workers=4))]
        port = first[0].getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            pass
    with contextlib.ExitStack() as stack:
        assert len([stack.enter_context(listener) for listener in listen(Settings(port=port, relay_workers=2))]) == 2
