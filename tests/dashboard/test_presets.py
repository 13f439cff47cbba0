"""Presets by the page: against a real `shoal serve` with simulated engines, and where a fault is in a text."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from shoal.dashboard import STATIC
from shoal.errors import ShoalError
from tests.dashboard.conftest import NewPage
from tests.dashboard.keys import press, tab_to, write
from tests.dashboard.test_whole import AXE, violations
from tests.system.harness import Shoal, a_shoal

ON = {"devices": ["simulated:0"]}
NAMES = ("mine", "evening", "other", "broken", "odd")


@pytest.fixture(scope="module")
def shared() -> Iterator[Shoal]:
    """One model that serves and one that sleeps."""
    with a_shoal(simulated_devices=["8GiB"]) as shoal:
        shoal.start()
        shoal.add("serves", "--device-memory", "1GiB", **ON)
        shoal.add("sleeps", "--device-memory", "1GiB", "--enable-sleep-mode", **ON)
        for name in ("serves", "sleeps"):
            shoal.load(name)
        with shoal.client as client:
            client.sleep("sleeps", level=1)
        shoal.wait("sleeps", "sleeping")
        yield shoal


@pytest.fixture
def served(shared: Shoal) -> Shoal:
    """No presets and no third model, whatever an attempt before this one left."""
    with shared.client as client:
        for name in NAMES:
            with contextlib.suppress(ShoalError):
                client.remove_preset(name)
        with contextlib.suppress(ShoalError):
            client.remove_model("third", unload=True)
    return shared


def card(page: Page, name: str) -> Any:
    return page.get_by_role("listitem", name=name, exact=True)


def save(served: Shoal, name: str, **fields: Any) -> None:
    with served.client as client:
        client.save_preset(name, **fields)


def test_what_runs_is_saved_shown_scheduled_and_removed(served: Shoal, page: Page) -> None:
    page.goto(f"{served.url}/#/presets")
    expect(page.get_by_text("No presets yet")).to_be_visible()
    page.get_by_role("button", name="Save what runs").click()
    form = page.get_by_role("form", name="Save what runs")
    expect(form.get_by_role("textbox", name="Name")).to_be_focused()
    expect(form).to_contain_text("serves, sleeps")
    page.keyboard.type("mine")
    form.get_by_role("textbox", name="Description").fill("by day; it's <b>mine</b>")
    expect(form.get_by_text(r"shoal presets save --description 'by day; it'\''s <b>mine</b>' mine")).to_be_visible()
    page.keyboard.press("Enter")
    expect(card(page, "mine")).to_contain_text("by day; it's <b>mine</b>")
    expect(card(page, "mine")).to_contain_text("2 models")
    card(page, "mine").get_by_role("button", name="Show").click()
    inside = page.get_by_role("table", name="Models of mine")
    expect(inside.get_by_role("row", name="serves")).to_contain_text("1 awake")
    expect(inside.get_by_role("row", name="sleeps")).to_contain_text("1 asleep (level 1)")
    card(page, "mine").get_by_role("button", name="Schedule").click()
    times = page.get_by_role("form", name="When mine is applied")
    times.get_by_label("Times").fill("0 8 * *")
    times.get_by_label("Time zone").fill("Europe/Berlin")
    times.get_by_role("button", name="Add these times").click()
    expect(times).to_contain_text("is no cron expression; it has 5 fields")
    expect(times.get_by_label("Times")).to_have_value("0 8 * *")
    times.get_by_label("Times").fill("0 8 * * 1-5")
    command = "shoal presets schedule --zone Europe/Berlin mine '0 8 * * 1-5'"
    expect(times.get_by_text(command, exact=True)).to_be_visible()
    times.get_by_label("Time zone").fill("Mars/Olympus")
    page.keyboard.press("Enter")
    expect(times).to_contain_text("there is no time zone 'Mars/Olympus'")
    times.get_by_label("Time zone").fill("Europe/Berlin")
    page.keyboard.press("Enter")
    expect(times.get_by_role("listitem")).to_contain_text("at 08:00 on Monday through Friday (Europe/Berlin)")
    times.get_by_role("button", name="Remove the schedule 0 8 * * 1-5").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove the schedule").click()
    expect(times.get_by_role("listitem")).to_have_count(0)
    card(page, "mine").get_by_role("button", name="Remove…").click()
    expect(page.get_by_role("dialog")).to_contain_text("What it holds is lost. What runs goes on.")
    expect(page.get_by_role("dialog")).to_contain_text("shoal presets rm mine")
    page.keyboard.press("Escape")
    expect(card(page, "mine")).to_be_visible()
    card(page, "mine").get_by_role("button", name="Remove…").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove", exact=True).click()
    expect(page.get_by_text("No presets yet")).to_be_visible()


def test_one_of_the_same_name_is_replaced_only_when_told(served: Shoal, page: Page) -> None:
    save(served, "mine", description="the first")
    page.goto(f"{served.url}/#/presets")
    page.get_by_role("button", name="Save what runs").click()
    form = page.get_by_role("form", name="Save what runs")
    form.get_by_role("textbox", name="Name").fill("mine")
    expect(form.get_by_text("There is a preset of this name.")).to_be_visible()
    expect(form.get_by_role("button", name="Save", exact=True)).to_be_disabled()
    form.get_by_label("Replace the preset of this name").check()
    expect(form.get_by_text("shoal presets save --replace mine", exact=True)).to_be_visible()
    form.get_by_role("textbox", name="Description").fill("the second")
    form.get_by_role("button", name="Save", exact=True).click()
    expect(card(page, "mine")).to_contain_text("the second")


def test_a_plan_is_shown_before_it_is_applied_and_followed_live(served: Shoal, page: Page) -> None:
    text = {"shoal_preset": 1, "name": "evening", "models": [
        {"spec": {"name": "sleeps", "source": "anything", "engine": "simulated", **ON,
                  "args": ["--device-memory", "1GiB", "--enable-sleep-mode"]}, "awake": 0, "asleep": 1},
        {"spec": {"name": "serves", "source": "anything", "engine": "simulated", **ON,
                  "args": ["--device-memory", "1GiB"]}},
    ]}  # fmt: skip
    with served.client as client:
        client.import_preset(json.dumps(text))
        client.wake("sleeps")
        client.unload("serves")
    served.wait("sleeps", "ready")
    served.add("third", "--device-memory", "500MiB", **ON)
    served.load("third")
    page.goto(f"{served.url}/#/presets")
    card(page, "evening").get_by_role("button", name="Apply…").click()
    plan = page.get_by_role("table", name="Steps to evening")
    expect(plan.get_by_role("row", name="third")).to_contain_text("the preset does not name it")
    expect(plan.get_by_role("row", name="third")).to_contain_text("stop")
    expect(plan.get_by_role("row", name="serves")).to_contain_text("start")
    expect(plan.get_by_role("row", name="sleeps")).to_contain_text("sleep")
    expect(card(page, "evening").get_by_text("shoal presets apply --dry-run evening", exact=True)).to_be_visible()
    page.get_by_label("Keep models that the preset does not name").check()
    expect(plan.get_by_role("row", name="third")).to_have_count(0)
    expect(card(page, "evening")).to_contain_text("Left running beside it: third")
    expect(card(page, "evening").get_by_text("shoal presets apply --keep-others evening", exact=True)).to_be_visible()
    page.get_by_label("Keep models that the preset does not name").uncheck()
    expect(plan.get_by_role("row", name="third")).to_be_visible()
    card(page, "evening").get_by_role("button", name="Apply", exact=True).click()
    run = page.locator(".run")
    expect(run).to_contain_text("evening is in place.")
    steps = page.get_by_role("table", name="Steps of evening")
    expect(steps.get_by_role("row", name="third")).to_contain_text("done")
    served.wait("serves", "ready")
    served.wait("sleeps", "sleeping")
    card(page, "evening").get_by_role("button", name="Apply…").click()
    expect(card(page, "evening")).to_contain_text("evening is in place; there is nothing to do.")
    expect(card(page, "evening").get_by_role("button", name="Apply", exact=True)).to_be_disabled()
    run.get_by_role("button", name="Hide").click()
    expect(run).to_have_count(0)


def test_what_fails_and_what_cannot_be_had_are_told_with_their_reasons(served: Shoal, page: Page) -> None:
    fails = ["--fail", "oom", "--device-memory", "100MiB"]
    text = {
        "shoal_preset": 1, "name": "broken", "models": [
            {"spec": {"name": "third", "source": "x", "engine": "simulated", "args": fails, **ON}},
            {"spec": {"name": "nowhere", "source": "x", "engine": "simulated", "devices": ["simulated:7"]}},
        ],
    }  # fmt: skip
    with served.client as client:
        client.import_preset(json.dumps(text))
    page.goto(f"{served.url}/#/presets")
    card(page, "broken").get_by_role("button", name="Apply…").click()
    expect(card(page, "broken")).to_contain_text("Cannot be had: nowhere: its settings name simulated:7")
    page.get_by_label("Keep models that the preset does not name").check()
    card(page, "broken").get_by_role("button", name="Apply what can be had").click()
    run = page.locator(".run")
    expect(run.get_by_role("heading")).to_contain_text("failed")
    expect(run).to_contain_text(re.compile("Not in place: third: .*memory"))
    expect(run).to_contain_text("Not in place: nowhere: its settings name simulated:7")
    expect(run).to_contain_text("0 of 2 models are in place")
    expect(card(page, "broken")).to_contain_text("failed")


def test_a_run_is_cancelled(served: Shoal, page: Page) -> None:
    slow = {"name": "third", "source": "x", "engine": "simulated", "args": ["--start-seconds", "600"], **ON}
    with served.client as client:
        client.import_preset(json.dumps({"shoal_preset": 1, "name": "other", "models": [{"spec": slow}]}))
    page.goto(f"{served.url}/#/presets")
    with served.client as client:
        client.apply_preset("other", exclusive=False)  # by somebody else: the page hears of it
    run = page.locator(".run")
    expect(run.get_by_role("heading")).to_contain_text("Applying other")
    card(page, "other").get_by_role("button", name="Remove…").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove", exact=True).click()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("the preset other is being applied")
    page.keyboard.press("Escape")
    for button, words in (("Cancel…", "Cancel the run"), ("Do not wait…", "Do not wait")):
        run.get_by_role("button", name=button).click()
        expect(page.get_by_role("dialog")).to_contain_text("shoal presets cancel")
        page.get_by_role("dialog").get_by_role("button", name=words, exact=True).click()
    expect(run.get_by_role("heading")).to_contain_text("Applied last: other")


def test_a_preset_is_exported_and_imported_and_a_fault_has_its_place(served: Shoal, page: Page, tmp_path: Path) -> None:
    save(served, "mine", description="chat")
    page.goto(f"{served.url}/#/presets")
    with page.expect_download() as download:
        card(page, "mine").get_by_role("link", name="Export").click()
    assert download.value.suggested_filename == "mine.yaml"
    file = tmp_path / "mine.yaml"
    download.value.save_as(file)
    assert "shoal_preset: 1" in file.read_text()
    page.get_by_role("button", name="Import").click()
    form = page.get_by_role("form", name="Import a preset")
    form.get_by_label("File", exact=True).set_input_files(file)
    area = form.get_by_role("textbox", name="YAML")
    expect(area).to_have_value(file.read_text())
    good = file.read_text()
    area.fill(good.replace("description: chat", "description: another"))
    form.get_by_role("button", name="Import", exact=True).click()
    expect(form.get_by_role("alert")).to_contain_text("mine")  # there is one of that name, with other settings
    area.fill(good.replace("description: chat", "descripton: chat"))
    form.get_by_role("textbox", name="Another name").fill("odd")
    expect(form.get_by_text("shoal presets import --name odd mine.yaml", exact=True)).to_be_visible()
    form.get_by_role("button", name="Import", exact=True).click()
    expect(form.get_by_role("alert")).to_contain_text("did you mean description?")
    form.get_by_role("button", name="Go to line").click()
    expect(area).to_be_focused()
    chosen = "area => area.value.slice(area.selectionStart, area.selectionEnd)"
    assert area.evaluate(chosen) == "descripton: chat"
    area.fill(good)
    form.get_by_role("button", name="Import", exact=True).click()
    expect(card(page, "odd")).to_contain_text("chat")
    expect(form).to_have_count(0)


def third(served: Shoal, name: str, *args: str) -> None:
    """A preset of one model that is not declared yet."""
    spec = {"name": "third", "source": "x", "engine": "simulated", "args": ["--device-memory", "500MiB", *args], **ON}
    with served.client as client:
        client.import_preset(json.dumps({"shoal_preset": 1, "name": name, "models": [{"spec": spec}]}))


def agree(page: Page, word: str) -> None:
    """Say yes to the question that is open, which begins at Cancel."""
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("button", name="Cancel", exact=True)).to_be_focused()
    press(page, dialog.get_by_role("button", name=word, exact=True))


def test_a_preset_is_saved_scheduled_and_removed_by_keyboard_alone(served: Shoal, page: Page) -> None:
    page.goto(f"{served.url}/#/presets")
    opener = page.get_by_role("button", name="Save what runs")
    press(page, opener, "Space")
    form = page.get_by_role("form", name="Save what runs")
    expect(form.get_by_role("textbox", name="Name")).to_be_focused()
    page.keyboard.type("mine")
    write(page, form.get_by_role("textbox", name="Description"), "by keys")
    press(page, form.get_by_role("checkbox", name="Come back on the devices"), "Space")
    press(page, form.get_by_role("button", name="Save", exact=True))
    expect(card(page, "mine")).to_contain_text("by keys")
    expect(opener).to_be_focused()
    press(page, card(page, "mine").get_by_role("button", name="Show"))
    expect(page.get_by_role("table", name="Models of mine")).to_be_visible()
    press(page, card(page, "mine").get_by_role("button", name="Schedule"))
    times = page.get_by_role("form", name="When mine is applied")
    expect(times.get_by_label("Times")).to_be_focused()
    page.keyboard.type("0 8 * * 1-5")
    write(page, times.get_by_label("Time zone"), "Europe/Berlin")
    press(page, times.get_by_role("checkbox", name="Keep models"), "Space")
    press(page, times.get_by_role("button", name="Add these times"))
    expect(times.get_by_role("listitem")).to_contain_text("(Europe/Berlin); others are kept")
    tab_to(page, times.get_by_role("button", name="Close"))
    press(page, times.get_by_role("button", name="Remove the schedule 0 8 * * 1-5"))
    agree(page, "Remove the schedule")
    expect(times.get_by_role("listitem")).to_have_count(0)
    expect(times.get_by_label("Times")).to_be_focused()
    press(page, times.get_by_role("button", name="Close"))
    expect(card(page, "mine").get_by_role("button", name="Schedule")).to_be_focused()
    remove = card(page, "mine").get_by_role("button", name="Remove…")
    press(page, remove)
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Enter")  # at Cancel
    expect(remove).to_be_focused()
    press(page, remove)
    agree(page, "Remove")
    expect(page.get_by_text("No presets yet")).to_be_visible()
    expect(page.get_by_role("heading", name="Presets", exact=True)).to_be_focused()


def test_a_plan_is_looked_at_and_applied_by_keyboard_alone(served: Shoal, page: Page) -> None:
    third(served, "evening")
    page.goto(f"{served.url}/#/presets")
    opener = card(page, "evening").get_by_role("button", name="Apply…")
    press(page, opener)
    plan = page.get_by_role("table", name="Steps to evening")
    expect(plan.get_by_role("row", name="serves")).to_contain_text("stop")
    press(page, card(page, "evening").get_by_role("button", name="Close"))
    expect(plan).to_have_count(0)
    expect(opener).to_be_focused()
    press(page, opener)
    press(page, page.get_by_role("checkbox", name="Keep models that the preset does not name"), "Space")
    expect(plan.get_by_role("row", name="third")).to_contain_text("start")
    expect(plan.get_by_role("row", name="serves")).to_have_count(0)
    press(page, card(page, "evening").get_by_role("button", name="Apply", exact=True))
    run = page.locator(".run")
    expect(run.get_by_role("heading")).to_be_focused()
    expect(page.get_by_role("table", name="Steps of evening").get_by_role("row", name="third")).to_contain_text("done")
    assert served.model("third")["state"] == "ready"
    assert served.model("serves")["state"] == "ready"  # it was kept
    press(page, run.get_by_role("button", name="Hide"))
    expect(run).to_have_count(0)


def test_a_run_is_cancelled_by_keyboard_alone(served: Shoal, page: Page) -> None:
    third(served, "other", "--start-seconds", "600")
    page.goto(f"{served.url}/#/presets")
    press(page, card(page, "other").get_by_role("button", name="Apply…"))
    press(page, page.get_by_role("checkbox", name="Keep models that the preset does not name"), "Space")
    press(page, card(page, "other").get_by_role("button", name="Apply", exact=True))
    run = page.locator(".run")
    expect(run.get_by_role("heading")).to_contain_text("Applying other")
    for button, words in (("Cancel…", "Cancel the run"), ("Do not wait…", "Do not wait")):
        press(page, run.get_by_role("button", name=button))
        agree(page, words)
    expect(run.get_by_role("heading")).to_contain_text("Applied last: other")


def test_a_preset_is_exported_and_imported_by_keyboard_alone(served: Shoal, page: Page, tmp_path: Path) -> None:
    save(served, "mine", description="chat")
    page.goto(f"{served.url}/#/presets")
    tab_to(page, card(page, "mine").get_by_role("link", name="Export"))
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    press(page, page.get_by_role("button", name="Import"))
    form = page.get_by_role("form", name="Import a preset")
    chooser = form.get_by_label("File", exact=True)
    expect(chooser).to_be_focused()
    chooser.set_input_files(file)  # the browser's own window, which is no part of the page
    expect(form.get_by_role("textbox", name="YAML")).to_have_value(file.read_text())
    write(page, form.get_by_role("textbox", name="Another name"), "odd")
    press(page, form.get_by_role("button", name="Import", exact=True))
    expect(card(page, "odd")).to_contain_text("chat")
    expect(page.get_by_role("button", name="Import")).to_be_focused()


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js here")
def test_the_line_of_a_fault(tmp_path: Path) -> None:
    shutil.copy(STATIC / "components" / "preset_place.js", tmp_path / "place.mjs")
    text = "\n".join([
        "shoal_preset: 1", "name: day", "models:", "- spec:", "    name: one", "    args:", "    - --flor", "    - x",
        "  awake: 1", "- awake: 2", "  spec:", "    name: two", "    flor: 2GiB", "schedules:", "  # by day",
        "  - cron: 0 8 * * *", "    zone: Mars",
    ])  # fmt: skip
    faults = {
        "is not YAML: while scanning line 3, column 1 and line 4, column 2": 4,
        "is not YAML: line 900": 17,
        "models.1.spec.flor: there is no such setting": 13,
        "models.0.awake: Input should be": 9,
        "models.1.awake: Input should be": 10,
        "models.1.spec.name: x": 12,
        "schedules.0.zone: there is no time zone": 17,
        "name: a name has 1 to 200 characters": 2,
        "models.0.spec.source: is missing": 4,
        "Shoal does not answer.": 0,
        "models.7.spec: x": 0,
    }
    script = f"""
      import {{ lineOf }} from "./place.mjs";
      const text = {json.dumps(text)};
      const found = {json.dumps(list(faults))}.map((fault) => lineOf(fault, text));
      console.log(JSON.stringify(found.concat(lineOf("name: x", ""))));
    """
    done = subprocess.run(
        ["node", "--input-type=module", "-e", script],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == [*faults.values(), 0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_it_fits_and_everybody_can_use_it(served: Shoal, new_page: NewPage, scheme: str, width: int) -> None:
    if not AXE.exists():
        pytest.skip("no axe-core here (make page-types)")
    save(served, "mine", description="long " + "w" * 300)
    with served.client as client:
        client.schedule_preset("mine", "0 8 * * 1-5", zone="UTC", exclusive=True)
    page = new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(f"{served.url}/#/presets")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    page.get_by_role("button", name="Import").click()
    for button, found in (("Apply…", ".plan table"), ("Show", ".preset table"), ("Schedule", ".preset form")):
        card(page, "mine").get_by_role("button", name=button).click()
        expect(page.locator(found)).to_be_visible()
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
