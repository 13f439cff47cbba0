"""The elastic KV cache on real GPUs, with vLLM's offline engine in the shape of Llama-3.1-8B (no weights are read).

Needs an interpreter that has vLLM, torch and numpy: this one, or the one that `SHOAL_TEST_VLLM_PYTHON` names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shoal.bench import broker as brokers
from shoal.bench import devices, synthetic
from shoal.bench.offline import as_settings
from shoal.bench.processes import Processes, Running
from shoal.engines.vllm import elastic
from shoal.memory.elastic import ElasticTerms
from shoal.memory.tools import BrokerTool

GIB, MIB = 2**30, 2**20
SHAPE = Path(__file__).parents[2] / "benchmarks" / "models" / "llama-3.1-8b" / "config.json"
LOAD = {"count": 256, "length": 256, "tokens": 128, "seed": 1, "vocabulary": 128256}

HOG = """
import sys, time, torch
free = torch.cuda.mem_get_info()[0]
held, step = [], 1 << 30
while step >= 1 << 21:
    try:
        held.append(torch.empty(step, dtype=torch.uint8, device="cuda"))
    except torch.OutOfMemoryError:
        step //= 2
torch.cuda.synchronize()
print(sum(part.numel() for part in held), torch.cuda.mem_get_info()[0], flush=True)
time.sleep(float(sys.argv[1]))
"""
"""A program that knows nothing of Shoal and takes all of the GPU that is free."""


class Engine:
    """An offline engine in a child process."""

    def __init__(self, running: Running, tool: BrokerTool) -> None:
        self._running = running
        self.tool = tool

    def tell(self, command: dict[str, Any]) -> dict[str, Any]:
        process = self._running.process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(command).encode() + b"\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            process.wait(60)
            self._running.check()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ranks(self) -> list[tuple[int, int]]:
        """Lease and backed bytes of each rank."""
        members = [member for book in self.tool.list().values() for member in book.members if member.engine == "engine"]
        return [(member.lease, member.backed) for member in sorted(members, key=lambda member: member.rank)]


@contextmanager
def an_engine(folder: Path, **settings: Any) -> Iterator[Engine]:
    python = os.environ.get("SHOAL_TEST_VLLM_PYTHON", sys.executable)
    version = subprocess.run(
        [python, "-c", "from importlib.metadata import version; print(version('vllm'))"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    if not version:
        pytest.skip("no vLLM for GPUs: set SHOAL_TEST_VLLM_PYTHON")
    socket = folder / "s"
    logs = Path(os.environ.get("SHOAL_TEST_LOGS", folder))
    with Processes(logs) as processes:
        argv = ["-m", "shoal.bench.broker", "--socket", str(socket), "--device", devices.gpu().key]
        processes.start("broker", [sys.executable, *argv, "--limit", str(1 << 40), "--headroom", "0.02"])
        tool = brokers.connect(socket)
        terms = ElasticTerms(socket, "engine", mode="required", patience=300)
        env = {**elastic.environment(terms, version, "cuda"), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2] / "src"), os.environ.get("PYTHONPATH", "")])
        running = processes.start(
            f"engine-{'-'.join(settings)}",
            [python, "-m", "shoal.bench.offline"],
            env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        engine = Engine(running, tool)
        engine.tell(
            {
                "model": str(synthetic.prepare(SHAPE, folder / "model")),
                "skip_tokenizer_init": True,
                "load_format": "dummy",
                "max_model_len": 8192,
                "max_num_seqs": 256,
                **as_settings(elastic.arguments(version, "cuda", 64 * GIB)),
                **settings,
            }
        )
        yield engine
        tool.close()


def test_a_sleeping_engine_holds_no_page_and_comes_back(tmp_path: Path) -> None:
    gpu = devices.gpu()
    with an_engine(tmp_path, enable_sleep_mode=True) as engine:
        before = engine.tell(LOAD)
        awake = gpu.used
        assert engine.ranks()[0][1] > 64 * MIB, "cached prefixes"
        engine.tell({"sleep": 1})
        asleep = gpu.used
        print(f"awake {awake / GIB:.2f} GiB, asleep {asleep / GIB:.2f} GiB; leases {engine.ranks()}")
        assert all(lease == backed == 0 for lease, backed in engine.ranks())
        assert asleep < awake - 15 * GIB, "weights and KV are gone"
        engine.tell({"wake": True})
        after = engine.tell(LOAD)
        assert after["tokens_hash"] == before["tokens_hash"]
        assert engine.ranks()[0][1] > 64 * MIB


def test_a_neighbour_that_takes_all_free_memory_kills_nobody(tmp_path: Path) -> None:
    gpu = devices.gpu()
    python = os.environ.get("SHOAL_TEST_VLLM_PYTHON", sys.executable)
    with an_engine(tmp_path, enable_prefix_caching=False) as engine:
        load = {**LOAD, "count": 512, "tokens": 512}
        calm = engine.tell(load)
        seen: list[str] = []

        def press() -> None:
            time.sleep(1.0)  # in the middle of it
            hog = subprocess.run([python, "-c", HOG, "6"], capture_output=True, text=True, check=False)
            seen.append(hog.stdout.strip() or hog.stderr[-300:])

        engine.tool.trim("engine")
        neighbour = threading.Thread(target=press)
        neighbour.start()
        pressed = engine.tell(load)
        neighbour.join()
        print(f"calm {calm['seconds']:.1f} s, with the neighbour {pressed['seconds']:.1f} s; it took and left: {seen}")
        assert seen and int(seen[0].split()[0]) > 8 * GIB, "the neighbour had its way"
        assert pressed["tokens_hash"] == calm["tokens_hash"]
        again = engine.tell(load)
        assert again["tokens_hash"] == calm["tokens_hash"], "service is as before"
        print(f"afterwards {again['seconds']:.1f} s, {gpu.used / GIB:.2f} GiB in use")


@pytest.mark.parametrize("ranks", [2])
def test_every_rank_of_tensor_parallel_is_backed_and_gives_back(tmp_path: Path, ranks: int) -> None:
    try:
        devices.gpu(ranks - 1)
    except RuntimeError:
        pytest.skip(f"needs {ranks} GPUs")
    with an_engine(tmp_path, tensor_parallel_size=ranks) as engine:
        first = engine.tell(LOAD)
        held = engine.ranks()
        print(f"ranks hold {held}, {first['seconds']:.1f} s")
        assert len(held) == ranks and len(set(held)) == 1 and held[0][1] > 256 * MIB
        engine.tool.trim("engine")
        deadline = time.monotonic() + 20
        while max(backed for _, backed in engine.ranks()) > 64 * MIB and time.monotonic() < deadline:
            time.sleep(0.05)
            engine.tool.trim("engine")
        assert all(backed <= 64 * MIB for _, backed in engine.ranks())
        second = engine.tell(LOAD)
        assert second["tokens_hash"] == first["tokens_hash"], "after growing again from nothing"
