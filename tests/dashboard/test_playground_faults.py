"""The playground where answers break, lie or are odd: a scripted Shoal, and answers made up on the way."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from tests.cli.scripted import ScriptedShoal, instance, scripted
from tests.dashboard.conftest import NewPage

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script> **bold <b>&amp;** 🐟 שלום [x](javascript:alert(3))"


@pytest.fixture
def ready(shoal: ScriptedShoal) -> ScriptedShoal:
    shoal.add("m", instance("m-1", "m", "ready"))
    return shoal


def go(page: Page, shoal: ScriptedShoal, *models: str) -> None:
    page.goto(f"{shoal.url}/#/playground?{'&'.join(f'models={name}' for name in models or ('m',))}")
    expect(page.get_by_role("combobox", name="Model").first).to_have_value((models or ("m",))[0])


def prompt(page: Page) -> Locator:
    return page.get_by_role("textbox", name="Prompt", exact=True)


def say(page: Page, text: str = "Hello") -> None:
    prompt(page).fill(text)
    prompt(page).press("Enter")


def answer(page: Page) -> Locator:
    return page.locator("article").last


def piece(text: str) -> str:
    return f"data: {json.dumps({'choices': [{'delta': {'content': text}, 'finish_reason': None}]})}\n\n"


def answers(
    page: Page, body: str, status: int = 200, kind: str = "text/event-stream", headers: dict[str, str] | None = None
) -> None:
    """Have every request of a chat answered so."""

    def fulfil(route: Route) -> None:
        route.fulfill(status=status, body=body, headers={"content-type": kind, **(headers or {})})

    page.route("**/v1/chat/completions", fulfil)


@pytest.mark.parametrize("plain", [False, True])
def test_what_a_model_writes_is_text(ready: ScriptedShoal, page: Page, plain: bool) -> None:
    ready.answer = list(HOSTILE)
    go(page, ready)
    page.get_by_role("checkbox", name="as plain text").set_checked(plain)
    say(page, HOSTILE)
    expect(answer(page)).to_have_attribute("data-state", "done")
    shown = answer(page).locator(".as-is" if plain else ".prose")
    expect(shown).to_have_text(HOSTILE if plain else HOSTILE.replace("**", ""))
    expect(page.locator(".bubble")).to_contain_text(HOSTILE)
    assert page.locator(".play-turn :is(img, script, a, b)").count() == 0
    assert answer(page).locator("strong").count() == (0 if plain else 1)


def test_an_answer_from_right_to_left_and_code_from_left_to_right(ready: ScriptedShoal, page: Page) -> None:
    ready.answer = ["שלום עולם\n\n", "```html\n<b>x</b>\n", "```\n\n| a | b |\n|-|-|\n| 1 | 2 |"]
    go(page, ready)
    say(page)
    expect(answer(page)).to_have_attribute("data-state", "done")
    direction = "element => getComputedStyle(element).direction"
    assert answer(page).locator(".prose > p").evaluate(direction) == "rtl"
    assert answer(page).locator("pre").evaluate(direction) == "ltr"
    expect(answer(page).locator("pre")).to_have_text("<b>x</b>")
    expect(answer(page).locator("td")).to_have_text(["1", "2"])
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    answer(page).get_by_role("button", name="Copy this code").click()
    expect(answer(page).get_by_text("Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "<b>x</b>"


@pytest.mark.parametrize(
    ("body", "text", "why"),
    [
        (piece("Hel") + 'data: {"error": {"message": "the engine died", "code": "engine_died"}}\n\n', "Hel",
         "Incomplete: the engine died"),
        (piece("Hel") + piece("lo"), "Hello", "Incomplete: The connection ended before the answer did."),
        (piece("Hel") + 'data: {"choices": [{"de', "Hel", "Incomplete: The connection ended before the answer did."),
        (piece("Hel") + "data: <html>\n\n" + piece("lo") + "data: [DONE]\n\n", "Hello",
         "Incomplete: A piece of it could not be read."),
        ("\x00\xff garbage", "", "No answer: The connection ended before the answer did."),
    ],
)  # fmt: skip
def test_an_answer_that_breaks_off_says_so(ready: ScriptedShoal, page: Page, body: str, text: str, why: str) -> None:
    answers(page, body)
    go(page, ready)
    say(page)
    expect(answer(page).locator(".end")).to_have_text(why)
    expect(answer(page).locator(".prose")).to_have_text([text] if text else [])
    page.unroute("**/v1/chat/completions")
    page.get_by_role("button", name="Ask again m").click()
    expect(answer(page).locator(".prose")).to_have_text(re.compile("Hello "))


@pytest.mark.parametrize(
    ("status", "kind", "body", "why"),
    [
        (
            503,
            "application/json",
            '{"error": {"message": "m needs 9 GiB", "code": "model_not_ready"}}',
            "m needs 9 GiB",
        ),
        (400, "application/json", '{"error": {"message": "m takes no <images>"}}', "m takes no <images>"),
        (404, "application/json", '{"detail": "Not Found"}', "Not Found. Its engine has no chat"),
        (502, "text/html", "<h1>Bad gateway</h1>", "It was answered 502."),
        (200, "text/html", "<h1>Hello</h1>", "It was answered with what is no event stream."),
    ],
)
def test_a_refusal_is_shown_in_its_words(
    ready: ScriptedShoal, page: Page, status: int, kind: str, body: str, why: str
) -> None:
    answers(page, body, status, kind)
    go(page, ready)
    say(page)
    expect(answer(page).locator(".end")).to_contain_text(f"No answer: {why}")


def test_an_answer_that_is_no_stream_is_taken_whole(ready: ScriptedShoal, page: Page) -> None:
    whole = {
        "choices": [{"message": {"content": "All of it"}, "finish_reason": "stop"}],
        "usage": {"completion_tokens": 3},
    }
    waits = {"x-shoal-queue-ms": "1234.5", "x-shoal-wake-ms": "0.0"}
    answers(page, json.dumps(whole), kind="application/json", headers=waits)
    go(page, ready)
    say(page)
    expect(answer(page).locator(".prose")).to_have_text("All of it")
    expect(answer(page).locator("dl")).to_contain_text("queued1.2 s")
    expect(answer(page).locator("dl")).not_to_contain_text("woken")


def test_reasoning_is_folded_and_apart(ready: ScriptedShoal, page: Page) -> None:
    thought = {"choices": [{"delta": {"reasoning_content": "hm <i>"}, "finish_reason": None}]}
    answers(page, f"data: {json.dumps(thought)}\n\n{piece('Yes')}data: [DONE]\n\n")
    go(page, ready)
    say(page)
    expect(answer(page).get_by_text("hm <i>")).to_be_hidden()
    answer(page).get_by_text("Reasoning").click()
    expect(answer(page).get_by_text("hm <i>")).to_be_visible()
    expect(answer(page).locator(":scope > .prose")).to_have_text("Yes")


def test_what_the_relay_tells_while_it_holds_a_request_is_shown(ready: ScriptedShoal, page: Page) -> None:
    """And the request asks to be told so."""
    asked: list[dict[str, str]] = []
    page.on("request", lambda request: asked.append(request.headers) if request.method == "POST" else None)
    answers(page, ": waiting for m: m is starting (62 %)\n\n" + piece("There") + "data: [DONE]\n\n")
    go(page, ready)
    say(page)
    expect(answer(page).locator(".prose")).to_have_text("There")
    expect(answer(page).locator("dl")).to_contain_text("held")
    assert asked[0]["x-shoal-hold"] == "comments"


def test_nothing_typed_or_answered_is_lost_when_the_connection_drops(page: Page) -> None:
    with scripted() as first:
        port = int(first.url.rpartition(":")[2])
        first.add("m", instance("m-1", "m", "ready"))
        first.answer = ["Once upon", "HANG"]
        go(page, first)
        say(page, "Tell me")
        expect(answer(page).locator(".prose")).to_have_text("Once upon")
        prompt(page).fill("half a sen")
        page.get_by_role("button", name="Settings", exact=True).click()
        page.get_by_label("Seed").first.fill("7")
    expect(page.locator("#connection")).to_contain_text("Disconnected")
    expect(answer(page)).to_contain_text(re.compile("Incomplete: The connection"))
    expect(prompt(page)).to_have_value("half a sen")
    prompt(page).press("Enter")
    expect(answer(page)).to_contain_text("No answer: The connection to Shoal was lost.")
    with scripted(port) as second:
        second.add("m", instance("m-2", "m", "ready"))
        expect(page.locator("#connection")).to_have_text("Live")
        page.get_by_role("button", name="Ask again m").click()
        expect(answer(page)).to_have_attribute("data-state", "done")
        expect(page.get_by_label("Seed").first).to_have_value("7")
        page.reload()
        expect(page.locator(".bubble")).to_have_text([re.compile("Tell me"), re.compile("half a sen")])
        expect(page.locator("article").first).to_contain_text("Once upon")


def test_a_setting_that_is_wrong_is_said_and_nothing_is_sent(ready: ScriptedShoal, page: Page) -> None:
    go(page, ready)
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_label("Temperature").first.fill("hot")
    expect(page.get_by_label("Temperature").first).to_have_attribute("aria-invalid", "true")
    say(page, "Hello")
    expect(page.get_by_role("alert").filter(has_text="Temperature: Give 0 to 2.")).to_be_visible()
    expect(prompt(page)).to_have_value("Hello")
    assert not any(path == "/v1/chat/completions" for _, path, _ in ready.requests)


def test_a_very_long_name_and_a_very_long_answer(ready: ScriptedShoal, new_page: NewPage) -> None:
    name = "<b>" + "w" * 197
    ready.add(name, instance("w-1", name, "ready"))
    ready.answer = ["*[" * 20_000, "x" * 20_000]
    page = new_page(viewport={"width": 390, "height": 900})
    page.goto(f"{ready.url}/#/playground?models=%3Cb%3E{'w' * 197}&models=m")
    say(page)
    for one in page.locator("article").all():
        expect(one).to_have_attribute("data-state", "done")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_many_sessions_are_bounded_and_that_is_said(ready: ScriptedShoal, page: Page) -> None:
    go(page, ready)
    say(page, "The one that is open")
    expect(answer(page)).to_have_attribute("data-state", "done")
    expect(page).to_have_url(re.compile("session="))
    page.evaluate(
        """() => new Promise((done, fail) => {
          const asked = indexedDB.open("shoal.playground", 1);
          asked.onerror = fail;
          asked.onsuccess = () => {
            const whole = asked.result.transaction(["sessions", "lines"], "readwrite");
            for (let n = 0; n < 45; n++) {
              const one = { id: `old-${n}`, title: `Old ${n}`, changedAt: n, turns: 1, size: 10 };
              whole.objectStore("lines").put(one);
              whole.objectStore("sessions").put({ ...one, turns: [], columns: [], fields: {}, images: [], draft: "" });
            }
            whole.oncomplete = done;
          };
        })"""
    )
    say(page, "One more")
    expect(
        page.get_by_text(re.compile("This browser keeps no more: the 6 oldest sessions were dropped"))
    ).to_be_visible()
    page.get_by_role("button", name="Sessions", exact=True).click()
    expect(page.locator(".play-sessions li")).to_have_count(40)


def test_without_a_store_it_says_so_and_works(ready: ScriptedShoal, page: Page) -> None:
    page.add_init_script("Object.defineProperty(window, 'indexedDB', { get() { throw new Error('denied'); } })")
    go(page, ready)
    say(page)
    expect(answer(page)).to_have_attribute("data-state", "done")
    expect(page.get_by_text("This browser does not keep sessions (denied): export what you need.")).to_be_visible()


def test_an_empty_fleet_says_the_next_step(shoal: ScriptedShoal, page: Page) -> None:
    page.goto(f"{shoal.url}/#/playground")
    expect(page.get_by_text("shoal models add my-model --source ./my-model")).to_be_visible()
    say(page, "Hello")
    expect(page.get_by_text("Choose a model first.")).to_be_visible()
    expect(prompt(page)).to_have_value("Hello")


def test_pictures_of_the_page_come_from_here_or_lie_in_it(shoal: ScriptedShoal, page: Page) -> None:
    """`data:` is allowed because thumbnails are such; nothing else is that fetches."""
    page.goto(f"{shoal.url}/#/playground")
    policy: Any = page.request.get(shoal.url).headers["content-security-policy"]
    assert "img-src 'self' data:;" in policy
    loads = """(url) => new Promise((done) => { const image = new Image(); image.onload = () => done(true);
      image.onerror = () => done(false); image.src = url; })"""
    dot = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
    assert page.evaluate(loads, dot) is True
