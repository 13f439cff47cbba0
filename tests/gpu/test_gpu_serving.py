"""The whole path on a GPU: two models share it, give it back, and come back from a crash."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from tests.system.harness import Shoal, a_shoal, until

GIB = 2**30
START = 400.0


def settings(model: Path, interpreter: str, **more: Any) -> dict[str, Any]:
    return {
        "engine": "vllm",
        "source": str(model),
        "environment": interpreter,
        "devices": ["cuda:0"],
        "context_length": 2048,
        "args": ["--load-format", "dummy", "--max-num-seqs", "16"],
        "env": {"VLLM_USE_FLASHINFER_SAMPLER": "0"},
        **more,
    }


def used(shoal: Shoal) -> int:
    """Bytes in use on the GPU."""
    with shoal.client as client:
        return int(next(device["memory_used"] for device in client.devices() if device["id"] == "cuda:0"))


def test_two_models_on_one_gpu(model: Path, interpreter: str) -> None:
    with a_shoal(health_interval=1) as shoal:
        shoal.start()
        empty = used(shoal)
        with shoal.client as client:
            for name in ("a", "b"):
                client.add_model({"name": name, **settings(model, interpreter, kv_cache_memory="2GiB")})
                client.load(name)
        began = time.monotonic()
        for name in ("a", "b"):
            (instance,) = shoal.wait(name, "ready", seconds=START)
            print(f"{name} ready after {time.monotonic() - began:.1f} s, GPU holds {used(shoal) / GIB:.2f} GiB")
            assert instance["devices"] == ["cuda:0"]
            assert shoal.chat(name).status_code == 200
        until(lambda: used(shoal) > empty + 4 * GIB, "both in the GPU's memory")
        with shoal.client as client:
            loads = {load["model"]: load for load in client.loads()}
        print({name: (round(load["seconds"], 1), load["phases"]) for name, load in loads.items()})
        assert loads["b"]["started_at"] >= loads["a"]["started_at"] + loads["a"]["seconds"] - 0.1, "one after the other"

        (before,) = shoal.wait("a", "ready")
        os.kill(before["pid"], signal.SIGKILL)
        until(lambda: shoal.model("a")["instances"][0]["restarts"] == 1, "the crash")
        assert shoal.chat("b").status_code == 200
        (after,) = shoal.wait("a", "ready", seconds=START)
        assert after["id"] == before["id"]
        assert shoal.chat("a").status_code == 200

        with shoal.client as client:
            for name in ("a", "b"):
                client.unload(name)
        until(lambda: used(shoal) <= empty + GIB // 8, "the memory back")
        print(f"GPU holds {used(shoal) / GIB:.2f} GiB after both were unloaded, {empty / GIB:.2f} before")
        assert shoal.stop() == 0


def test_a_model_without_a_limit_leaves_room_for_what_is_there(model: Path, interpreter: str) -> None:
    """vLLM would take nine tenths of the GPU; beside a neighbour it takes what is free, less a margin."""
    with a_shoal() as shoal:
        shoal.start()
        with shoal.client as client:
            client.add_model({"name": "first", **settings(model, interpreter, kv_cache_memory="8GiB")})
            client.add_model({"name": "rest", **settings(model, interpreter)})
            for name in ("first", "rest"):
                client.load(name)
        for name in ("first", "rest"):
            shoal.wait(name, "ready", seconds=START)
            assert shoal.chat(name).status_code == 200
        print(f"GPU holds {used(shoal) / GIB:.2f} GiB")
        assert shoal.stop() == 0


def test_what_does_not_fit_is_refused_with_the_sum(model: Path, interpreter: str) -> None:
    with a_shoal() as shoal:
        shoal.start()
        with shoal.client as client:
            client.add_model({"name": "huge", **settings(model, interpreter, kv_cache_memory="900GiB")})
            client.load("huge")
        (instance,) = shoal.wait("huge", "failed", seconds=30)
        assert instance["failure"]["code"] == "too_little_memory"
        assert "huge needs 90" in instance["failure"]["message"]
        assert "cuda:0" in instance["failure"]["message"]
