"""Simulated engines share a device through a broker: real processes, real sockets."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys

import psutil
import pytest

from shoal.memory import messages as m
from shoal.memory.elastic import ElasticTerms
from tests.engines.shared_memory import BLOCK, TOKENS, Machine, complete, complete_all
from tests.engines.simulated_process import Process, until


async def test_memory_moves_from_the_idle_to_the_busy_and_back() -> None:
    block = 1 << 20
    with Machine(48, block=block) as machine:
        names = ("a", "b")
        for name in names:
            machine.engine(name, "--simulated-resident")
        for name in names:
            await machine.engines[name].ready()
        memory = {name: psutil.Process(machine.engines[name].popen.pid).memory_info for name in names}
        empty = {name: memory[name]().rss for name in names}
        for busy, idle in (("a", "b"), ("b", "a"), ("a", "b")):
            # 12 requests of 4 blocks each fill the device; what they leave behind is cached.
            await complete_all(machine.engines[busy], f"{busy}{idle}", 12, prompt=40, output=24)
            await machine.settles(idle, 0, 2)
            await machine.settles(busy, 44, 48)
            assert memory[busy]().rss - empty[busy] > 40 * block
            assert memory[idle]().rss - empty[idle] < 16 * block
            assert await machine.engines[busy].sample("simulated:kv_cached_bytes") > 30 * block
        await machine.agrees()


async def test_without_pressure_cached_prefixes_stay_and_are_found_again() -> None:
    with Machine(32) as machine:
        engine = await machine.engine("a").ready()
        for _ in range(2):
            assert (await complete(engine, "same", 64, 4)).status == 200
        assert await engine.sample("vllm:prefix_cache_hits_total") == 64
        assert await engine.sample("vllm:prefix_cache_queries_total") == 128
        assert machine.lease("a") >= 64 / TOKENS
        assert await engine.sample("vllm:kv_cache_usage_perc") == 0


async def test_an_idle_engine_shrinks_when_asked() -> None:
    with Machine(32) as machine:
        engine = await machine.engine("a", terms=ElasticTerms(machine.socket, "", floor=2 * BLOCK)).ready()
        await complete_all(engine, "x", 4, 32, 32)
        assert machine.lease("a") > 4

        async def trimmed() -> bool:
            # Once may be too early: what requests needed a moment ago still counts.
            assert machine.say(m.Trim(engine="a", lease=2 * BLOCK)) == m.Done()
            return machine.lease("a") == 2

        await until(trimmed, "the engine to shrink to its floor")
        assert await engine.sample("simulated:kv_backed_bytes") == 2 * BLOCK
        await complete_all(engine, "y", 4, 32, 32)
        await machine.agrees()


async def test_the_lease_of_a_killed_engine_is_free() -> None:
    with Machine(16) as machine:
        await machine.engine("a", "--tokens-per-second", "5").ready()
        other = await machine.engine("b").ready()
        request = asyncio.create_task(complete(machine.engines["a"], "a", 200, 50))
        await machine.settles("a", 13, 16)
        machine.engines["a"].popen.kill()
        await complete_all(other, "b", 4, 40, 20)
        await asyncio.gather(request, return_exceptions=True)
        await machine.settles("a", 0, 0)
        assert list(machine.books()[1]) == ["b"]


async def test_a_broker_killed_under_load_costs_no_request() -> None:
    with Machine(32) as machine:
        for name in ("a", "b"):
            machine.engine(name, "--tokens-per-second", "400")
        for engine in machine.engines.values():
            await engine.ready()
        load = [
            asyncio.create_task(complete_all(engine, f"{name}{turn}", 8, 40, 100))
            for name, engine in machine.engines.items()
            for turn in range(2)
        ]
        await machine.settles("a", 8, 32)
        await machine.settles("b", 8, 32)
        await asyncio.to_thread(machine.restart_broker)
        await asyncio.gather(*load)
        await asyncio.gather(*(complete_all(e, f"{n}-after", 8, 40, 40) for n, e in machine.engines.items()))
        await machine.agrees()


async def test_while_the_broker_is_away_engines_serve_from_what_they_have() -> None:
    with Machine(32) as machine:
        engine = await machine.engine("a").ready()
        await complete_all(engine, "x", 4, 32, 32)
        machine.kill_broker()
        await complete_all(engine, "y", 4, 32, 32)
        machine.restart_broker()
        await machine.agrees()


async def test_a_race_for_the_last_bytes() -> None:
    with Machine(12) as machine:
        for name in ("a", "b"):
            await machine.engine(name).ready()
        # Each needs 5 blocks at a time, and there are 12: two run, whoever they are, and the others wait.
        both = (complete_all(engine, name, 6, 40, 36) for name, engine in machine.engines.items())
        await asyncio.gather(*both)
        await machine.agrees()


async def test_random_load_never_takes_more_than_there_is() -> None:
    dice = random.Random(7)
    with Machine(40) as machine:
        for name in ("a", "b", "c"):
            await machine.engine(name, "--tokens-per-second", "1000", "--ttft", "0").ready()

        async def client(number: int) -> None:
            for turn in range(6):
                engine = machine.engines[dice.choice("abc")]
                prompt, output = dice.randrange(1, 90), dice.randrange(1, 90)
                answer = await complete(engine, dice.choice((0, f"{number}{turn}")), prompt, output)
                assert answer.status == 200, answer.text
                assert answer.json["usage"]["completion_tokens"] == output
                await asyncio.sleep(dice.random() / 20)

        await asyncio.gather(*map(client, range(16)))
        await machine.agrees()
        assert machine.looks > 20


async def test_a_ceiling_below_what_is_used_takes_effect_as_requests_finish() -> None:
    with Machine(40) as machine:
        engine = await machine.engine("a", "--tokens-per-second", "150").ready()
        load = asyncio.create_task(complete_all(engine, "a", 8, 40, 40))
        await machine.settles("a", 24, 40)
        assert machine.say(m.SetTerms(engine="a", ceiling=10 * BLOCK)) == m.Done()
        await load
        await machine.settles("a", 0, 10)
        await complete_all(engine, "b", 6, 40, 20)
        assert machine.lease("a") <= 10
        assert machine.say(m.SetTerms(engine="a", unlimited=True)) == m.Done()
        await complete_all(engine, "c", 8, 40, 40)
        await machine.settles("a", 24, 40)
        await machine.agrees()


async def test_three_engines_with_long_answers_all_finish() -> None:
    with Machine(36) as machine:
        for name in ("a", "b", "c"):
            await machine.engine(name, "--tokens-per-second", "1000", "--ttft", "0").ready()
        # Each request grows to 10 blocks, each engine's share is 12: all want far more than there is.
        await asyncio.gather(*(complete_all(e, name, 5, 10, 150) for name, e in machine.engines.items()))
        await machine.agrees()
        assert sum([await e.sample("vllm:num_preemptions_total") for e in machine.engines.values()]) > 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_can_never_have_its_memory_ends_with_an_error(stream: bool) -> None:
    with Machine(32) as machine:
        terms = ElasticTerms(machine.socket, "", ceiling=6 * BLOCK)
        engine = await machine.engine("a", terms=terms).ready()
        answer = await complete(engine, "long", 200, 10, stream=stream)
        assert "needs 0.8 MiB of KV cache, and this engine can get 0.4 MiB at most" in answer.text
        if stream:
            assert answer.status == 200
            assert '"error":{"message":"The request cannot go on' in answer.text
            assert answer.text.endswith("data: [DONE]\n\n")
        else:
            assert answer.status == 500
            assert answer.json["error"]["type"] == "InternalServerError"
        grows = await complete(engine, "grows", 40, 200)
        assert grows.status == 500
        assert (await complete(engine, "fits", 40, 40)).status == 200
        assert await engine.sample("vllm:num_requests_waiting") == 0


async def test_a_request_that_waits_alone_ends_with_an_error_when_its_patience_is_over() -> None:
    with Machine(16) as machine:
        slow = await machine.engine("slow", "--tokens-per-second", "1").ready()
        held = asyncio.create_task(complete(slow, "held", 200, 30))
        await machine.settles("slow", 13, 16)
        engine = await machine.engine("a", terms=ElasticTerms(machine.socket, "", patience=0.3)).ready()
        answer = await complete(engine, "seven-blocks", 100, 4)
        assert answer.status == 500
        assert "in 0.3 s" in answer.json["error"]["message"]
        assert (await complete(engine, "fits", 10, 4)).status == 200
        assert not held.done()
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)
        assert (await complete(engine, "seven-blocks", 100, 4)).status == 200, "its client has gone"


@pytest.mark.parametrize("level", [1, 2])
async def test_a_sleeping_engine_holds_no_lease_and_comes_back(level: int) -> None:
    with Machine(16) as machine:
        args = ("--enable-sleep-mode", "--tokens-per-second", "200")
        engine = await machine.engine("a", *args, terms=ElasticTerms(machine.socket, "", floor=4 * BLOCK)).ready()
        await complete_all(engine, "x", 2, 40, 20)
        running = asyncio.create_task(complete_all(engine, "runs", 2, 40, 60))
        await engine.samples_to("vllm:num_requests_running", 2)
        assert (await engine.post(f"/sleep?level={level}&mode=keep")).status == 200
        assert await engine.sample("simulated:kv_lease_bytes") == 0
        await machine.settles("a", 0, 0)
        waiting = asyncio.create_task(complete_all(engine, "waits", 2, 40, 20))
        await engine.samples_to("vllm:num_requests_waiting", 4)
        assert machine.lease("a") == 0
        assert (await engine.get("/is_sleeping")).json == {"is_sleeping": True}
        assert (await engine.post("/wake_up")).status == 200
        await asyncio.gather(running, waiting)
        assert machine.lease("a") > 0
        await machine.agrees()


async def test_an_engine_that_the_broker_refuses_does_not_start() -> None:
    with Machine(8) as machine:
        engine = machine.engine("a", terms=ElasticTerms(machine.socket, "", floor=9 * BLOCK))
        assert await engine.exit_code() == 1
        assert "LeaseError: a rank 0: a floor of 0.6 MiB is more than device simulated:0 has, 0.5 MiB" in engine.log
        del machine.engines["a"]
        await machine.engine("b").ready()

        async def looked() -> bool:
            return machine.looks > 0

        await until(looked, "the books to be read")


def test_bad_terms_are_refused() -> None:
    for name, value, message in (
        ("SHOAL_MEMORY_FLOOR", "much", "SHOAL_MEMORY_FLOOR is 'much'; it has to be a whole number"),
        ("SHOAL_MEMORY_PATIENCE", "-1", "SHOAL_MEMORY_PATIENCE is '-1'; it has to be a number of seconds above zero"),
        ("SHOAL_MEMORY_ELASTIC", "perhaps", "SHOAL_MEMORY_ELASTIC is 'perhaps'"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "shoal.engines.simulated"],
            env={"SHOAL_MEMORY_SOCKET": "/nowhere", name: value},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert message in done.stderr


def test_memory_is_imported_only_where_it_is_asked_for() -> None:
    code = (
        "import sys; from shoal.engines.simulated.__main__ import main; main(['--fail', 'nothing']); "
        "print([name for name in sys.modules if name.startswith(('shoal.memory', 'msgspec', 'pydantic'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], env={}, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--simulated-block-bytes", "0"), "has to be 1"),
        (("--simulated-block-bytes", "lots"), "is not a size"),
        (("--simulated-block-bytes", "1000", "--simulated-resident"), "multiple of"),
        (("--simulated-device", 'a"b'), "is not the key of a device"),
        (("--block-size", "0"), "has to be 1 at least"),
    ],
)
async def test_bad_sizes_are_refused(args: tuple[str, ...], message: str) -> None:
    with Process(args) as engine:
        assert await engine.exit_code() == 2
        assert message in engine.log
