"""The log of an instance, however long, wide or odd it is, in a real browser against a scripted Shoal."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from tests.cli.scripted import ScriptedShoal, instance

MANY = 1_000_000


def show(shoal: ScriptedShoal, page: Page, lines: Iterable[str]) -> Locator:
    shoal.add("m", instance("m-1", "m", "ready"))
    shoal.logs["m-1"] = list(lines)
    page.goto(shoal.url)
    page.get_by_role("button", name="Details of m").click()
    page.get_by_role("button", name="Log of m-1").click()
    return page.get_by_role("log")


@pytest.fixture
def flooded(page: Page) -> Page:
    """A page whose log streams as many lines as can come, each as an event of its own."""
    page.add_init_script(
        """
        window.EventSource = class extends EventTarget {
          constructor(address) {
            super();
            if (!address.includes("/logs/")) return new (window.RealSource)(address);
            window.flood = async (count) => {
              for (let n = 0; n < count; ) {
                for (const end = Math.min(count, n + 5000); n < end; n++) {
                  this.dispatchEvent(new MessageEvent("line", { data: JSON.stringify({ text: `line ${n}` }) }));
                }
                await new Promise((next) => setTimeout(next));
              }
            };
          }
          close() {}
        };
        """.replace("window.EventSource =", "window.RealSource = window.EventSource; window.EventSource =", 1)
    )
    return page


def test_a_million_lines_leave_few_in_the_page_and_the_page_alive(shoal: ScriptedShoal, flooded: Page) -> None:
    log = show(shoal, flooded, [])
    flooded.evaluate(f"window.flood({MANY})")
    expect(log).to_contain_text(f"line {MANY - 1}")
    assert log.locator(".log-line").count() < 60
    expect(flooded.locator(".log-note")).to_contain_text("The last 20,000 lines; older ones are in the download.")
    log.evaluate("log => (log.scrollTop = 0)")
    expect(log).to_contain_text(f"line {MANY - 20_000}\n")
    expect(flooded.locator(".log-note")).to_contain_text("Paused")
    search = flooded.get_by_label("Search the log of m-1")
    search.fill(f"line {MANY - 17}")
    expect(flooded.locator(".log-count")).to_have_text("1 of 1")
    expect(log.locator("mark")).to_have_text(f"line {MANY - 17}")


def test_lines_of_a_megabyte_are_cut_and_shown_on_demand(shoal: ScriptedShoal, page: Page) -> None:
    log = show(shoal, page, ["first", *("x" * 2**20 for _ in range(20)), "last"])
    expect(log).to_contain_text("last")
    assert len(log.text_content() or "") < 40_000
    log.get_by_role("button", name="show all").last.click()
    whole = page.locator(".log-whole")
    expect(whole).to_contain_text("1,048,576 characters")
    expect(whole).to_contain_text("Its rest is in the download.")
    page.keyboard.press("Enter")  # the button that closes it has the focus
    expect(whole).to_be_hidden()
    expect(log).to_be_focused()
    assert page.evaluate("document.documentElement.scrollWidth") <= 1440


def test_what_is_no_text_is_made_visible(shoal: ScriptedShoal, page: Page) -> None:
    log = show(
        shoal, page, ["\x00\x01bell\x07\x7f\x9b", "\x1b[31;1mred\x1b[0m \x1b]0;title\x07after", "a\tb", "שלום <i>"]
    )
    expect(log).to_have_text("␀␁bell␇␡�\nred after\na\tb\nשלום <i>\n")


def test_matches_are_gone_through_and_shown_alone(shoal: ScriptedShoal, page: Page) -> None:
    log = show(shoal, page, (f"{n} {'ERROR <b>' if n % 100 == 0 else 'fine'}" for n in range(1000)))
    search = page.get_by_label("Search the log of m-1")
    search.fill("error <B>")
    count, current = page.locator(".log-count"), log.locator(".log-line.current")
    expect(count).to_have_text("10 of 10")
    expect(current).to_contain_text("900 ERROR <b>")
    search.press("Enter")
    expect(current).to_contain_text("0 ERROR <b>")
    page.get_by_role("button", name="Next match").click()
    expect(current).to_contain_text("100 ERROR <b>")
    search.press("Shift+Enter")
    search.press("Shift+Enter")
    expect(current).to_contain_text("900 ERROR <b>")
    page.get_by_label("only matches").check()
    expect(log.locator(".log-line")).to_have_count(10)
    expect(count).to_have_text("10 lines")
    search.fill("nothing like it")
    expect(log.locator(".log-line")).to_have_count(0)
    expect(page.get_by_role("button", name="Next match")).to_be_disabled()
    search.fill("")
    expect(log.locator(".log-line").first).to_be_visible()


def test_a_paused_log_stays_where_it_is_and_follows_again(shoal: ScriptedShoal, flooded: Page) -> None:
    log = show(shoal, flooded, [])
    flooded.evaluate("window.flood(1000)")
    expect(log).to_contain_text("line 999")
    flooded.get_by_role("button", name="Pause").click()
    before = log.evaluate("log => log.scrollTop")
    flooded.evaluate("window.flood(50)")
    expect(flooded.locator(".log-note")).to_contain_text("Paused: 50 new.")
    assert log.evaluate("log => log.scrollTop") == before
    flooded.get_by_role("button", name="Follow").click()
    expect(log).to_contain_text("line 49\n")
    expect(flooded.get_by_role("button", name="Pause")).to_be_visible()


def test_a_log_that_cannot_be_read_is_read_again(shoal: ScriptedShoal, page: Page) -> None:
    tries: list[float] = []

    def answer(route: Route) -> None:
        tries.append(time.time())
        if len(tries) == 1:
            route.fulfill(status=404, content_type="application/json", body=json.dumps({"error": {"message": "gone"}}))
        else:
            route.fallback()

    page.route("**/logs/stream*", answer)
    log = show(shoal, page, ["there it is"])
    expect(page.locator(".log-note")).to_contain_text("The connection to the log was lost")
    page.get_by_role("button", name="Read it again").click()
    expect(log).to_contain_text("there it is")


@pytest.mark.parametrize("where", ["", "#/models/m"])
def test_the_log_of_what_is_started_again_goes_on(shoal: ScriptedShoal, page: Page, where: str) -> None:
    shoal.add("m", instance("m-1", "m", "failed"))
    shoal.logs["m-1"] = ["it broke"]
    page.goto(f"{shoal.url}/{where}")
    if not where:
        page.get_by_role("button", name="Details of m").click()
        page.get_by_role("button", name="Log of m-1").click()
    log = page.get_by_role("log")
    expect(log).to_contain_text("it broke")
    expect(page.locator(".log-note")).to_contain_text("The instance has ended: failed.")
    shoal.logs["m-1"].append("read at the end too")
    page.get_by_role("button", name="Read it again").click()
    expect(log).to_contain_text("read at the end too")
    expect(page.locator(".log-note")).to_contain_text("The instance has ended: failed.")
    # The same instance is tried again.
    shoal.logs["m-1"].append("a new start")
    shoal.models["m"]["instances"][0]["state"] = "starting"
    shoal.publish("m")
    expect(log).to_contain_text("a new start")
    expect(page.locator(".log-note")).to_contain_text("Live.")
    expect(page.get_by_role("button", name="Read it again")).to_be_hidden()


def test_the_whole_log_is_a_file(shoal: ScriptedShoal, page: Page) -> None:
    show(shoal, page, ["a"])
    link = page.get_by_role("link", name="Download the whole log")
    assert link.get_attribute("href") == "api/v1/instances/m-1/logs?download=true"
    assert link.get_attribute("download") == "m-1.log"
