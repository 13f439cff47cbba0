"""What the control plane costs, with simulated engines; see README.md."""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import psutil

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from tests.system.harness import a_shoal, until

from shoal.bench.results import Check, write
from shoal.errors import ShoalError

MIB = 2**20


def first_answer(runs: int) -> list[float]:
    """Seconds from the start of the process to the first answered request."""
    times = []
    for _ in range(runs):
        with a_shoal(models={"m": {"source": "x", "load_on_start": True}}) as shoal:
            began = time.monotonic()
            shoal.start()
            until(lambda: shoal.chat("m").status_code == 200, "an answer")
            times.append(time.monotonic() - began)
            shoal.stop()
    return times


def idle(seconds: float) -> tuple[float, float]:
    """Part of a core, and MiB, that a controller with 100 declared models takes."""
    with a_shoal(models={f"model-{number}": {"source": "x"} for number in range(100)}) as shoal:
        shoal.start()
        controller = psutil.Process(shoal.pid("shoal.controller"))
        time.sleep(3)
        before, began = sum(controller.cpu_times()[:2]), time.monotonic()
        time.sleep(seconds)
        used = (sum(controller.cpu_times()[:2]) - before) / (time.monotonic() - began)
        memory = controller.memory_info().rss / MIB
        shoal.stop()
    return used, memory


def away() -> tuple[float, int, int]:
    """Seconds without a controller after kill -9, requests made meanwhile, and how many of them failed."""
    with a_shoal() as shoal:
        shoal.start()
        shoal.add("m")
        shoal.load("m")
        statuses: list[int] = []
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                try:
                    statuses.append(shoal.chat("m").status_code)
                except httpx2.HTTPError:
                    statuses.append(0)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        until(lambda: len(statuses) > 5, "the load")
        began = time.monotonic()
        os.kill(shoal.pid("shoal.controller"), signal.SIGKILL)

        def back() -> bool:
            try:
                with shoal.client as client:
                    return bool(client.status())
            except ShoalError:
                return False

        until(lambda: not back(), "its end")
        until(back, "the new controller")
        took = time.monotonic() - began
        stop.set()
        for thread in threads:
            thread.join()
        shoal.stop()
    return took, len(statuses), sum(status != 200 for status in statuses)


def leaks(cycles: int) -> dict[str, int]:
    """What controller and relay hold more than before so many loads and unloads, and processes left."""
    with a_shoal() as shoal:
        shoal.start()
        shoal.add("m")

        def cycle() -> None:
            shoal.load("m")
            with shoal.client as client:
                client.unload("m", force=True)
                until(lambda: client.model("m")["state"] == "unloaded", "the unload")

        def held() -> dict[str, int]:
            return {name: psutil.Process(shoal.pid(name)).num_fds() for name in ("shoal.controller", "shoal.gateway")}

        for _ in range(3):
            cycle()
        time.sleep(5)
        before = held()
        for _ in range(cycles):
            cycle()
        time.sleep(5)
        after = held()
        left = len(shoal.fleet_processes())
        shoal.stop()
    return {**{name: after[name] - before[name] for name in after}, "processes": left}


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a rehearsal: few runs")
    quick = parser.parse_args().quick
    starts = first_answer(2 if quick else 7)
    cpu, memory = idle(5 if quick else 30)
    seconds, requests, failed = away()
    more = leaks(5 if quick else 50)
    rows: list[dict[str, Any]] = [
        {"what": "start to first answer", "seconds": starts},
        {"what": "idle controller, 100 models", "core": cpu, "memory_mib": memory},
        {"what": "controller killed", "seconds_away": seconds, "requests": requests, "failed": failed},
        {"what": "loads and unloads", "cycles": 5 if quick else 50, "more": more},
    ]
    checks = [
        Check("start to first answer, median", statistics.median(starts), "s", 2.0),
        Check("idle controller with 100 models: CPU", 100 * cpu, "% of a core", 1.0),
        Check("idle controller with 100 models: memory", memory, "MiB", 150.0),
        Check("controller killed: away", seconds, "s", 5.0),
        Check("controller killed: failed requests", failed, "requests", 0),
        Check(
            "descriptors leaked by loads and unloads", max(more["shoal.controller"], more["shoal.gateway"]), "fds", 0
        ),
        Check("processes leaked by loads and unloads", more["processes"], "processes", 0),
    ]
    for check in checks:
        sign = "holds" if check.holds else "DOES NOT HOLD"
        print(f"{check.name}: {check.value:.3g} {check.unit} ({check.sense} {check.target:g}: {sign})")
    print(write(Path(__file__).parent, rows, checks, quick=quick))


if __name__ == "__main__":
    main()
