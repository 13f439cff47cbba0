"""The simulated engine as a real process."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import openai
import psutil
import pytest

from shoal.engines.progress import ProgressTracker
from shoal.engines.simulated import text
from shoal.engines.simulated.adapter import SimulatedEngine
from shoal.errors import ShoalError
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Device, Exit
from tests.engines.simulated_process import CHAT, DEADLINE, Answer, Process, until

PROMPT = "user: hello there"
COMPLETION = {"model": "fish", "prompt": "once upon a time"}


def spec(*args: str, source: str = "any", **more: object) -> ModelSpec:
    return ModelSpec.model_validate({"name": "fish", "source": source, "engine": "simulated", "args": args, **more})


# Answers


async def test_chat() -> None:
    with Process() as engine:
        await engine.ready()
        first, second = [(await engine.post("/v1/chat/completions", CHAT)).json for _ in range(2)]
        assert first["object"] == "chat.completion"
        assert first["model"] == "fish"
        [choice] = first["choices"]
        assert choice["message"]["role"] == "assistant"
        assert choice["message"]["content"] == text.answer(PROMPT) == second["choices"][0]["message"]["content"]
        assert choice["finish_reason"] == "stop"
        usage = first["usage"]
        assert usage["prompt_tokens"] == 3
        assert usage["completion_tokens"] == text.natural_length(PROMPT, 0)
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


async def test_chat_stream_has_a_role_then_the_pieces_then_the_usage() -> None:
    with Process() as engine:
        await engine.ready()
        body = {**CHAT, "max_tokens": 4, "stream_options": {"include_usage": True}}
        role, *pieces, usage = await engine.stream("/v1/chat/completions", body)
        assert role["object"] == "chat.completion.chunk"
        assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(piece["choices"][0]["delta"]["content"] for piece in pieces) == text.answer(PROMPT, 4)
        assert [piece["choices"][0]["finish_reason"] for piece in pieces] == [None, None, None, "length"]
        assert usage["choices"] == []
        assert usage["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        assert len({event["id"] for event in (role, *pieces, usage)}) == 1
        assert all("usage" not in piece for piece in pieces)


async def test_completions_in_all_forms() -> None:
    with Process() as engine:
        await engine.ready()
        answer = (await engine.post("/v1/completions", COMPLETION)).json
        assert answer["object"] == "text_completion"
        assert answer["usage"]["completion_tokens"] <= 16, "vLLM's default"
        assert text.answer(COMPLETION["prompt"]).startswith(answer["choices"][0]["text"])
        pieces = await engine.stream("/v1/completions", {**COMPLETION, "max_tokens": 3})
        assert "".join(piece["choices"][0]["text"] for piece in pieces) == text.answer(COMPLETION["prompt"], 3)
        several = (await engine.post("/v1/completions", {**COMPLETION, "prompt": ["a b", "c"], "n": 2})).json
        assert [choice["index"] for choice in several["choices"]] == [0, 1, 2, 3]
        assert len({choice["text"] for choice in several["choices"]}) == 4
        assert several["usage"]["prompt_tokens"] == 3
        assert (await engine.post("/v1/completions", {**COMPLETION, "prompt": [1, 2, 3]})).status == 200
        long = (await engine.post("/v1/completions", {**COMPLETION, "max_tokens": 99, "ignore_eos": True})).json
        assert long["usage"]["completion_tokens"] == 99
        assert long["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [False, True])
async def test_stop_strings_end_an_answer_even_across_tokens(stream: bool) -> None:
    whole = text.answer(PROMPT)
    stop = whole[20:29]
    with Process() as engine:
        await engine.ready()
        body = {**CHAT, "stop": [stop, "never"]}
        if stream:
            _, *pieces = [event["choices"][0] for event in await engine.stream("/v1/chat/completions", body)]
            got, last = "".join(piece["delta"]["content"] for piece in pieces), pieces[-1]
        else:
            last = (await engine.post("/v1/chat/completions", body)).json["choices"][0]
            got = last["message"]["content"]
        assert got == whole[: whole.index(stop)]
        assert last["finish_reason"] == "stop"
        assert last["stop_reason"] == stop
        assert await engine.sample("vllm:num_requests_running") == 0


async def test_the_official_client_over_tcp() -> None:
    argv = [sys.executable, "-m", "shoal.engines.simulated", "--served-model-name", "a/b", "--port", "0"]
    process = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE):
            while not (match := re.search(rb"http://127\.0\.0\.1:(\d+)", await process.stdout.readline())):
                pass
            await process.stdout.readline()
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{int(match[1])}/v1", api_key="none") as client:
            assert [model.id async for model in client.models.list()] == ["a/b"]
            chat = await client.chat.completions.create(model="a/b", messages=[{"role": "user", "content": "hi"}])
            assert chat.choices[0].message.content == text.answer("user: hi")
            stream = await client.chat.completions.create(
                model="a/b",
                messages=[{"role": "user", "content": "hi"}],
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = [chunk async for chunk in stream]
            pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
            assert "".join(pieces) == text.answer("user: hi")
            assert chunks[-1].usage is not None
            assert chunks[-1].usage.completion_tokens == len(pieces) - 1
            with pytest.raises(openai.NotFoundError, match="does not exist"):
                await client.completions.create(model="other", prompt="x")
            with pytest.raises(openai.BadRequestError, match="does not support Embeddings"):
                await client.embeddings.create(model="a/b", input="x")
    finally:
        process.terminate()
        assert await process.wait() == 0


async def test_embeddings_where_the_task_is_embed() -> None:
    with Process(("--task", "embed")) as engine:
        await engine.ready()
        answer = (await engine.post("/v1/embeddings", {"model": "fish", "input": ["a b", "c", "a b"]})).json
        first, other, again = [item["embedding"] for item in answer["data"]]
        assert first == again != other
        assert sum(x * x for x in first) == pytest.approx(1)
        assert answer["usage"]["prompt_tokens"] == 5
        refused = await engine.post("/v1/chat/completions", CHAT)
        assert refused.status == 400
        assert "does not support Chat Completions API" in refused.text


async def test_small_endpoints() -> None:
    with Process(context_length=2048) as engine:
        await engine.ready()
        assert (await engine.get("/ping")).status == 200
        assert "version" in (await engine.get("/version")).json
        assert (await engine.get("/load")).json == {"server_load": 0}
        [model] = (await engine.get("/v1/models")).json["data"]
        assert (model["id"], model["root"], model["max_model_len"]) == ("fish", "any", 2048)
        tokens = (await engine.post("/tokenize", {"model": "fish", "prompt": "one two one"})).json
        assert tokens["count"] == 3
        assert tokens["tokens"][0] == tokens["tokens"][2]
        assert (await engine.post("/detokenize", {"tokens": tokens["tokens"]})).json == {"prompt": "one two one"}
        assert (await engine.get("/nothing")).json == {"detail": "Not Found"}
        assert (await engine.get("/v1/completions")).status == 405
        assert (await engine.post("/sleep")).status == 404, "only where it was asked for"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b'{"model":', 400, "JSON decode error"),
        (b"[]", 400, "valid dictionary"),
        (b"\xff", 400, "pars"),
        (b'{"model": "fish"}', 400, "Field required"),
        (b'{"model": "shark", "messages": []}', 404, "The model `shark` does not exist. Valid aliases: fish."),
        (b'{"model": {}, "messages": []}', 400, "valid string"),
        (b'{"model": "fish", "messages": "x"}', 400, "list of messages"),
        (b'{"model": "fish", "messages": [], "max_tokens": 0}', 400, "at least 1"),
        (b'{"model": "fish", "messages": [], "max_tokens": 9999999}', 400, "cannot be greater than max_model_len"),
        (b'{"model": "fish", "messages": [], "n": "x"}', 400, "valid integer"),
        (b'{"model": "fish", "messages": [], "stop": [1]}', 400, "list of strings"),
        (b'{"model": "fish", "messages": [], "stream_options": {}}', 200, "choices"),
        (b'{"model": "fish", "messages": [], "stream_options": {"include_usage": true}}', 400, "stream=True"),
        (b'{"model": "fish", "messages": [{"content": "' + b"x " * 40000 + b'"}]}', 400, "maximum context length"),
    ],
)
async def test_bad_requests(shared: Process, body: bytes, status: int, words: str) -> None:
    headers = {"content-type": "application/json"}
    answer = await shared.request("POST", "/v1/chat/completions", data=body, headers=headers)
    assert answer.status == status, answer.text
    if status == 200:
        assert words in answer.json
    else:
        assert words in answer.json["error"]["message"]
        assert answer.json["error"]["code"] == status


async def test_other_content_types_are_refused(shared: Process) -> None:
    answer = await shared.request("POST", "/v1/completions", data=b"{}", headers={"content-type": "text/plain"})
    assert (answer.status, "Unsupported Media Type" in answer.text) == (400, True)


@pytest.fixture(scope="module")
def shared() -> object:
    with Process() as engine:
        asyncio.run(engine.ready())
        yield engine


# Bytes


async def raw(engine: Process, data: bytes, *, pause_after: int | None = None) -> bytes:
    """What the engine says to exactly these bytes, until it closes."""
    reader, writer = await asyncio.open_unix_connection(str(engine.socket))
    writer.write(data[:pause_after])
    if pause_after is not None:
        await asyncio.sleep(0.05)
        writer.write(data[pause_after:])
    async with asyncio.timeout(DEADLINE):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_echo_shows_headers_as_they_came(shared: Process) -> None:
    fields = b"Host: h\r\nX-Odd: 1\r\nx-odd:  two \r\nContent-Length: 4\r\nConnection: close\r\n\r\n"
    head = b"PUT /v1/echo?a=%20b HTTP/1.1\r\n" + fields
    answer = await raw(shared, head + b"\x00\xff\r\n")
    echo = Answer(200, answer.partition(b"\r\n\r\n")[2].decode()).json
    assert echo["method"] == "PUT"
    assert echo["path"] == "/v1/echo?a=%20b"
    names = [["Host", "h"], ["X-Odd", "1"], ["x-odd", "two"], ["Content-Length", "4"], ["Connection", "close"]]
    assert echo["headers"] == names
    assert base64.b64decode(echo["body"]) == b"\x00\xff\r\n"


@pytest.mark.parametrize("cut", [1, 30, 90, 101, 110, 125])
async def test_chunked_bodies_however_they_are_cut(shared: Process, cut: int) -> None:
    head = b"POST /v1/echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    answer = await raw(shared, head + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: x\r\n\r\n", pause_after=cut)
    echo = Answer(200, answer.partition(b"\r\n\r\n")[2].decode()).json
    assert base64.b64decode(echo["body"]) == b"abcde"


async def test_pipelined_requests_are_answered_in_turn(shared: Process) -> None:
    one = b"GET /v1/echo?%d HTTP/1.1\r\nHost: h\r\n\r\n"
    answer = await raw(shared, one % 1 + one % 2 + b"GET /v1/echo?3 HTTP/1.0\r\n\r\n")
    assert re.findall(rb"/v1/echo\?(\d)", answer) == [b"1", b"2", b"3"]


async def test_expect_100_continue(shared: Process) -> None:
    head = (
        b"POST /v1/echo HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\n"
    )
    answer = await raw(shared, head + b"ok", pause_after=len(head))
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"what is this\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nbroken\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 70_000, 431),
        (b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\nabc\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: 999999999999\r\n\r\n", 413),
    ],
)
async def test_what_is_no_http_is_refused_and_hurts_nobody(shared: Process, data: bytes, status: int) -> None:
    assert (await raw(shared, data)).startswith(b"HTTP/1.1 %d " % status)
    assert (await shared.get("/health")).status == 200


# Load


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


# Sleep, memory, LoRA


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


# Start and end


async def test_a_start_takes_its_time_deaf_and_its_log_moves_the_progress() -> None:
    with Process(("--start-seconds", "1.5")) as engine:

        async def bound() -> bool:
            return engine.socket.exists()

        await until(bound, "the socket")
        with pytest.raises(aiohttp.ClientConnectionError):
            await engine.get("/health")
        await engine.ready()
        tracker = ProgressTracker(SimulatedEngine.milestones)
        phases = [tracker.progress(0).phase for line in engine.log.splitlines() if tracker.feed(line, 0)]
        assert tracker.progress(0).percent == 100
        assert len(phases) >= 5


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("start-exit", "engine_crashed"),
        ("oom", "out_of_memory"),
        ("bad-architecture", "unsupported_architecture"),
        ("context-too-long", "context_too_long"),
    ],
)
async def test_failed_starts_exit_1_and_are_explained(fault: str, code: str) -> None:
    with Process(("--fail", fault, "--start-seconds", "0.1")) as engine:
        assert await engine.exit_code() == 1
        failure = SimulatedEngine().explain(spec(), engine.log.splitlines(), Exit(code=1))
        assert failure.code == code
        assert failure.message
        assert failure.hint
        assert not engine.socket.exists()


async def test_a_context_beyond_the_model_fails_by_itself() -> None:
    with Process(("--model-len", "100"), context_length=101) as engine:
        assert await engine.exit_code() == 1
        assert SimulatedEngine().explain(spec(), engine.log.splitlines(), Exit(code=1)).code == "context_too_long"


@pytest.mark.parametrize("args", [("--nothing",), ("--fail", "x"), ("--fail", "hang-after"), ("--memory", "1 GB")])
async def test_bad_arguments_exit_2_and_are_explained(args: tuple[str, ...]) -> None:
    with Process(args) as engine:
        assert await engine.exit_code() == 2
        failure = SimulatedEngine().explain(spec(*args), engine.log.splitlines(), Exit(code=2))
        assert failure.code == "bad_argument"
        assert args[0] in failure.message
        assert SimulatedEngine().needs(spec(*args)) is None


def test_only_loopback_is_listened_on() -> None:
    argv = [sys.executable, "-m", "shoal.engines.simulated", "--host", "0.0.0.0", "--port", "0"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 2
    assert "loopback only" in done.stderr


def test_a_taken_port_is_said_and_exits_1() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        argv = [sys.executable, "-m", "shoal.engines.simulated", "--port", str(taken.getsockname()[1])]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 1
    assert "Address already in use" in done.stderr
    assert SimulatedEngine().explain(spec(), done.stderr.splitlines(), Exit(code=1)).code == "port_taken"


async def test_a_socket_in_use_is_left_alone_and_a_dead_one_replaced() -> None:
    with Process() as engine:
        await engine.ready()
        second = await asyncio.to_thread(
            subprocess.run, engine.launch.argv, capture_output=True, text=True, timeout=DEADLINE, check=False
        )
        assert second.returncode == 1
        assert "in use" in second.stderr
        assert (await engine.get("/health")).status == 200
        engine.popen.kill()
        engine.popen.wait()
        assert engine.socket.exists()
        engine.popen = subprocess.Popen(engine.launch.argv, stdout=subprocess.DEVNULL)
        await engine.ready()


async def test_sigterm_ends_running_requests_and_exits_0() -> None:
    with Process(("--tokens-per-second", "5")) as engine:
        await engine.ready()
        request = asyncio.create_task(engine.post("/v1/chat/completions", CHAT))
        await engine.samples_to("vllm:num_requests_running", 1)
        engine.popen.terminate()
        with pytest.raises(aiohttp.ClientError):
            await request
        assert await engine.exit_code() == 0
        assert not engine.socket.exists()


async def test_sigterm_while_starting() -> None:
    with Process(("--start-seconds", "600")) as engine:

        async def begun() -> bool:
            return "Starting to load" in engine.log or engine.socket.exists()

        await until(begun, "the start")
        await asyncio.sleep(0.3)  # until the signal handler is there
        engine.popen.terminate()
        assert await engine.exit_code() in (0, -signal.SIGTERM)


async def test_slow_shutdown_stops_accepting_first() -> None:
    with Process(("--slow-shutdown", "600")) as engine:
        await engine.ready()
        engine.popen.terminate()

        async def refused() -> bool:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                await engine.get("/health")
                return False
            return True

        await until(refused, "the socket to close")
        assert engine.popen.poll() is None


async def test_a_child_of_its_own_session_survives_what_ends_the_engine() -> None:
    with Process(("--spawn-child",)) as engine:
        await engine.ready()
        match = re.search(r"child pid=(\d+)", engine.log)
        assert match is not None
        child = psutil.Process(int(match[1]))
        assert os.getsid(child.pid) == child.pid
        child.terminate()
        engine.popen.terminate()
        assert await engine.exit_code() == 0
        assert child.is_running()
    child.wait(DEADLINE)


# Faults while serving


async def test_crash_in_the_middle_of_the_second_answer() -> None:
    with Process(("--fail", "crash-after=2", "--tokens-per-second", "5")) as engine:
        await engine.ready()
        assert (await engine.post("/v1/completions", {**COMPLETION, "max_tokens": 1})).status == 200
        with pytest.raises(aiohttp.ClientError):
            await engine.post("/v1/chat/completions", CHAT)
        assert await engine.exit_code() == 1
        assert "EngineDeadError" in engine.log


async def test_crash_after_seconds() -> None:
    with Process(("--fail", "crash-after=0.5s")) as engine:
        assert await engine.exit_code() == 1
        assert "Application startup complete" in engine.log


async def test_hang_after_requests_stops_health_too() -> None:
    with Process(("--fail", "hang-after=1")) as engine:
        await engine.ready()
        assert (await engine.post("/v1/chat/completions", CHAT)).status == 200
        second = asyncio.create_task(engine.post("/v1/chat/completions", CHAT))
        await asyncio.sleep(0.2)
        for request in (asyncio.create_task(engine.get("/health")), second):
            done, _ = await asyncio.wait([request], timeout=0.3)
            assert not done
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request


async def test_hang_steps_answers_health_but_makes_no_step() -> None:
    with Process(("--fail", "hang-steps=0")) as engine:
        await engine.ready()
        request = asyncio.create_task(engine.post("/v1/chat/completions", CHAT))
        await engine.samples_to("vllm:num_requests_running", 1)
        assert (await engine.get("/health")).status == 200
        assert await engine.sample("vllm:iteration_tokens_total_count") == 0
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)


async def test_ignored_sigterm_and_flooded_log() -> None:
    with Process(("--fail", "ignore-sigterm", "--fail", "log-flood=5000")) as engine:
        await engine.ready()
        assert engine.log.count("of a flood") == 5000
        engine.popen.terminate()

        async def ignored() -> bool:
            return "SIGTERM is ignored" in engine.log

        await until(ignored, "the signal to be seen")
        assert (await engine.get("/health")).status == 200


# The adapter


def test_sources() -> None:
    engine = SimulatedEngine()
    engine.check(spec(source="any/word"))
    engine.check(spec(source="/"))
    for missing in ("/does-not-exist", "./does-not-exist", "~/does-not-exist"):
        with pytest.raises(ShoalError) as refused:
            engine.check(spec(source=missing))
        assert (refused.value.code, refused.value.status) == ("source_not_found", 400)


def test_needs_and_capabilities() -> None:
    engine = SimulatedEngine()
    assert engine.needs(spec()) == 0
    assert engine.needs(spec("--memory", "1GiB", "--device-memory=3GiB", kv_cache_memory="1GiB")) == 4 * 2**30
    assert engine.needs(spec("--memory", "nonsense")) is None
    assert not engine.capabilities(spec()).sleep
    assert engine.capabilities(spec("--enable-sleep-mode")).sleep
    assert engine.capabilities(spec("--enable-lora")).lora


def test_launch_passes_arguments_word_for_word_and_shoal_s_own_win() -> None:
    engine = SimulatedEngine()
    model = spec("--uds", "/elsewhere", "--ttft", "1", source="-odd", context_length=9, env={"A": "b"})
    environment = engine.environment(model, [Device("cuda:0", "cuda", "GPU", 1, 0)])
    assert (environment.name, environment.python, environment.variant) == ("simulated", Path(sys.executable), "cuda")
    launch = engine.launch(model, instance="i", address="tcp:127.0.0.1:5", devices=(), environment=environment)
    start = launch.argv.index("shoal.engines.simulated") + 1
    assert launch.argv[start:] == (
        *("--uds", "/elsewhere", "--ttft", "1"),
        *("--model=-odd", "--served-model-name=fish", "--host=127.0.0.1", "--port=5", "--max-model-len=9"),
    )
    assert launch.env["A"] == "b"


def test_the_process_imports_nothing_heavy() -> None:
    code = "import sys, shoal.engines.simulated.server; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=DEADLINE)
    assert not {"pydantic", "fastapi", "typer", "aiohttp", "httpx2", "msgspec", "yaml"} & set(done.stdout.split())
