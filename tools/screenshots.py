#!/usr/bin/env python3
"""Make the pictures of the page for the documentation: a real `shoal serve` with simulated engines under load.

python tools/screenshots.py             writes docs/images/VIEW-{light,dark}-{1440,390}.png for every view
python tools/screenshots.py model add   for these
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from playwright.sync_api import FloatRect, Page, expect, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.dashboard.conftest import CHROMIUM, FLAGS
from tests.system.harness import Shoal, a_shoal

IMAGES = Path(__file__).parents[1] / "docs" / "images"
WATCHED = 45  # seconds: enough for something to be seen of the last ten minutes
TALLEST = 2_000  # pixels: what is below says nothing new
SETTLING = 7_000  # milliseconds: two readings of the traffic
KV = ("--simulated-block-bytes", "16MiB", "--tokens-per-second", "40")


def furnish(shoal: Shoal) -> None:
    """Models in every state, two of which are busy."""
    first, second, third = ({"devices": [f"simulated:{n}"]} for n in range(3))
    shoal.add("qwen3-8b", *KV, "--device-memory", "16GiB", floor="4GiB", ceiling="30GiB", **first)
    shoal.add("llama-3.1-8b", *KV, "--device-memory", "15GiB", "--enable-sleep-mode", pin=True, **first)
    shoal.add("gemma-3-12b", *KV, "--device-memory", "23GiB", "--enable-sleep-mode", **second)
    shoal.add("bge-m3", "--device-memory", "2GiB", "--enable-sleep-mode", "--task", "embed", elastic="off", **second)
    shoal.add("mistral-small", "--device-memory", "14GiB", "--memory", "400MiB", "--enable-sleep-mode", **second)
    shoal.add("phi-4", "--device-memory", "9GiB", "--start-seconds", "400", **third)
    shoal.add("deepseek-r1-70b", "--fail", "oom", "--device-memory", "100MiB", **third)
    shoal.add("whisper-large-v3", "--task", "transcription")
    shoal.add("qwen2.5-coder-32b", "--device-memory", "61GiB", sleep_after="30m")
    for name in ("qwen3-8b", "llama-3.1-8b", "gemma-3-12b", "bge-m3", "mistral-small"):
        shoal.load(name)
    with shoal.client as client:
        client.sleep("mistral-small", level=1)
        client.load("deepseek-r1-70b")
        client.load("phi-4")
        client.put_virtual_model("assistant", {"model": "qwen3-8b", "system": "Answer briefly."})
        client.save_preset("day", description="Chat by day")
        client.load("whisper-large-v3")
    shoal.wait("mistral-small", "sleeping")
    shoal.wait("phi-4", "starting")


def make_keys(shoal: Shoal) -> None:
    """Keys of a chat and of a nightly job."""
    with shoal.client as client:
        client.create_key({"name": "open-webui"})
        client.create_key({"name": "nightly-batch", "priority": "low", "models": ["qwen3-8b"], "concurrent": 4})


def ask(shoal: Shoal, ended: threading.Event, turn: int) -> None:
    """Keep models busy, each prompt another one."""
    for number in itertools.count():
        if ended.is_set():
            return
        model = ("qwen3-8b", "llama-3.1-8b", "gemma-3-12b")[(turn + number) % 3]
        text = f"{turn} {number} " + "word " * (800 + 1700 * ((turn * 7 + number) % 3))
        shoal.chat(model, messages=[{"role": "user", "content": text}], max_tokens=60 + 40 * (number % 3))


def asked_of_three(page: Page) -> None:
    """The playground after a question."""
    prompt = page.get_by_role("textbox", name="Prompt", exact=True)
    prompt.fill("Name three fish that swim in shoals, and say why they do.")
    prompt.press("Enter")
    expect(page.locator(".play-answer[data-state=done]")).to_have_count(3, timeout=90_000)


def filled_in(page: Page) -> None:
    """The form with a model that fits if another sleeps."""
    page.get_by_label("Source", exact=True).fill("Qwen/Qwen3-32B")
    page.get_by_text("Advanced settings", exact=True).click()
    page.get_by_label("Engine arguments").fill("--device-memory\n61GiB")
    page.get_by_text("Advanced settings", exact=True).click()


def planned(page: Page) -> None:
    """What applying a preset would do."""
    page.get_by_role("button", name="Apply", exact=False).first.click()


PREPARED: dict[str, Callable[[Page], None]] = {
    "overview": lambda page: expect(page.locator(".model")).to_have_count(9),
    "add": filled_in,
    "playground": asked_of_three,
    "presets": planned,
}
VIEWS = {
    "overview": "",
    "model": "#/models/qwen3-8b",
    "add": "#/add",
    "playground": "#/playground?models=qwen3-8b&models=llama-3.1-8b&models=gemma-3-12b",
    "requests": "#/requests",
    "presets": "#/presets",
    "events": "#/events",
    "access": "#/access",
    "reference": "api/docs",
    "sign-in": "",
}
"""Where they are. Keys are made for `access`, from then on requests need one; a user for `sign-in`."""
READY = {"reference": "#reference details", "sign-in": "#sign-in-title"}
"""What shows that a view is there; of the others, that the page is connected."""
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


def main() -> None:
    """The command."""
    views = sys.argv[1:] or list(VIEWS)
    IMAGES.mkdir(exist_ok=True)
    ended = threading.Event()
    with a_shoal(simulated_devices=["80GiB", "80GiB", "40GiB"]) as shoal, sync_playwright() as playwright:
        furnish(shoal.start())
        askers = [threading.Thread(target=ask, args=(shoal, ended, turn)) for turn in range(6)]
        for asker in askers:
            asker.start()
        time.sleep(WATCHED)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for view, scheme, width in itertools.product(views, SCHEMES, (1440, 390)):
            if view == "access" and not ended.is_set():
                ended.set()
                for asker in askers:
                    asker.join()
                make_keys(shoal)
            if view == "sign-in":
                with shoal.client as client:
                    client.set_user("ann", role="admin", password="a picture of it")
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page.goto(f"{shoal.url}/{VIEWS[view]}")
            if view in READY:
                expect(page.locator(READY[view]).first).to_be_visible()
            else:
                expect(page.locator("#connection")).to_have_text("Live")
            if view in PREPARED:
                PREPARED[view](page)
            page.wait_for_timeout(SETTLING)
            page.evaluate("scrollTo(0, 0)")  # what sticks to the window's edges stands where it begins
            height = min(TALLEST, page.evaluate("document.documentElement.scrollHeight"))
            clip: FloatRect = {"x": 0, "y": 0, "width": width, "height": height}
            page.screenshot(path=IMAGES / f"{view}-{scheme}-{width}.png", full_page=True, clip=clip)
            page.close()
        browser.close()
        ended.set()
        for asker in askers:
            asker.join()
        shoal.stop()


if __name__ == "__main__":
    main()
