"""What the relay costs, next to no proxy, nginx and others; see README.md."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from shoal.bench.clock import say
from shoal.bench.processes import DiedError, Processes, end_in_order
from shoal.bench.relay import bodies, counted, nginx, usage, wrk
from shoal.bench.relay.cores import share_out, starting_on
from shoal.bench.relay.promises import checks
from shoal.bench.relay.summary import lines, medians, ratios
from shoal.bench.relay.systems import (
    OURS,
    SYSTEMS,
    MissingError,
    Stage,
    System,
    shoal_relay,
    start_upstreams,
    wait,
)
from shoal.bench.relay.tally import Aborted, Served, Streamed, Tally, parse
from shoal.bench.results import Check, show, write
from shoal.bench.rig import CACHE

FOLDER = Path(__file__).parent
DEFAULT = "direct,across,nginx,aiohttp,native"
CONNECTIONS = (1, 64)
STREAMS = 100
FEWER_STREAMS = {"litellm": 10}
"""Systems for which 100 streams are more than one core can take: they are asked what an event costs, with fewer."""
WARM_UP = 1
"""Seconds of load before a system is measured in a pass."""
QUIET = 8.0
"""Seconds without a change after which nothing more is expected of a relay: kept connections close before that."""
MIB = 2**20


class Bench:
    """The systems in front of the same upstreams, and the rows of what they did."""

    def __init__(self, options: argparse.Namespace, stage: Stage) -> None:
        self.options = options
        self.stage = stage
        self.rows: list[dict[str, Any]] = []
        self.wrk = None if options.load == "own" else shutil.which("wrk")
        if options.load == "wrk" and self.wrk is None:
            raise MissingError("wrk is not installed: `apt-get install wrk`, or --load own")
        self.script = stage.folder / "load.lua"
        self.script.write_text(wrk.script(bodies.ANSWERS, stage.key))

    def run(self) -> None:
        """Start everything, then measure in passes, the systems one after the other in each."""
        self.stage.upstreams = start_upstreams(self.stage, self.stage.cores.upstream)
        measured = self.options.systems if self.options.passes else ()
        systems = [system for name in measured if (system := self.started(name)) is not None]
        for number in range(self.options.passes):
            for system in list(systems):
                try:
                    self.turn(number, system)
                except (DiedError, ValueError, subprocess.TimeoutExpired) as error:
                    if not self.optional(system.name):
                        raise
                    systems.remove(system)
                    self.left_out(system.name, error)
        if self.options.aborts:
            for name in self.options.systems:
                if name in OURS:
                    self.aborts(name)

    def optional(self, name: str) -> bool:
        """Whether a run goes on without this system if it fails: what others make may."""
        return name not in DEFAULT.split(",")

    def started(self, name: str) -> System | None:
        """The system, once it serves every model."""
        say("starting", name)
        try:
            system = SYSTEMS[name](self.stage)
            wait(self.stage, system)
        except (DiedError, MissingError, TimeoutError) as error:
            if not self.optional(name):
                raise
            self.left_out(name, error)
            return None
        return system

    def left_out(self, name: str, error: Exception) -> None:
        """Note that a system could not be measured."""
        say(f"{name} is left out: {error}")
        self.rows.append({"what": "left out", "system": name, "why": str(error)[-500:]})

    def turn(self, number: int, system: System) -> None:
        """One system in one pass."""
        for running in system.serving.values():
            running.check()
        seconds = self.options.seconds
        self.requests(system, max(CONNECTIONS), WARM_UP)
        for connections in CONNECTIONS:
            processes = usage.family(system.pids(bodies.ANSWERS))
            before = usage.read(processes)
            served = self.requests(system, connections, seconds)
            after = usage.read(processes)
            row: dict[str, Any] = {
                "what": "requests",
                "system": system.name,
                "pass": number,
                "model": bodies.ANSWERS,
                "number": connections,
                "rate": served.rate,
                "p50_us": served.p50_us,
                "p99_us": served.p99_us,
                "failed": served.failed,
            }
            if processes:
                cpu = after.cpu - before.cpu
                row |= {"cpu_us": usage.micros_each(cpu, served.requests), "proxy_core": cpu / served.seconds}
            self.add(row)
        for model in (bodies.SPREAD, bodies.STEPS):
            streamed = self.streams(system, model)
            row = {
                "what": "streams",
                "system": system.name,
                "pass": number,
                "model": model,
                "number": streamed.streams,
                "events_s": streamed.events / streamed.seconds,
                "first_p50_us": streamed.first_p50_us,
                "first_p99_us": streamed.first_p99_us,
                "delay_p50_us": streamed.delay_p50_us,
                "delay_p99_us": streamed.delay_p99_us,
                "failed": streamed.failed,
            }
            if system.pids(model):
                row |= {
                    "cpu_us": usage.micros_each(streamed.cpu, streamed.events),
                    "proxy_core": streamed.cpu / streamed.seconds,
                    "rss_mib": streamed.rss / MIB,
                }
            self.add(row)

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row and print it."""
        row = {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
        self.rows.append(row)
        say(json.dumps(row))

    def requests(self, system: System, connections: int, seconds: int) -> Served:
        """The closed loop, by wrk if this machine has it."""
        port = system.ports[bodies.ANSWERS]
        if self.wrk is None:
            return self.load(system, bodies.ANSWERS, "requests", Served, number=connections, seconds=seconds)
        argv = wrk.command(self.wrk, port, str(self.script), connections=connections, seconds=seconds)
        return self.generate(argv, seconds, Served)

    def streams(self, system: System, model: str) -> Streamed:
        """Streams that are read."""
        options = {"number": FEWER_STREAMS.get(system.name, STREAMS), "seconds": self.options.seconds}
        return self.load(system, model, "streams", Streamed, **options)

    def load(self, system: System, model: str, what: str, kind: type[Tally], **options: int) -> Tally:
        """Our own load generator."""
        argv = [
            *(sys.executable, "-m", "shoal.bench.relay.load", what, "--port", str(system.ports[model])),
            *("--model", model, "--key", self.stage.key),
            *(part for pid in system.pids(model) for part in ("--proxy", str(pid))),
            *(part for name, value in options.items() for part in (f"--{name}", str(value))),
        ]
        return self.generate(argv, options.get("seconds", 600), kind)

    def generate(self, argv: Sequence[str], seconds: float, kind: type[Tally]) -> Tally:
        """Run a load generator on its core; what it says. Raises DiedError, or ValueError without a result."""
        with starting_on(self.stage.cores.load):
            running = self.stage.processes.start("load", argv, stdout=subprocess.PIPE)
        try:
            output, _ = running.process.communicate(timeout=seconds + 120)
        finally:
            self.stage.processes.stop(running)
        if running.process.returncode:
            running.check()
        return parse(output.decode(errors="replace"), kind)

    def aborts(self, name: str) -> None:
        """Streams through a fresh relay that are broken off, and what it holds afterwards more than before."""
        system = shoal_relay(name, counted=True)(self.stage)
        wait(self.stage, system)
        number = self.options.aborts
        # What as many leave behind before is what it takes to serve at all: pools, caches, and a heap that has met the
        # worst coincidences of so many streams. Only what is kept of each grows on as fast.
        self.load(system, bodies.LATE, "aborts", Aborted, number=number, seed=1)
        held, before = self.settled(system)
        began = self.stats()
        aborted = self.load(system, bodies.LATE, "aborts", Aborted, number=number, seed=2)
        holds, after = self.settled(system)
        ended = self.stats()
        assert system.controller is not None
        self.add(
            {
                "what": "aborts",
                "system": name,
                "number": number,
                "seconds": aborted.seconds,
                "partial_requests": aborted.partial,
                "before_any_answer": aborted.unanswered,
                "failed": aborted.failed,
                "wrong": aborted.wrong,
                "reached_engine": ended["begun"] - began["begun"],
                "engine_saw_cancelled": ended["cancelled"] - began["cancelled"],
                "left_running": ended["running"],
                "carried": system.controller.carried,
                "fds_before": before.fds,
                "fds_more": after.fds - before.fds,
                "blocks_before": held,
                "blocks_more": holds - held,
                "rss_before_mib": before.rss / MIB,
                "rss_more_mib": (after.rss - before.rss) / MIB,
            }
        )
        self.stage.processes.stop(system.serving[bodies.LATE])

    def settled(self, system: System) -> tuple[int, usage.Usage]:
        """Blocks of memory that the relay's interpreter holds, and what the relay uses, once nothing of it has changed
        for a while: kept connections close after some seconds. Resident memory is read when garbage is collected."""
        processes = usage.family(system.pids(bodies.LATE))
        now = usage.read(processes)
        since = time.monotonic()
        deadline = since + 10 * self.options.quiet
        while time.monotonic() < min(since + self.options.quiet, deadline):
            time.sleep(0.2)
            last, now = now, usage.read(processes)
            if now.fds != last.fds or self.stats()["running"]:
                since = time.monotonic()
        assert system.holds is not None
        return counted.blocks(system.serving[bodies.LATE], system.holds), usage.read(processes)

    def stats(self) -> dict[str, int]:
        """What the fake engine counts."""
        connection = http.client.HTTPConnection("127.0.0.1", self.stage.upstreams[bodies.LATE].port, timeout=10)
        try:
            connection.request("GET", "/stats")
            found: dict[str, int] = json.loads(connection.getresponse().read())
            return found
        finally:
            connection.close()

    def checks(self) -> list[Check]:
        """What was promised, of the relay that is promised: the native one."""
        return checks(self.rows, "native")

    def save(self) -> Path:
        """Write what there is."""
        middle = medians(self.rows)
        compared = [row for name in OURS for row in ratios(middle, name)]
        print(*lines(middle, compared), sep="\n")
        generator = "shoal.bench.relay.load" if self.wrk is None else version([self.wrk, "--version"])
        upstream = "shoal.bench.relay.upstream" if nginx.binary() is None else "nginx"
        return write(
            self.options.out,
            [*self.rows, *middle, *compared],
            self.checks(),
            packages=("shoal", "uvloop", "httptools", "aiohttp"),
            quick=self.options.quick,
            label=self.options.label,
            extra={
                "cores_used": self.stage.cores.describe(),
                "load": generator,
                "upstream_of_requests": upstream,
                "engines": "TCP" if self.stage.tcp else "Unix sockets",
                **self.others(),
            },
        )

    def others(self) -> dict[str, str]:
        """Versions of what is no package of this interpreter's."""
        found = {}
        if (binary := nginx.binary()) is not None:
            found["nginx"] = version([binary, "-v"])
        for name in self.options.systems:
            python = self.stage.venvs / name / "bin" / "python"
            if python.exists():
                code = f"import importlib.metadata as m; print(m.version({name!r}))"
                found[name] = version([str(python), "-c", code])
        return found


def version(command: Sequence[str]) -> str:
    """The first line that a command prints; some say their version only beside an error status."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).partition("\n")[0].strip()


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a rehearsal: one pass of a second each")
    parser.add_argument(
        "--systems",
        default=DEFAULT,
        help=f"which of {', '.join(SYSTEMS)}; litellm and vllm-router are installed into the user's cache folder",
    )
    parser.add_argument("--passes", type=int, default=5, help="the median of so many is taken; 0: only --aborts")
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement")
    parser.add_argument("--aborts", type=int, default=0, metavar="N", help="also break off N streams; promised: 100000")
    parser.add_argument("--tcp", action="store_true", help="engines by TCP, as those with a `port` of their own")
    parser.add_argument("--load", choices=["auto", "wrk", "own"], default="auto", help="what makes the requests")
    parser.add_argument("--out", type=Path, default=FOLDER, help="results go to a folder `results` in here")
    parser.add_argument("--logs", type=Path, help="the processes' logs (default: a new temporary folder)")
    parser.add_argument("--label", default="", help="part of the result's name, for runs of one day")
    found = parser.parse_args()
    found.systems = list(dict.fromkeys(found.systems.split(",")))
    if not set(found.systems) <= set(SYSTEMS):
        parser.error(f"--systems: known are {', '.join(SYSTEMS)}")
    if found.seconds < 1 or found.aborts < 0 or found.passes < (0 if found.aborts else 1):
        parser.error("--passes and --seconds: at least 1; --aborts: at least 0, and more for no passes")
    found.quiet = QUIET
    if found.quick:
        found.passes, found.seconds, found.quiet = min(found.passes, 1), 1, 1.0
    return found


def main() -> int:
    found = options()
    end_in_order()
    logs = found.logs or Path(tempfile.mkdtemp(prefix="shoal-relay-"))
    try:
        measure(found, logs)
    except MissingError as error:
        sys.exit(str(error))
    return 0


def measure(found: argparse.Namespace, logs: Path) -> None:
    """Run the benchmark; however that ends, write what there is and end what was started."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shoal-bench-")))
        processes = stack.enter_context(Processes(logs))
        stage = Stage(processes, stack, share_out(os.sched_getaffinity(0)), folder, CACHE / "bench", tcp=found.tcp)
        bench = Bench(found, stage)
        say("cores", stage.cores.describe(), "logs in", logs)
        try:
            bench.run()
        finally:
            if bench.rows:
                say(bench.save())
    show(bench.checks())


if __name__ == "__main__":
    sys.exit(main())
