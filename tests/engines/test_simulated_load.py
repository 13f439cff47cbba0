"""The simulated engine under load, asleep, and with adapters."""

from __future__ import annotations

import asyncio
import time

import psutil

from shoal.engines.simulated import text
from shoal.engines.simulated.adapter import SimulatedEngine
from tests.engines.simulated_process import CHAT, Process

PROMPT = "user: hello there"
COMPLETION = {"model": "fish", "prompt": "once upon a time"}


async def test_requests_beyond_max_num_seqs_wait_and_metrics_show_it() -> None:
    with Process(("--max-num-seqs", "1", "--tokens-per-second", "5")) as engine:
        await engine.ready()
        body = {**CHAT, "max_tokens": 1000, "ignore_eos": True}
        requests = [asyncio.create_task(engine.post("/v1/chat/completions", body)) for _ in range(3)]
        await engine.samples_to("vllm:num_requests_waiting", 2)
        metrics = SimulatedEngine().read_metrics((await engine.get("/metrics")).text)
        assert (metrics.requests_running, metrics.requests_waiting) == (1, 2)
        assert metrics.kv_usage is not None
        assert 0 < metrics.kv_usage < 1
        await asyncio.sleep(0)
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)
        await engine.samples_to("simulated:cancelled_total", 3)
        await engine.samples_to("vllm:num_requests_running", 0)
        assert await engine.sample("vllm:num_requests_waiting") == 0


async def test_counters_add_up() -> None:
    with Process() as engine:
        await engine.ready()
        answers = await asyncio.gather(*(engine.post("/v1/chat/completions", CHAT) for _ in range(8)))
        metrics = SimulatedEngine().read_metrics((await engine.get("/metrics")).text)
        assert metrics.prompt_tokens_total == 8 * 3
        assert metrics.generation_tokens_total is not None
        assert metrics.generation_tokens_total == sum(a.json["usage"]["completion_tokens"] for a in answers)
        assert metrics.steps_total is not None
        assert text.natural_length(PROMPT, 0) <= metrics.steps_total <= metrics.generation_tokens_total
        assert (metrics.requests_running, metrics.requests_waiting, metrics.kv_usage) == (0, 0, 0)
        assert metrics.preemptions_total == 0
        assert await engine.sample("vllm:time_to_first_token_seconds_count") == 8
        long = {"model": "fish", "prompt": " ".join(map(str, range(64)))}
        for _ in range(2):
            await engine.post("/v1/completions", long)
        assert await engine.sample("vllm:prefix_cache_hits_total") == 64


async def test_a_full_cache_preempts_and_everybody_still_gets_all_tokens() -> None:
    sizes = ("--model-len", "64", "--kv-cache-tokens", "64", "--tokens-per-second", "0")
    with Process(sizes) as engine:
        await engine.ready()
        body = {**CHAT, "max_tokens": 50, "ignore_eos": True}
        answers = await asyncio.gather(*(engine.post("/v1/chat/completions", body) for _ in range(4)))
        contents = {answer.json["choices"][0]["message"]["content"] for answer in answers}
        assert contents == {text.answer(PROMPT, 50)}
        assert await engine.sample("vllm:num_preemptions_total") > 0


async def test_speed_and_first_token_are_as_asked() -> None:
    with Process(("--tokens-per-second", "50", "--ttft", "0.4")) as engine:
        await engine.ready()
        started = time.monotonic()
        await engine.post("/v1/chat/completions", {**CHAT, "max_tokens": 30, "ignore_eos": True})
        assert time.monotonic() - started >= 0.4 + 29 / 50 - 0.05
        assert await engine.sample("vllm:time_to_first_token_seconds_sum") >= 0.4


async def test_a_client_that_leaves_ends_its_request() -> None:
    with Process(("--tokens-per-second", "20")) as engine:
        await engine.ready()
        body = {**CHAT, "stream": True, "max_tokens": 10_000, "ignore_eos": True}
        async with engine.session() as session:
            response = await session.post("/v1/chat/completions", json=body)
            await response.content.readline()
            assert await engine.sample("simulated:cancelled_total") == 0
            response.close()
        left = time.monotonic()
        await engine.samples_to("simulated:cancelled_total", 1)
        assert time.monotonic() - left < 10
        assert await engine.sample("vllm:num_requests_running") == 0


async def test_a_slow_reader_does_not_fill_memory_or_stop_others() -> None:
    with Process(("--tokens-per-second", "0", "--model-len", "200000", "--disable-uvicorn-access-log")) as engine:
        await engine.ready()
        _, writer = await asyncio.open_unix_connection(str(engine.socket))
        body = b'{"model":"fish","prompt":"x","max_tokens":100000,"ignore_eos":true,"stream":true}'
        head = b"POST /v1/completions HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n"
        writer.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        await engine.samples_to("vllm:generation_tokens_total", 100_000)
        assert (await engine.post("/v1/chat/completions", CHAT)).status == 200
        assert psutil.Process(engine.popen.pid).memory_info().rss < 200 * 2**20
        writer.transport.abort()
        await engine.samples_to("simulated:cancelled_total", 1)


async def test_sleep_frees_memory_and_requests_wait_for_the_waking() -> None:
    with Process(("--enable-sleep-mode", "--memory", "200MiB")) as engine:
        await engine.ready()
        resident = psutil.Process(engine.popen.pid).memory_info
        assert resident().rss > 200 * 2**20
        assert (await engine.post("/sleep?level=2")).json == {"status": "sleeping", "level": 2}
        assert (await engine.get("/is_sleeping")).json == {"is_sleeping": True}
        assert resident().rss < 150 * 2**20
        request = asyncio.create_task(engine.post("/v1/chat/completions", CHAT))
        await engine.samples_to("vllm:num_requests_waiting", 1)
        assert not request.done()
        assert (await engine.post("/wake_up")).json["status"] == "awake"
        assert (await request).json["choices"][0]["message"]["content"] == text.answer(PROMPT)
        assert resident().rss > 200 * 2**20
        assert (await engine.get("/is_sleeping")).json == {"is_sleeping": False}


async def test_sleep_aborts_or_keeps_what_runs() -> None:
    with Process(("--tokens-per-second", "100"), env={"VLLM_SERVER_DEV_MODE": "1"}) as engine:
        await engine.ready()
        body = {**CHAT, "max_tokens": 60, "ignore_eos": True}
        for mode, reason, tokens in (("abort", "abort", None), ("keep", "length", 60), ("wait", "length", 60)):
            request = asyncio.create_task(engine.post("/v1/chat/completions", body))
            await engine.samples_to("vllm:num_requests_running", 1)
            assert (await engine.post(f"/sleep?mode={mode}")).status == 200
            assert request.done() or mode != "wait" or await engine.sample("vllm:num_requests_running") == 0
            await engine.post("/wake_up")
            answer = (await request).json
            assert answer["choices"][0]["finish_reason"] == reason
            assert tokens is None or answer["usage"]["completion_tokens"] == tokens
        assert (await engine.post("/sleep?level=9")).status == 400


async def test_a_sleep_that_frees_nothing() -> None:
    with Process(("--enable-sleep-mode", "--memory", "100MiB", "--fail", "sleep-keeps-memory")) as engine:
        await engine.ready()
        assert (await engine.post("/sleep")).status == 200
        assert psutil.Process(engine.popen.pid).memory_info().rss > 100 * 2**20


async def test_lora_adapters_become_models() -> None:
    with Process(("--enable-lora",)) as engine:
        await engine.ready()
        load = {"lora_name": "fin", "lora_path": "/fin"}
        assert (await engine.post("/v1/load_lora_adapter", load)).status == 200
        assert (await engine.post("/v1/load_lora_adapter", load)).status == 400
        assert [m["id"] for m in (await engine.get("/v1/models")).json["data"]] == ["fish", "fin"]
        assert (await engine.post("/v1/chat/completions", {**CHAT, "model": "fin"})).json["model"] == "fin"
        assert (await engine.post("/v1/unload_lora_adapter", {"lora_name": "fin"})).status == 200
        assert (await engine.post("/v1/unload_lora_adapter", {"lora_name": "fin"})).status == 404
        assert (await engine.post("/v1/chat/completions", {**CHAT, "model": "fin"})).status == 404
