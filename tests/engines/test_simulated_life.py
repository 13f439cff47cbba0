"""How the simulated engine starts, fails and ends, and how Shoal sees it from outside."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import aiohttp
import psutil
import pytest

from shoal.engines.progress import ProgressTracker
from shoal.engines.simulated.adapter import SimulatedEngine
from shoal.errors import ShoalError
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Device, Exit
from tests.engines.simulated_process import CHAT, DEADLINE, Process, until

PROMPT = "user: hello there"
COMPLETION = {"model": "fish", "prompt": "once upon a time"}


def spec(*args: str, source: str = "any", **more: object) -> ModelSpec:
    return ModelSpec.model_validate({"name": "fish", "source": source, "engine": "simulated", "args": args, **more})


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
            try:
                async with asyncio.timeout(2):
                    await engine.get("/health")
            except aiohttp.ClientConnectionError:
                return True
            except TimeoutError:  # it was let in just before, and nobody is there to answer it
                return False
            return False

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
