"""A model's page in a real browser, against a real `shoal serve` with simulated engines."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from urllib.parse import quote

import httpx2
import pytest
from playwright.sync_api import Locator, Page, expect

from tests.dashboard.acts import By, button, choose, confirm, use
from tests.dashboard.conftest import NewPage
from tests.dashboard.keys import press, write
from tests.dashboard.test_whole import AXE, anew, press_on, violations
from tests.system.harness import Shoal, a_shoal, until

FIRST = {"devices": ["simulated:0"]}
ODD = "<b>org</b>/שלום 🐟 it's"


@pytest.fixture(scope="module")
def served() -> Iterator[Shoal]:
    """One that serves, one that failed, and one with a name that is hard to write."""
    with a_shoal(simulated_devices=["16GiB", "8GiB"]) as shoal:
        shoal.start()
        shoal.add("qwen3-8b", "--simulated-block-bytes", "4MiB", "--device-memory", "2GiB", "--enable-sleep-mode",
                  floor="512MiB", ceiling="3GiB", **FIRST)  # fmt: skip
        shoal.add("broken", "--fail", "oom", "--device-memory", "100MiB", **FIRST)
        shoal.add(ODD, "--task", "transcription")
        shoal.load("qwen3-8b")
        with shoal.client as client:
            client.load("broken")
        shoal.wait("broken", "failed")
        yield shoal


def go(page: Page, served: Shoal, name: str) -> Locator:
    page.goto(f"{served.url}/#/models/{quote(name, safe='')}")
    expect(page.locator(".model-title h2")).to_have_text(name)
    return page.locator(".model-head")


def section(page: Page, title: str) -> Locator:
    return page.get_by_role("region", name=title, exact=True)


def test_a_name_in_the_overview_leads_to_its_page_and_back(served: Shoal, page: Page) -> None:
    page.goto(served.url)
    page.get_by_role("link", name=ODD, exact=True).click()
    expect(page.locator(".model-title h2")).to_have_text(ODD)
    assert page.url.endswith(f"#/models/{quote(ODD, safe=chr(39))}")
    assert page.locator("main b:text('org')").count() == 0
    page.get_by_role("link", name="← Overview").click()
    expect(page.get_by_role("heading", name="Devices")).to_be_visible()


def test_what_it_holds_carries_and_went_through_is_shown(served: Shoal, page: Page) -> None:
    go(page, served, "qwen3-8b")
    for n in range(3):
        text = f"{n} " + "one two " * 400
        assert served.chat("qwen3-8b", messages=[{"role": "user", "content": text}]).status_code == 200
    memory = section(page, "Memory")
    bar = memory.get_by_role("img", name=re.compile(r"on simulated:0: weights 2\.0 GiB, (KV in use|KV cached)"))
    expect(bar).to_be_visible()
    expect(memory).to_contain_text(re.compile(r"floor\s*512\.0 MiB.*ceiling\s*3\.0 GiB", re.DOTALL))
    marks = memory.locator(".mark")
    assert [one.get_attribute("title") for one in marks.all()][:2] == [
        "floor: 512.0 MiB of KV cache", "ceiling: 3.0 GiB of KV cache"
    ]  # fmt: skip
    traffic = section(page, "Traffic")
    expect(traffic.locator(".numbers")).to_contain_text(re.compile(r"[\d.]+\s*requests/s"))
    expect(traffic.locator("canvas")).to_have_count(5)
    traffic.get_by_label("Charts of").select_option("24h")
    expect(traffic.locator("canvas")).to_have_count(5)
    states = section(page, "What it went through")
    expect(states.locator("li").last).to_contain_text("qwen3-8b was added")
    expect(states.locator(".badge[data-state=ready]").first).to_be_visible()
    starts = section(page, "Starts")
    expect(starts.locator("li").first).to_contain_text("loading weights")
    expect(section(page, "Measured")).to_contain_text("The capital of France is")


def test_a_failure_says_what_to_do_and_its_log_is_there(served: Shoal, page: Page) -> None:
    head = go(page, served, "broken")
    expect(head.get_by_role("alert")).to_contain_text("ran out of memory")
    expect(head.get_by_role("alert")).to_contain_text("What to do:")
    expect(head.get_by_role("button", name="Try again")).to_be_enabled()
    expect(page.get_by_role("log")).to_contain_text("Error")
    expect(section(page, "Starts").locator(".badge").first).to_have_attribute("data-state", "failed")


def test_a_log_that_grows_fast_with_binary_and_endless_lines(served: Shoal, page: Page) -> None:
    anew(served, "loud", "--device-memory", "100MiB", **FIRST)
    served.load("loud")
    (running,) = served.wait("loud", "ready")
    go(page, served, "loud")
    log = page.get_by_role("log")
    expect(log).to_contain_text("Application startup complete")
    lines = b"".join(b"line %d \x1b[31m<i>\xff\x00\n" % n for n in range(30_000))
    with (served.state / "logs" / running["id"] / "engine.log").open("ab") as file:
        file.write(lines + b"x" * 2**20 + b"\nthe last one\n")
    expect(log).to_contain_text("the last one")
    expect(log).to_contain_text("line 29999 <i>\ufffd\u2400")
    expect(log.get_by_role("button", name="show all")).to_be_visible()
    assert log.locator(".log-line").count() < 60
    expect(page.locator(".log-note")).to_contain_text("older ones are in the download")
    search = page.get_by_label(f"Search the log of {running['id']}")
    search.fill("line 29000 ")
    expect(page.locator(".log-count")).to_have_text("1 of 1")
    with page.expect_download() as found:
        page.get_by_role("link", name="Download the whole log").click()
    assert found.value.suggested_filename == f"{running['id']}.log"
    whole = found.value.path().read_bytes()
    assert lines in whole
    assert b"x" * 2**20 in whole


def test_a_name_typed_in_another_unicode_form_is_the_same(served: Shoal, page: Page) -> None:
    anew(served, "caf\u00e9", **FIRST)
    page.goto(f"{served.url}/#/models/{quote('cafe' + chr(0x301))}")
    expect(page.locator(".model-title h2")).to_have_text("caf\u00e9")


def test_it_is_acted_on_by_mouse(served: Shoal, page: Page) -> None:
    anew(served, "acted", "--enable-sleep-mode", "--device-memory", "300MiB", **FIRST)
    head = go(page, served, "acted")
    badge = head.locator(".badge")
    expect(head.get_by_text("shoal load acted", exact=True)).to_be_visible()
    for action, state in (("Load", "ready"), ("Sleep", "sleeping"), ("Wake", "ready")):
        head.get_by_role("button", name=action, exact=True).click()
        expect(badge).to_have_attribute("data-state", state)
    canary = section(page, "Measured").locator(".canaries")
    expect(canary).to_contain_text("answered")
    head.get_by_role("button", name="Unload", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Unload", exact=True).click()
    expect(badge).to_have_attribute("data-state", "unloaded")
    expect(section(page, "Memory")).to_contain_text("It holds nothing")
    expect(page.get_by_role("log")).to_contain_text("Application startup complete")  # of the one that has ended


def test_settings_are_changed_while_it_serves(served: Shoal, page: Page) -> None:
    anew(served, "set", "--device-memory", "300MiB", "--simulated-block-bytes", "4MiB", **FIRST)
    served.load("set")
    go(page, served, "set")
    settings = section(page, "Settings")
    settings.get_by_label("floor", exact=True).fill("256MiB")
    settings.get_by_label("pin", exact=True).select_option("yes")
    settings.get_by_label("sleep_after", exact=True).fill("5m")
    expect(
        settings.get_by_text("shoal models set --floor=256MiB --pin --sleep-after=5m set", exact=True)
    ).to_be_visible()
    expect(settings.locator(".save")).not_to_contain_text("new start")
    settings.get_by_role("button", name="Save", exact=True).click()
    expect(settings.get_by_text("Saved.", exact=True)).to_be_visible()
    spec = served.model("set")["spec"]
    assert (spec["floor"], spec["pin"], spec["sleep_after"]) == (256 * 2**20, True, 300.0)
    expect(settings.get_by_label("sleep_after", exact=True)).to_have_value("5m")
    expect(section(page, "Memory")).to_contain_text("256.0 MiB")
    settings.get_by_label("sleep_after", exact=True).fill("")
    expect(settings.get_by_text("shoal models set --sleep-after=none set", exact=True)).to_be_visible()
    settings.get_by_label("sleep_after", exact=True).press("Enter")
    expect(settings.get_by_text("Saved.", exact=True)).to_be_visible()
    assert served.model("set")["spec"]["sleep_after"] is None


def test_errors_stand_beside_their_fields_and_what_was_typed_stays(served: Shoal, page: Page) -> None:
    anew(served, "faulty", **FIRST)
    go(page, served, "faulty")
    settings = section(page, "Settings")
    settings.get_by_label("floor", exact=True).fill("much")
    settings.get_by_label("priority", exact=True).fill("0")
    settings.get_by_label("env", exact=True).fill("SHOAL_A=1")
    settings.get_by_role("button", name="Save", exact=True).click()
    for name, said in (("floor", "'much' is not a size; give one such as 512MiB"), ("priority", "greater than"),
                       ("env", "SHOAL_A is set by Shoal itself")):  # fmt: skip
        expect(settings.locator(f"[data-setting={name}] .wrong")).to_contain_text(said)
        expect(settings.get_by_label(name, exact=True)).to_have_attribute("aria-invalid", "true")
    expect(settings.get_by_label("floor", exact=True)).to_have_value("much")
    settings.get_by_label("floor", exact=True).fill("2GiB")
    settings.get_by_label("ceiling", exact=True).fill("1GiB")
    settings.get_by_label("priority", exact=True).fill("7")
    settings.get_by_label("env", exact=True).fill("A=b=c")
    settings.get_by_role("button", name="Save", exact=True).click()
    expect(settings.get_by_role("alert")).to_contain_text("lower the floor or raise the ceiling")
    settings.locator("[data-setting=ceiling]").get_by_role("button", name="Take back").click()
    expect(settings.get_by_label("ceiling", exact=True)).to_have_value("")
    page.goto(f"{served.url}/#/")
    go(page, served, "faulty")  # it stays while the page is elsewhere
    expect(settings.get_by_label("floor", exact=True)).to_have_value("2GiB")
    settings.get_by_role("button", name="Save", exact=True).click()
    expect(settings.get_by_text("Saved.", exact=True)).to_be_visible()
    spec = served.model("faulty")["spec"]
    assert (spec["floor"], spec["priority"], spec["env"]) == (2 * 2**30, 7, {"A": "b=c"})


def test_a_setting_of_the_engine_changes_while_it_serves(served: Shoal, page: Page) -> None:
    anew(served, "rolled", "--device-memory", "300MiB", **FIRST)
    served.load("rolled")
    go(page, served, "rolled")
    settings = section(page, "Settings")
    settings.get_by_label("context_length", exact=True).fill("4096")
    expect(settings.locator(".save")).to_contain_text("context_length needs a new start.")
    expect(settings.get_by_text("shoal change --set context_length=4096 rolled", exact=True)).to_be_visible()
    settings.get_by_role("button", name="Change while it serves").click()
    expect(settings.locator(".save")).to_contain_text("has begun")
    expect(settings.get_by_label("context_length", exact=True)).to_have_value("4096")
    until(lambda: served.model("rolled")["spec"]["context_length"] == 4096, "the new settings")


def test_a_change_by_somebody_else_and_ones_own_are_both_seen(served: Shoal, page: Page) -> None:
    anew(served, "shared", **FIRST)
    go(page, served, "shared")
    settings = section(page, "Settings")
    priority = settings.locator("[data-setting=priority]")
    settings.get_by_label("priority", exact=True).fill("50")
    with served.client as client:
        client.change_model("shared", {"priority": 70, "pin": True})
    expect(priority).to_contain_text("Changed meanwhile by somebody else, to 70. Yours is not saved.")
    expect(settings.get_by_label("priority", exact=True)).to_have_value("50")
    expect(settings.get_by_label("pin", exact=True)).to_have_value("true")
    priority.get_by_role("button", name="Take theirs").click()
    expect(settings.get_by_label("priority", exact=True)).to_have_value("70")


def test_it_is_removed_after_one_question_and_its_page_says_so(served: Shoal, page: Page) -> None:
    anew(served, "removed", "--device-memory", "100MiB", **FIRST)
    served.load("removed")
    head = go(page, served, "removed")
    head.get_by_role("button", name="Remove…").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Its instances end, with their running requests. Its settings are lost")
    expect(dialog.get_by_text("shoal models rm --unload removed", exact=True)).to_be_visible()
    dialog.get_by_role("button", name="Cancel").click()
    assert served.model("removed")["state"] == "ready"
    head.get_by_role("button", name="Remove…").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove", exact=True).click()
    expect(page.get_by_role("heading", name="There is no model removed")).to_be_visible()
    page.get_by_role("link", name="Go to the overview").click()
    expect(page.get_by_role("heading", name="Models")).to_be_visible()


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_requests_are_seen_and_cancelled(served: Shoal, page: Page, by: By) -> None:
    anew(served, "asked", "--tokens-per-second", "1", "--device-memory", "100MiB", "--max-num-seqs", "1", **FIRST)
    served.load("asked")
    ended: list[str] = []

    def ask() -> None:
        with contextlib.suppress(httpx2.HTTPError):  # what was cancelled breaks off
            served.chat("asked", max_tokens=100, stream=True)
        ended.append("one")

    asks = [threading.Thread(target=ask) for _ in range(2)]
    for one in asks:
        one.start()
    go(page, served, "asked")
    requests = section(page, "Requests now")
    expect(requests).to_contain_text("1 running, 1 waiting")
    for left in (1, 0):
        use(page, requests.get_by_role("button", name=re.compile("Cancel the request")).first, by)
        expect(page.get_by_role("dialog")).to_contain_text("Its client gets an error")
        confirm(page, "Cancel the request", by)
        expect(requests.locator("[data-request]")).to_have_count(left)
    for one in asks:
        one.join()
    assert len(ended) == 2


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_it_is_pinned_given_its_new_settings_and_removed(served: Shoal, page: Page, by: By) -> None:
    anew(served, "pinned", "--device-memory", "100MiB", **FIRST)
    served.load("pinned")
    head = go(page, served, "pinned")
    (before,) = served.wait("pinned", "ready")
    for word, command, pinned in (("Pin", "--pin", True), ("Unpin", "--no-pin", False)):
        expect(head.get_by_text(f"shoal models set {command} pinned", exact=True)).to_be_visible()
        use(page, button(head, word), by)
        expect(head.locator(".pin")).to_have_count(int(pinned))
        assert served.model("pinned")["spec"]["pin"] is pinned
    with served.client as client:
        client.change_model("pinned", {"context_length": 4096})
    expect(head.get_by_text("shoal change pinned", exact=True)).to_be_visible()
    use(page, button(head, "Roll out new settings"), by)
    expect(button(head, "Roll out new settings")).to_have_count(0)
    until(lambda: [one["id"] for one in served.wait("pinned", "ready")] != [before["id"]], "the new one")
    use(page, button(head, "Remove…"), by)
    confirm(page, "Remove", by)
    expect(page.get_by_role("heading", name="There is no model pinned")).to_be_visible()


def test_settings_are_written_taken_back_and_rolled_out_by_keyboard(served: Shoal, page: Page) -> None:
    anew(served, "typed", "--device-memory", "100MiB", **FIRST)
    served.load("typed")
    go(page, served, "typed")
    settings = section(page, "Settings")
    press(page, button(page, "Settings"))
    choose(page, settings.get_by_label("pin", exact=True), "true", "ArrowUp")
    write(page, settings.get_by_label("context_length", exact=True), "4096")
    back = settings.locator("[data-setting=pin]").get_by_role("button", name="Take back")
    press(page, back)
    expect(settings.get_by_label("pin", exact=True)).to_have_value("false")
    press(page, button(settings, "Change while it serves"))
    expect(settings.locator(".save")).to_contain_text("has begun")
    until(lambda: served.model("typed")["spec"]["context_length"] == 4096, "the new settings")
    assert served.model("typed")["spec"]["pin"] is False


def test_how_to_call_it_fits_its_task_and_works(served: Shoal, page: Page) -> None:
    go(page, served, ODD)
    calling = section(page, "How to call it")
    program = calling.locator(".program")
    expect(program).to_contain_text("audio/transcriptions")
    expect(calling.get_by_label("API")).to_have_value("transcription")
    calling.get_by_role("button", name="Python", exact=True).click()
    expect(program).to_contain_text("client.audio.transcriptions.create")
    go(page, served, "qwen3-8b")
    expect(calling.get_by_label("API")).to_have_value("chat")
    expect(program).to_contain_text(f"curl {served.url}/v1/chat/completions")
    expect(calling).to_contain_text("No key is needed")
    with served.client as client:
        key = client.create_key({"name": "page"})
    try:
        page.reload()
        expect(program).to_contain_text("$SHOAL_API_KEY")
        expect(calling.get_by_text("shoal keys create my-app", exact=True)).to_be_visible()
        calling.get_by_role("button", name="JavaScript", exact=True).click()
        expect(program).to_contain_text("process.env.SHOAL_API_KEY")
    finally:
        with served.client as client:
            client.revoke_key(key["id"])


def test_programs_to_copy_hold_any_name(served: Shoal, page: Page) -> None:
    name = 'it\'s; $(touch /tmp/no) "q" `x` <i> 🐟'
    anew(served, name, "--device-memory", "100MiB", **FIRST)
    served.load(name)
    go(page, served, name)
    calling = section(page, "How to call it")
    program = calling.locator(".program")
    for api in ("chat", "completions", "embeddings", "rerank", "transcription"):
        calling.get_by_label("API").select_option(api)
        calling.get_by_role("button", name="Python", exact=True).click()
        expect(program).to_contain_text("from openai import OpenAI")
        compile(program.inner_text(), api, "exec")
    calling.get_by_label("API").select_option("chat")
    calling.get_by_role("button", name="curl", exact=True).click()
    expect(program).to_contain_text("curl ")
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    answer = subprocess.run(
        ["bash", "-c", program.inner_text()], capture_output=True, text=True, timeout=30, check=True
    )
    assert json.loads(answer.stdout)["choices"][0]["message"]["content"]


def test_by_keyboard(served: Shoal, page: Page) -> None:
    anew(served, "by-keys", "--enable-sleep-mode", "--device-memory", "100MiB", **FIRST)
    go(page, served, "by-keys")
    badge = page.locator(".model-head .badge")
    for action, state in (("Load", "ready"), ("Sleep", "sleeping")):
        press_on(page, action)
        expect(badge).to_have_attribute("data-state", state)
    press_on(page, "Settings")
    expect(page.get_by_role("heading", name="Settings", exact=True)).to_be_focused()
    for _ in range(3):
        page.keyboard.press("Tab")
    expect(page.get_by_label("priority", exact=True)).to_be_focused()
    page.keyboard.press("Control+A")
    page.keyboard.type("42")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Saved.", exact=True)).to_be_visible()
    assert served.model("by-keys")["spec"]["priority"] == 42
    press_on(page, "Remove…")
    expect(page.get_by_role("dialog").get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_it_fits_and_everybody_can_use_it(served: Shoal, new_page: NewPage, scheme: str, width: int) -> None:
    if not AXE.exists():
        pytest.skip("no axe-core here (make page-types)")
    page = new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    for name in ("qwen3-8b", "broken", ODD):
        go(page, served, name)
        expect(page.get_by_label("priority", exact=True)).to_be_visible()
        page.get_by_label("priority", exact=True).fill("5")
        if name != ODD:
            page.get_by_label("Search the log").fill("info")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if page.evaluate("typeof axe") == "undefined":
            page.evaluate(AXE.read_text(encoding="utf-8"))
        assert violations(page) == []
