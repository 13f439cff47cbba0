"""The page in a real browser, against a scripted Shoal."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from shoal.dashboard import STATIC
from tests.cli.scripted import GIB, ScriptedShoal, instance, memory, pool, scripted

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
ODD = "<img src=x onerror=alert(1)> 🐟 [b]"
PATIENCE = 30_000

browser_needed = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def shoal() -> Iterator[ScriptedShoal]:
    with scripted() as server:
        yield server


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page on which any error of the script, and anything that the policy blocks, fails the test."""
    expect.set_options(timeout=PATIENCE)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: faults.append(f"dialog: {dialog.message}"))
    page.on("console", lambda line: faults.append(line.text) if "Content Security Policy" in line.text else None)
    yield page
    page.close()
    assert faults == []


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    for file in STATIC.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://", text), file.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text), file.name
    html = (STATIC / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]*src=)", html)
    assert not re.search(r'(?:src|href)="/', html), "an absolute address breaks behind a path prefix"


@browser_needed
def test_an_empty_fleet_says_the_next_step(shoal: ScriptedShoal, page: Page) -> None:
    shoal.devices = []
    page.goto(shoal.url)
    expect(page.get_by_text("shoal models add my-model --source ./my-model", exact=True)).to_be_visible()
    expect(page.get_by_text("shoal doctor", exact=True)).to_be_visible()
    expect(page.get_by_text("Nothing has happened yet.")).to_be_visible()
    expect(page.locator("#connection")).to_have_text("Live")


@browser_needed
def test_names_and_failures_are_text(shoal: ScriptedShoal, page: Page) -> None:
    failure = {"code": "x", "message": "<b>It needs 151 GiB.</b>", "hint": "Use more devices."}
    shoal.add(ODD, instance("odd-1", ODD, "failed", failure=failure))
    shoal.history = [{"at": time.time(), "level": "error", "kind": "failed", "model": ODD, "instance": None,
                      "message": f"{ODD} failed", "id": 1}]  # fmt: skip
    page.goto(shoal.url)
    expect(page.get_by_role("heading", name=ODD)).to_be_visible()
    expect(page.get_by_text("<b>It needs 151 GiB.</b>")).to_be_visible()
    expect(page.get_by_text("Use more devices.")).to_be_visible()
    expect(page.locator("#events")).to_contain_text(f"error: {ODD} failed")
    assert page.locator("main img").count() == 0


@browser_needed
def test_load_is_followed_live_and_unload_asks_once(shoal: ScriptedShoal, page: Page) -> None:
    shoal.add("org/m", desired=0)
    shoal.stages = [
        {"state": "queued", "reason": "waits for cuda:0"},
        {"state": "starting", "progress": {"phase": "loading weights", "percent": 40, "seconds_left": 30.0}},
    ]
    page.goto(shoal.url)
    page.get_by_role("button", name="Load org/m", exact=True).click()
    expect(page.get_by_text("loading weights, 40 %")).to_be_visible()
    expect(page.get_by_role("progressbar")).to_have_attribute("value", "40")
    with shoal.lock:
        shoal.models["org/m"]["instances"][0] |= {"state": "ready", "progress": None}
        shoal.publish("org/m")
    expect(page.locator(".model .badge")).to_have_text("ready")
    unload = page.get_by_role("button", name="Unload org/m")
    unload.click()
    expect(page.get_by_role("dialog")).to_contain_text("Unload org/m?")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert not any(path.endswith("/unload") for _, path, _ in shoal.requests)
    unload.click()
    page.get_by_role("dialog").get_by_role("button", name="Unload").click()
    expect(page.locator(".model .badge")).to_have_text("unloaded")
    assert [path for _, path, _ in shoal.requests if path.endswith("/unload")] == ["/api/v1/models/org%2Fm/unload"]


@browser_needed
def test_a_refusal_is_shown(shoal: ScriptedShoal, page: Page) -> None:
    shoal.add("m", desired=0)
    page.goto(shoal.url)
    expect(page.get_by_role("button", name="Load m")).to_be_visible()
    del shoal.models["m"]  # removed by somebody else, and the page has not heard of it
    page.get_by_role("button", name="Load m").click()
    expect(page.get_by_role("alert")).to_contain_text("there is no model m")
    page.get_by_role("button", name="Dismiss this message").click()
    expect(page.get_by_role("alert")).to_be_empty()


@browser_needed
def test_a_log_opens_and_stays_while_its_model_changes(shoal: ScriptedShoal, page: Page) -> None:
    shoal.add("m", instance("m-1", "m", "ready"))
    shoal.logs["m-1"] = [f"line {n} <i>" for n in range(100)] + ["\x1b[32mgreen\x1b[0m"]
    page.goto(shoal.url)
    button = page.get_by_role("button", name="Log of m-1")
    button.focus()
    page.keyboard.press("Enter")
    log = page.get_by_role("log")
    expect(log).to_contain_text("line 99 <i>")
    expect(log).to_contain_text("green")
    assert "\x1b" not in (log.text_content() or "")
    with shoal.lock:
        shoal.models["m"]["instances"][0] |= {"memory": memory(held={"host": 5 * GIB})}
        shoal.publish("m")
    expect(page.get_by_text("5.0 GiB")).to_be_visible()
    expect(log).to_contain_text("line 99 <i>")
    expect(button).to_be_focused()
    page.keyboard.press("Enter")
    expect(log).to_have_count(0)


@browser_needed
def test_devices_show_their_memory(shoal: ScriptedShoal, page: Page) -> None:
    shoal.add("m", instance("m-1", "m", "ready"))
    shoal.devices[0] |= {"instances": ["m-1"]}
    page.goto(shoal.url)
    first = page.get_by_role("article", name="cuda:0")
    expect(first).to_contain_text("60.0 GiB of 140.0 GiB in use · 42 % busy")
    expect(first).to_contain_text("Holds m")
    shoal.tell("devices", {"devices": [shoal.devices[0] | {"memory_used": 70 * GIB}]})
    expect(first).to_contain_text("70.0 GiB of 140.0 GiB")
    expect(page.get_by_role("article", name="cuda:1")).to_have_count(0)


@browser_needed
def test_memory_is_seen_as_it_moves(shoal: ScriptedShoal, page: Page) -> None:
    leased = memory(lease=9 * GIB, backed=8 * GIB, used=5 * GIB, cached=3 * GIB, ceiling=20 * GIB, weights=15 * GIB)
    shoal.add("m", instance("m-1", "m", "ready", memory=leased))
    shoal.add("f", instance("f-1", "f", "ready", memory=memory(mode="fixed", reason="elastic is off")))
    shoal.devices[0] |= {"instances": ["m-1"], "pool": pool(backed=8 * GIB, used=5 * GIB, leased=9 * GIB)}
    page.goto(shoal.url)
    bar = page.get_by_role("img", name="Memory of cuda:0")
    words = "weights and others 52.0 GiB, KV in use 5.0 GiB, KV cached 3.0 GiB, free 80.0 GiB"
    expect(bar).to_have_attribute("aria-label", f"Memory of cuda:0: {words}")
    widths = bar.evaluate(
        "bar => [...bar.children].map((part) => part.getBoundingClientRect().width / bar.clientWidth)"
    )
    assert widths == pytest.approx([52 / 140, 5 / 140, 3 / 140, 80 / 140], abs=0.01)
    first = page.get_by_role("article", name="m", exact=True)
    for text in ("lease9.0 GiB", "ceiling20.0 GiB", "priority100", "weights15.0 GiB"):
        expect(first.locator(".memory")).to_contain_text(text)
    expect(page.get_by_role("article", name="f", exact=True)).to_contain_text("of fixed size: elastic is off")
    after = shoal.devices[0] | {"pool": pool(backed=9 * GIB, used=9 * GIB, leased=9 * GIB, held_back=GIB)}
    changed = leased | {"used": 9 * GIB, "waiting": 2, "missing": GIB}
    shoal.tell("memory", {"instances": {"m-1": changed}, "devices": [after]})
    expect(first).to_contain_text("2 requests wait for memory: 1.0 GiB short")
    expect(bar).to_have_attribute("aria-label", re.compile("KV in use 9.0 GiB, KV cached 0 B"))
    expect(page.get_by_text("1.0 GiB held back for a start")).to_be_visible()


@browser_needed
def test_a_lost_connection_marks_what_is_shown_as_old_and_comes_back(page: Page) -> None:
    with scripted() as first:
        port = int(first.url.rpartition(":")[2])
        first.add("before", desired=0)
        page.goto(first.url)
        expect(page.locator("#connection")).to_have_text("Live")
    expect(page.locator("#connection")).to_contain_text("Disconnected: this is from")
    expect(page.locator("body")).to_have_class("old")
    expect(page.get_by_role("heading", name="before")).to_be_visible()
    with scripted(port) as second:
        second.add("after", desired=0)
        expect(page.get_by_role("heading", name="after")).to_be_visible()
        expect(page.locator("#connection")).to_have_text("Live")
        expect(page.get_by_role("heading", name="before")).to_have_count(0)


@browser_needed
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_it_fits_and_can_be_read(shoal: ScriptedShoal, browser: Browser, scheme: Any, width: int) -> None:
    """No sideways scrolling, and contrast of at least 4.5 for everything that has text."""
    failure = {"code": "x", "message": "It needs 151 GiB.", "hint": "Use more devices."}
    shoal.add("w" * 200, instance("w-1", "w" * 200, "starting",
              progress={"phase": "loading weights", "percent": 43, "seconds_left": 38.0}))  # fmt: skip
    shoal.add("failed", instance("f-1", "failed", "failed", failure=failure), source="/" + "long" * 40)
    leased = memory(lease=9 * GIB, backed=8 * GIB, used=5 * GIB, cached=3 * GIB, weights=15 * GIB, waiting=3)
    shoal.add("ready", instance("r-1", "ready", "ready", memory=leased), instance("r-2", "ready", "draining"))
    shoal.devices[0] |= {"pool": pool(backed=18 * GIB, used=5 * GIB, leased=19 * GIB, limit=80 * GIB, held_back=GIB)}
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(shoal.url)
    expect(page.get_by_role("heading", name="ready")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    low = page.evaluate(CONTRAST)
    page.close()
    assert low == []


CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const back = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest("noscript, meter, progress")) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(back(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push(`${element.tagName}.${element.className} ${element.textContent} ${ratio.toFixed(2)}`);
  }
  return low;
}"""
