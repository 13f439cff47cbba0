"""Ten models on a device that holds four of them awake; see README.md."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.system.harness import Shoal, a_shoal, until

from shoal.bench import clock, command, raw
from shoal.bench import rig as rigs
from shoal.bench.clock import say
from shoal.bench.load import Due, Served, body, client, drive, prompt
from shoal.bench.popularity import arrivals, described, many_checks
from shoal.bench.processes import Processes
from shoal.bench.results import write
from shoal.bench.serving import interpreter, model_settings
from shoal.bench.stats import summary

GIB = 2**30
FOLDER = Path(__file__).resolve().parent
SYSTEMS = ("sleep", "unload")
TOKENS = 64


class Bench:
    """One run: its rig (None: simulated engines on a simulated device), options, and the rows so far."""

    def __init__(self, options: argparse.Namespace, rig: rigs.Rig | None) -> None:
        self.options = options
        self.rig = rig
        self.rows: list[dict[str, Any]] = []
        self.logs: Path = options.logs or Path(tempfile.mkdtemp(prefix="shoal-many-"))

    def left(self) -> float:
        return clock.left(self.options.limit)

    def add(self, system: str, what: str, **more: Any) -> None:
        self.rows.append({"system": system, "what": what, **more})
        say(system, what, *(f"{key}={value}" for key, value in more.items()))
        self.save()

    def save(self) -> Path:
        o = self.options
        extra = {"engine": "simulated: nothing here is a measurement"} if self.rig is None else self.rig.describe()
        return write(o.out, self.rows, many_checks(self.rows), quick=o.quick, label=o.label, extra=extra)

    def run(self) -> None:
        with Processes(self.logs) as processes:
            if self.rig is not None and self.options.card_gib > 0:
                left, _ = rigs.start_ballast(processes, self.rig, int(self.options.card_gib * GIB))
                say(f"ballast leaves {left / GIB:.1f} GiB")
            for system in self.options.systems:
                if self.left() < self.options.seconds + 60:
                    say(f"{system} is left out: {self.left():.0f} s are left")
                    continue
                self.system(system)

    def system(self, system: str) -> None:
        """All models behind one endpoint, those that are awake alone and then all under the same traffic."""
        o = self.options
        settings: dict[str, Any] = {"health_interval": 1, "host_memory": o.host_memory, "min_awake": o.min_awake}
        if self.rig is None:
            settings["simulated_devices"] = [f"{int(10 * o.card_gib)}MiB"]  # the engines pretend to be as much smaller
        with (
            a_shoal(**settings) as shoal,
            tempfile.TemporaryDirectory(prefix="shoal-y-") as scratch,
            contextlib.ExitStack() as after,
        ):
            shoal.start()
            after.callback(shutil.copytree, shoal.state / "logs", self.logs / system, dirs_exist_ok=True)
            python = interpreter(self.rig, Path(scratch)) if self.rig is not None else None
            with shoal.client as admin:
                for number in range(o.models):
                    admin.add_model({"name": f"m{number}", **self.settings(system, python)})
            # The most popular are loaded last, and so are those that are awake.
            few = o.models if system == "sleep" else o.fit
            with self.watched(shoal, f"{system} loads", time.monotonic()):
                took = [self.load(shoal, f"m{number}") for number in reversed(range(few))]
            self.add(system, "loads", seconds=took)
            bursts = {"every": o.every, "burst": o.burst}
            if system == o.systems[0]:
                awake = [n for n in range(o.models) if shoal.model(f"m{n}")["state"] == "ready"]
                time.sleep(o.rest)
                planned = arrivals(len(awake), o.calm, o.rate, exponent=o.exponent, **bursts, seed=5)
                self.traffic(shoal, system, "calm", [(at, awake[model]) for at, model in planned], o.calm)
                self.volleys(shoal, system, awake)
            planned = arrivals(o.models, o.seconds, o.rate, exponent=o.exponent, **bursts, seed=9)
            self.traffic(shoal, system, "traffic", planned, o.seconds)
            shoal.stop()

    def settings(self, system: str, python: Path | None) -> dict[str, Any]:
        """Of each model."""
        sleep = {} if system == "sleep" else {"sleep": "off"}
        if self.rig is None or python is None:
            args = ["--device-memory", "170MiB", "--start-seconds", "1", "--sleep-seconds", "0.1", "--ttft", "0.02"]
            asleep = ["--enable-sleep-mode", "--copy-seconds", "0.5"] if system == "sleep" else []
            one = {"source": "x", "engine": "simulated", "devices": ["simulated:0"], "elastic": "off"}
            return {**one, "args": [*args, *asleep], **sleep}
        args = ["--max-num-seqs", "64", *(["--enforce-eager"] if self.options.eager else [])]
        return model_settings(self.rig, python, f"cuda:{self.options.gpu}", args, context_length=4096, **sleep)

    def load(self, shoal: Shoal, name: str) -> float:
        """Load a model and wait until it serves; the seconds. Raises RuntimeError if it fails."""
        began = time.monotonic()
        with shoal.client as admin:
            admin.load(name)
        until(lambda: shoal.model(name)["state"] in ("ready", "failed"), name, max(60.0, self.left()))
        if (model := shoal.model(name))["state"] == "failed":
            raise RuntimeError(f"{name} failed: {model['instances'][-1]['reason']}")
        return round(time.monotonic() - began, 2)

    def traffic(
        self, shoal: Shoal, system: str, what: str, planned: Sequence[tuple[float, int]], seconds: float
    ) -> None:
        """Send requests when they are due, wait for the last, and add the row."""
        before = self.counts(shoal)
        served = self.send(shoal, planned, seconds, f"{system} {what}")
        moved = {kind: count - before.get(kind, 0) for kind, count in self.counts(shoal).items()}
        errors = sorted({one.error for one in served if one.error})[:5]
        models = {number: sum(model == number for _, model in planned) for number in range(self.options.models)}
        self.add(system, what, **described(served, TOKENS), moved=moved, errors=errors, requests_of=models)

    def volleys(self, shoal: Shoal, system: str, awake: Sequence[int]) -> None:
        """Requests that come at once to a model that is awake, while all that are have the traffic of `calm`: what
        those meet that were held together for one."""
        o = self.options
        every, sizes = 2.5, [max(1, part) for part in (o.burst // 4, o.burst, 2 * o.burst)]
        turns = [size for _ in range(o.volleys) for size in sizes]
        seconds = every * len(turns)
        volleys = [((n + 0.5) * every, awake[n % len(awake)], size) for n, size in enumerate(turns)]
        beside = arrivals(len(awake), seconds, o.rate, exponent=o.exponent, every=o.every, burst=o.burst, seed=7)
        calm = [(at, awake[model], 0) for at, model in beside]
        planned = sorted([one for one in volleys for _ in range(one[2])] + calm)
        served = self.send(shoal, [(at, model) for at, model, _ in planned], seconds, f"{system} volleys")
        rows = {size: [one for one, its in zip(served, planned, strict=True) if its[2] == size] for size in sizes}
        self.add(system, "volleys", sizes={str(size): summary(some, TOKENS) for size, some in rows.items()})

    def send(self, shoal: Shoal, planned: Sequence[tuple[float, int]], seconds: float, what: str) -> list[Served]:
        """Send requests to models when they are due, in this order; what became of them."""
        rng = random.Random(3)
        vocabulary = 1000 if self.rig is None else self.rig.vocabulary
        due = [Due(at, model, body(prompt(rng, 256, vocabulary), TOKENS, model=f"m{model}")) for at, model in planned]
        patience = max(5.0, min(self.options.patience, self.left() - seconds - 5))

        async def run() -> list[Served]:
            async with client() as session:
                urls = [shoal.url] * self.options.models
                return await drive(session, urls, due, start, patience)

        start = time.monotonic() + 0.5
        with self.watched(shoal, what, start) as served:
            served += asyncio.run(run())
        return served

    @contextlib.contextmanager
    def watched(self, shoal: Shoal, what: str, start: float) -> Iterator[list[Served]]:
        """Keep the memory's books meanwhile, with the requests that are put into the list, if that is asked for."""
        served: list[Served] = []
        if not self.options.raw:
            yield served
            return
        with raw.BookWatch(_memory_socket(shoal)) as books:
            try:
                yield served
            finally:
                row = {"what": what, "requests": raw.requests(served, start), "books": books.rows(start)}
                raw.keep(self.options.out, row)

    def counts(self, shoal: Shoal) -> dict[str, int]:
        """How often instances came to each state, as the history has it."""
        with shoal.client as admin:
            kinds = [str(note["kind"]) for note in admin.history(limit=1000)]
        return {kind: kinds.count(kind) for kind in ("ready", "sleeping", "stopped", "failed")}


def _memory_socket(shoal: Shoal) -> Path:
    with shoal.client as admin:
        return Path(admin.status()["memory"]["socket"])


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    rigs.add_arguments(parser, FOLDER)
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="which of sleep, unload, in this order")
    parser.add_argument("--models", type=int, default=10, help="models, all of one shape")
    parser.add_argument("--fit", type=int, default=4, help="how many of them the device holds awake")
    parser.add_argument("--card-gib", type=float, default=80.0, help="GiB of the card that a ballast leaves; 0 for all")
    parser.add_argument("--host-memory", default="85%", help="of the host's memory for weights of models that sleep")
    parser.add_argument("--min-awake", type=float, default=2.0, help="seconds that a model that came stays at least")
    parser.add_argument("--rate", type=float, default=6.0, help="requests a second to all models together")
    parser.add_argument("--exponent", type=float, default=1.2, help="of their popularity (Zipf)")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two bursts")
    parser.add_argument("--burst", type=int, default=16, help="requests of a burst, to one model, within a second")
    parser.add_argument("--calm", type=float, default=30.0, help="seconds of requests to models that are awake alone")
    parser.add_argument("--volleys", type=int, default=3, help="how often each number of requests is sent at once")
    parser.add_argument("--seconds", type=float, default=90.0, help="seconds of traffic to all")
    parser.add_argument("--patience", type=float, default=240.0, help="seconds for the last requests to end")
    parser.add_argument("--rest", type=float, default=5.0, help="seconds of rest before the first request")
    parser.add_argument("--raw", action="store_true", help=f"keep each request and the memory's books in {raw.FILE}")
    parser.add_argument("--eager", action="store_true", help="without CUDA graphs: starts take a third of the time")
    command.add_label(parser)
    found = parser.parse_args()
    command.split_systems(parser, found, SYSTEMS)
    return found


def main() -> int:
    found = options()
    if command.merged(found, many_checks):
        return 0
    rig = command.gpu_unless_quick(found)
    if found.quick:
        found.seconds, found.calm, found.rest, found.every, found.burst, found.rate = 10.0, 4.0, 1.0, 4.0, 4, 4.0
        found.patience, found.volleys = 60.0, 1
    return command.carry_out(Bench(found, rig), many_checks, rig)


if __name__ == "__main__":
    sys.exit(main())
