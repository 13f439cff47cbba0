"""Several models on one card, each with its bursts: a third of the memory each, or shared; see README.md."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp

from shoal.bench import clock, command, raw
from shoal.bench import rig as rigs
from shoal.bench.arrivals import Burst, bursts, lasts, rate_over_time
from shoal.bench.broker import connect
from shoal.bench.clock import say
from shoal.bench.load import Due, Served, body, client, drive, prompt, send
from shoal.bench.phases import Phase, parse
from shoal.bench.processes import Processes, Running
from shoal.bench.promises import burst_checks
from shoal.bench.recording import Recorder, plot
from shoal.bench.results import write
from shoal.bench.stats import summary
from shoal.engines.promtext import parse_samples
from shoal.memory.elastic import ElasticTerms

GIB = 2**30
FOLDER = Path(__file__).resolve().parent
SYSTEMS = ("stock", "shoal", "alone")
PORT = 8131
PATIENCE = 100.0
"""Seconds that a phase goes on after the last request was due."""


class Bench:
    """One run: its rig, options, and the rows so far."""

    def __init__(self, options: argparse.Namespace, rig: rigs.Rig) -> None:
        self.options = options
        self.rig = rig
        self.rows: list[dict[str, Any]] = []
        self.logs: Path = options.logs or Path(tempfile.mkdtemp(prefix="shoal-burst-"))
        self.baseline = 0
        self.limits = rigs.Limits() if rig.variant == "cuda" else rigs.Limits(2048, 32, 2048)

    def left(self) -> float:
        return clock.left(self.options.limit)

    def save(self) -> Path:
        o = self.options
        return write(o.out, self.rows, burst_checks(self.rows), quick=o.quick, label=o.label, extra=self.rig.describe())

    def planned(self, phase: Phase) -> list[Burst]:
        """The same bursts for every system; a model that is alone gets all of them."""
        o = self.options
        return bursts(o.engines, phase.peak, o.step, gap=o.gap, together=phase.together)

    def number(self, system: str) -> int:
        """How many engines a system has."""
        return 1 if system == "alone" else self.options.engines

    def ballast(self, processes: Processes) -> None:
        """Make the card as large as asked for."""
        left, held = rigs.start_ballast(processes, self.rig, int(self.options.card_gib * GIB))
        self.baseline = self.rig.device.used
        say(f"ballast holds {held / GIB:.1f} GiB and leaves {left / GIB:.2f} GiB")

    def run(self) -> None:
        with Processes(self.logs) as outer:
            self.baseline = self.rig.device.used
            if self.rig.variant == "cuda" and self.options.card_gib > 0:
                self.ballast(outer)
            for system in self.options.systems:
                least = min(lasts(self.planned(phase)) for phase in self.options.phases)
                if self.left() < least + 75:
                    say(f"{system} is left out: {self.left():.0f} s are left")
                    continue
                with Processes(self.logs) as processes, tempfile.TemporaryDirectory(prefix="shoal-b-") as scratch:
                    self.system(system, processes, Path(scratch))

    def system(self, system: str, processes: Processes, scratch: Path) -> None:
        """Start the engines of one system and run its phases."""
        o = self.options
        tool = None
        if system == "shoal":
            rigs.start_broker(processes, self.rig, scratch / "s", int(o.kv_gib * GIB))
            tool = connect(scratch / "s")
        number = self.number(system)
        engines: list[tuple[Running, int]] = []
        # The first alone: it fills the compile cache that the others then read.
        for few in (range(1), range(1, number)):
            started = [self.engine(system, model, processes, scratch) for model in few]
            if started:
                took = rigs.wait_healthy(started, timeout=min(300.0, max(30.0, self.left())))
                say(system, "engines ready after", *(f"{seconds:.1f} s" for seconds in took))
            engines += started
        recorder = Recorder(self.rig.device, tool)
        recorder.start()
        try:
            asyncio.run(self.phases(system, engines, recorder, scratch))
        finally:
            recorder.stop()
            if tool is not None:
                tool.close()

    def engine(self, system: str, model: int, processes: Processes, scratch: Path) -> tuple[Running, int]:
        o, port = self.options, self.rig.port(PORT) + model
        kv = {"stock": o.kv_gib / o.engines, "shoal": o.kv_gib, "alone": o.alone_kv_gib}[system]
        terms = None
        if system == "shoal":
            terms = ElasticTerms(scratch / "s", f"model-{model}", mode="required")
        argv = self.rig.serve(
            port, int(kv * GIB), shared=system == "shoal", prefix_caching=o.prefix_caching, limits=self.limits
        )
        env = self.rig.environment(terms) | {"SHOAL_MEMORY_STATS": str(scratch / f"stats-{model}.json")}
        return processes.start(f"{system}-{model}", argv, env), port

    async def phases(
        self, system: str, engines: Sequence[tuple[Running, int]], recorder: Recorder, scratch: Path
    ) -> None:
        urls = [f"http://127.0.0.1:{port}" for _, port in engines]
        async with client() as session:
            await self.warm_up(session, urls)
            idle = (self.rig.device.used - self.baseline) / GIB
            say(f"{system}: idle, the engines hold {idle:.2f} GiB")
            for phase in self.options.phases:
                if system == "alone" and phase.together:
                    continue
                needs = lasts(self.planned(phase)) + 15
                if needs > self.left():
                    say(f"{system} {phase} is left out: it takes {needs:.0f} s and {self.left():.0f} s are left")
                    continue
                row = await self.phase(system, phase, session, urls, engines, recorder, scratch)
                self.rows.append({**row, "idle_gib": round(idle, 2)})
                self.save()
                await asyncio.sleep(self.options.rest)

    async def warm_up(self, session: aiohttp.ClientSession, urls: Sequence[str]) -> None:
        """Requests that count for nothing, one alone and then many at once, as kernels are chosen by batch size."""
        rng = random.Random(7)
        inputs = self.options.in_tokens
        for number in (1, 8, 24, 64) if self.rig.variant == "cuda" else (1, 2):
            bodies = [(url, body(prompt(rng, inputs, self.rig.vocabulary), 24)) for url in urls for _ in range(number)]
            served = [Served(0, time.monotonic()) for _ in bodies]
            await asyncio.gather(
                *(send(session, url, data, one) for (url, data), one in zip(bodies, served, strict=True))
            )
            wrong = [one.error for one in served if not one.finished]
            if wrong:
                raise RuntimeError(f"{len(wrong)} requests of the warm-up failed: {wrong[0]}")
        await asyncio.sleep(self.options.rest)

    async def phase(
        self,
        system: str,
        phase: Phase,
        session: aiohttp.ClientSession,
        urls: Sequence[str],
        engines: Sequence[tuple[Running, int]],
        recorder: Recorder,
        scratch: Path,
    ) -> dict[str, Any]:
        """One phase; its row."""
        planned = self.planned(phase)
        aims = list(urls) * (len(planned) // len(urls))
        due = self.requests(phase, planned)
        before = [await counters(session, url) for url in urls]
        most: dict[str, float] = {}
        watching = asyncio.create_task(watch(session, urls, most))
        start, patience = time.monotonic() + 1.0, min(PATIENCE, max(5.0, self.left() - lasts(planned) - 6))
        say(f"{system} {phase}: {len(due)} requests over {lasts(planned):.0f} s")
        served = await drive(session, aims, due, start, patience)
        took = time.monotonic() - start
        watching.cancel()
        samples = recorder.between(start, start + took)
        died = [running.name for running, _ in engines if not running.alive]
        after = [before[i] if died else await counters(session, url) for i, url in enumerate(urls)]
        preempted = [int(b["preemptions"] - a["preemptions"]) for a, b in zip(before, after, strict=True)]
        models = [summary([one for one in served if one.model == model], phase.tokens) for model in range(len(planned))]
        row: dict[str, Any] = {
            "system": system,
            "phase": str(phase),
            **asdict(phase),
            "in_tokens": self.options.in_tokens,
            "engines": len(urls),
            "kv_gib": self.options.alone_kv_gib if system == "alone" else self.options.kv_gib,
            "all": summary(served, phase.tokens),
            "models": models,
            "preemptions": preempted,
            "died": died,
            "seconds": round(took, 1),
            "peak_gib": round((max((s.used for s in samples), default=0) - self.baseline) / GIB, 2),
            "peak_backed_gib": round(max((sum(s.backed.values()) for s in samples), default=0) / GIB, 2),
            "most": most,
            "errors": sorted({one.error for one in served if one.error})[:5],
            "memory": read_stats(scratch, len(urls)),
        }
        say(f"{system} {phase}:", json.dumps(row["all"]), "preemptions", preempted, "peak", row["peak_gib"], "GiB")
        for model, one in enumerate(models):
            say(f"  model {model}:", json.dumps(one))
        for error in row["errors"]:
            say("  error:", error)
        self.keep(system, phase, planned, served, start, samples)
        return row

    def requests(self, phase: Phase, planned: Sequence[Burst]) -> list[Due]:
        """The same for every system: the prompts depend on phase, model and place alone."""
        due = []
        for burst in planned:
            rng = random.Random(f"{phase}/{burst.model}")
            due += [
                Due(at, burst.model, body(prompt(rng, self.options.in_tokens, self.rig.vocabulary), phase.tokens))
                for at in burst.due
            ]
        return due

    def keep(
        self,
        system: str,
        phase: Phase,
        planned: Sequence[Burst],
        served: Sequence[Served],
        start: float,
        samples: Sequence[Any],
    ) -> None:
        """The plot, and every request's times."""
        o = self.options
        names = [f"model-{model}" for model in range(self.number(system))]
        kv = {"stock": o.kv_gib / o.engines, "alone": o.alone_kv_gib}.get(system)
        picture = plot(
            f"{system}: ramps to {phase.peak} requests/s, {phase.tokens} tokens out"
            + (", all models at once" if phase.together else ""),
            samples,
            names,
            fixed=None if kv is None else int(kv * GIB),
            base=self.baseline,
            budget=int(o.card_gib * GIB) if self.rig.variant == "cuda" else 0,
            rate=rate_over_time(planned),
        )
        results = o.out / "results"
        results.mkdir(parents=True, exist_ok=True)
        stem = "-".join(part for part in (o.label, system, str(phase).replace("+", "-together")) if part)
        (results / f"{stem}{'-quick' if o.quick else ''}.svg").write_text(picture)
        if o.raw:
            raw.keep(o.out, {"system": system, "phase": str(phase), "requests": raw.requests(served, start)})


async def counters(session: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """What the engine says of itself."""
    async with session.get(f"{url}/metrics") as response:
        samples = parse_samples(await response.text())
    return {
        "preemptions": samples.get("vllm:num_preemptions_total", 0.0),
        "running": samples.get("vllm:num_requests_running", 0.0),
        "waiting": samples.get("vllm:num_requests_waiting", 0.0),
    }


async def watch(session: aiohttp.ClientSession, urls: Sequence[str], most: dict[str, float]) -> None:
    """Keep the highest numbers of running and waiting requests in `most`."""
    while True:
        await asyncio.sleep(1.0)
        with contextlib.suppress(aiohttp.ClientError, OSError):
            now = [await counters(session, url) for url in urls]
            for key in ("running", "waiting"):
                most[key] = max(most.get(key, 0.0), *(one[key] for one in now))


def read_stats(scratch: Path, engines: int) -> list[Any]:
    """What elastic engines wrote about their memory, as far as they did."""
    found = []
    for model in range(engines):
        path = scratch / f"stats-{model}.json"
        with contextlib.suppress(OSError, ValueError):
            found.append(json.loads(path.read_text()))
    return found


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    rigs.add_arguments(parser, FOLDER)
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="which of stock, shoal, alone, in this order")
    parser.add_argument(
        "--phases",
        default="56,72,40,20,16x1024,24x1024,16+",
        help="peaks in requests/s; x1024 for other answers than 256 tokens, + for all models at once: 56,24x1024,16+",
    )
    parser.add_argument("--engines", type=int, default=3, help="models, each with an engine")
    parser.add_argument("--step", type=int, default=2, help="by how many requests/s a ramp rises each second")
    parser.add_argument("--gap", type=float, default=12.0, help="seconds between two models' ramps")
    parser.add_argument("--rest", type=float, default=3.0, help="seconds of rest between phases")
    parser.add_argument("--in-tokens", type=int, default=256, help="tokens of each prompt")
    parser.add_argument("--card-gib", type=float, default=79.0, help="GiB of the card that a ballast leaves; 0 for all")
    parser.add_argument("--kv-gib", type=float, default=21.0, help="KV cache of all models together")
    parser.add_argument("--alone-kv-gib", type=float, default=55.0, help="KV cache of a model that is alone")
    parser.add_argument("--prefix-caching", action="store_true", help="with vLLM's prefix cache (default: without)")
    parser.add_argument("--raw", action="store_true", help="keep every request's times in raw.jsonl.gz")
    command.add_label(parser)
    found = parser.parse_args()
    command.split_systems(parser, found, SYSTEMS)
    try:
        found.phases = [parse(text) for text in found.phases.split(",")]
    except ValueError as error:
        parser.error(f"--phases: {error}")
    return found


def rehearse(found: argparse.Namespace, rig: rigs.Rig) -> None:
    """Tiny loads for `--quick`."""
    if rig.variant == "cpu":
        found.engines, found.step, found.in_tokens = 1, 1, 32
        found.kv_gib, found.alone_kv_gib = 0.5, 0.5
        found.phases = [Phase(3, 16)]
    else:
        found.phases, found.gap = [Phase(8, 64), Phase(6, 64, together=True)], 2.0


def main() -> int:
    found = options()
    if command.merged(found, burst_checks):
        return 0
    rig = rigs.find(found)
    if found.quick:
        rehearse(found, rig)
    bench = Bench(found, rig)
    return command.carry_out(bench, burst_checks, rig)


if __name__ == "__main__":
    sys.exit(main())
