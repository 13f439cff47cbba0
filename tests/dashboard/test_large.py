"""Eight devices and a hundred models: what is drawn, what is drawn again, and two hundred who watch."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import psutil
import pytest
import uvicorn
from playwright.sync_api import Page, expect

from shoal.api.app import make_app
from shoal.bench.dashboard.fleet import Stage
from shoal.bench.dashboard.stage import make_controller, tell
from tests.system.harness import until

T = TypeVar("T")
NAMES = [f"model-{number:03}" for number in range(100)]
WATCHERS = 200


class Staged:
    """A controller on a stage, in a loop of its own on another thread. Nothing changes by itself."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self.url = ""

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.controller = make_controller(self._folder)
        await self.controller.store.open()
        self.stage = Stage(8, 100)
        self.stage.furnish(self.controller.manager.fleet, time.time())
        self.stage.step()
        tell(self.controller, self.stage)
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(make_app(self.controller), log_config=None, lifespan="off", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started:
            await asyncio.sleep(0.01)
        self._ready.set()
        await serving
        await self.controller.store.close()

    def call(self, work: Callable[[], T]) -> T:
        """Have the loop do something."""

        async def run() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(30)

    def change(self) -> None:
        """All readings become others."""
        self.stage.step()
        self.call(lambda: tell(self.controller, self.stage))

    def pin(self, name: str, pin: bool) -> None:
        """One model has another setting."""
        fleet = self.controller.manager.fleet

        def run() -> None:
            model = fleet.models[name]
            spec = model.spec.model_copy(update={"pin": pin})
            fleet.models[name] = type(model)(spec, model.origin, model.created_at, model.desired)
            self.controller.hub.publish("model", fleet.model_view(name))

        self.call(run)

    def __enter__(self) -> Staged:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(30)


@pytest.fixture(scope="module")
def staged() -> Iterator[Staged]:
    folder = Path(tempfile.mkdtemp(prefix="stage-", dir="/tmp"))  # Unix sockets allow no long names
    try:
        with Staged(folder) as made:
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def observe(page: Page) -> None:
    """Begin to note which models' rows and which devices change."""
    page.evaluate(
        """() => {
        const app = document.getElementById("app");
        window.changed = new Set();
        new MutationObserver((list) => {
          for (const { target } of list) {
            const element = target instanceof Element ? target : target.parentElement;
            const place = element?.closest(".model, .device");
            if (place) window.changed.add(place.getAttribute("aria-label"));
          }
        }).observe(app, { subtree: true, childList: true, characterData: true, attributes: true });
        }"""
    )


def changed(page: Page) -> list[Any]:
    return sorted(page.evaluate("[...window.changed]"))


def test_all_is_drawn_and_only_what_changes_is_drawn_again(staged: Staged, page: Page) -> None:
    page.goto(staged.url)
    expect(page.locator(".model")).to_have_count(100)
    expect(page.locator(".device")).to_have_count(8)
    expect(page.locator(".model[aria-label=model-099] .badge")).to_have_attribute("data-state", "ready")
    # What relays have told comes after the first frame.
    expect(page.locator(".model[aria-label=model-098]")).not_to_contain_text("running, waiting –")
    observe(page)
    for pin in (True, False):
        staged.pin("model-042", pin)
        expect(page.locator(".model[aria-label=model-042] .pin")).to_have_count(int(pin))
    assert changed(page) == ["model-042"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 1440


def test_readings_of_all_reach_every_tin_and_row_without_making_them_anew(staged: Staged, page: Page) -> None:
    page.goto(staged.url)
    expect(page.locator(".model")).to_have_count(100)
    observe(page)
    page.evaluate("window.kept = [...document.querySelectorAll('.model, .device, .tin')]")
    staged.change()
    until(lambda: {*NAMES, *(f"cuda:{n}" for n in range(8))} <= set(changed(page)), "the change everywhere")
    assert page.evaluate("window.kept.every((one) => one.isConnected)")


def open_streams(staged: Staged, count: int) -> list[socket.socket]:
    parts = urlsplit(staged.url)
    assert parts.hostname and parts.port
    head = f"GET /api/v1/events HTTP/1.1\r\nhost: {parts.netloc}\r\n\r\n".encode()
    opened = []
    for _ in range(count):
        one = socket.create_connection((parts.hostname, parts.port), timeout=30)
        one.sendall(head)
        opened.append(one)
    return opened


def read_until(one: socket.socket, words: bytes) -> bytes:
    found = b""
    while words not in found:
        piece = one.recv(2**18)
        assert piece, "the stream ended"
        found += piece
    return found


def test_two_hundred_watch_one_encoding_and_leave_nothing_behind(staged: Staged) -> None:
    hub = staged.controller.hub
    until(lambda: hub.watchers == 0, "nobody")

    def held() -> tuple[int, int]:
        return staged.call(lambda: len(asyncio.all_tasks())), psutil.Process().num_fds()

    before = held()
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(one) for one in open_streams(staged, WATCHERS)]
        assert all(b'"model-099"' in read_until(one, b"}\n\n") for one in streams)
        assert hub.watchers == WATCHERS
        staged.pin("model-001", True)
        told = [re.search(rb"id: (\S+)\nevent: model\n", read_until(one, b"}\n\n")) for one in streams]
        assert len({found[1] for found in told if found}) == 1 and all(told)  # the same frame for everybody
    until(lambda: hub.watchers == 0, "the end of all")
    until(lambda: held()[0] <= before[0] and held()[1] <= before[1], "tasks and descriptors as before")
