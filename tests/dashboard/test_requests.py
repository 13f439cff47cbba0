"""The view of running and waiting requests, against a real `shoal serve`, and with more of them than one can read."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.cli.scripted import ScriptedShoal
from tests.dashboard.acts import button, choose, confirm
from tests.dashboard.conftest import NewPage
from tests.dashboard.keys import press, tab_to
from tests.dashboard.test_whole import AXE, violations
from tests.system.harness import Shoal, a_shoal, until

MODEL = "slow-talker"


@pytest.fixture(scope="module")
def served() -> Iterator[Shoal]:
    """A model that answers one request at a time and takes minutes for it, and one that nobody asks."""
    with a_shoal(simulated_devices=["8GiB"]) as shoal:
        shoal.start()
        shoal.add(MODEL, "--tokens-per-second", "2", "--max-num-seqs", "1", "--device-memory", "1GiB")
        shoal.add("idle")
        shoal.load(MODEL)
        yield shoal


@pytest.fixture
def asked(served: Shoal) -> Iterator[list[str]]:
    """One request that is answered and two that wait, by their ids."""
    ids = [f"asked-{n}-{threading.get_ident():x}" for n in range(3)]

    def ask(id_: str) -> None:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2000, "stream": True}
        with (
            contextlib.suppress(Exception),
            served.http(headers={"x-request-id": id_}) as http,
            http.stream("POST", "/v1/chat/completions", json=body) as answer,
        ):
            for _ in answer.iter_raw():
                pass

    threads = []
    with served.client as client:
        for id_ in ids:
            threads.append(threading.Thread(target=ask, args=(id_,), daemon=True))
            threads[-1].start()
            until(lambda id_=id_: any(one["id"] == id_ for one in client.requests()["requests"]), id_)  # type: ignore[misc]
        yield ids
        for id_ in ids:
            with contextlib.suppress(Exception):
                client.cancel_request(id_)
    for thread in threads:
        thread.join(30)


def row(page: Page, id_: str) -> Any:
    return page.locator(".requests-list tbody tr", has=page.get_by_text(id_, exact=True))


def test_requests_are_followed_filtered_and_ended(served: Shoal, page: Page, asked: list[str]) -> None:
    first, second, third = asked
    page.goto(f"{served.url}/#/requests")
    expect(row(page, first)).to_contain_text("answering")
    expect(row(page, second)).to_contain_text("queued")
    expect(row(page, second).locator('[data-word="place"]')).to_have_text("1")
    expect(row(page, third).locator('[data-word="place"]')).to_have_text("2")
    tokens = row(page, first).locator('[data-word="tokens"]')
    expect(tokens).to_have_text(re.compile(r"^\d+$"))
    before = int(tokens.inner_text())
    expect(tokens).not_to_have_text(str(before))
    page.get_by_role("combobox", name="Phase").select_option("queued")
    expect(row(page, first)).to_have_count(0)
    page.reload()
    expect(page.get_by_role("combobox", name="Phase")).to_have_value("queued")
    expect(row(page, second)).to_be_visible()
    page.keyboard.press("/")
    page.keyboard.type(third)
    expect(row(page, second)).to_have_count(0)
    row(page, third).get_by_role("button", name=f"Cancel {third}").focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("loses its place in the queue")
    expect(dialog).to_contain_text(f"shoal requests cancel {third}")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    with served.client as client:
        assert any(one["id"] == third for one in client.requests()["requests"])
    row(page, third).get_by_role("button").click()
    dialog.get_by_role("button", name="Cancel the request").click()
    expect(page.get_by_text("No request matches")).to_be_visible()
    page.get_by_role("link", name="Show all requests").click()
    row(page, first).get_by_role("button").click()
    expect(dialog).to_contain_text("in the midst of the answer")
    dialog.get_by_role("button", name="Cancel the request").click()
    expect(row(page, first)).to_have_count(0)
    expect(row(page, second)).to_contain_text("answering")


def test_requests_are_filtered_and_ended_by_keyboard(served: Shoal, page: Page, asked: list[str]) -> None:
    first, second, third = asked
    page.goto(f"{served.url}/#/requests")
    expect(row(page, third)).to_be_visible()
    choose(page, page.get_by_role("combobox", name="Phase"), "queued")
    expect(row(page, first)).to_have_count(0)
    press(page, button(page, f"Cancel {third}"))
    expect(page.get_by_role("dialog")).to_contain_text("loses its place in the queue")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(button(page, f"Cancel {third}")).to_be_focused()  # nothing was done, and the keyboard is where it was
    with served.client as client:
        assert any(one["id"] == third for one in client.requests()["requests"])
    page.keyboard.press("Enter")
    confirm(page, "Cancel the request")
    expect(row(page, third)).to_have_count(0)
    expect(row(page, second)).to_be_visible()
    tab_to(page, page.get_by_role("searchbox"))
    page.keyboard.type("nothing of the kind")
    tab_to(page, page.get_by_role("link", name="Show all requests"))
    page.keyboard.press("Enter")
    press(page, button(page, f"Cancel {first}"))
    expect(page.get_by_role("dialog")).to_contain_text("in the midst of the answer")
    confirm(page, "Cancel the request")
    expect(row(page, first)).to_have_count(0)
    expect(row(page, second)).to_contain_text("answering")


def test_a_request_that_has_ended_meanwhile_is_said_to_have(served: Shoal, page: Page, asked: list[str]) -> None:
    page.goto(f"{served.url}/#/requests")
    row(page, asked[1]).get_by_role("button").click()
    with served.client as client:
        client.cancel_request(asked[1])
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Cancel the request").click()
    expect(dialog.get_by_role("alert")).to_contain_text(f"there is no request {asked[1]}, or it has ended")
    dialog.get_by_role("button", name="Cancel", exact=True).click()
    expect(row(page, asked[1])).to_have_count(0)


def answered(page: Page, requests: list[dict[str, Any]], silent: list[str] | None = None) -> list[int]:
    """Have the API say these requests; how often it was asked."""
    times: list[int] = []

    def answer(route: Route) -> None:
        times.append(1)
        route.fulfill(content_type="application/json", body=json.dumps({"requests": requests, "silent": silent or []}))

    page.route(re.compile("/api/v1/requests"), answer)
    return times


def asked_again(page: Page, times: list[int], count: int) -> None:
    """Until the API was asked so often."""
    while len(times) < count:
        page.wait_for_event("request", lambda request: "/api/v1/requests" in request.url)


def request(n: int, **fields: Any) -> dict[str, Any]:
    view = {"id": f"req-{n}", "model": f"m{n % 7}", "tenant": f"t{n % 50}", "key": None, "priority": "normal",
            "age": 9.0, "phase": "queued", "tokens": 0, "instance": None, "position": n + 1,
            "path": "/v1/completions"}  # fmt: skip
    return view | fields


def test_ten_thousand_requests_are_cut_off_with_a_count(shoal: ScriptedShoal, page: Page) -> None:
    times = answered(page, [request(n) for n in range(10_000)], silent=["relay-2"])
    page.goto(f"{shoal.url}/#/requests")
    expect(page.locator("#requests-count")).to_have_text("10,000 requests")
    expect(page.locator(".requests-list tbody tr")).to_have_count(200)
    expect(page.get_by_text("200 of 10,000 are shown.")).to_be_visible()
    expect(page.get_by_text("Relay relay-2 did not say in time what it has.")).to_be_visible()
    page.get_by_role("button", name="Show more").click()
    expect(page.locator(".requests-list tbody tr")).to_have_count(400)
    page.get_by_role("searchbox").fill("req-9999")
    expect(page.locator(".requests-list tbody tr")).to_have_count(1)
    expect(page.locator("#requests-count")).to_have_text("1 of 10,000 request")
    asked_again(page, times, 3)


def test_names_are_text_and_nobody_is_asked_while_the_page_is_hidden(shoal: ScriptedShoal, page: Page) -> None:
    odd = "<img src=x onerror=alert(1)> 🐟" + "w" * 200
    times = answered(page, [request(0, model=odd, key="שלום-עולם", id="a" * 128)])
    page.goto(f"{shoal.url}/#/requests")
    expect(page.get_by_role("link", name=odd)).to_be_visible()
    assert page.locator("main img").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 1440
    page.evaluate("""() => {
      Object.defineProperty(document, "hidden", { value: true, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
    }""")
    page.wait_for_timeout(300)  # an answer that is under way
    count = len(times)
    page.wait_for_timeout(2500)
    assert len(times) == count
    page.evaluate("""() => {
      delete document.hidden;
      document.dispatchEvent(new Event("visibilitychange"));
    }""")
    asked_again(page, times, count + 1)


def test_what_was_known_stays_while_nobody_answers(shoal: ScriptedShoal, page: Page) -> None:
    answered(page, [request(0)])
    page.goto(f"{shoal.url}/#/requests")
    expect(row(page, "req-0")).to_be_visible()
    page.unroute_all()
    page.route(re.compile("/api/v1/requests"), lambda route: route.abort())
    expect(page.get_by_role("alert").filter(has_text="Shoal does not answer")).to_contain_text("What is shown is from")
    expect(row(page, "req-0")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_it_fits_and_everybody_can_use_it(shoal: ScriptedShoal, new_page: NewPage, scheme: str, width: int) -> None:
    if not AXE.exists():
        pytest.skip("no axe-core here (make page-types)")
    page = new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    phases = ("queued", "held", "waiting", "answering")
    answered(page, [request(n, phase=phase, model="org/" + "long" * 40) for n, phase in enumerate(phases)])
    page.goto(f"{shoal.url}/#/requests")
    expect(page.locator(".requests-list tbody tr")).to_have_count(4)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate(AXE.read_text(encoding="utf-8"))
    assert violations(page) == []
    row(page, "req-0").get_by_role("button").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert violations(page) == []
