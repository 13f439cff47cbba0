"""A browser, and pages on which any fault of the script fails the test."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.cli.scripted import ScriptedShoal, scripted

# The shell is the same browser without windows around its pages, which cost five times what the pages do.
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in BROWSERS if (path := shutil.which(name))), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE = 30_000
NewPage = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium-headless-shell)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def shoal() -> Iterator[ScriptedShoal]:
    with scripted() as server:
        yield server


@pytest.fixture
def new_page(browser: Browser) -> Iterator[NewPage]:
    """Makes pages. Any error of the script, anything that the policy blocks and any dialog of the browser's fails the
    test; so does what else the console calls an error, but for answers that the test's server refuses."""
    expect.set_options(timeout=PATIENCE)
    faults: list[str] = []
    pages: list[Page] = []

    def make(**options: Any) -> Page:
        page = browser.new_page(**{"viewport": {"width": 1440, "height": 900}, **options})
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append(f"dialog: {dialog.message}"))
        page.on("console", lambda line: faults.append(line.text) if _is_fault(line.type, line.text) else None)
        pages.append(page)
        return page

    yield make
    for page in pages:
        page.close()
    assert faults == []


@pytest.fixture
def page(new_page: NewPage) -> Page:
    return new_page()


def _is_fault(kind: str, text: str) -> bool:
    """A browser itself notes each answer that is an error, and each lost connection; the page deals with those."""
    return kind in ("error", "warning") and "Failed to load resource" not in text
