#!/usr/bin/env python3
"""Make the pictures of the page for the documentation: a real `shoal serve` with simulated engines under load.

python tools/screenshots.py       writes docs/images/overview-{light,dark}-{1440,390}.png
"""

from __future__ import annotations

import itertools
import sys
import threading
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.dashboard.conftest import CHROMIUM, FLAGS  # noqa: E402
from tests.system.harness import Shoal, a_shoal  # noqa: E402

IMAGES = ROOT / "docs" / "images"
WATCHED = 45_000  # milliseconds: enough for rates, and for something to be seen of the last ten minutes
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
    shoal.add("deepseek-r1-70b", "--fail", "oom", **third)
    shoal.add("whisper-large-v3", "--task", "transcription")
    for name in ("qwen3-8b", "llama-3.1-8b", "gemma-3-12b", "bge-m3", "mistral-small"):
        shoal.load(name)
    with shoal.client as client:
        client.sleep("mistral-small", level=1)
        client.load("deepseek-r1-70b")
        client.load("phi-4")
    shoal.wait("mistral-small", "sleeping")
    shoal.wait("phi-4", "starting")


def ask(shoal: Shoal, ended: threading.Event, turn: int) -> None:
    """Keep models busy, each prompt another one."""
    for number in itertools.count():
        if ended.is_set():
            return
        model = ("qwen3-8b", "llama-3.1-8b", "gemma-3-12b")[(turn + number) % 3]
        text = f"{turn} {number} " + "word " * (800 + 1700 * ((turn * 7 + number) % 3))
        shoal.chat(model, messages=[{"role": "user", "content": text}], max_tokens=60 + 40 * (number % 3))


def main() -> None:
    """The command."""
    IMAGES.mkdir(exist_ok=True)
    ended = threading.Event()
    with a_shoal(simulated_devices=["80GiB", "80GiB", "40GiB"]) as shoal, sync_playwright() as playwright:
        furnish(shoal.start())
        askers = [threading.Thread(target=ask, args=(shoal, ended, turn)) for turn in range(6)]
        for asker in askers:
            asker.start()
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        pages = {}
        for scheme, width in itertools.product(("light", "dark"), (1440, 390)):
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page.goto(shoal.url)
            expect(page.locator(".model")).to_have_count(8)
            pages[IMAGES / f"overview-{scheme}-{width}.png"] = page
        page.wait_for_timeout(WATCHED)
        for file, page in pages.items():
            page.bring_to_front()
            page.wait_for_timeout(4000)
            page.screenshot(path=file, full_page=True)
        browser.close()
        ended.set()
        for asker in askers:
            asker.join()
        shoal.stop()


if __name__ == "__main__":
    main()
