"""What the page and its viewers cost, and how soon it shows what happens; see README.md."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import psutil
from playwright.sync_api import Browser, Page, expect, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.dashboard.conftest import CHROMIUM, FLAGS
from tests.system.harness import Shoal, a_shoal, until

from shoal.bench.clock import say
from shoal.bench.dashboard import browser as measured
from shoal.bench.dashboard.fleet import MARKED
from shoal.bench.results import Check, show, write
from shoal.bench.stats import median, percentile, rounded
from shoal.client import Client

VIEWERS = 200
RATE = 4
HOUR = 3600 * RATE
"""Updates of an hour."""
SETTLE = 3.0
"""Seconds after which a page that was opened has done what it does only then."""
Row = dict[str, Any]


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Of milliseconds."""
    return {"p50": percentile(values, 0.5), "p99": percentile(values, 0.99), "max": max(values)}


# -- processes --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def process(module: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A module of Shoal's that runs, and the first line that it said. It is asked to end at the end of the block."""
    argv = [sys.executable, "-m", module, *arguments]
    running = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert running.stdout is not None
        line = running.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"{module} ended at once")
        yield running, line
    finally:
        if running.poll() is None:
            running.send_signal(signal.SIGTERM)
            running.wait(20)


@contextlib.contextmanager
def stage(*arguments: str) -> Iterator[tuple[str, psutil.Process]]:
    """A synthetic fleet; its address and its process."""
    folder = tempfile.mkdtemp(prefix="stage-", dir="/tmp")  # Unix sockets allow no long names
    try:
        with process("shoal.bench.dashboard.stage", "--state", folder, *arguments) as (running, url):
            yield url, psutil.Process(running.pid)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def viewers(url: str, count: int, seen: Row) -> Iterator[None]:
    """So many viewers, all of whom have their snapshot. What they saw is put into `seen` in the end."""
    with process("shoal.bench.dashboard.viewers", "--url", url, "--count", str(count)) as (running, _):
        psutil.Process(running.pid).nice(5)  # they are elsewhere; here they share the cores with what is measured
        yield
        running.send_signal(signal.SIGTERM)
        said, _ = running.communicate(timeout=20)
        seen |= json.loads(said.splitlines()[-1])


def core(of: psutil.Process, seconds: float) -> float:
    """Part of a core that a process uses, in percent, over so many seconds."""
    before, began = sum(of.cpu_times()[:2]), time.monotonic()
    time.sleep(seconds)
    return 100 * (sum(of.cpu_times()[:2]) - before) / (time.monotonic() - began)


@contextlib.contextmanager
def beside(work: Any) -> Iterator[None]:
    """Call `work` again and again on another thread while the block runs. What it raises is raised at the end."""
    ended, faults = threading.Event(), []

    def run() -> None:
        try:
            while not ended.is_set():
                work()
        except Exception as error:
            faults.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if faults:
        raise faults[0]


# -- (a) viewers ------------------------------------------------------------------------------------------------------


def watched(quick: bool) -> list[Row]:
    """The controller's share of a core and the relay's latency, without and with viewers in alternation, while models
    change four times a second."""
    rows: list[Row] = []
    with furnished() as shoal, shoal.client as client, shoal.http() as http:
        controller, relay = (psutil.Process(shoal.pid(name)) for name in ("shoal.controller", "shoal.gateway"))
        changing, pins = pacer(RATE), itertools.cycle([True, False])
        with beside(lambda: (changing(), client.change_model("m-0", {"pin": next(pins)}))):
            for count in (0, VIEWERS) * (1 if quick else 3):
                seen: Row = {}
                with viewers(shoal.url, count, seen) if count else contextlib.nullcontext():
                    time.sleep(SETTLE)
                    before = [sum(one.cpu_times()[:2]) for one in (controller, relay)]
                    began, times = time.monotonic(), ask(http, 5 if quick else 20)
                    seconds = time.monotonic() - began
                    used = [sum(one.cpu_times()[:2]) for one in (controller, relay)]
                cores = [100 * (now - then) / seconds for now, then in zip(used, before, strict=True)]
                rows.append(
                    {"what": "watched", "viewers": count, "controller_core": cores[0], "relay_core": cores[1]}
                    | {"requests": len(times), **quantiles(times), **seen}
                )
                say(rounded(rows[-1]))
        shoal.stop()
    return rows


@contextlib.contextmanager
def furnished() -> Iterator[Shoal]:
    """A Shoal with eight simulated devices and a hundred models, of which two serve."""
    models = {f"m-{n}": {"source": "x"} for n in range(2, 100)}
    with a_shoal(models=models, simulated_devices=["80GiB"] * 8) as shoal:
        shoal.start()
        for name in ("m-0", "m-1"):
            shoal.add(name, "--tokens-per-second", "0")
            shoal.load(name)
        yield shoal


def pacer(rate: float) -> Any:
    """A function that returns so many times a second."""
    due = time.monotonic()

    def wait() -> None:
        nonlocal due
        due = max(due + 1 / rate, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))

    return wait


def ask(http: httpx2.Client, seconds: float) -> list[float]:
    """Milliseconds that answers took, to fifty requests a second, one after the other."""
    times, wait = [], pacer(50)
    body = {"model": "m-1", "prompt": "a", "max_tokens": 1}
    ended = time.monotonic() + seconds
    while time.monotonic() < ended:
        wait()
        began = time.perf_counter()
        answer = http.post("/v1/completions", json=body)
        times.append(1e3 * (time.perf_counter() - began))
        if answer.status_code != 200:
            raise RuntimeError(f"a request was answered {answer.status_code}: {answer.text}")
    return times


def watched_stage(quick: bool) -> list[Row]:
    """The same of a controller of which everything changes four times a second: eight devices, a hundred models."""
    rows: list[Row] = []
    with stage() as (url, running):
        for count in (0, VIEWERS) * (1 if quick else 3):
            seen: Row = {}
            with viewers(url, count, seen) if count else contextlib.nullcontext():
                time.sleep(SETTLE)
                used = core(running, 5 if quick else 20)
            rows.append({"what": "watched stage", "viewers": count, "controller_core": used, **seen})
            say(rounded(rows[-1]))
    return rows


# -- (b), (c), (d): in a browser --------------------------------------------------------------------------------------


def opening(browser: Browser, quick: bool) -> list[Row]:
    """When the first model is drawn: with an empty cache, and with a full one."""
    rows: list[Row] = []
    with furnished() as shoal:
        times: dict[str, list[float]] = {"cold": [], "warm": []}
        for _ in range(3 if quick else 15):
            with measured.opened(browser) as page:
                times["cold"].append(measured.first_row(page, shoal.url))
                times["warm"].append(measured.first_row(page, shoal.url))
        rows += [{"what": "first row", "cache": cache, "ms": values} for cache, values in times.items()]
        with measured.opened(browser) as page, shoal.client as client:
            measured.first_row(page, shoal.url)
            rows.append({"what": "event to pixel", "of": "shoal serve", "ms": pinned(page, client, 5 if quick else 30)})
        shoal.stop()
    for row in rows:
        say(row["what"], row.get("cache", ""), rounded(quantiles(row["ms"])))
    return rows


def pinned(page: Page, client: Client, times: int) -> list[float]:
    """Milliseconds until a change of one model is drawn, one change at a time."""
    time.sleep(SETTLE)
    measured.watch_pins(page, "m-0", from_events=True)
    for number in range(times):
        client.change_model("m-0", {"pin": number % 2 == 0})
        until(partial(drawn, page, number + 1), "the change")
        time.sleep(0.35 + 0.013 * number)  # at any place of the page's own time
    return measured.delays(page)


def drawn(page: Page, changes: int) -> bool:
    return len(measured.delays(page)) >= changes


def large(browser: Browser, quick: bool) -> list[Row]:
    """Eight devices and a hundred models, all of which change four times a second."""
    with stage() as (url, _), measured.opened(browser) as page:
        measured.first_row(page, url)
        expect(page.locator(".model")).to_have_count(100)
        expect(page.locator(".device")).to_have_count(8)
        measured.count_updates(page)
        time.sleep(SETTLE)
        measured.watch_pins(page, MARKED, from_events=False)
        found = measured.busy(page, 8 if quick else 60)
        late = measured.delays(page)
    rows: list[Row] = [
        {
            "what": "large",
            "busy": 100 * found.part,
            "updates_s": found.updates / found.seconds,
            "shift": found.shift,
            "moved": found.moved,
        },
        {"what": "event to pixel", "of": "8 devices, 100 models", "ms": late},
    ]
    say(rounded(rows[0]), rounded(quantiles(late)))
    return rows


def hour(browser: Browser, quick: bool) -> list[Row]:
    """As many updates as an hour has, as fast as the page takes them, and what it holds meanwhile."""
    wanted = 200 if quick else HOUR
    held: list[measured.Held] = []
    with stage("--rate", "60", "--spacing", "0.01") as (url, _), measured.opened(browser, spacing=10) as page:
        measured.first_row(page, url)
        measured.count_updates(page)
        began = time.monotonic()
        for part in range(11):
            until(partial(reached, page, wanted * part // 10), "the updates", 600)
            held.append(measured.held(page))
            say("after", held[-1].updates, "updates:", held[-1])
        seconds = time.monotonic() - began
    at = [{"updates": one.updates, "heap": one.heap, "nodes": one.nodes} for one in held]
    return [{"what": "hour", "seconds": seconds, "held": at}]


def reached(page: Page, updates: int) -> bool:
    page.wait_for_timeout(100)
    return bool(page.evaluate("window.bench.updates") >= updates)


# -- what was promised ------------------------------------------------------------------------------------------------


def checks(rows: Sequence[Row]) -> list[Check]:
    """What was promised, of the rows that are there."""
    found: list[Check] = []
    for what, where in (("watched", "two models that change"), ("watched stage", "8 devices, 100 models that change")):
        alone, crowd = ([r for r in rows if r["what"] == what and bool(r["viewers"]) == many] for many in (False, True))
        if alone and crowd:
            cost = median([r["controller_core"] for r in crowd]) - median([r["controller_core"] for r in alone])
            found.append(Check(f"{VIEWERS} viewers, {where}: CPU of the controller", cost, "% of a core", 10))
        if what == "watched" and alone and crowd:
            found += [
                Check(
                    f"{VIEWERS} viewers: latency through the relay, {at}, to without",
                    median([r[at] for r in crowd]) / median([r[at] for r in alone]),
                    "×",
                    limit,
                )
                for at, limit in (("p50", 1.1), ("p99", 1.25))
            ]
    for row in rows:
        if row["what"] == "first row":
            found.append(Check(f"first model drawn, {row['cache']} cache, median", median(row["ms"]), "ms", 300))
        if row["what"] == "event to pixel":
            found.append(Check(f"event to pixel, {row['of']}, p99", quantiles(row["ms"])["p99"], "ms", 400))
        if row["what"] == "large":
            found.append(Check("8 devices, 100 models, 4 updates/s: main thread busy", row["busy"], "%", 20))
            found.append(Check("8 devices, 100 models, 4 updates/s: shifted beside tins", row["moved"], "elements", 0))
        if row["what"] == "hour":
            # The first fifth fills what is bounded: events, rates and the strips.
            heaps = [one["heap"] for one in row["held"]]
            growth = (median(heaps[-4:]) - median(heaps[2:6])) / 2**20
            found.append(Check("updates of an hour: growth of the page's heap", growth, "MiB", 1))
    return found


def main() -> None:
    """Measure, print, and write the result."""
    parts = {"viewers": watched, "stage": watched_stage}
    views = {"opening": opening, "large": large, "hour": hour}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a rehearsal: everything once and short")
    parser.add_argument("--parts", nargs="+", choices=[*parts, *views], default=[*parts, *views])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    whole = shutil.which("chromium") or CHROMIUM  # what people open is a whole browser, not its headless shell
    parser.add_argument("--browser", default=whole, help="the Chromium to measure with (default: %(default)s)")
    options = parser.parse_args()
    rows: list[Row] = []
    for part in parts:
        if part in options.parts:
            rows += parts[part](options.quick)
    if wanted := [part for part in views if part in options.parts]:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=options.browser, args=FLAGS)
            say(f"{options.browser}, {browser.version}")
            for part in wanted:
                rows += views[part](browser, options.quick)
            browser.close()
    result = checks(rows)
    show(result)
    say(
        write(
            options.out, [rounded(row) for row in rows], result, packages=("shoal", "playwright"), quick=options.quick
        )
    )


if __name__ == "__main__":
    main()
