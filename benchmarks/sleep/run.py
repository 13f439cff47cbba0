"""One model asleep and awake, by vLLM itself and with Shoal; see README.md."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.system.harness import a_shoal, until

from shoal.bench import clock, command
from shoal.bench import rig as rigs
from shoal.bench.broker import connect, members
from shoal.bench.clock import say
from shoal.bench.load import Served, body, client, prompt, send
from shoal.bench.processes import Processes, Running
from shoal.bench.results import write
from shoal.bench.serving import interpreter, model_settings
from shoal.bench.sleeping import Engine, first_token, host_memory, sleep_checks
from shoal.bench.stats import median
from shoal.engines.vllm import slumber
from shoal.memory.elastic import ElasticTerms
from shoal.memory.tools import BrokerTool

GIB, MIB = 2**30, 2**20
FOLDER = Path(__file__).resolve().parent
PORT = 8171
SYSTEMS = ("stock", "shoal", "endpoint")
SETTLED = 20
"""Cycles after which memory is looked at for the first time."""


@dataclass(slots=True)
class Ready:
    """An engine that serves, and where what it holds is to be read."""

    engine: Engine
    running: Running
    tool: BrokerTool | None


class Bench:
    """One run: its rig (None: the simulated engine), options, and the rows so far."""

    def __init__(self, options: argparse.Namespace, rig: rigs.Rig | None) -> None:
        self.options = options
        self.rig = rig
        self.rows: list[dict[str, Any]] = []
        self.logs: Path = options.logs or Path(tempfile.mkdtemp(prefix="shoal-sleep-"))
        self.baseline = 0
        self.port = PORT if rig is None else rig.port(PORT)
        vocabulary = 1000 if rig is None else rig.vocabulary
        rng = random.Random(11)
        self.prompts = [prompt(rng, 200, vocabulary) for _ in range(4)]
        self.load = [body(prompt(rng, 256, vocabulary), options.load_tokens) for _ in range(options.load)]

    def left(self) -> float:
        return clock.left(self.options.limit)

    def add(self, system: str, what: str, **more: Any) -> None:
        row = {"system": system, "what": what, **{k: _round(v) for k, v in more.items()}}
        self.rows.append(row)
        say(system, what, *(f"{key}={value}" for key, value in row.items() if key not in ("system", "what")))
        self.save()

    def save(self) -> Path:
        o = self.options
        extra = {"engine": "simulated: nothing here is a measurement"} if self.rig is None else self.rig.describe()
        return write(o.out, self.rows, sleep_checks(self.rows), quick=o.quick, label=o.label, extra=extra)

    def used(self) -> int:
        """Bytes of the device in use beyond those before anything was started."""
        return 0 if self.rig is None else self.rig.device.used - self.baseline

    def run(self) -> None:
        for system in self.options.systems:
            if self.left() < 60:
                say(f"{system} is left out: {self.left():.0f} s are left")
                continue
            self.baseline = 0 if self.rig is None else self.rig.device.used
            if system == "endpoint":
                self.endpoint()
                continue
            with self.started(system) as ready:
                asyncio.run(self.warm_up())
                (self.stock if system == "stock" else self.shoal)(ready)

    # -- engines ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def started(self, system: str) -> Iterator[Ready]:
        """An engine of the system that serves, by itself."""
        with Processes(self.logs) as processes, tempfile.TemporaryDirectory(prefix="shoal-n-") as scratch:
            tool, env = None, {}
            if self.rig is None:
                argv = [sys.executable, "-m", "shoal.engines.simulated", "--model", "x", "--served-model-name", "m"]
                argv += ["--host", "127.0.0.1", "--port", str(self.port), *SIMULATED]
            else:
                rig, shared = self.rig, system == "shoal"
                terms = None
                if shared:
                    socket = Path(scratch) / "s"
                    rigs.start_broker(processes, rig, socket, int(self.options.kv_gib * GIB))
                    tool, terms = connect(socket), ElasticTerms(socket, "m", mode="required")
                kv = int(self.options.kv_gib * GIB)
                limits = rigs.Limits(8192, 256, 8192)
                argv = rig.serve(self.port, kv, shared=shared, prefix_caching=False, limits=limits)
                argv[argv.index("--stream-interval") + 1] = "1"
                argv += [slumber.ARGUMENT]
                env = {**rig.environment(terms), **slumber.environment()}
            running = processes.start(system, argv, env)
            (took,) = rigs.wait_healthy([(running, self.port)], timeout=min(240.0, max(30.0, self.left())))
            say(system, f"ready after {took:.1f} s, device {self.used() / GIB:.2f} GiB")
            try:
                yield Ready(Engine(self.port), running, tool)
            finally:
                if tool is not None:
                    tool.close()

    async def warm_up(self) -> None:
        """Requests that count for nothing, a few and then many at once, as kernels are chosen by batch size."""
        for _ in range(2):
            await self.requests()

    async def requests(self) -> None:
        """The load that fills the KV cache before a sleep. Raises RuntimeError if one of it fails."""
        served = [Served(0, time.monotonic()) for _ in self.load]
        async with client() as session:
            url = f"http://127.0.0.1:{self.port}"
            await asyncio.gather(*(send(session, url, d, one) for d, one in zip(self.load, served, strict=True)))
        if wrong := [one.error for one in served if not one.finished]:
            raise RuntimeError(f"{len(wrong)} requests failed: {wrong[0]}")

    # -- what is measured ---------------------------------------------------------------------------------------------

    def nap(self, ready: Ready, system: str, what: str, known: list[str]) -> None:
        """Sleep after some load, look at what is held, wake, and see the first token and the answers."""
        asyncio.run(self.requests())
        kv_before, engine = self.backed(ready), ready.engine
        slept = engine.sleep()
        kv_asleep = self.backed(ready)
        time.sleep(0.3)
        held = {} if self.rig is None else {"asleep_gib": self.used() / GIB}
        woke = engine.wake()
        first = engine.first_token(self.prompts[0])
        same = engine.answers(self.prompts, 32) == known
        self.add(
            system,
            what,
            sleep_s=slept,
            wake_s=woke,
            first_token_s=first,
            wake_to_first_s=woke + first,
            **held,
            kv_before_mib=kv_before / MIB,
            kv_asleep_mib=kv_asleep / MIB,
            same_answers=same,
        )

    def backed(self, ready: Ready) -> int:
        """Bytes of KV cache that the engine has taken of the broker's device. Of stock's nothing is known: 0."""
        if ready.tool is None:
            return 0
        return sum(member.backed for member in members(ready.tool).values())

    def stock(self, ready: Ready) -> None:
        known = ready.engine.answers(self.prompts, 32)
        self.nap(ready, "stock", "first", known)
        for _ in range(self.options.naps):
            self.nap(ready, "stock", "later", known)

    def shoal(self, ready: Ready) -> None:
        known = ready.engine.answers(self.prompts, 32)
        seconds, size = ready.engine.take_copy()
        self.add("shoal", "copy in the background", seconds=seconds, gib=size / GIB)
        self.nap(ready, "shoal", "after the copy", known)
        for _ in range(self.options.naps):
            self.nap(ready, "shoal", "later", known)
        self.cycles(ready)
        ready.engine.copies("forget")
        time.sleep(2.0)
        self.nap(ready, "shoal", "without a copy", known)

    def cycles(self, ready: Ready) -> None:
        """Naps with one request each, and what is held more at their end than after the first few."""
        slept: list[float] = []
        woke: list[float] = []
        first: tuple[int, int] | None = None
        last, count = (0, 0), 0
        began = time.monotonic()
        for number in range(self.options.cycles):
            if self.left() < self.options.reserve and number > SETTLED:
                say(f"only {number} cycles: {self.left():.0f} s are left")
                break
            slept.append(ready.engine.sleep())
            last, count = (self.used(), host_memory(ready.running.process.pid)), number + 1
            if number == min(SETTLED, self.options.cycles // 2):
                first = last
            woke.append(ready.engine.wake())
            ready.engine.first_token(self.prompts[0], 1)
        if first is None:
            return
        self.add(
            "shoal",
            "cycles",
            cycles=count,
            seconds=time.monotonic() - began,
            sleep_p50_s=median(slept),
            sleep_max_s=max(slept),
            wake_p50_s=median(woke),
            wake_max_s=max(woke),
            device_drift_mib=(last[0] - first[0]) / MIB,
            host_drift_mib=(last[1] - first[1]) / MIB,
            host_gib=last[1] / GIB,
        )

    def endpoint(self) -> None:
        """The same model behind `shoal serve`: requests that find it asleep."""
        with a_shoal(health_interval=1) as shoal, tempfile.TemporaryDirectory(prefix="shoal-n-") as scratch:
            shoal.start()
            with shoal.client as admin:
                admin.add_model({"name": "m", **self.settings(Path(scratch))})
                admin.load("m")
            shoal.wait("m", "ready", seconds=min(240.0, max(30.0, self.left())))
            say("endpoint ready")
            host, port = shoal.url.removeprefix("http://").split(":")
            data = body(self.prompts[0], 8)
            awake = [first_token(host, int(port), data) for _ in range(5)]
            copied = self.copied(shoal.state)
            slept, found = [], []
            for number in range(self.options.naps + 1):
                if self.left() < 15:
                    break
                began = time.monotonic()
                with shoal.client as admin:
                    admin.sleep("m")
                shoal.wait("m", "sleeping", seconds=60)
                slept.append(time.monotonic() - began)
                time.sleep(self.options.rest)
                found.append(first_token(host, int(port), data))
                until(lambda: shoal.model("m")["state"] == "ready", "the wake")
                if number == 0:
                    time.sleep(1.0)
            with shoal.client as admin:
                notes = [note["message"] for note in admin.history(limit=200) if "awake" in note["message"]]
            self.add(
                "shoal", "endpoint", first_token_s=found, awake_s=awake, copied=copied, slept_s=slept, notes=notes[:8]
            )
            shoal.stop()

    def copied(self, state: Path) -> bool:
        """Wait until Shoal has had the idle engine's weights copied, as the engine's log says; whether it has."""
        if self.rig is None:
            return False
        deadline = time.monotonic() + min(40.0, self.left() / 2)
        while time.monotonic() < deadline:
            if any("of weights to the host" in log.read_text() for log in state.glob("logs/*/engine.log")):
                return True
            time.sleep(0.2)
        return False

    def settings(self, scratch: Path) -> dict[str, Any]:
        """Of the model behind the endpoint: as the engines before."""
        if self.rig is None:
            return {"source": "x", "engine": "simulated", "args": list(SIMULATED)}
        args = ["--max-num-seqs", "256", "--max-num-batched-tokens", "8192"]
        python = interpreter(self.rig, scratch)
        return model_settings(self.rig, python, f"cuda:{self.options.gpu}", args, context_length=8192)


SIMULATED = ("--enable-sleep-mode", "--memory", "32MiB", "--sleep-seconds", "0.02", "--copy-seconds", "0.3")


def _round(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    return [_round(one) for one in value] if isinstance(value, list) else value


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    rigs.add_arguments(parser, FOLDER)
    parser.set_defaults(limit=400.0)
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="which of stock, shoal, endpoint, in this order")
    parser.add_argument("--naps", type=int, default=5, help="sleeps after the first one that are looked at closely")
    parser.add_argument("--cycles", type=int, default=200, help="sleeps and wakes after which memory is compared")
    parser.add_argument("--reserve", type=float, default=110.0, help="seconds that cycles leave to what comes after")
    parser.add_argument("--load", type=int, default=32, help="requests of 256 tokens that run before a sleep")
    parser.add_argument("--load-tokens", type=int, default=128, help="tokens that each of them answers with")
    parser.add_argument("--rest", type=float, default=1.0, help="seconds asleep before a request comes")
    parser.add_argument("--kv-gib", type=float, default=20.0, help="KV cache: stock's size, and Shoal's at most")
    command.add_label(parser)
    found = parser.parse_args()
    command.split_systems(parser, found, SYSTEMS)
    return found


def main() -> int:
    found = options()
    if command.merged(found, sleep_checks):
        return 0
    rig = command.gpu_unless_quick(found)
    if found.quick:
        found.naps, found.cycles, found.load, found.load_tokens, found.rest = 2, 6, 4, 8, 0.1
    return command.carry_out(Bench(found, rig), sleep_checks, rig)


if __name__ == "__main__":
    sys.exit(main())
