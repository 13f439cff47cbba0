"""An idle engine full of cached prefixes, and a neighbour that needs the memory; see README.md."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from shoal.bench import clock, command
from shoal.bench import rig as rigs
from shoal.bench.broker import connect, members, wait_lease
from shoal.bench.clock import say
from shoal.bench.load import Due, Served, body, client, drive, prompt
from shoal.bench.processes import DiedError, Processes, Running
from shoal.bench.promises import reclaim_checks
from shoal.bench.results import write
from shoal.bench.stats import summary
from shoal.engines.promtext import parse_samples
from shoal.memory.client import Lease, Rank
from shoal.memory.elastic import ElasticTerms
from shoal.memory.tools import BrokerError, BrokerTool

GIB, MIB = 2**30, 2**20
FOLDER = Path(__file__).resolve().parent
PORTS = {"full": 8141, "neighbour": 8142}
IDLE = 64 * MIB


class Bench:
    """One run: its rig, options, engines, and the rows so far."""

    def __init__(self, options: argparse.Namespace, rig: rigs.Rig) -> None:
        self.options = options
        self.rig = rig
        self.rows: list[dict[str, Any]] = []
        self.logs: Path = options.logs or Path(tempfile.mkdtemp(prefix="shoal-reclaim-"))
        self.size = int(options.kv_gib * GIB)
        self.reclaim = int(options.reclaim_gib * GIB)
        each = options.prompt_tokens * rig.token_bytes
        rng = random.Random(1)
        self.prompts = [self.make(rng) for _ in range((self.size - 2 * IDLE) // each)]
        self.burst = max(1, self.reclaim // each)
        self.socket = Path()

    def make(self, rng: random.Random) -> list[int]:
        return prompt(rng, self.options.prompt_tokens, self.rig.vocabulary)

    def left(self) -> float:
        return clock.left(self.options.limit)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        say(json.dumps(row))
        self.save()

    def save(self) -> Path:
        o = self.options
        return write(
            o.out, self.rows, reclaim_checks(self.rows), quick=o.quick, label=o.label, extra=self.rig.describe()
        )

    def run(self) -> None:
        o = self.options
        with Processes(self.logs) as processes, tempfile.TemporaryDirectory(prefix="shoal-r-") as scratch:
            self.socket = Path(scratch) / "s"
            rigs.start_broker(processes, self.rig, self.socket, self.size)
            tool = connect(self.socket)
            for name in ("full", "neighbour") if o.neighbour else ("full",):
                took = rigs.wait_healthy([self.engine(name, processes)], timeout=min(300.0, max(30.0, self.left())))
                say(f"{name} ready after {took[0]:.1f} s")
            empty = asyncio.run(self.on_empty(tool)) if o.neighbour else []
            self.fill()
            self.add({"what": "kept", "hit_rate": round(sum(self.hits()) / len(self.prompts), 4)})
            for _ in range(o.repeats):
                if self.left() < 60:
                    say("the rest of the bare reclaims is left out")
                    break
                self.bare(tool)
                self.fill()
            if o.neighbour and self.left() > 30:
                self.neighbour(tool, empty)
            self.afterwards()
            tool.close()

    def port(self, name: str) -> int:
        """Where one of the two listens."""
        return self.rig.port(PORTS[name])

    def engine(self, name: str, processes: Processes) -> tuple[Running, int]:
        """Start one of the two."""
        if self.rig.variant == "cuda":
            limits = rigs.Limits(context=16384, sequences=128)
        else:
            limits = rigs.Limits(context=2048, sequences=16, batch=2048)
        argv = self.rig.serve(self.port(name), self.size, shared=True, prefix_caching=True, limits=limits)
        env = self.rig.environment(ElasticTerms(self.socket, name, mode="required"))
        return processes.start(name, argv, env), self.port(name)

    async def send(self, name: str, prompts: list[list[int]], *, at_once: bool) -> list[Served]:
        """Send prompts for one token each; all at once, or one after the other. Raises RuntimeError if one fails."""
        url = f"http://127.0.0.1:{self.port(name)}"
        served: list[Served] = []
        async with client() as session:
            groups = [prompts] if at_once else [[one] for one in prompts]
            for group in groups:
                due = [Due(0.0, 0, body(one, 1)) for one in group]
                served += await drive(session, [url], due, time.monotonic(), patience=120.0)
        wrong = [one.error for one in served if not one.complete(1)]
        if wrong and not at_once:
            raise RuntimeError(f"{name}: {len(wrong)} requests failed: {wrong[0]}")
        return served

    async def on_empty(self, tool: BrokerTool) -> list[dict[str, Any]]:
        """The neighbour's burst with the whole device to itself; the first time is its warm-up."""
        rows = []
        for seed in (10, 11, 12):
            tool.trim("neighbour")
            wait_lease(tool, "neighbour", IDLE, 30)
            rng = random.Random(seed)
            served = await self.send("neighbour", [self.make(rng) for _ in range(self.burst)], at_once=True)
            rows.append(summary(served, 1))
        tool.trim("neighbour")
        wait_lease(tool, "neighbour", IDLE, 30)
        self.add({"what": "empty device", "bursts": rows[1:]})
        return rows[1:]

    def fill(self) -> None:
        """Send all prompts to the full engine, the oldest first."""
        asyncio.run(self.send("full", self.prompts, at_once=False))

    def hits(self) -> list[float]:
        """Send all prompts again, the newest first: the part of each that was still cached."""

        async def each() -> list[float]:
            parts = []
            async with client() as session:
                url = f"http://127.0.0.1:{self.port('full')}"

                async def counted() -> tuple[float, float]:
                    async with session.get(f"{url}/metrics") as response:
                        samples = parse_samples(await response.text())
                    return (
                        samples.get("vllm:prefix_cache_hits_total", 0.0),
                        samples.get("vllm:prefix_cache_queries_total", 0.0),
                    )

                for one in reversed(self.prompts):
                    before = await counted()
                    await drive(session, [url], [Due(0.0, 0, body(one, 1))], time.monotonic(), patience=120.0)
                    after = await counted()
                    asked = after[1] - before[1]
                    parts.append(round((after[0] - before[0]) / asked, 4) if asked else 0.0)
            return parts

        found = asyncio.run(each())
        # The newest have to stay the newest.
        self.fill()
        return found

    def bare(self, tool: BrokerTool) -> None:
        """A neighbour that only asks: until the broker grants, and until the device has that much more free."""
        time.sleep(1.5)
        free = self.rig.device.read().free
        book = tool.list()[self.rig.device.key]
        # What is leased and not backed goes first, so that as much really has to be given back.
        backed = sum(member.backed for member in book.members)
        lease = Lease(self.socket, Rank("asker", self.rig.device.key, self.rig.device.size))
        try:
            lease.wait_connected(10)
            need = book.device.budget - backed + self.reclaim
            watched = threading.Event()
            seen: list[float] = []

            def watch() -> None:
                # The driver's own word that the memory came back; a little is kept for reuse.
                while not watched.wait(0.002):
                    if self.rig.device.read().free - free >= 0.98 * self.reclaim:
                        seen.append(time.monotonic())
                        return

            watcher = threading.Thread(target=watch, daemon=True)
            if self.rig.variant == "cuda":
                watcher.start()
            began = time.monotonic()
            lease.ask(need)
            came = lease.wait_lease(need, 30)
            granted = time.monotonic()
            if self.rig.variant == "cuda":
                watcher.join(5)
                watched.set()
            self.add(
                {
                    "what": "bare",
                    "gib": round(self.reclaim / GIB, 3),
                    "came": came,
                    "grant_s": round(granted - began, 4),
                    "usable_s": round(max(granted, seen[0]) - began, 4) if seen else None,
                    "left_bytes": members(tool)["full"].backed,
                }
            )
        finally:
            lease.close()
        time.sleep(0.5)

    def neighbour(self, tool: BrokerTool, empty: list[dict[str, Any]]) -> None:
        """A real neighbour with a burst of long prompts."""
        tool.trim("neighbour")
        wait_lease(tool, "neighbour", IDLE, 30)
        self.fill()
        time.sleep(1.5)
        rng = random.Random(20)
        prompts = [self.make(rng) for _ in range(self.burst)]
        goal = self.burst * self.options.prompt_tokens * self.rig.token_bytes * 0.99
        times: dict[str, float] = {}
        over = threading.Event()
        began = time.monotonic()

        def watch() -> None:
            with contextlib.suppress(BrokerError), connect(self.socket) as watching:
                while not over.wait(0.005):
                    member = members(watching).get("neighbour")
                    now = time.monotonic() - began
                    if member is not None and member.lease >= goal:
                        times.setdefault("lease_s", round(now, 4))
                    if member is not None and member.backed >= goal:
                        times.setdefault("backed_s", round(now, 4))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        served = asyncio.run(self.send("neighbour", prompts, at_once=True))
        time.sleep(1.0)
        over.set()
        watcher.join(5)
        row = summary(served, 1)
        before = [one["ttft_mean"] for one in empty if "ttft_mean" in one]
        ratio = row["ttft_mean"] / min(before) if before and "ttft_mean" in row else float("nan")
        books = members(tool)
        self.add(
            {
                "what": "neighbour",
                "prompts": self.burst,
                "prompt_tokens": self.options.prompt_tokens,
                **row,
                "ttft_ratio": round(ratio, 4),
                **times,
                "backed_bytes": {name: books[name].backed for name in ("full", "neighbour")},
            }
        )

    def afterwards(self) -> None:
        """Which of the first engine's prompts are still cached, the newest first."""
        kept = self.hits()
        first_lost = next((number for number, part in enumerate(kept) if part < 0.5), len(kept))
        self.add(
            {
                "what": "afterwards",
                "hit_rate": round(sum(kept) / len(kept), 4),
                "newest_first": kept,
                "out_of_order": sum(part >= 0.5 for part in kept[first_lost:]),
            }
        )


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    rigs.add_arguments(parser, FOLDER)
    parser.add_argument("--kv-gib", type=float, default=12.0, help="the broker's budget, which the first engine fills")
    parser.add_argument("--reclaim-gib", type=float, default=8.0, help="what the neighbour needs of it")
    parser.add_argument("--prompt-tokens", type=int, default=8000, help="tokens of each prompt")
    parser.add_argument("--repeats", type=int, default=5, help="bare reclaims")
    parser.add_argument("--no-neighbour", dest="neighbour", action="store_false", help="only the bare reclaims")
    command.add_label(parser, merges=False)
    return parser.parse_args()


def main() -> int:
    found = options()
    rig = rigs.find(found)
    if found.quick:
        found.repeats = 2
        if rig.variant == "cpu":
            # One engine at a time is what a small machine has room for.
            found.kv_gib, found.reclaim_gib, found.prompt_tokens, found.neighbour = 0.2, 0.05, 512, False
        else:
            found.kv_gib, found.reclaim_gib, found.prompt_tokens = 3.0, 2.0, 2000
    bench = Bench(found, rig)
    early = (BrokerError, DiedError, TimeoutError, RuntimeError)
    return command.carry_out(bench, reclaim_checks, rig, early=early)


if __name__ == "__main__":
    sys.exit(main())
