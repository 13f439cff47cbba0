"""A real Shoal that ends, or its controller, while the page is open; and marks, palette and theme at a real one."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from shoal.errors import ShoalError
from tests.dashboard.conftest import NewPage
from tests.system.harness import Shoal, a_shoal, until

DEVICE = "simulated:0"
GIB = 2**30
pytestmark = pytest.mark.timeout(150)  # a test here starts a whole Shoal again
RECORD = """() => {
  window.stayed = true;
  window.said = new Set();
  const note = () => {
    window.said.add(document.querySelector("#connection").dataset.state);
    if (document.querySelector("main.old")) window.said.add("old");
  };
  note();
  new MutationObserver(note).observe(document.body, { subtree: true, attributes: true, childList: true });
}"""
"""Keeps what the page has said of its connection: a controller may be back before a test looks."""


@pytest.fixture(scope="module")
def shoal() -> Iterator[Shoal]:
    with a_shoal(simulated_devices=["8GiB"]) as shoal:
        yield shoal.start()


@pytest.fixture
def served(shoal: Shoal) -> Shoal:
    """It runs, also where the test before this one ended it, and `talks` serves."""
    if shoal.process is None or shoal.process.poll() is not None:
        shoal.start()
    anew(shoal, "talks", "--tokens-per-second", "0", "--device-memory", "100MiB")
    shoal.load("talks")
    return shoal


def anew(served: Shoal, name: str, *args: str, **settings: Any) -> None:
    """Declare a model, also where an attempt before this one left it in some state."""
    gone(served, name)
    served.add(name, *args, **settings)


def gone(served: Shoal, name: str) -> None:
    with served.client as client, contextlib.suppress(ShoalError):
        client.remove_model(name, unload=True)


def asleep(served: Shoal) -> None:
    """Have `drowsy` sleep."""
    anew(served, "drowsy", "--enable-sleep-mode", "--device-memory", "100MiB")
    served.load("drowsy")
    with served.client as client:
        client.sleep("drowsy")
    served.wait("drowsy", "sleeping")


def model(page: Page, name: str) -> Locator:
    return page.locator(f'.model[aria-label="{name}"]')


def badge(page: Page, name: str) -> Locator:
    return model(page, name).locator(".row .badge")


def connection(page: Page) -> Locator:
    return page.locator("#connection")


def opened(page: Page, served: Shoal, place: str = "") -> None:
    page.goto(f"{served.url}/{place}")
    expect(connection(page)).to_have_text("Live")
    page.evaluate(RECORD)


def end(served: Shoal, how: str) -> None:
    """Stop it as Ctrl-C does, or have it die; the next start is at the same port."""
    served.settings["port"] = int(served.url.rpartition(":")[2])
    if how == "stopped":
        assert served.stop() == 0
    else:
        assert served.process is not None
        served.process.kill()
        served.process.wait()


def kill_controller(served: Shoal) -> None:
    """Kill it, and wait for the one that takes its place. The relay lives on."""
    relays = relay(served)
    old = served.pid("shoal.controller")
    os.kill(old, signal.SIGKILL)
    with served.http() as http:
        until(lambda: http.get("/api/v1/models").status_code == 200, "the next controller")
    assert relay(served) == relays and served.pid("shoal.controller") != old


def relay(served: Shoal) -> int:
    return served.pid("shoal.gateway")


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_shoal_that_ends_and_comes_back(served: Shoal, page: Page, how: str) -> None:
    asleep(served)
    gone(served, "newcomer")
    opened(page, served)
    page.get_by_role("button", name="Details of talks", exact=True).click()
    floor = model(page, "talks").get_by_label("Floor", exact=True)
    floor.fill("64MiB")
    page.get_by_role("searchbox").fill("simulated")
    end(served, how)
    expect(connection(page)).to_contain_text("Disconnected: this is from")
    expect(page.locator("main")).to_have_class("old")
    expect(badge(page, "talks")).to_have_attribute("data-state", "ready")
    expect(badge(page, "drowsy")).to_have_attribute("data-state", "sleeping")
    page.get_by_role("button", name="Wake drowsy", exact=True).click()
    expect(page.locator(".notices[role=alert]")).to_contain_text("Shoal does not answer")
    expect(page.locator(".notices[role=alert]")).to_contain_text("shoal wake drowsy")
    served.start()
    served.add("newcomer", "--device-memory", "100MiB")
    expect(connection(page)).to_have_text("Live")
    expect(page.locator("main")).not_to_have_class("old")
    expect(badge(page, "newcomer")).to_have_attribute("data-state", "unloaded")
    served.wait("talks", "ready")
    expect(badge(page, "talks")).to_have_attribute("data-state", "ready")
    expect(badge(page, "drowsy")).to_have_attribute("data-state", served.model("drowsy")["state"])
    expect(page.get_by_role("searchbox")).to_have_value("simulated")
    expect(floor).to_have_value("64MiB")
    model(page, "talks").get_by_role("button", name="Set", exact=True).click()
    expect(model(page, "talks").get_by_role("button", name="Set", exact=True)).to_have_count(0)
    assert served.model("talks")["spec"]["floor"] == 64 * 2**20
    assert page.evaluate("window.stayed")


def test_a_form_outlives_a_shoal_that_ends(served: Shoal, page: Page) -> None:
    gone(served, "typed-while-away")
    opened(page, served, "#/add")
    source, name = (page.get_by_label(word, exact=True) for word in ("Source", "Name"))
    source.fill("toy")
    end(served, "stopped")
    expect(connection(page)).to_contain_text("Disconnected")
    name.fill("typed-while-away")
    page.get_by_text("Advanced settings").click()
    page.get_by_label("Engine arguments", exact=True).fill("--device-memory\n100MiB")
    send = page.get_by_role("button", name="Add and load")
    send.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".send .failure")).to_contain_text("Shoal does not answer")
    expect(source).to_have_value("toy")
    expect(name).to_have_value("typed-while-away")
    served.start()
    expect(connection(page)).to_have_text("Live")
    expect(name).to_have_value("typed-while-away")
    send.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_text(f"It serves on {DEVICE}")).to_be_visible()
    assert served.model("typed-while-away")["spec"]["args"] == ["--device-memory", "100MiB"]
    assert page.evaluate("window.stayed")


def prompt(page: Page) -> Locator:
    return page.get_by_role("textbox", name="Prompt", exact=True)


def answer(page: Page, name: str) -> Locator:
    return page.get_by_role("article", name=f"Answer of {name}", exact=True).last


def test_a_controller_that_is_killed_and_what_goes_on_meanwhile(served: Shoal, page: Page) -> None:
    """The page loses the stream and says so. An answer goes on: it is the relay's. What was typed stays."""
    anew(served, "slow", "--tokens-per-second", "4", "--device-memory", "100MiB")
    served.load("slow")
    gone(served, "newcomer")
    opened(page, served, "#/playground?models=slow")
    prompt(page).fill("What do fish do?")
    prompt(page).press("Enter")
    expect(answer(page, "slow").locator(".prose")).to_have_text(re.compile(r"\w+ \w+"))
    prompt(page).fill("a draft, שלום")
    kill_controller(served)
    page.wait_for_function("window.said.has('lost') && window.said.has('old')")
    expect(connection(page)).to_have_text("Live")
    served.add("newcomer")
    expect(page.get_by_role("combobox", name="Model").locator("option", has_text="newcomer")).to_have_count(1)
    expect(prompt(page)).to_have_value("a draft, שלום")
    expect(answer(page, "slow")).to_have_attribute("data-state", "done")
    assert page.evaluate("window.stayed")


def test_an_answer_that_a_dying_shoal_breaks_off_is_asked_for_again(served: Shoal, page: Page) -> None:
    anew(served, "slow", "--tokens-per-second", "4", "--device-memory", "100MiB")
    served.load("slow")
    opened(page, served, "#/playground?models=slow&models=talks")
    prompt(page).fill("What do fish do?")
    prompt(page).press("Enter")
    expect(answer(page, "talks")).to_have_attribute("data-state", "done")
    whole = answer(page, "talks").locator(".prose").inner_text()
    expect(answer(page, "slow").locator(".prose")).to_have_text(re.compile(r"\w+ \w+"))
    prompt(page).fill("a draft")
    end(served, "killed")
    expect(connection(page)).to_contain_text("Disconnected")
    expect(answer(page, "slow").locator(".end")).to_contain_text("Incomplete: ")
    expect(answer(page, "slow").locator(".prose")).to_have_text(re.compile(r"\w+ \w+"))
    served.start()
    served.wait("talks", "ready")
    expect(connection(page)).to_have_text("Live")
    page.get_by_role("button", name="Ask again talks").click()
    expect(answer(page, "talks")).to_have_attribute("data-state", "done")
    expect(answer(page, "talks").locator(".prose")).to_have_text(whole)
    expect(prompt(page)).to_have_value("a draft")


# -- marks, events, palette and theme ----------------------------------------------------------------------------------


def mark(page: Page, kind: str) -> Locator:
    return page.get_by_role("slider", name=f"{kind} of elastic on {DEVICE}")


def terms(served: Shoal) -> tuple[int | None, int | None]:
    """Floor and ceiling that the broker goes by, where the specification says the same."""
    found = served.model("elastic")
    (instance,) = found["instances"]
    memory, spec = instance["memory"], found["spec"]
    same = (spec["floor"], spec["ceiling"]) == (memory["floor"], memory["ceiling"])
    return (memory["floor"], memory["ceiling"]) if same else (None, None)


def test_marks_are_dragged_and_moved_by_keys_and_the_lease_follows(served: Shoal, new_page: NewPage) -> None:
    anew(served, "elastic", "--simulated-block-bytes", "4MiB", "--device-memory", "2GiB", floor=GIB, ceiling=3 * GIB)
    served.load("elastic")
    page, other = new_page(), new_page()
    for one in (page, other):
        opened(one, served)
        expect(mark(one, "ceiling")).to_have_attribute("aria-valuenow", str(3 * GIB))
    at, frame = mark(page, "ceiling").bounding_box(), page.locator(f'[data-device="{DEVICE}"] .marks').bounding_box()
    assert at and frame
    y = at["y"] + at["height"] / 2
    page.mouse.move(at["x"] + at["width"] / 2, y)
    page.mouse.down()
    page.mouse.move(at["x"] + at["width"] / 2 + frame["width"] / 8, y, steps=4)  # an eighth of 8 GiB
    page.mouse.up()
    until(lambda: (terms(served)[1] or 0) > 3 * GIB, "the ceiling")
    moved = terms(served)[1]
    assert moved == pytest.approx(4 * GIB, abs=GIB // 8)
    mark(page, "floor").focus()
    for key in ("ArrowRight", "ArrowUp", "ArrowLeft", "PageUp"):
        page.keyboard.press(key)
    wanted = int(mark(page, "floor").get_attribute("aria-valuenow") or 0)
    assert wanted == GIB + 9 * 2**26
    assert terms(served) == (GIB, moved), "nothing is set before Enter"
    page.keyboard.press("Enter")
    until(lambda: terms(served) == (wanted, moved), "the floor")
    for one in (page, other):
        expect(one.locator(".mark-value")).to_have_count(0)
        expect(mark(one, "floor")).to_have_attribute("aria-valuenow", str(wanted))
        expect(mark(one, "ceiling")).to_have_attribute("aria-valuenow", str(moved))
    mark(page, "ceiling").press("End")
    expect(page.locator(".mark-value")).to_contain_text("Enter sets it")
    mark(page, "ceiling").press("Enter")
    until(lambda: terms(served) == (wanted, None), "no ceiling")
    for one in (page, other):
        expect(mark(one, "ceiling")).to_have_count(0)


def palette(page: Page) -> Locator:
    return page.get_by_role("dialog", name="Go anywhere, do anything")


def test_palette_events_and_theme_by_keyboard_and_by_mouse(served: Shoal, new_page: NewPage) -> None:
    asleep(served)
    gone(served, "newcomer")
    page = new_page(color_scheme="light")
    opened(page, served)
    page.keyboard.press("Control+k")
    expect(palette(page).get_by_role("combobox")).to_be_focused()
    page.keyboard.type("wake drow")
    expect(palette(page).get_by_role("option").first).to_contain_text("shoal wake drowsy")
    page.keyboard.press("Enter")
    expect(badge(page, "drowsy")).to_have_attribute("data-state", "ready")
    page.get_by_role("button", name="Find").click()
    palette(page).get_by_role("option", name="Events").first.click()
    expect(page.get_by_role("heading", name="Events", exact=True)).to_be_visible()
    lines = page.get_by_role("list", name="Events, the newest first").locator("li")
    expect(lines.filter(has_text="drowsy").first).to_contain_text("awake after")
    kind = page.get_by_label("Kind", exact=True)
    kind.focus()
    page.keyboard.type("model_added")
    expect(kind).to_have_value("model_added")
    expect(lines.first).to_contain_text("drowsy was added")
    served.add("newcomer")
    expect(lines.first).to_contain_text("newcomer was added")
    page.get_by_label("Model", exact=True).select_option("drowsy")
    expect(lines.first).to_contain_text("drowsy was added")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    theme = page.get_by_label("Theme")
    theme.focus()
    page.keyboard.type("dark")
    expect(theme).to_have_value("dark")
    assert page.evaluate(background) != light
    theme.select_option("light")
    assert page.evaluate(background) == light
