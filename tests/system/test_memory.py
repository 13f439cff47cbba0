"""Memory shared through the broker: seen, steered, and free again when an engine or the broker is killed."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from shoal.errors import ShoalError
from tests.system.harness import Shoal, a_shoal, until

MIB = 2**20
GIB = 2**30
DEVICE = {"devices": ["simulated:0"]}
PROMPT = "word " * 400


def a_device(**settings: Any) -> Any:
    return a_shoal(simulated_devices=[GIB], memory_headroom="0%", **settings)


def memory(shoal: Shoal, name: str) -> dict[str, Any]:
    """The memory of a model's only instance."""
    (instance,) = shoal.model(name)["instances"]
    found: dict[str, Any] = instance["memory"]
    return found


def pool(shoal: Shoal) -> dict[str, Any]:
    """The pool of the pretended device; empty while the broker does not know it."""
    with shoal.client as client:
        (device,) = [device for device in client.devices() if device["id"] == "simulated:0"]
    return device["pool"] or {}


def leased(shoal: Shoal, name: str) -> None:
    """Wait until a model's instance is known to the broker."""
    until(lambda: memory(shoal, name)["lease"] is not None, "a lease")


def another_broker(shoal: Shoal, old: int) -> None:
    """Wait for the successor of a broker that was killed."""
    until(lambda: _pid(shoal) not in (0, old), "the next broker")


def ask(shoal: Shoal, model: str, prompt: str = PROMPT, tokens: int = 4) -> int:
    body = {"model": model, "prompt": prompt, "max_tokens": tokens}
    with shoal.http() as http:
        return http.post("/v1/completions", json=body).status_code


def test_leases_are_seen_and_cached_memory_goes_where_it_is_needed() -> None:
    with a_device() as shoal:
        shoal.start()
        shoal.add("a", "--kv-cache-tokens", "4096", floor=8 * MIB, **DEVICE)
        shoal.add("fixed", elastic="off", **DEVICE)
        for name in ("a", "fixed"):
            shoal.load(name)
        leased(shoal, "a")
        seen = memory(shoal, "a")
        assert (seen["mode"], seen["floor"], seen["ceiling"], seen["priority"]) == ("elastic", 8 * MIB, None, 100)
        assert memory(shoal, "fixed")["mode"] == "fixed"
        assert memory(shoal, "fixed")["reason"] == "elastic is off"
        assert ask(shoal, "a") == 200
        cached = until(lambda: memory(shoal, "a")["cached"], "a cached prefix")
        (lease,) = memory(shoal, "a")["leases"]
        assert lease["device"] == "simulated:0"
        assert lease["backed"] >= cached
        assert pool(shoal)["cached"] == cached
        with shoal.http() as http:
            text = http.get("/metrics").text
        assert "shoal_memory_broker_connected 1.0" in text
        assert (
            f'shoal_memory_cached_bytes{{device="simulated:0",instance="{_id(shoal, "a")}",model="a",rank="0"}}' in text
        )
        assert 'shoal_memory_device_leased_bytes{device="simulated:0",kind="simulated"}' in text
        assert shoal.stop() == 0


def test_terms_change_while_it_runs_and_stay() -> None:
    with a_device() as shoal:
        shoal.start()
        shoal.add("a", floor=8 * MIB, **DEVICE)
        shoal.add("b", floor=600 * MIB, **DEVICE)
        for name in ("a", "b"):
            shoal.load(name)
            leased(shoal, name)
        before = shoal.model("a")["instances"][0]["pid"]
        with shoal.client as client:
            client.change_model("a", {"floor": "16MiB", "ceiling": "64MiB", "priority": 7})
            until(lambda: memory(shoal, "a")["priority"] == 7, "the new terms")
            now = memory(shoal, "a")
            assert (now["floor"], now["ceiling"]) == (16 * MIB, 64 * MIB)
            (instance,) = shoal.model("a")["instances"]
            assert not instance["outdated"]
            assert instance["pid"] == before
            with pytest.raises(ShoalError, match="floors already given") as refused:
                client.change_model("a", {"floor": "900MiB", "ceiling": None})
            assert refused.value.status == 409
            assert client.model("a")["spec"]["floor"] == 16 * MIB, "what was refused changes nothing"
            with pytest.raises(ShoalError, match="is above the ceiling of 64"):
                client.change_model("a", {"floor": "128MiB"})
            os.kill(before, signal.SIGKILL)
        until(lambda: shoal.model("a")["instances"][0]["pid"] not in (None, before), "the next engine")
        shoal.wait("a", "ready")
        until(lambda: memory(shoal, "a")["priority"] == 7, "its terms")
        assert shoal.stop() == 0


def test_a_killed_engine_leaves_nothing_leased() -> None:
    with a_device(restart_delay=60) as shoal:
        shoal.start()
        shoal.add("a", floor=8 * MIB, **DEVICE)
        shoal.load("a")
        assert ask(shoal, "a") == 200
        until(lambda: pool(shoal).get("leased"), "a lease")
        os.kill(shoal.model("a")["instances"][0]["pid"], signal.SIGKILL)
        until(lambda: pool(shoal)["leased"] == 0, "its lease")
        assert shoal.stop() == 0


def test_a_broker_killed_under_load_fails_no_request_and_learns_what_is_leased() -> None:
    with a_device() as shoal:
        shoal.start()
        for name in ("a", "b"):
            shoal.add(name, "--tokens-per-second", "200", floor=8 * MIB, **DEVICE)
            shoal.load(name)
            leased(shoal, name)
        stop = threading.Event()

        def load(number: int) -> list[int]:
            answers: list[int] = []
            while not stop.is_set():
                answers.append(ask(shoal, "ab"[number % 2], f"{number} {len(answers)} {PROMPT}", tokens=20))
            return answers

        with ThreadPoolExecutor(4) as threads:
            running = [threads.submit(load, number) for number in range(4)]
            try:
                until(lambda: pool(shoal).get("used"), "load")
                for _ in range(2):
                    old = shoal.pid("broker")
                    os.kill(old, signal.SIGKILL)
                    another_broker(shoal, old)
                    until(lambda: memory(shoal, "a")["lease"] and memory(shoal, "b")["lease"], "what they hold")
            finally:
                stop.set()
            codes = [code for future in running for code in future.result()]
        assert codes
        assert set(codes) == {200}
        held = until(lambda: _agree(shoal), "sums that agree")
        assert held <= GIB
        assert shoal.stop() == 0


def test_a_start_takes_the_room_of_what_is_only_cached() -> None:
    with a_device() as shoal:
        shoal.start()
        shoal.add("a", "--kv-cache-tokens", "8192", **DEVICE)
        shoal.load("a")
        assert ask(shoal, "a", "word " * 2800) == 200
        until(lambda: pool(shoal).get("cached", 0) >= 300 * MIB, "a long prefix in the cache")
        shoal.add("big", "--device-memory", "800MiB", elastic="off", pin=True, **DEVICE)
        shoal.load("big")
        until(lambda: memory(shoal, "a")["backed"] <= GIB - 800 * MIB, "its cached memory")
        until(lambda: pool(shoal)["held_back"] == 0, "the end of what was held back")
        shoal.add("too-big", "--device-memory", "300MiB", **DEVICE)
        with shoal.client as client:
            client.load("too-big")
        (failed,) = shoal.wait("too-big", "failed")
        assert failed["failure"]["code"] == "too_little_memory"
        assert "needs 300.0 MiB on simulated:0" in failed["failure"]["message"]
        assert shoal.stop() == 0


def _id(shoal: Shoal, name: str) -> str:
    return str(shoal.model(name)["instances"][0]["id"])


def _pid(shoal: Shoal) -> int:
    try:
        return shoal.pid("broker")
    except AssertionError:
        return 0


def _agree(shoal: Shoal) -> int:
    """What is leased, once device and instances say the same."""
    leased = int(pool(shoal).get("leased") or 0)
    return leased if leased == sum(memory(shoal, name)["lease"] or 0 for name in "ab") else 0
