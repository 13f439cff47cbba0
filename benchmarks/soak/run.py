"""Minutes of everything at once, with models coming and going beneath; see README.md."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from tests.system.harness import Shoal, a_shoal, until  # noqa: E402

from shoal.bench.clock import say  # noqa: E402
from shoal.bench.crowd import LEFT, WHOLE, Asker, Crowd, Used, documented  # noqa: E402
from shoal.bench.processes import end_in_order  # noqa: E402
from shoal.bench.relay import usage  # noqa: E402
from shoal.bench.results import Check, show, write  # noqa: E402
from shoal.errors import ShoalError  # noqa: E402

FOLDER = Path(__file__).parent
CHATS = ("anchovy", "bream", "cod", "dory")
EMBEDDING = "eel"
KEYS: dict[str, dict[str, Any]] = {
    "app": {},
    "batch": {"priority": "low", "weight": 0.5},
    "limited": {"requests_per_minute": 60, "concurrent": 3},
    "narrow": {"models": [CHATS[0]]},
}
SLOTS = 4
SPEED = 100
CLIENTS = (8, 16, 32)
RAMP = 6.0
"""Seconds of each step of the ramp."""
LOAD = 0.8
PATIENCE = 120.0
QUIET = 10.0
"""Seconds of rest before the relay's books are read: kept connections to engines close before that."""
MIB = 2**20
BYTES_A_REQUEST = 16
"""What may stay in the relay of each request, less than the smallest object would take."""
SLACK = 2 * MIB
"""Memory by which two readings of a process differ that does nothing."""


class Beneath:
    """What happens beneath the load: models that are loaded and unloaded, engines that are killed, and once in the
    middle the controller."""

    def __init__(self, shoal: Shoal, seconds: float, seed: int) -> None:
        self.shoal = shoal
        self.seconds = seconds
        self.chance = random.Random(seed)
        self.done = {"loaded": 0, "unloaded": 0, "refused": 0, "engines killed": 0, "controller killed": 0}
        self.faults: list[str] = []
        self._over = threading.Event()

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """For as long as the block runs."""
        thread = threading.Thread(target=self._work)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _work(self) -> None:
        began = time.monotonic()
        killed = began
        while not self._over.wait(self.chance.uniform(1.0, 6.0)):
            now = time.monotonic()
            try:
                if not self.done["controller killed"] and now - began > self.seconds / 2:
                    os.kill(self.shoal.pid("shoal.controller"), signal.SIGKILL)
                    self.done["controller killed"] += 1
                elif now - killed > 30.0:
                    killed = now
                    self._kill_an_engine()
                else:
                    self._change_a_model()
            except ShoalError:
                # While the controller is away, or of what cannot be done right now.
                self.done["refused"] += 1
            except Exception as error:  # the load goes on, and the result says so
                self.faults.append(repr(error))

    def _kill_an_engine(self) -> None:
        with self.shoal.client as client:
            ready = [one for one in client.instances() if one["state"] == "ready" and one["pid"]]
        if ready:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.chance.choice(ready)["pid"], signal.SIGKILL)
                self.done["engines killed"] += 1

    def _change_a_model(self) -> None:
        name = self.chance.choice([*CHATS, EMBEDDING])
        with self.shoal.client as client:
            if self.chance.random() < 0.4:
                client.load(name, instances=self.chance.randint(1, 2))
                self.done["loaded"] += 1
            else:
                client.unload(name)
                self.done["unloaded"] += 1


class Soak:
    """A Shoal, a crowd, and what happens beneath."""

    def __init__(self, options: argparse.Namespace, shoal: Shoal) -> None:
        self.options = options
        self.shoal = shoal
        self.rows: list[dict[str, Any]] = []

    def start(self) -> None:
        """Five models and four keys."""
        chat = ["--tokens-per-second", str(SPEED), "--max-num-seqs", str(SLOTS), "--start-seconds", "1"]
        self.keys: dict[str, str] = {}
        self.ids: dict[str, str] = {}
        with self.shoal.client as client:
            for name in (*CHATS, EMBEDDING):
                args = [*chat, "--device-memory", "3GiB", "--disable-uvicorn-access-log"]
                self.shoal.add(name, *args, *(["--task", "embed"] if name == EMBEDDING else []))
                self.shoal.load(name)
            for name, more in KEYS.items():
                made = client.create_key({"name": name, **more})
                self.keys[name], self.ids[made["key"]] = made["key"], made["id"]
        until(lambda: self.shoal.chat(CHATS[0]).status_code == 401, "the keys at the relay")

    def run(self) -> None:
        """Ramp, warm up, rest, soak, rest; and what to say of it."""
        seconds = 60.0 * self.options.minutes
        manual = (ROOT / "docs" / "gateway.md").read_text()
        asker = Asker(CHATS, EMBEDDING, self.keys, random.Random(self.options.seed))
        crowd = self.crowd = Crowd(self.shoal.url, asker, documented(manual))
        self.relay = self.shoal.pid("shoal.gateway")
        rates = [asyncio.run(crowd.ramp(clients, RAMP)) for clients in CLIENTS]
        self.rows.append({"what": "ramp", "rates": dict(zip(map(str, CLIENTS), rates, strict=True))})
        self.rate = LOAD * max(rates)
        say(f"{rates} answers a second; {self.rate:.1f} requests a second from now on")
        self.phase("warm-up", max(30.0, min(180.0, seconds / 6)), seed=1)
        self.before, self.ended_before = self.rested(), crowd.sent
        self.beneath = self.phase("soak", seconds, seed=2)
        self.after = self.rested()
        self.replaced = int(self.shoal.pid("shoal.gateway") != self.relay)
        self.expected = {(self.ids[key], model): used for (key, model), used in crowd.used.items()}
        self.stored = self.usage()
        self.rows += [
            {"what": "requests", "rate": self.rate, "sent": crowd.sent, "ends": dict(sorted(crowd.ends.items()))},
            {"what": "pollers", "answers": dict(sorted(crowd.looks.items()))},
            {"what": "beneath", **self.beneath.done, "faults": self.beneath.faults},
            {"what": "relay", "before": asdict(self.before), "after": asdict(self.after)},
            {"what": "wrong", "ends": crowd.wrong, "slowest": crowd.slowest},
        ]
        for row in self.rows:
            say(row)

    def phase(self, name: str, seconds: float, seed: int) -> Beneath:
        """So many seconds of load, and of what happens beneath it."""
        say(name, f"{seconds:.0f} s")
        beneath = Beneath(self.shoal, seconds, seed)
        with beneath.at_work():
            asyncio.run(self._load(seconds))
        return beneath

    async def _load(self, seconds: float) -> None:
        crowd = self.crowd
        pollers = [
            asyncio.create_task(crowd.look("/v1/models", 1.0, keyed=True)),
            asyncio.create_task(crowd.look("/metrics", 2.0, keyed=False)),
            asyncio.create_task(crowd.look("/api/v1/requests", 3.0, keyed=False)),
        ]
        try:
            await crowd.drive(self.rate, seconds, PATIENCE)
        finally:
            for poller in pollers:
                poller.cancel()
            await asyncio.gather(*pollers, return_exceptions=True)

    def rested(self) -> usage.Usage:
        """What the relay holds once it has nothing to do."""
        with self.shoal.client as client:
            until(lambda: not client.requests()["requests"], "the end of all requests", PATIENCE)
        time.sleep(QUIET)
        return usage.read([psutil.Process(self.relay)])

    def usage(self) -> dict[tuple[str, str], Used]:
        """Usage as it is stored, once it is what was counted or nothing more comes."""
        found: dict[tuple[str, str], Used] = {}
        deadline = time.monotonic() + 30
        while found != self.expected and time.monotonic() < deadline:
            time.sleep(1)
            with self.shoal.client as client:
                rows = client.usage(["key", "model"])["usage"]
            found = {
                (row["key"], row["model"]): Used(row["requests"], row["prompt_tokens"], row["completion_tokens"])
                for row in rows
                if row["key"]  # who started this asked without one before there was any
            }
        return found

    def checks(self) -> list[Check]:
        """What is promised."""
        crowd, nothing = self.crowd, Used()
        kinds = self.expected.keys() | self.stored.keys()
        pairs = [(self.expected.get(kind, nothing), self.stored.get(kind, nothing)) for kind in kinds]
        tokens = [
            abs(one.prompt_tokens - other.prompt_tokens) + abs(one.completion_tokens - other.completion_tokens)
            for one, other in pairs
        ]
        away = {"/api/v1/requests 503", "/metrics 503"}
        looks = sum(n for look, n in crowd.looks.items() if not look.endswith(" 200") and look not in away)
        requests = crowd.sent - self.ended_before
        rss = self.after.rss - self.before.rss
        return [
            Check("minutes", self.options.minutes, "min", 30, "at least"),
            Check("load", 100 * self.rate / max(self.rows[0]["rates"].values()), "% of capacity", 80, "at least"),
            Check("ends that are not documented", len(crowd.wrong), "requests", 0),
            Check("requests without one end", abs(crowd.sent - crowd.ends.total()), "requests", 0),
            Check("ended as they were meant to", self._as_meant(), "% of requests", 98, "at least"),
            Check("looks that went wrong", looks, "looks", 0),
            Check("faults beneath", len(self.beneath.faults), "faults", 0),
            Check("controller killed", self.beneath.done["controller killed"], "times", 1, "at least"),
            Check("engines killed", self.beneath.done["engines killed"], "times", 1, "at least"),
            Check("relay replaced", self.replaced, "times", 0),
            Check("descriptors of the relay, more than before", self.after.fds - self.before.fds, "fds", 0),
            Check(
                "memory of the relay, more than before", rss / MIB, "MiB", (SLACK + BYTES_A_REQUEST * requests) / MIB
            ),
            Check("usage: requests that differ", sum(abs(a.requests - b.requests) for a, b in pairs), "requests", 0),
            Check("usage: tokens that differ", sum(tokens), "tokens", 0),
        ]

    def _as_meant(self) -> float:
        """The part that was answered, left, or refused for what it was; the rest met a fault, or had no room."""
        ends = self.crowd.ends
        good = sum(n for end, n in ends.items() if end in (WHOLE, LEFT, "429 rate_limited") or end[:2] == "40")
        return 100 * good / max(1, self.crowd.sent)


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="of the soak; less than 30 is a rehearsal")
    parser.add_argument("--quick", action="store_true", help="a rehearsal of half a minute")
    parser.add_argument("--seed", type=int, default=1, help="of what is sent and of what happens")
    parser.add_argument("--out", type=Path, default=FOLDER, help="results go to a folder `results` in here")
    parser.add_argument("--keep", action="store_true", help="write the result also if a check does not hold")
    found = parser.parse_args()
    if found.minutes <= 0:
        parser.error("--minutes: more than 0")
    if found.quick:
        found.minutes = 0.5
    return found


def main() -> int:
    """Soak, print, and write the result if it holds; 1 if it does not."""
    found = options()
    end_in_order()
    settings = {
        "simulated_devices": ["10GiB", "10GiB"],
        "restart_reset": 20,
        "restart_delay": 0.5,
        "health_interval": 1,
    }
    with a_shoal(**settings) as shoal:
        shoal.start()
        soak = Soak(found, shoal)
        soak.start()
        soak.run()
        text = shoal.text
        code = shoal.stop()
        checks = [*soak.checks(), Check("tracebacks in the log", text.count("Traceback"), "tracebacks", 0)]
    good = code == 0 and all(check.holds for check in checks if check.name != "minutes")
    if not good:
        print(text[-8000:])
    show(checks)
    if good or found.keep:
        quick = found.minutes < 30
        packages = ("shoal", "uvloop", "httptools", "aiohttp")
        say(write(found.out, soak.rows, checks, packages=packages, quick=quick))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
