"""One offline engine, with vLLM's own fixed KV cache and with Shoal's elastic one; see README.md."""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shoal.bench import clock, command
from shoal.bench import rig as rigs
from shoal.bench.broker import connect, members, wait_lease
from shoal.bench.clock import say
from shoal.bench.offline import as_settings
from shoal.bench.processes import Processes, Running
from shoal.bench.promises import elastic_checks
from shoal.bench.results import write
from shoal.memory.client import Lease, Rank
from shoal.memory.elastic import ElasticTerms
from shoal.memory.tools import BrokerError, BrokerTool

GIB, MIB = 2**30, 2**20
FOLDER = Path(__file__).resolve().parent
IDLE = 64 * MIB
"""An engine that has no more than this backed holds nothing."""
NAME = "engine"


@dataclass(frozen=True, slots=True)
class Load:
    """`count` requests of `length` tokens, after one of `prefixes` shared ones of `shared`; `tokens` out of each.

    `times`: how often it runs in each state; a short one needs more than one run to tell half a percent from chance.
    """

    name: str
    kind: str
    count: int
    length: int
    tokens: int
    shared: int = 0
    prefixes: int = 1
    times: int = 1


LOADS = (
    Load("1024x256/256", "mixed", 1024, 256, 256),
    Load("48x8192/128", "prefill", 48, 8192, 128),
    Load("32x1024/512", "decode", 32, 1024, 512, times=3),
    Load("512x(2048 shared + 512)/128", "shared prefixes", 512, 512, 128, shared=2048, prefixes=8),
)
QUICK = (
    Load("12x48/16", "mixed", 12, 48, 16),
    Load("8x(128 shared + 32)/16", "shared prefixes", 8, 32, 16, shared=128, prefixes=2),
)


class Engine:
    """The child that runs the engine."""

    def __init__(self, running: Running) -> None:
        self._running = running

    def tell(self, command: dict[str, Any]) -> dict[str, Any]:
        """Send a command and wait for its answer. Raises DiedError if the engine ended."""
        process = self._running.process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(command).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            process.wait(30)
            self._running.check()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        """Let it end by itself, so that it writes what it writes at its end."""
        process = self._running.process
        assert process.stdin is not None
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)


class Bench:
    """One run: its rig, options, and the rows so far."""

    def __init__(self, options: argparse.Namespace, rig: rigs.Rig) -> None:
        self.options = options
        self.rig = rig
        self.rows: list[dict[str, Any]] = []
        self.socket = Path()
        self.logs: Path = options.logs or Path(tempfile.mkdtemp(prefix="shoal-elastic-"))
        loads = QUICK if options.quick else LOADS
        self.loads = [load for load in loads if not options.loads or any(part in load.name for part in options.loads)]
        self.size = int((0.5 if rig.variant == "cpu" else options.kv_gib) * GIB)

    def left(self) -> float:
        return clock.left(self.options.limit)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.save()

    def save(self) -> Path:
        o = self.options
        return write(
            o.out, self.rows, elastic_checks(self.rows), quick=o.quick, label=o.label, extra=self.rig.describe()
        )

    def run(self) -> None:
        alone = [load for load in self.loads if not load.shared]
        shared = [load for load in self.loads if load.shared]
        # Stock and Shoal by turns, so that what drifts (clocks, temperature) meets both.
        turns = [(alone, False, number) for number in range(self.options.rounds) if alone]
        turns += [(shared, True, 0)] if shared else []
        for loads, caching, number in turns:
            for system in self.options.systems:
                if self.left() < 75:
                    say(f"{system} is left out: {self.left():.0f} s are left")
                    continue
                with self.engine(system, caching=caching) as (engine, tool, baseline):
                    self.measure(engine, tool, system, loads, number, baseline)

    @contextlib.contextmanager
    def engine(self, system: str, *, caching: bool) -> Iterator[tuple[Engine, BrokerTool | None, int]]:
        """An engine that is ready, and for Shoal a tool of its broker; with the bytes in use before."""
        o, rig, shared = self.options, self.rig, system == "shoal"
        baseline = rig.device.used
        with Processes(self.logs) as processes, tempfile.TemporaryDirectory(prefix="shoal-e-") as scratch:
            socket, stats = Path(scratch) / "s", Path(scratch) / "stats.json"
            self.socket = socket
            tool = None
            if shared:
                rigs.start_broker(processes, rig, socket, self.size)
                tool = connect(socket)
            terms = ElasticTerms(socket, NAME, mode="required") if shared else None
            running = processes.start(
                f"{system}-{len(self.rows)}",
                [rig.python, "-m", "shoal.bench.offline"],
                {
                    **rig.environment(terms),
                    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                    "SHOAL_MEMORY_STATS": str(stats),
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            engine = Engine(running)
            settings = {
                "model": str(rig.model),
                "skip_tokenizer_init": True,
                "enable_prefix_caching": caching,
                "max_model_len": 16384 if rig.variant == "cuda" else 2048,
                "max_num_seqs": o.sequences if rig.variant == "cuda" else 16,
                **({"load_format": "dummy"} if rig.dummy else {}),
                **({"enforce_eager": True} if rig.variant == "cpu" else {}),
                **as_settings(rig.arguments(self.size, shared=shared)),
            }
            ready = engine.tell(settings)
            used = rig.device.used - baseline
            say(f"{system} ready after {ready['ready']:.1f} s, holds {used / GIB:.2f} GiB; prefix caching {caching}")
            self.add({"what": "start", "system": system, "seconds": ready["ready"], "used_bytes": used})
            yield engine, tool, baseline
            engine.end()
            with contextlib.suppress(OSError, ValueError):
                row = {"what": "memory", "system": system, "caching": caching, **json.loads(stats.read_text())}
                say(f"{system}: memory statistics", json.dumps(row))
                self.add(row)

    def measure(
        self, engine: Engine, tool: BrokerTool | None, system: str, loads: list[Load], number: int, baseline: int
    ) -> None:
        """All loads on one engine."""
        few = {"count": 64, "length": 64, "tokens": 16} if self.rig.variant == "cuda" else {"count": 2, "length": 8}
        engine.tell(self.command({"tokens": 4, **few}, seed=99))
        for load in loads:
            # With a prefix cache, the same prompts a second time would be another load.
            states = ("cold", "warm") if system == "shoal" or load.shared else ("warm",)
            for seed, state in list(enumerate(states)) * load.times:
                if self.left() < 30:
                    say(f"{system} {load.name} is left out: {self.left():.0f} s are left")
                    return
                if tool is not None and state == "cold":
                    self.trim(tool)
                answer = engine.tell(self.command(asdict(load), seed=seed if load.shared else 0))
                rate = answer["out_tokens"] / answer["seconds"]
                row = {
                    "what": "load",
                    "system": system,
                    "load": load.name,
                    "kind": load.kind,
                    "state": state,
                    "seed": seed if load.shared else 0,
                    "round": number,
                    "out_tokens_s": round(rate, 2),
                    **answer,
                    **self.held(tool, baseline),
                }
                say(f"{system} {load.name} {state}: {rate:.1f} out tok/s,", json.dumps(row))
                self.add(row)
        if tool is not None and any(load.shared for load in loads):
            self.press(engine, tool, next(load for load in loads if load.shared), baseline)

    def command(self, load: dict[str, Any], *, seed: int, skip: int = 0) -> dict[str, Any]:
        return {**load, "seed": seed, "skip": skip, "vocabulary": self.rig.vocabulary}

    def held(self, tool: BrokerTool | None, baseline: int) -> dict[str, int]:
        held = {"used_bytes": self.rig.device.used - baseline}
        if tool is not None and (member := members(tool).get(NAME)) is not None:
            held |= {"backed_bytes": member.backed, "lease_bytes": member.lease, "cached_bytes": member.cached}
        return held

    def trim(self, tool: BrokerTool) -> None:
        """Let the engine start from nothing."""
        before = members(tool)[NAME].backed
        tool.trim(NAME)
        seconds = wait_lease(tool, NAME, IDLE, timeout=30)
        self.add({"what": "trim", "bytes": before - members(tool)[NAME].backed, "seconds": round(seconds, 4)})

    def press(self, engine: Engine, tool: BrokerTool, load: Load, baseline: int) -> None:
        """What an idle engine keeps without pressure, how fast it gives way, and what is left with all asked for."""
        time.sleep(3)
        idle = self.held(tool, baseline)
        again = engine.tell(self.command({**asdict(load), "tokens": 1}, seed=1, skip=max(0, load.count - 16)))
        # vLLM finds whole blocks again, and always computes a prompt's last token.
        block = 16 if self.rig.variant == "cuda" else 128
        usable = min(16, load.count) * ((load.shared + load.length - 1) // block * block)
        hit_rate = round(min(1.0, again["cached_tokens"] / usable), 4)
        say(f"idle: {idle}; of the last prompts {hit_rate:.1%} of the tokens were still cached")
        book = tool.list()[self.rig.device.key]
        device, held = book.device, members(tool)[NAME].backed
        size = min(32 * GIB, held - IDLE if held > 2 * IDLE else held // 2)
        neighbour = Lease(self.socket, Rank("neighbour", self.rig.device.key, self.rig.device.size))
        try:
            neighbour.wait_connected(10)
            # What is leased and not backed goes first, so that `size` really has to be given back.
            need = device.budget - held + size
            began = time.monotonic()
            neighbour.ask(need)
            came = neighbour.wait_lease(need, 30)
            seconds = time.monotonic() - began
            row = {"what": "give back", "bytes": size, "held_bytes": held, "came": came, "seconds": round(seconds, 4)}
            self.add({**row, "seconds_for_32_gib": round(seconds * 32 * GIB / size, 4) if came else 30.0})
            say(f"giving back {size / GIB:.2f} GiB took {seconds:.3f} s (came: {came})")
            neighbour.ask(device.budget)
            time.sleep(2)
            left = self.held(tool, baseline)
            say(f"2 s after a neighbour asked for all: {left}")
            self.add(
                {
                    "what": "pressure",
                    "hit_rate": hit_rate,
                    "left_bytes": left.get("backed_bytes", 0),
                    "idle": idle,
                    "pressed": left,
                }
            )
        finally:
            neighbour.close()


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    rigs.add_arguments(parser, FOLDER)
    parser.add_argument("--systems", default="stock,shoal", help="which of stock, shoal, in this order")
    parser.add_argument("--loads", default="", help="only loads whose name contains one of these: 1024x256,shared")
    parser.add_argument("--rounds", type=int, default=2, help="pairs of stock and Shoal for the loads of the evidence")
    parser.add_argument("--kv-gib", type=float, default=64.0, help="KV cache: stock's size, and Shoal's address space")
    parser.add_argument("--sequences", type=int, default=512, help="sequences at once")
    command.add_label(parser)
    found = parser.parse_args()
    command.split_systems(parser, found, ("stock", "shoal"))
    found.loads = [part for part in found.loads.split(",") if part]
    if found.quick:
        found.rounds = 1
    return found


def main() -> int:
    found = options()
    if command.merged(found, elastic_checks):
        return 0
    rig = rigs.find(found)
    bench = Bench(found, rig)
    return command.carry_out(bench, elastic_checks, rig, early=(BrokerError, TimeoutError))


if __name__ == "__main__":
    sys.exit(main())
