"""How the simulated engine sleeps and wakes, and the ways in which it fails to."""

from __future__ import annotations

import contextlib

import aiohttp
import pytest

from tests.engines.simulated_process import Process

COMPLETION = {"model": "fish", "prompt": "The capital of France is", "max_tokens": 1, "temperature": 0}
SLEEPS = ("--enable-sleep-mode", "--device-memory", "3GiB")


async def said(engine: Process) -> str:
    answer = await engine.post("/v1/completions", COMPLETION)
    assert answer.status == 200, answer.text
    return str(answer.json["choices"][0]["text"])


async def test_dropped_weights_have_to_be_read_again_before_it_answers_as_before() -> None:
    with Process(SLEEPS) as engine:
        await engine.ready()
        before = await said(engine)
        assert (await engine.post("/sleep?level=2")).status == 200
        assert await engine.sample("simulated:device_memory_bytes") == 0
        assert (await engine.post("/wake_up?tags=weights")).json == {"status": "awake", "tags": ["weights"]}
        assert (await engine.get("/is_sleeping")).json == {"is_sleeping": True}
        assert (await engine.post("/collective_rpc", {"method": "reload_weights"})).json == {"results": [None]}
        assert (await engine.post("/wake_up?tags=kv_cache")).status == 200
        assert (await engine.get("/is_sleeping")).json == {"is_sleeping": False}
        assert await said(engine) == before
        assert await engine.sample("simulated:device_memory_bytes") == 3 * 2**30
        await engine.post("/sleep?level=2")
        await engine.post("/wake_up")
        assert await said(engine) != before, "its weights are gone"
        assert (await engine.post("/collective_rpc", {"method": "other"})).status == 400


@pytest.mark.parametrize(("fault", "path"), [("sleep-fails", "/sleep"), ("wake-fails", "/wake_up")])
async def test_what_fails_answers_500(fault: str, path: str) -> None:
    with Process((*SLEEPS, "--fail", fault)) as engine:
        await engine.ready()
        assert (await engine.post("/sleep")).status == (500 if path == "/sleep" else 200)
        assert (await engine.post("/wake_up")).status == (500 if path == "/wake_up" else 200)
        assert (await engine.get("/is_sleeping")).json == {"is_sleeping": path == "/wake_up"}


async def test_a_wake_without_memory_ends_it() -> None:
    with Process((*SLEEPS, "--fail", "wake-oom")) as engine:
        await engine.ready()
        await engine.post("/sleep")
        answer = await engine.post("/wake_up")
        assert answer.status == 500
        assert "out of memory" in answer.text
        assert await engine.exit_code() == 1
        assert "torch.OutOfMemoryError" in engine.log


async def test_it_may_answer_otherwise_after_a_sleep_or_die_in_it() -> None:
    with Process((*SLEEPS, "--fail", "canary-differs")) as engine:
        await engine.ready()
        before = await said(engine)
        await engine.post("/wake_up")
        assert await said(engine) == before, "it has not slept"
        await engine.post("/sleep")
        await engine.post("/wake_up")
        assert await said(engine) != before
    with Process((*SLEEPS, "--fail", "dies-asleep=0")) as engine:
        await engine.ready()
        with contextlib.suppress(aiohttp.ClientError):  # it may die before it has answered
            await engine.post("/sleep")
        assert await engine.exit_code() == 1
