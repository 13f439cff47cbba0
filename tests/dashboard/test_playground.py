"""The playground in a real browser, against a real `shoal serve` with simulated engines."""

from __future__ import annotations

import base64
import contextlib
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Page, Request, expect

from shoal.errors import ShoalError
from tests.dashboard.acts import By, button, use
from tests.dashboard.conftest import NewPage
from tests.dashboard.playground import FOUR, answer, go, prompt, say, under_way
from tests.system.harness import PATIENCE, Shoal, a_shoal, until

AXE = Path(__file__).parents[2] / "tools" / "node_modules" / "axe-core" / "axe.min.js"


@pytest.fixture(scope="module")
def served() -> Iterator[Shoal]:
    """Four that answer, one that takes for ever, one that can sleep, one that is not loaded, and one for embeddings."""
    with a_shoal(simulated_devices=["8GiB"]) as shoal:
        shoal.start()
        for name in FOUR:
            shoal.add(name, "--tokens-per-second", "0", "--device-memory", "10MiB")
        shoal.add("slow", "--tokens-per-second", "0.2", "--device-memory", "10MiB")
        shoal.add("drowsy", "--enable-sleep-mode", "--sleep-seconds", "1.5", "--device-memory", "10MiB")
        shoal.add("idle", "--start-seconds", "1", "--device-memory", "10MiB")
        shoal.add("bge", "--task", "embed", "--device-memory", "10MiB")
        for name in (*FOUR, "slow", "drowsy"):
            shoal.load(name)
        yield shoal


def body_of(request: Request) -> Any:
    return request.post_data_json


def picture(width: int, height: int) -> bytes:
    """A PNG of one colour."""
    rows = b"".join(b"\0" + b"\x20\x80\xa0" * width for _ in range(height))

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")


def test_four_models_answer_side_by_side_with_what_it_took(served: Shoal, page: Page) -> None:
    go(page, served, *FOUR)
    say(page, "What do fish do?")
    boxes = []
    for name in FOUR:
        one = answer(page, name)
        expect(one).to_have_attribute("data-state", "done")
        expect(one.locator(".prose")).to_have_text(re.compile(r"^[A-Z][a-z]+( \w+){5,}"))
        expect(one.locator("dl")).to_contain_text(
            re.compile(r"first token.*(ms|s).*prompt tokens\d+answer tokens\d+queued")
        )
        boxes.append(one.bounding_box())
    assert all(box is not None for box in boxes)
    assert len({round(box["y"]) for box in boxes if box}) == 1, "side by side"
    assert len({round(box["x"]) for box in boxes if box}) == 4
    with served.http() as http:
        body = {"model": "one", "messages": [{"role": "user", "content": "What do fish do?"}]}
        whole = http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    expect(answer(page, "one").locator(".prose")).to_have_text(whole)


def test_each_column_has_its_own_conversation_and_settings(served: Shoal, page: Page) -> None:
    go(page, served, "one", "two")
    say(page, "First")
    expect(answer(page, "two")).to_have_attribute("data-state", "done")
    expect(answer(page, "one")).to_have_attribute("data-state", "done")
    firsts = [answer(page, name).locator(".prose").inner_text() for name in ("one", "two")]
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_role("textbox", name="System prompt").first.fill("Be brief.")
    page.get_by_label("Most tokens").first.fill("4")
    second = page.get_by_role("group", name="Column: two")
    second.get_by_text("Settings of its own").click()
    second.get_by_label("Most tokens").fill("3")
    sent: list[Any] = []
    page.on("request", lambda request: sent.append(request.post_data_json) if request.method == "POST" else None)
    say(page, "Second")
    for name, tokens in (("one", 4), ("two", 3)):
        expect(answer(page, name).locator("dl")).to_contain_text(f"answer tokens{tokens}")
        expect(answer(page, name)).to_contain_text("It ended at the limit of tokens.")
    for body, first in zip(sorted(sent, key=lambda body: str(body["model"])), firsts, strict=True):
        assert body["messages"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "First"},
            {"role": "assistant", "content": first},
            {"role": "user", "content": "Second"},
        ]
    sent.clear()
    page.get_by_role("checkbox", name="gets prompts").nth(1).uncheck()
    say(page, "Third")
    expect(answer(page, "two")).to_contain_text("Not asked.")
    expect(answer(page, "one")).to_have_attribute("data-state", "done")
    assert [body["model"] for body in sent] == ["one"]


def test_a_prompt_is_asked_again_and_edited(served: Shoal, page: Page) -> None:
    go(page, served, "one")
    for text in ("First", "Second"):
        say(page, text)
        expect(page.locator('article[data-state="done"]')).to_have_count(1 if text == "First" else 2)
    with page.expect_request("**/v1/chat/completions") as again:
        page.get_by_role("button", name="Ask again one").click()
    assert body_of(again.value)["messages"][-1] == {"role": "user", "content": "Second"}
    expect(answer(page, "one")).to_have_attribute("data-state", "done")
    prompt(page).fill("A draft that stays")
    page.get_by_role("button", name="Edit prompt 1").click()
    expect(prompt(page)).to_have_value("First")
    expect(prompt(page)).to_be_focused()
    expect(page.get_by_text("The turn after it will be dropped.")).to_be_visible()
    page.get_by_role("button", name="Leave it as it was").click()
    expect(prompt(page)).to_have_value("A draft that stays")
    page.get_by_role("button", name="Edit prompt 1").click()
    say(page, "Another first")
    expect(page.locator(".bubble")).to_have_text([re.compile("Another first")])
    expect(answer(page, "one")).to_have_attribute("data-state", "done")
    expect(prompt(page)).to_have_value("A draft that stays")


def test_columns_come_and_go_and_their_answers_are_asked_about(served: Shoal, page: Page) -> None:
    go(page, served, "one")
    say(page, "Hello")
    expect(answer(page, "one")).to_have_attribute("data-state", "done")
    for count in (2, 3, 4):
        page.get_by_role("button", name="Compare with another model").click()
        expect(page.get_by_role("combobox", name="Model")).to_have_count(count)
    expect(page.get_by_role("button", name="Compare with another model")).to_have_count(0)
    chosen = [one.input_value() for one in page.get_by_role("combobox", name="Model").all()]
    assert len(set(chosen)) == 4
    assert "bge" not in chosen
    page.get_by_role("button", name=f"Remove the column of {chosen[3]}").click()
    expect(page.get_by_role("combobox", name="Model")).to_have_count(3)
    page.get_by_role("button", name="Remove the column of one").press("Enter")
    expect(page.get_by_text("Its answers are lost.")).to_be_visible()
    expect(page.get_by_role("button", name="Keep it")).to_be_focused()
    page.get_by_role("button", name="Remove it").click()
    expect(page.get_by_role("article", name="Answer of one")).to_have_count(0)
    page.get_by_role("button", name=f"Ask {chosen[1]}", exact=True).click()
    expect(answer(page, chosen[1])).to_have_attribute("data-state", "done")


def test_stop_ends_the_request_in_the_engine(served: Shoal, page: Page) -> None:
    go(page, served, "slow", "one")
    say(page, "Count the waves")
    until(lambda: under_way(served, "slow"), "the request")
    expect(answer(page, "one")).to_have_attribute("data-state", "done")
    page.get_by_role("button", name="Stop slow").click()
    expect(answer(page, "slow")).to_contain_text("Stopped: You stopped it.")
    until(lambda: not under_way(served, "slow"), "its end")
    (instance,) = served.wait("slow", "ready")
    transport = httpx2.HTTPTransport(uds=instance["address"].removeprefix("unix:"))
    with httpx2.Client(transport=transport, base_url="http://engine", timeout=PATIENCE) as engine:
        until(lambda: re.search(r"num_requests_running\S* 0\.0", engine.get("/metrics").text), "its end in the engine")


def test_by_keyboard_alone(served: Shoal, page: Page) -> None:
    go(page, served, "slow", "one")
    prompt(page).focus()
    page.keyboard.type("a line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("another")
    expect(prompt(page)).to_have_value("a line\nanother")
    page.keyboard.press("Control+Enter")
    expect(prompt(page)).to_have_value("")
    until(lambda: under_way(served, "slow"), "the request")
    expect(page.get_by_role("button", name="Stop all")).to_be_visible()
    page.keyboard.press("Escape")
    expect(answer(page, "slow")).to_have_attribute("data-state", "stopped")
    until(lambda: not under_way(served, "slow"), "its end")
    expect(page.get_by_role("button", name="Stop all")).to_have_count(0)
    for name in ("Sessions", "Settings", "curl", "API key"):
        button = page.get_by_role("button", name=name, exact=True)
        button.focus()
        page.keyboard.press("Enter")
        expect(button).to_have_attribute("aria-expanded", "true")


@pytest.mark.parametrize("way", ["file", "paste", "drop"])
def test_pictures_are_scaled_down_shown_and_sent(served: Shoal, page: Page, way: str) -> None:
    go(page, served, "one")
    large = picture(3000, 200)
    if way == "file":
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Add pictures").click()
        chooser.value.set_files({"name": "fish.png", "mimeType": "image/png", "buffer": large})
    else:
        page.evaluate(
            """([kind, text]) => {
              const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
              const data = new DataTransfer();
              data.items.add(new File([bytes], "fish.png", { type: "image/png" }));
              const target = document.getElementById("prompt");
              const options = { bubbles: true, cancelable: true };
              target.dispatchEvent(kind === "paste" ? new ClipboardEvent("paste", { ...options, clipboardData: data })
                : new DragEvent("drop", { ...options, dataTransfer: data }));
            }""",
            [way, base64.b64encode(large).decode()],
        )
    thumbnail = page.locator("form").get_by_role("img", name="fish.png")
    expect(thumbnail).to_be_visible()
    with page.expect_request("**/v1/chat/completions") as request:
        say(page, "What is it?")
    image, text = body_of(request.value)["messages"][0]["content"]
    assert text == {"type": "text", "text": "What is it?"}
    kind, _, data = image["image_url"]["url"].partition(";base64,")
    assert kind == "data:image/png"
    assert struct.unpack(">II", base64.b64decode(data)[16:24]) == (1536, 102)
    expect(answer(page, "one")).to_have_attribute("data-state", "done")
    expect(thumbnail).to_have_count(0)
    shown = page.locator(".bubble").get_by_role("img", name="fish.png")
    assert shown.evaluate("image => image.naturalWidth") == 1536


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_all_answers_are_stopped_by_one_button(served: Shoal, page: Page, by: By) -> None:
    go(page, served, "slow", "one")
    say(page, "Count the waves")
    until(lambda: under_way(served, "slow"), "the request")
    use(page, button(page, "Stop all"), by)
    expect(answer(page, "slow")).to_have_attribute("data-state", "stopped")
    until(lambda: not under_way(served, "slow"), "its end")


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_pictures_are_removed_before_they_are_sent(served: Shoal, page: Page, by: By) -> None:
    go(page, served, "one")
    for name in ("fish.png", "whale.png"):
        with page.expect_file_chooser() as chooser:
            use(page, button(page, "Add pictures"), by)
        chooser.value.set_files({"name": name, "mimeType": "image/png", "buffer": picture(8, 8)})
        expect(page.locator("form").get_by_role("img", name=name)).to_be_visible()
    use(page, button(page, "Remove fish.png"), by)
    expect(page.locator("form").get_by_role("img", name="fish.png")).to_have_count(0)
    expect(page.locator("form").get_by_role("img", name="whale.png")).to_be_visible()
    with page.expect_request("**/v1/chat/completions") as request:
        say(page, "What is it?")
    kinds = [part["type"] for part in body_of(request.value)["messages"][0]["content"]]
    assert kinds == ["image_url", "text"]


def test_what_is_no_picture_is_refused_and_the_prompt_stays(served: Shoal, page: Page) -> None:
    go(page, served, "one")
    prompt(page).fill("keep me")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Add pictures").click()
    chooser.value.set_files({"name": "<i>.png", "mimeType": "image/png", "buffer": b"no picture"})
    expect(page.get_by_text("<i>.png is no picture that this browser can read.")).to_be_visible()
    expect(prompt(page)).to_have_value("keep me")


def test_a_key_is_asked_for_where_one_is_needed_and_stays_in_the_tab(served: Shoal, page: Page) -> None:
    with served.client as api, contextlib.suppress(ShoalError):
        api.revoke_key("page")
    with served.client as api:
        key = api.create_key({"name": "page", "models": ["one"]})["key"]
        try:
            until(lambda: served.chat("one").status_code == 401, "the key at the relay")
            go(page, served, "one")
            field = page.get_by_label("API key", exact=True).and_(page.locator("input"))
            expect(field).to_be_visible()
            say(page, "May I?")
            expect(answer(page, "one")).to_contain_text("No answer: ")
            field.fill(key)
            field.press("Tab")
            page.get_by_role("button", name="Ask again one").click()
            expect(answer(page, "one")).to_have_attribute("data-state", "done")
            page.get_by_role("button", name="curl", exact=True).click()
            expect(page.get_by_label("Command for one", exact=True)).to_contain_text("Bearer $SHOAL_API_KEY")
            assert key not in page.content()
            stored = page.evaluate("[JSON.stringify(localStorage), JSON.stringify(sessionStorage)]")
            assert [key in text for text in stored] == [False, True]
        finally:
            api.revoke_key("page")
            until(lambda: served.chat("one").status_code == 200, "its end at the relay")


def test_a_sleeping_model_wakes_and_an_unloaded_one_loads(served: Shoal, page: Page) -> None:
    with served.client as api:
        api.sleep("drowsy", level=1)
        api.unload("idle")
    served.wait("drowsy", "sleeping")
    until(lambda: served.model("idle")["state"] == "unloaded", "the unload")
    go(page, served, "drowsy", "idle")
    expect(page.get_by_text("A prompt wakes it.")).to_be_visible()
    expect(page.get_by_text("A prompt loads it.")).to_be_visible()
    say(page, "Good morning")
    expect(answer(page, "drowsy")).to_contain_text("It wakes…")
    expect(answer(page, "idle")).to_contain_text("It loads…")
    for name in ("drowsy", "idle"):
        expect(answer(page, name)).to_have_attribute("data-state", "done")
        expect(answer(page, name).locator("dl")).to_contain_text(re.compile(r"woken in(\d+ ms|\d+\.\d s)"))


def test_models_for_something_else_cannot_be_chosen(served: Shoal, page: Page) -> None:
    go(page, served, "one")
    option = page.get_by_role("option", name="bge (embed: no chat)")
    expect(option).to_be_disabled()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_it_fits_and_everybody_can_use_it(served: Shoal, new_page: NewPage, scheme: str, width: int) -> None:
    """No sideways scrolling, and nothing that axe finds, with each of the panels open too."""
    if not AXE.exists():
        pytest.skip("no axe-core here (make page-types)")
    page = new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    go(page, served, *FOUR)
    say(page, "w" * 300 + " word" * 30)
    for name in FOUR:
        expect(answer(page, name)).to_have_attribute("data-state", "done")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    for name in ("", "Sessions", "Settings", "curl", "API key"):
        if name:
            page.get_by_role("button", name=name, exact=True).click()
            expect(page.locator(".play-panel")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        found = page.evaluate("axe.run().then((result) => result.violations)")
        assert [(one["id"], [node["html"][:160] for node in one["nodes"][:4]]) for one in found] == [], name
