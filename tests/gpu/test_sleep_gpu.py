"""Host copies of weights in vLLM on a real GPU, in the shape of Llama-3.1-8B with few layers (no weights are read)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from shoal.bench import devices
from tests.gpu.test_elastic_gpu import Engine, an_engine

GIB, MIB = 2**30, 2**20
LOAD = {"count": 16, "length": 128, "tokens": 32, "seed": 3, "vocabulary": 128256}
SMALL = {
    "enable_sleep_mode": True,
    "enforce_eager": True,
    "enable_prefix_caching": False,
    "hf_overrides": {"num_hidden_layers": 8},
}


@contextmanager
def a_small_engine(folder: Path, **settings: Any) -> Iterator[Engine]:
    with an_engine(folder, **SMALL, **settings) as engine:
        yield engine


def copies(engine: Engine, what: str) -> dict[str, Any]:
    found: dict[str, Any] = engine.tell({"call": "shoal_copies", "with": [what]})["results"][0]
    return found


def take(engine: Engine) -> float:
    """Have the copy taken in the background; the seconds."""
    began = time.monotonic()
    found = copies(engine, "take")
    while found["held"] < found["size"]:
        assert not found["reason"], found
        assert time.monotonic() - began < 120
        time.sleep(0.02)
        found = copies(engine, "look")
    assert found["size"] > 4 * GIB
    return time.monotonic() - began


def test_a_copy_is_kept_over_sleeps_and_tokens_stay_the_same(tmp_path: Path) -> None:
    gpu = devices.gpu()
    with a_small_engine(tmp_path) as engine:
        before = engine.tell(LOAD)["tokens_hash"]
        print(f"copied in the background in {take(engine):.2f} s")
        awake = gpu.used
        host = []
        for number in range(5):
            slept = engine.tell({"sleep": 1})["seconds"]
            asleep = gpu.used
            host.append(psutil.virtual_memory().available)
            woke = engine.tell({"wake": True})["seconds"]
            print(f"slept in {slept:.3f} s, {asleep / GIB:.2f} of {awake / GIB:.2f} GiB left, woke in {woke:.3f} s")
            assert asleep < awake - 4 * GIB
            assert engine.tell(LOAD)["tokens_hash"] == before, f"after sleep {number}"
            assert copies(engine, "look")["held"] == copies(engine, "look")["size"]
        assert host[-1] > host[0] - GIB, "no second copy"


def test_a_changed_weight_is_found_and_copied_again(tmp_path: Path) -> None:
    with a_small_engine(tmp_path) as engine:
        before = engine.tell(LOAD)["tokens_hash"]
        take(engine)
        engine.tell({"change": True})
        changed = engine.tell(LOAD)["tokens_hash"]
        assert changed != before
        engine.tell({"sleep": 1})
        engine.tell({"wake": True})
        assert engine.tell(LOAD)["tokens_hash"] == changed, "the change has survived the sleep"


def test_a_copy_is_given_back_and_taken_by_the_next_sleep(tmp_path: Path) -> None:
    with a_small_engine(tmp_path) as engine:
        before = engine.tell(LOAD)["tokens_hash"]
        take(engine)
        with_copy = psutil.virtual_memory().available
        assert copies(engine, "forget")["held"] == 0
        deadline = time.monotonic() + 20
        while psutil.virtual_memory().available < with_copy + 3 * GIB:
            assert time.monotonic() < deadline, "the host's memory came back"
            time.sleep(0.05)
        print(f"slept without a copy in {engine.tell({'sleep': 1})['seconds']:.2f} s")
        assert "these are its weights" in copies(engine, "forget")["reason"]
        engine.tell({"wake": True})
        assert engine.tell(LOAD)["tokens_hash"] == before
        assert engine.tell({"sleep": 1})["seconds"] < 1
        engine.tell({"wake": True})
        assert engine.tell(LOAD)["tokens_hash"] == before


def test_dropped_weights_leave_the_copy_alone(tmp_path: Path) -> None:
    """At level 2 vLLM drops the weights. What is on the device afterwards is not what was copied, and is found out."""
    with a_small_engine(tmp_path) as engine:
        take(engine)
        engine.tell({"sleep": 2})
        assert copies(engine, "take")["reason"] == "the engine sleeps"
        engine.tell({"wake": True})
        held = copies(engine, "look")
        assert held["held"] == held["size"]
        slow = engine.tell({"sleep": 1})["seconds"]
        engine.tell({"wake": True})
        quick = engine.tell({"sleep": 1})["seconds"]
        print(f"slept in {slow:.3f} s with other weights, in {quick:.3f} s with the same")
        assert quick < slow


def test_what_a_worker_says_that_it_gave_back_is_what_came_back(tmp_path: Path) -> None:
    gpu = devices.gpu()
    with a_small_engine(tmp_path) as engine:
        engine.tell(LOAD)
        for level in (1, 2, 1):
            awake, used = holds(engine), gpu.used
            assert 4 * GIB < awake["held"] < used
            engine.tell({"sleep": level})
            asleep, left = holds(engine), gpu.used
            print(
                f"level {level}: it says {awake['held'] / GIB:.3f} GiB, then {asleep['held'] / GIB:.3f}; in use are "
                f"{used / GIB:.3f}, then {left / GIB:.3f}; asked in {holds(engine)['seconds'] * 1e3:.1f} ms"
            )
            assert asleep["pages"] == 0
            assert abs((awake["held"] - asleep["held"]) - (used - left)) < 64 * MIB
            engine.tell({"wake": True})
            woken = holds(engine)
            # The weights are back; what torch only cached until the sleep is not.
            assert asleep["held"] + 4 * GIB < woken["held"] < awake["held"] + 64 * MIB


def holds(engine: Engine) -> dict[str, Any]:
    """What its worker says, and the seconds that it took to."""
    began = time.monotonic()
    found: dict[str, Any] = engine.tell({"call": "shoal_holds", "with": []})["results"][0]
    assert "held" in found, found
    return {**found, "seconds": time.monotonic() - began}
