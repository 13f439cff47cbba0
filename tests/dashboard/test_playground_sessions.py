"""Sessions of the playground: kept over a reload, listed, named, exported and deleted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.dashboard.acts import button
from tests.dashboard.keys import press
from tests.dashboard.playground import answer, go, prompt, say, under_way
from tests.system.harness import Shoal, a_shoal, until


@pytest.fixture(scope="module")
def served() -> Iterator[Shoal]:
    """One that answers, and one that takes for ever."""
    with a_shoal(simulated_devices=["8GiB"]) as shoal:
        shoal.start()
        for name, speed in (("one", "0"), ("slow", "0.2")):
            shoal.add(name, "--tokens-per-second", speed, "--device-memory", "10MiB")
            shoal.load(name)
        yield shoal


def test_a_reload_keeps_the_session_the_draft_and_the_settings(served: Shoal, page: Page) -> None:
    go(page, served, "one", "slow")
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_label("Temperature").first.fill("0.7")
    say(page, "Remember <b>me</b>")
    expect(answer(page, "one")).to_have_attribute("data-state", "done")
    words = answer(page, "one").locator(".prose").inner_text()
    expect(answer(page, "slow").locator(".prose")).to_be_visible()
    prompt(page).fill("half a thou")
    page.reload()
    expect(prompt(page)).to_have_value("half a thou")
    expect(page.locator(".bubble")).to_have_text([re.compile("Remember <b>me</b>")])
    expect(answer(page, "one").locator(".prose")).to_have_text(words)
    # A page that goes may learn first that its connection has.
    left = re.compile(r"Incomplete: The (page was left while it came|connection to Shoal was lost)\.")
    expect(answer(page, "slow")).to_contain_text(left)
    until(lambda: not under_way(served, "slow"), "its end in the engine")
    page.get_by_role("button", name="Settings", exact=True).click()
    expect(page.get_by_label("Temperature").first).to_have_value("0.7")


def test_sessions_are_listed_named_opened_and_deleted(served: Shoal, page: Page) -> None:
    go(page, served, "one")
    say(page, "The first of all")
    expect(answer(page, "one")).to_have_attribute("data-state", "done")
    page.get_by_role("button", name="New session").click()
    expect(page.locator(".bubble")).to_have_count(0)
    say(page, "The second")
    expect(answer(page, "one")).to_have_attribute("data-state", "done")
    page.get_by_role("button", name="Sessions", exact=True).click()
    page.get_by_role("button", name="Rename The first of all").press("Enter")
    expect(page.get_by_label("Name of the session")).to_be_focused()
    page.get_by_label("Name of the session").fill("Fish 🐟")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Fish 🐟", exact=True).click()
    expect(page.locator(".bubble")).to_have_text([re.compile("The first of all")])
    page.get_by_role("button", name="Delete The second").press("Enter")
    expect(page.get_by_text("Its prompts and answers are lost.")).to_be_visible()
    expect(page.get_by_role("button", name="Keep it")).to_be_focused()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Delete The second").click()
    page.get_by_role("button", name="Delete it").click()
    expect(page.get_by_role("button", name="The second", exact=True)).to_have_count(0)
    page.reload()
    expect(page.locator("h2")).to_contain_text("Fish 🐟")


def test_export_as_json_and_markdown(served: Shoal, page: Page) -> None:
    go(page, served, "one")
    say(page, "Export me")
    expect(answer(page, "one")).to_have_attribute("data-state", "done")
    words = answer(page, "one").locator(".prose").inner_text()
    page.get_by_role("button", name="Sessions", exact=True).click()
    saved = {}
    for kind in ("JSON", "Markdown"):
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Export this one as {kind}").click()
        saved[kind] = (download.value.suggested_filename, Path(download.value.path()).read_text(encoding="utf-8"))
    assert saved["JSON"][0] == "Export-me.json"
    session = json.loads(saved["JSON"][1])
    assert session["turns"][0]["text"] == "Export me"
    assert words in json.dumps(session["columns"][0]["answers"])
    assert saved["Markdown"] == ("Export-me.md", f"# Export me\n\n## You\n\nExport me\n\n## one\n\n{words}\n")


def test_sessions_are_exported_begun_opened_and_deleted_by_keyboard(served: Shoal, page: Page) -> None:
    go(page, served, "one")
    say(page, "The first of all")
    expect(answer(page, "one")).to_have_attribute("data-state", "done")
    press(page, button(page, "Sessions"))
    for kind, name in (("JSON", "The-first-of-all.json"), ("Markdown", "The-first-of-all.md")):
        with page.expect_download() as download:
            press(page, button(page, f"Export this one as {kind}"))
        assert download.value.suggested_filename == name
        assert "The first of all" in Path(download.value.path()).read_text(encoding="utf-8")
    press(page, button(page, "New session"))
    expect(page.locator(".bubble")).to_have_count(0)
    say(page, "The second")
    expect(answer(page, "one")).to_have_attribute("data-state", "done")
    press(page, button(page, "The first of all"))
    expect(page.locator(".bubble")).to_have_text([re.compile("The first of all")])
    press(page, button(page, "Delete The second"))
    expect(button(page, "Keep it")).to_be_focused()
    page.keyboard.press("Shift+Tab")
    expect(button(page, "Delete it")).to_be_focused()
    page.keyboard.press("Enter")
    expect(button(page, "The second")).to_have_count(0)
    expect(page.locator(".bubble")).to_have_text([re.compile("The first of all")])
