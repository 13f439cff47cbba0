"""The palette: finding by a few letters, in the language that it is written in, and in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from shoal.dashboard import STATIC
from tests.cli.scripted import ScriptedShoal, instance
from tests.dashboard.conftest import NewPage
from tests.dashboard.test_whole import AXE, violations

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js here")


def in_node(tmp_path: Path, script: str) -> Any:
    shutil.copy(STATIC / "palette.js", tmp_path / "palette.mjs")
    done = subprocess.run(
        ["node", "--input-type=module", "-e", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return json.loads(done.stdout)


@needs_node
def test_what_is_found_by_a_few_letters(tmp_path: Path) -> None:
    titles = [
        "Overview",
        "Events",
        "qwen3-8b",
        "org/qwen3-coder",
        "Load qwen3-8b",
        "Unload qwen3-8b",
        "Wake gemma",
        "שלום",
    ]
    found = in_node(
        tmp_path,
        f"""
        import {{ find, fit }} from "./palette.mjs";
        const entries = {json.dumps(titles)}.map((title) => ({{ title }}));
        entries.push({{ title: "Pin gemma", more: "shoal models set" }});
        const by = (typed) => find(entries, typed).map((one) => one.title);
        console.log(JSON.stringify({{
          all: by("  ").length, load: by("load qwen"), upper: by("EVENTS"), coder: by("coder"), scattered: by("wkgm"),
          both: by("8b lo"), more: by("models"), rtl: by("של"),
          none: by("zzz"), braces: by("(.*"), half: by("load zzz"),
          far: fit("ab", "a" + "x".repeat(50) + "b"), word: fit("coder", "qwen3-coder"), inside: fit("oad", "unload"),
        }}));
        """,
    )
    assert found["all"] == len(titles) + 1
    assert found["load"] == ["Load qwen3-8b", "Unload qwen3-8b"]
    assert found["upper"] == ["Events"] and found["coder"] == ["org/qwen3-coder"]
    assert found["scattered"] == ["Wake gemma"] and found["both"] == ["Load qwen3-8b", "Unload qwen3-8b"]
    assert found["more"] == ["Pin gemma"] and found["rtl"] == ["שלום"]
    assert found["none"] == found["braces"] == found["half"] == []
    assert found["far"] == 0 and found["word"] > found["inside"] > 0


@needs_node
def test_a_thousand_models_are_searched_at_once(tmp_path: Path) -> None:
    """Work grows with the text and not with its square: the longest names and words end."""
    found = in_node(
        tmp_path,
        """
        import { find } from "./palette.mjs";
        const entries = Array.from({ length: 5000 }, (_, n) => ({ title: `Load model-${n} ${"a".repeat(200)}` }));
        const first = find(entries, "load model-4999")[0].title.slice(0, 15);
        console.log(JSON.stringify([first, find(entries, "a".repeat(199) + "b").length]));
        """,
    )
    assert found == ["Load model-4999", 0]


def palette(page: Page) -> Any:
    return page.get_by_role("dialog", name="Go anywhere, do anything")


def test_it_goes_anywhere_by_keyboard_alone(shoal: ScriptedShoal, page: Page) -> None:
    shoal.add("qwen3-8b", desired=0)
    page.goto(shoal.url)
    search = page.get_by_role("searchbox")
    search.focus()
    page.keyboard.press("Control+k")
    field = palette(page).get_by_role("combobox")
    expect(field).to_be_focused()
    expect(field).to_have_attribute("aria-activedescendant", "palette-0")
    page.keyboard.type("zzzz")
    expect(palette(page).get_by_role("option")).to_have_count(0)
    expect(palette(page).get_by_text("Nothing is called so.")).to_be_visible()
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    expect(palette(page)).to_have_count(0)
    expect(search).to_be_focused()
    page.keyboard.press("Control+k")
    field.fill("e")
    options = palette(page).get_by_role("option")
    expect(options.nth(0)).to_have_attribute("aria-selected", "true")
    page.keyboard.press("ArrowDown")
    expect(options.nth(1)).to_have_attribute("aria-selected", "true")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    expect(options.last).to_have_attribute("aria-selected", "true")
    expect(field).to_have_attribute("aria-activedescendant", options.last.get_attribute("id") or "")
    field.fill("events")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Events", exact=True)).to_be_visible()
    expect(page).to_have_url(re.compile("#/events$"))
    expect(page.locator("main")).to_be_focused()


def test_it_acts_on_any_model_and_asks_before_what_is_lost(shoal: ScriptedShoal, page: Page) -> None:
    shoal.add("org/m", desired=0)
    page.goto(shoal.url)
    page.get_by_role("button", name="Find").click()
    page.keyboard.type("load org")
    expect(palette(page).get_by_role("option", name="Load org/m")).to_contain_text("shoal load org/m")
    page.keyboard.press("Enter")
    expect(page.locator(".row .badge")).to_have_attribute("data-state", "ready")
    assert any(path == "/api/v1/models/org%2Fm/load" for _, path, _ in shoal.requests)
    page.keyboard.press("Control+k")
    page.keyboard.type("unload org")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("Unload org/m?")
    page.keyboard.press("Escape")
    assert not any(path.endswith("/unload") for _, path, _ in shoal.requests)
    page.keyboard.press("Control+k")
    page.keyboard.type("dark")
    palette(page).get_by_role("option", name="Theme: dark").click()
    expect(page.get_by_label("Theme")).to_have_value("dark")


def test_what_is_typed_before_it_is_there_is_not_lost(shoal: ScriptedShoal, page: Page) -> None:
    shoal.add("org/m", desired=0)
    page.goto(shoal.url)
    held: list[Route] = []
    page.route("**/palette_panel.js", lambda route: held.append(route))
    expect(page.locator(".row .badge")).to_be_visible()
    with page.expect_request("**/palette_panel.js"):
        page.keyboard.press("Control+k")
    page.keyboard.type("load ?")
    page.wait_for_function("() => true")
    held[0].continue_()
    field = palette(page).get_by_role("combobox")
    expect(field).to_have_value("load ?")
    expect(field).to_be_focused()
    page.keyboard.press("Backspace")
    page.keyboard.type("org")
    expect(field).to_have_value("load org")


def test_names_are_text_and_many_are_cut_off_with_a_count(shoal: ScriptedShoal, page: Page) -> None:
    odd = ["<img src=x onerror=alert(1)> 🐟", "שלום-עולם", "w" * 200]
    for name in [*odd, *(f"m{n:03}" for n in range(100))]:
        shoal.add(name, instance(f"{name[:6]}-1", name, "ready"))
    page.goto(shoal.url)
    expect(page.locator(".row").first).to_be_visible()  # a page that is still empty hears no key
    page.keyboard.press("Control+k")
    expect(palette(page).get_by_role("option")).to_have_count(50)
    expect(palette(page)).to_contain_text(re.compile("50 of [0-9]{3}"))
    page.keyboard.type("<img")
    expect(palette(page).get_by_role("option").first).to_contain_text("<img src=x onerror=alert(1)> 🐟")
    assert palette(page).locator("img").count() == 0


def test_the_keys_are_told_but_not_while_one_types(shoal: ScriptedShoal, page: Page) -> None:
    shoal.add("m", desired=0)
    page.goto(shoal.url)
    page.get_by_role("searchbox").fill("")
    page.keyboard.type("?")
    expect(page.get_by_role("searchbox")).to_have_value("?")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_role("searchbox").blur()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_contain_text("Ctrl K")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_it(shoal: ScriptedShoal, new_page: NewPage, scheme: str) -> None:
    if not AXE.exists():
        pytest.skip("no axe-core here (make page-types)")
    shoal.add("m", desired=0)
    page = new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page.goto(shoal.url)
    page.evaluate(AXE.read_text(encoding="utf-8"))
    page.get_by_role("button", name="Find").click()
    expect(palette(page)).to_be_visible()
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
