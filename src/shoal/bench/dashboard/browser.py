"""What a page takes in a browser: when it is drawn, how late it is, how busy it keeps its thread. Needs Playwright."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from playwright.sync_api import Browser, CDPSession, Page, Route, ViewportSize

VIEWPORT = ViewportSize(width=1440, height=900)
MIB = 2**20
# In the page from before its first script. `row`: when the first model was drawn, in milliseconds from the start of the
# navigation: after the frame in which it is there. `shift`: the sum of layout shifts that no input caused. `moved`: the
# elements that were shifted, but for the parts of a tin, which are to move; text in a box that stays is no element.
_FIRST = """
window.bench = { row: null, shift: 0, moved: 0, delays: [], updates: 0 };
new PerformanceObserver((list) => {
  for (const one of list.getEntries()) {
    if (one.hadRecentInput) continue;
    window.bench.shift += one.value;
    const beside = ({ node }) => node instanceof Element && !node.closest(".tin-frame");
    window.bench.moved += one.sources.filter(beside).length;
  }
}).observe({ type: "layout-shift", buffered: true });
const drawn = (then) => requestAnimationFrame(() => {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = then;
  port2.postMessage(null);
});
window.bench.drawn = drawn;
const watch = new MutationObserver(() => {
  if (!document.querySelector(".model .row")) return;
  watch.disconnect();
  drawn(() => (window.bench.row = performance.now()));
});
watch.observe(document, { childList: true, subtree: true });
"""
# Notes how late each change of a model's pin is drawn. When it was published is in the view of the model (a stage puts
# it there), or in the newest event.
_PINS = """([name, fromEvents]) => {
  const store = window.shoalModules["store.js"];
  const row = document.querySelector(`.model[aria-label="${name}"]`);
  let pinned = Boolean(row.querySelector(".pin"));
  new MutationObserver(() => {
    const now = Boolean(row.querySelector(".pin"));
    if (now === pinned) return;
    pinned = now;
    const at = fromEvents ? store.events.peek()[0].at : store.model(name).peek().created_at;
    window.bench.drawn(() => window.bench.delays.push(Date.now() - 1000 * at));
  }).observe(row, { childList: true, subtree: true });
}"""
_SPACING = "const SPACING = 100;"
_UPDATES = """() => {
  const store = window.shoalModules["store.js"];
  store.devices.subscribe(() => window.bench.updates++);
}"""


@dataclass(frozen=True, slots=True)
class Busy:
    """A stretch of `seconds`: the part of it that the page's main thread worked, how often it took updates in, and the
    sum of layout shifts. `moved`: elements beside the parts of tins that were shifted."""

    seconds: float
    part: float
    updates: int
    shift: float
    moved: int


@dataclass(frozen=True, slots=True)
class Held:
    """What the page holds after a collection of garbage: bytes of its heap, DOM nodes, and the updates so far."""

    heap: int
    nodes: int
    updates: int


@contextmanager
def opened(browser: Browser, spacing: int | None = None) -> Iterator[Page]:
    """A page with nothing in its cache. `spacing`: milliseconds between two updates, if others than the page's own."""
    context = browser.new_context(viewport=VIEWPORT)
    page = context.new_page()
    page.add_init_script(_FIRST)
    if spacing is not None:
        page.route("**/static/*/app.js", lambda route: _hurried(route, spacing))
    try:
        yield page
    finally:
        context.close()


def _hurried(route: Route, spacing: int) -> None:
    answer = route.fetch()
    text = answer.text()
    if _SPACING not in text:
        raise RuntimeError("store.js has its spacing elsewhere now; the accelerated hour cannot be had")
    route.fulfill(response=answer, body=text.replace(_SPACING, f"const SPACING = {spacing};"))


def first_row(page: Page, url: str) -> float:
    """Milliseconds until the first model is drawn, of a page that is gone to, or opened again."""
    page.goto(url)
    page.wait_for_function("() => window.bench.row !== null")
    return float(page.evaluate("window.bench.row"))


def watch_pins(page: Page, name: str, *, from_events: bool) -> None:
    """Begin to note how late changes of a model's pin are drawn."""
    page.evaluate(_PINS, [name, from_events])


def delays(page: Page) -> list[float]:
    """How late those changes were drawn so far, in milliseconds."""
    return [float(one) for one in page.evaluate("window.bench.delays")]


def count_updates(page: Page) -> None:
    """Begin to count how often devices are told anew."""
    page.evaluate(_UPDATES)


def busy(page: Page, seconds: float) -> Busy:
    """Look at the main thread for so long. `count_updates` was called before."""
    session = page.context.new_cdp_session(page)
    # Its own time, not that of others on the same cores.
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    before, counted, began = _work(session), _counted(page), time.monotonic()
    page.wait_for_timeout(1000 * seconds)
    after, ended = _work(session), time.monotonic()
    updates, shift, moved = (now - then for now, then in zip(_counted(page), counted, strict=True))
    session.detach()
    return Busy(ended - began, (after - before) / (ended - began), int(updates), shift, int(moved))


def held(page: Page) -> Held:
    """What the page holds now. `count_updates` was called before."""
    session = page.context.new_cdp_session(page)
    heap = min(_collected(page, session) for _ in range(3))  # an update that is under way is not what is held
    nodes = int(session.send("Memory.getDOMCounters")["nodes"])
    session.detach()
    return Held(heap, nodes, int(_counted(page)[0]))


def _collected(page: Page, session: CDPSession) -> int:
    page.wait_for_timeout(30)
    session.send("HeapProfiler.collectGarbage")
    return int(session.send("Runtime.getHeapUsage")["usedSize"])


def _counted(page: Page) -> tuple[float, float, float]:
    updates, shift, moved = page.evaluate("[window.bench.updates, window.bench.shift, window.bench.moved]")
    return float(updates), float(shift), float(moved)


def _work(session: CDPSession) -> float:
    """Seconds that the main thread has worked."""
    metrics = session.send("Performance.getMetrics")["metrics"]
    return float(next(one["value"] for one in metrics if one["name"] == "TaskDuration"))
