"""The overview in a real browser, against a real `shoal serve` with simulated engines."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect

from shoal.errors import ShoalError
from tests.dashboard.conftest import NewPage
from tests.system.harness import Shoal, a_shoal

AXE = Path(__file__).parents[2] / "tools" / "node_modules" / "axe-core" / "axe.min.js"
LIMIT = 150 * 1024
FIRST = {"devices": ["simulated:0"]}
SECOND = {"devices": ["simulated:1"]}


@pytest.fixture(scope="module")
def served() -> Iterator[Shoal]:
    """One that serves, one that sleeps, one that failed, one that starts for ever, and one that is not loaded."""
    with a_shoal(simulated_devices=["8GiB", "4GiB"]) as shoal:
        shoal.start()
        shoal.add("qwen3-8b", "--simulated-block-bytes", "4MiB", "--device-memory", "2GiB", "--tokens-per-second", "0",
                  floor="512MiB", ceiling="3GiB", **FIRST)  # fmt: skip
        shoal.add("gemma-3-4b", "--device-memory", "1GiB", "--enable-sleep-mode", **FIRST)
        shoal.add("whisper", "--device-memory", "700MiB", "--enable-sleep-mode", **SECOND)
        shoal.add("too-large", "--fail", "oom", "--device-memory", "100MiB", **SECOND)
        shoal.add("slow", "--start-seconds", "3000", **SECOND)
        shoal.add("mistral-7b", pin=True)
        for name in ("qwen3-8b", "gemma-3-4b", "whisper"):
            shoal.load(name)
        with shoal.client as client:
            client.sleep("whisper", level=1)
            client.load("too-large")
            client.load("slow")
        shoal.wait("whisper", "sleeping")
        shoal.wait("too-large", "failed")
        shoal.wait("slow", "starting")
        yield shoal


def model(page: Page, name: str) -> Any:
    return page.locator(f'.model[aria-label="{name}"]')


def anew(served: Shoal, name: str, *args: str, **settings: Any) -> None:
    """Declare a model, also where an attempt before this one left it in some state."""
    with served.client as client, contextlib.suppress(ShoalError):
        client.remove_model(name, unload=True)
    served.add(name, *args, **settings)


def test_the_overview_fills_and_updates(served: Shoal, page: Page) -> None:
    page.goto(served.url)
    for name, state in (("qwen3-8b", "ready"), ("whisper", "sleeping"), ("too-large", "failed"), ("slow", "starting"),
                        ("mistral-7b", "unloaded")):  # fmt: skip
        expect(model(page, name).locator(".row .badge")).to_have_attribute("data-state", state)
    expect(model(page, "too-large")).to_contain_text("ran out of memory")
    expect(model(page, "mistral-7b")).to_contain_text("pinned")
    tin = page.get_by_role("img", name="Memory of simulated:0:")
    expect(tin).to_have_attribute("aria-label", re.compile("qwen3-8b: weights 2.0 GiB"))
    for _ in range(3):
        assert served.chat("qwen3-8b", messages=[{"role": "user", "content": "one two " * 400}]).status_code == 200
    expect(tin).to_have_attribute("aria-label", re.compile(r"qwen3-8b: weights 2\.0 GiB, (KV in use|KV cached)"))
    row = model(page, "qwen3-8b")
    expect(row.locator(".cell", has_text="first token")).to_contain_text(re.compile(r"\d+ (ms|s)"))
    expect(row.locator(".cell", has_text="last use")).to_contain_text(re.compile("now|ago"))
    expect(page.locator("#events")).to_contain_text("whisper")


def test_a_model_is_loaded_put_to_sleep_woken_pinned_and_unloaded_by_mouse(served: Shoal, page: Page) -> None:
    anew(served, "by-mouse", "--enable-sleep-mode", "--device-memory", "300MiB", **FIRST)
    page.goto(served.url)
    row = model(page, "by-mouse")
    badge = row.locator(".row .badge")
    page.get_by_role("button", name="Load by-mouse", exact=True).click()
    expect(badge).to_have_attribute("data-state", "ready")
    page.get_by_role("button", name="Details of by-mouse", exact=True).click()
    for command in ("shoal sleep by-mouse", "shoal unload by-mouse", "shoal models set --pin by-mouse"):
        expect(row.get_by_text(command, exact=True)).to_be_visible()
    row.get_by_role("button", name="Pin", exact=True).click()
    expect(row.locator(".pin")).to_be_visible()
    assert served.model("by-mouse")["spec"]["pin"] is True
    row.get_by_role("button", name="Unpin", exact=True).click()
    expect(row.locator(".pin")).to_have_count(0)
    page.get_by_role("button", name="Sleep by-mouse", exact=True).click()
    expect(badge).to_have_attribute("data-state", "sleeping")
    page.get_by_role("button", name="Wake by-mouse", exact=True).click()
    expect(badge).to_have_attribute("data-state", "ready")
    row.get_by_role("button", name="Unload", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Unload", exact=True).click()
    expect(badge).to_have_attribute("data-state", "unloaded")


def press_on(page: Page, name: str) -> None:
    """Walk to a button by the Tab key alone, and press it."""
    wanted = page.get_by_role("button", name=name, exact=True)
    expect(wanted).to_be_enabled()
    for _ in range(80):
        if wanted.evaluate("button => button === document.activeElement"):
            break
        page.keyboard.press("Tab")
    expect(wanted).to_be_focused()
    page.keyboard.press("Enter")


def test_a_model_is_loaded_put_to_sleep_woken_and_unloaded_by_keyboard(served: Shoal, page: Page) -> None:
    anew(served, "by-keys", "--enable-sleep-mode", "--device-memory", "300MiB", **FIRST)
    page.goto(f"{served.url}/#/?q=by-keys")
    badge = model(page, "by-keys").locator(".row .badge")
    for action, state in (("Load", "ready"), ("Sleep", "sleeping"), ("Wake", "ready")):
        press_on(page, f"{action} by-keys")
        expect(badge).to_have_attribute("data-state", state)
    press_on(page, "Details of by-keys")
    press_on(page, "Unload")
    expect(page.get_by_role("dialog").get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(badge).to_have_attribute("data-state", "unloaded")


def test_what_shoal_refuses_is_explained(served: Shoal, page: Page) -> None:
    anew(served, "immense", "--device-memory", "900GiB", **SECOND)
    page.goto(served.url)
    page.get_by_role("button", name="Load immense", exact=True).click()
    said = "immense needs 900.0 GiB on simulated:1; simulated:1 has 4.0 GiB; give it less memory or more devices"
    expect(model(page, "immense").locator(".note")).to_have_text(said)
    expect(page.get_by_role("button", name="Try again immense")).to_be_enabled()


def test_what_is_sent_is_compressed_and_small_and_asked_for_once(served: Shoal, new_page: NewPage) -> None:
    page = new_page()
    sent: dict[str, Any] = {}
    page.on("response", lambda answer: sent.setdefault(urlsplit(answer.url).path, answer))
    page.goto(served.url)
    expect(page.locator(".spark canvas").first).to_be_visible()
    files = {path: answer for path, answer in sent.items() if path == "/" or path.startswith("/static/")}
    assert {path.rpartition("/")[2] for path in files} >= {"app.js", "uplot.js", "base.css+overview.css"}
    sizes = {path: answer.request.sizes()["responseBodySize"] for path, answer in files.items()}
    for path, answer in files.items():
        assert answer.status == 200 and (sizes[path] < 1000 or answer.headers["content-encoding"] == "gzip"), path
        assert path == "/" or "immutable" in answer.headers["cache-control"], path
    assert len([path for path in files if path.endswith(".js")]) <= 4 and sum(sizes.values()) <= LIMIT, sizes
    policy = files["/"].headers["content-security-policy"]
    assert "unsafe" not in policy and "default-src 'none'" in policy


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_it_fits_and_everybody_can_use_it(served: Shoal, new_page: NewPage, scheme: str, width: int) -> None:
    """No sideways scrolling, and nothing that axe finds, with details and a dialog open too."""
    if not AXE.exists():
        pytest.skip("no axe-core here (make page-types)")
    page = new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(served.url)
    page.get_by_role("button", name="Details of qwen3-8b").click()
    expect(model(page, "qwen3-8b").locator(".details")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate(AXE.read_text(encoding="utf-8"))
    assert violations(page) == []
    model(page, "qwen3-8b").get_by_role("button", name="Unload", exact=True).click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert violations(page) == []


def violations(page: Page) -> list[str]:
    found = page.evaluate("axe.run().then((result) => result.violations)")
    return [f"{one['id']}: {json.dumps([node['html'][:160] for node in one['nodes'][:4]])}" for one in found]
