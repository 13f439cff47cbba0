"""What the page knows and how it comes to know it: each thing once, and never older than what was told before."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Page, Route, expect

from tests.cli.scripted import ScriptedShoal, instance
from tests.system.harness import until

EVENT = {"at": 5.0, "level": "info", "kind": "loaded", "model": "m", "instance": "m-1", "message": "m serves"}
LEG = {"source": "m-1", "was_on": ["cuda:0"], "devices": ["cuda:1"], "step": "loading", "target": "m-2",
       "cause": "", "note": ""}  # fmt: skip
MOVE = {"id": "move-1", "model": "m", "state": "running", "message": "", "changes": {}, "stop_first": False,
        "drain": None, "cancelling": False, "created_at": 1.0, "ended_at": None, "legs": [LEG]}  # fmt: skip
ENDED = {**MOVE, "state": "done", "ended_at": 2.0}
SEEN = """(seen) => {
  Object.defineProperty(document, "hidden", { configurable: true, get: () => !seen });
  document.dispatchEvent(new Event("visibilitychange"));
}"""
CONNECT_AGAIN = "dispatchEvent(new Event('online'))"


def test_an_event_that_was_heard_is_not_repeated_by_the_history(shoal: ScriptedShoal, page: Page) -> None:
    page.goto(shoal.url)
    expect(page.locator("#connection")).to_have_text("Live")
    lines = page.locator("#events li")
    shoal.tell("message", EVENT)
    shoal.tell("message", {**EVENT, "message": "m is pinned"})  # another one at the same moment
    expect(lines.filter(has_text="m is pinned")).to_have_count(1)
    expect(lines).to_have_count(2)
    shoal.history = [{**EVENT, "id": 7}, {**EVENT, "at": 6.0, "message": "m was missed", "id": 8}]
    page.evaluate(CONNECT_AGAIN)
    expect(lines.first).to_contain_text("m was missed")
    expect(lines).to_have_count(3)


def test_a_move_that_ended_while_moves_were_read_has_ended(shoal: ScriptedShoal, page: Page) -> None:
    shoal.add("m", instance("m-1", "m", "ready"))
    asked: list[Route] = []
    page.route("**/api/v1/moves", lambda route: asked.append(route))
    with page.expect_request("**/api/v1/moves"):
        page.goto(shoal.url)
    strip = page.get_by_role("list", name="Moves under way")
    shoal.tell("move", {**MOVE, "model": "told"})
    expect(strip).to_contain_text("told")
    shoal.tell("move", {**MOVE, "id": "move-2"})
    expect(strip.locator("li")).to_have_count(2)
    shoal.tell("move", {**ENDED, "model": "told"})
    expect(strip.locator("li")).to_have_count(1)
    # The answer is from before: of the first it does not know the end, the second it does not know at all.
    asked[0].fulfill(json={"moves": [{**MOVE, "model": "told"}, {**MOVE, "id": "move-3", "model": "read"}]})
    expect(strip).to_contain_text("read")
    expect(strip.locator("li")).to_have_count(2)
    expect(strip).not_to_contain_text("told")
    shoal.tell("move", {**MOVE, "model": "told"})
    shoal.tell("move", {**ENDED, "id": "move-2"})
    expect(strip.locator("li")).to_have_count(1)
    expect(strip).to_contain_text("read")


def test_moves_that_could_not_be_read_are_read_later(shoal: ScriptedShoal, page: Page) -> None:
    answers: list[Any] = [{"moves": [MOVE]}, None, {"moves": [ENDED]}]

    def answer(route: Route) -> None:
        data = answers.pop(0) if answers else {"moves": []}
        if data is None:
            route.abort()
        else:
            route.fulfill(json=data)

    page.route("**/api/v1/moves", answer)
    page.clock.install()
    page.goto(shoal.url)
    strip = page.get_by_role("list", name="Moves under way")
    expect(strip).to_contain_text("m")
    with page.expect_request_finished(lambda request: request.url.endswith("/status")):
        with page.expect_event("requestfailed", lambda request: request.url.endswith("/moves")):
            page.evaluate(CONNECT_AGAIN)
        expect(strip).to_be_visible()
        page.clock.fast_forward(10_000)
    expect(strip).to_be_hidden()
    assert answers == []


def test_a_model_that_is_removed_and_made_again_at_once_is_followed(shoal: ScriptedShoal, page: Page) -> None:
    shoal.add("m", instance("m-1", "m", "ready"))
    page.goto(shoal.url)
    row = page.locator(".model .row")
    expect(row).to_contain_text("cuda:0")
    with shoal.lock:
        shoal.tell("message", EVENT)  # what comes after it is gathered
        del shoal.models["m"]
        shoal.tell("model_removed", {"name": "m"})
        shoal.add("m", instance("m-2", "m", "ready", devices=["cuda:1"]))
    expect(row).to_contain_text("cuda:1")
    with shoal.lock:
        shoal.models["m"]["instances"][0]["devices"] = ["cuda:7"]
        shoal.publish("m")
    expect(row).to_contain_text("cuda:7")


def streams(shoal: ScriptedShoal) -> int:
    """How many follow the events just now."""
    with shoal.lock:
        return len(shoal._watchers)


def test_a_page_that_nobody_sees_holds_no_connection(shoal: ScriptedShoal, page: Page) -> None:
    shoal.add("m", instance("m-1", "m", "ready"))
    shoal.history = [{**EVENT, "level": "error", "message": "m failed long ago", "id": 1}]
    page.clock.install()
    page.goto(shoal.url)
    state = page.locator("#connection")
    row = page.locator(".model .row")
    lines = page.locator("#events li")
    expect(state).to_have_text("Live")
    expect(lines).to_have_count(1)
    page.evaluate(SEEN, False)
    page.clock.fast_forward(4000)
    page.evaluate(SEEN, True)  # only another tab for a moment
    page.clock.fast_forward(4000)
    expect(state).to_have_text("Live")
    assert (streams(shoal), shoal.event_connections) == (1, 1)
    page.evaluate(SEEN, False)
    page.clock.fast_forward(6000)
    until(lambda: streams(shoal) == 0, "the stream's end")
    page.evaluate(CONNECT_AGAIN)
    page.clock.fast_forward(60_000)
    expect(state).to_have_text("Connecting…")
    expect(page.locator("main")).not_to_have_class("old")
    with shoal.lock:
        shoal.models["m"]["instances"][0]["devices"] = ["cuda:1"]
        shoal.history.append({**EVENT, "at": 6.0, "level": "error", "message": "m failed meanwhile", "id": 2})
    assert (streams(shoal), shoal.event_connections) == (0, 1)
    page.evaluate(SEEN, True)
    expect(state).to_have_text("Live")
    expect(row).to_contain_text("cuda:1")
    expect(lines).to_have_count(2)
    alert = page.locator(".notices[role=alert]")
    expect(alert.locator(".notice")).to_have_text(["m failed meanwhileDismiss"])
    page.evaluate(CONNECT_AGAIN)  # it is said once
    until(lambda: shoal.event_connections == 3, "another stream")
    expect(alert.locator(".notice")).to_have_count(1)


def test_a_page_that_comes_back_to_a_shoal_that_is_gone_says_so(shoal: ScriptedShoal, page: Page) -> None:
    page.clock.install()
    page.goto(shoal.url)
    state = page.locator("#connection")
    expect(state).to_have_text("Live")
    page.evaluate(SEEN, False)
    page.clock.fast_forward(6000)
    until(lambda: streams(shoal) == 0, "the stream's end")
    page.route("**/api/v1/events", lambda route: route.abort())
    page.evaluate(SEEN, True)
    expect(state).to_contain_text("Disconnected: this is from")
    page.unroute("**/api/v1/events")
    page.evaluate(SEEN, False)
    page.clock.fast_forward(6000)
    expect(state).to_contain_text("Disconnected: this is from")  # it has heard nothing since
    page.evaluate(SEEN, True)
    expect(state).to_have_text("Live")


def test_what_is_read_beside_the_stream_is_read_again_when_the_page_is_seen(shoal: ScriptedShoal, page: Page) -> None:
    kept = {**EVENT, "seconds": None}
    shoal.history = [{**kept, "id": 1}]
    page.clock.install()
    page.goto(f"{shoal.url}/#/events")
    lines = page.locator(".event-list li")
    expect(lines).to_have_count(1)
    page.evaluate(SEEN, False)
    page.clock.fast_forward(6000)
    until(lambda: streams(shoal) == 0, "the stream's end")
    # More than what the page reads of the past by itself.
    shoal.history += [{**kept, "at": 5.0 + n, "message": f"m says {n}", "id": 1 + n} for n in range(1, 151)]
    page.evaluate(SEEN, True)
    expect(page.get_by_text("151 events", exact=True)).to_be_visible()
