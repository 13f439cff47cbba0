"""What residency costs to decide, and a week of it in accelerated time; see README.md."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import random
import time
from pathlib import Path
from typing import Any

from shoal.bench.results import Check, show, write
from shoal.bench.stats import median, percentile
from shoal.fleet.residency import Device, Residency, Resident, Rules, Snapshot
from shoal.fleet.residency_plan import decide
from shoal.fleet.simulation import simulate
from shoal.fleet.simulation_models import Setup, parse_devices
from shoal.fleet.simulation_trace import generate

GIB = 2**30
NOW = 1e6
WEEK = 7 * 86_400.0


def fleet(seed: int, waiting: int, *, models: int = 1000, devices: int = 64, young: bool = False) -> Snapshot:
    """A full fleet: what fits is awake, some of the rest sleeps, and `waiting` models that are not awake are asked for.

    `young`: all that is awake came just now and what sleeps takes nothing, so that nobody may give way yet.
    """
    chance = random.Random(seed)
    room = {f"cuda:{n}": 80 * GIB for n in range(devices)}
    residents = []
    for rank in range(1, models + 1):
        size = chance.choice([8, 16, 20, 36]) * GIB
        came = NOW - (1.0 if young else chance.expovariate(1 / 100))
        terms: dict[str, Any] = {
            "name": f"m{rank}", "awake": size, "asleep": 0 if young else GIB // 2, "host": size, "sleep_level": 1,
            "rate": 1 / rank,
            "last_use": max(came, NOW - chance.expovariate(1 / 200)), "awake_since": came, "sleep_after": 600.0,
            "unload_after": 3600.0, "priority": chance.choice([50, 100, 100, 200]), "pinned": chance.random() < 0.03,
        }  # fmt: skip
        fits = [device for device, left in room.items() if left >= size]
        left = [device for device, left in room.items() if left >= GIB // 2]
        if fits and rank <= 300:
            on = chance.choice(fits)
            room[on] -= size
            running = chance.choice([0, 0, 1])
            residents.append(Resident(place=Residency.GPU, on=(on,), running=running, **terms))
            continue
        asked = {"waiting": chance.randint(1, 4), "waiting_since": NOW - chance.expovariate(1 / 10)}
        terms |= asked if waiting > 0 else {}
        waiting -= 1
        if left and chance.random() < 0.5:
            on = chance.choice(left)
            room[on] -= GIB // 2
            residents.append(Resident(place=Residency.HOST, on=(on,), **terms))
        else:
            residents.append(Resident(place=Residency.DISK, **terms))
    made = tuple(Device(device, 80 * GIB) for device in room)
    return Snapshot(NOW, made, tuple(residents), host_budget=20_000 * GIB)


def as_they_are(snapshot: Snapshot, _: random.Random) -> Snapshot:
    """A full fleet, as `fleet` makes it."""
    return snapshot


def of_all_sizes(snapshot: Snapshot, chance: random.Random) -> Snapshot:
    """No two models that wait ask for the same, and some may be on a few devices only."""
    devices = [device.id for device in snapshot.devices]
    changed = []
    for one in snapshot.residents:
        if one.place is Residency.DISK:
            usable = tuple(chance.sample(devices, chance.choice([2, 4, 8]))) if chance.random() < 0.3 else ()
            one = dataclasses.replace(one, awake=chance.randint(4 * GIB, 40 * GIB), usable=usable)
        changed.append(one)
    return dataclasses.replace(snapshot, residents=tuple(changed))


def too_large(snapshot: Snapshot, chance: random.Random) -> Snapshot:
    """All that is not loaded is larger than any device."""
    residents = (
        dataclasses.replace(one, awake=chance.randint(81, 100) * GIB) if one.place is Residency.DISK else one
        for one in snapshot.residents
    )
    return dataclasses.replace(snapshot, residents=tuple(residents))


def nothing_loaded(snapshot: Snapshot, chance: random.Random) -> Snapshot:
    """Every model is on disk and asked for: the machine was started anew."""
    residents = (
        dataclasses.replace(
            one, place=Residency.DISK, on=(), running=0, waiting=1, waiting_since=NOW - chance.uniform(0, 9)
        )
        for one in snapshot.residents
    )
    return dataclasses.replace(snapshot, residents=tuple(residents))


def all_idle(snapshot: Snapshot, _: random.Random) -> Snapshot:
    """All that is awake has been idle for too long at once, and the host has no room for it."""
    residents = tuple(dataclasses.replace(one, sleep_after=1.0, unload_after=None) for one in snapshot.residents)
    return dataclasses.replace(snapshot, residents=residents, host_budget=sum(one.host_taken for one in residents))


SHAPES = {
    "": as_they_are,
    "all of different sizes": of_all_sizes,
    "too large for any device": too_large,
    "nothing loaded yet": nothing_loaded,
    "all idle, the host full": all_idle,
}
CASES = [(waiting, False, "") for waiting in (0, 1, 20, 200, 700)] + [
    (700, True, ""), (700, True, "all of different sizes"), (700, True, "too large for any device"),
    (1000, False, "nothing loaded yet"), (700, False, "all idle, the host full"),
]  # fmt: skip


def decisions(waiting: int, runs: int, *, young: bool = False, shape: str = "") -> dict[str, Any]:
    """CPU milliseconds of a decision, over as many different fleets as runs."""
    rules, times, actions, waits = Rules(), [], 0, 0
    for seed in range(runs):
        snapshot = SHAPES[shape](fleet(seed, waiting, young=young), random.Random(seed))
        gc.collect()
        began = time.process_time()
        plan = decide(snapshot, rules)
        times.append(1e3 * (time.process_time() - began))
        actions += len(plan.actions)
        waits += len(plan.waits)
    return {
        "what": "decision", "models": 1000, "devices": 64, "waiting": waiting, "nobody_may_leave": young,
        "shape": shape,
        "median_ms": median(times), "p99_ms": percentile(times, 0.99), "max_ms": max(times),
        "actions": actions / runs, "waits": waits / runs,
    }  # fmt: skip


def week(requests: int) -> dict[str, Any]:
    """A simulated week of 100 models on 8 devices."""
    chance = random.Random(1)
    sizes = {f"m{n}": chance.choice([8, 16, 16, 28, 60]) for n in range(100)}
    models = {
        name: {"weights": size * GIB, "sleep_after": "10m", "unload_after": "6h", "load": 5.0 + size}
        for name, size in sizes.items()
    }
    setup = Setup.model_validate({"models": models})
    traffic = generate(list(models), requests, WEEK, zipf=1.0, burst=5, seed=1)
    wall, cpu = time.monotonic(), time.process_time()
    report = simulate(setup, parse_devices("8x80GiB"), traffic, host_budget=2000 * GIB)
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    return {
        "what": "week", "models": 100, "devices": 8, "requests": report.requests, "served": report.served,
        "refused": report.refused, "simulated_days": report.seconds / 86_400, "seconds": wall, "cpu_seconds": cpu,
        "decisions": report.decisions, "wakes": sum(model.wakes for model in report.models),
        "loads": sum(model.loads for model in report.models),
        "at_once": sum((model.at_once or 0) * model.served for model in report.models) / max(1, report.served),
        "longest_wait": max(model.wait_max or 0.0 for model in report.models),
    }  # fmt: skip


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a rehearsal: few runs, few requests")
    parser.add_argument("--requests", type=int, default=250_000, help="requests of the week")
    options = parser.parse_args()
    runs = 5 if options.quick else 100
    rows = [decisions(waiting, runs, young=young, shape=shape) for waiting, young, shape in CASES]
    long = week(10_000 if options.quick else options.requests)
    checks = [
        Check(
            f"decision, 1,000 models on 64 devices, {row['waiting']} waiting"
            + (", nobody may leave" if row["nobody_may_leave"] else "")
            + (f", {row['shape']}" if row["shape"] else "")
            + ": p99",
            row["p99_ms"],
            "ms of CPU",
            5.0,
        )
        for row in rows
    ]
    checks += [
        Check("simulated week, 100 models on 8 devices", long["cpu_seconds"], "s of CPU", 60.0),
        Check("requests of the week that did not end", long["requests"] - long["served"] - long["refused"], "", 0),
    ]
    show(checks)
    print(write(Path(__file__).parent, [*rows, long], checks, quick=options.quick))


if __name__ == "__main__":
    main()
