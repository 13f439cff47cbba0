"""The log of an instance, however long, wide or odd it is, in a real browser against a scripted Shoal."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from tests.cli.scripted import ScriptedShoal, instance, scripted

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
    flooded.wait_for_function("window.flood")  # the log is asked for
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
    expect(log).to_contain_text("999 fine")
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
    flooded.wait_for_function("window.flood")  # the log is asked for
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


def test_a_log_that_cannot_be_read_is_tried_again_by_itself(shoal: ScriptedShoal, page: Page) -> None:
    held: list[Route] = []

    def answer(route: Route) -> None:
        held.append(route)
        if len(held) == 1:
            route.fulfill(status=404, content_type="application/json", body=json.dumps({"error": {"message": "gone"}}))

    page.route("**/logs/stream*", answer)
    with page.expect_request("**/logs/stream*"):
        log = show(shoal, page, ["there it is"])
    with page.expect_request("**/logs/stream*"):
        expect(page.locator(".log-note")).to_contain_text("The connection to the log was lost; it is tried again.")
    expect(log).to_have_class("lines old")
    held[1].continue_()
    expect(log).to_contain_text("there it is")
    expect(page.locator(".log-note")).to_have_text("Live.")
    expect(log).to_have_class("lines")


def texts(log: Locator) -> list[str]:
    return log.locator(".log-line").all_inner_texts()


@pytest.fixture
def sources(page: Page) -> Page:
    """A page whose streams a test can reach."""
    page.add_init_script(
        """
        window.sources = [];
        window.EventSource = class extends EventSource {
          constructor(address) {
            super(address);
            window.sources.push(this);
          }
        };
        """
    )
    return page


def test_a_log_that_was_dropped_goes_on_without_repeating_a_line(shoal: ScriptedShoal, sources: Page) -> None:
    log = show(shoal, sources, ["one", "two"])
    expect(log).to_have_text("one\ntwo\n")
    shoal.logs["m-1"] += ["two", "three"]
    sources.evaluate("sources.findLast((one) => one.url.includes('/logs/')).dispatchEvent(new Event('error'))")
    expect(log).to_have_text("one\ntwo\ntwo\nthree\n")
    expect(sources.locator(".log-note")).to_have_text("Live.")


def test_a_log_that_died_silently_is_taken_up_when_the_page_is(shoal: ScriptedShoal, sources: Page) -> None:
    log = show(shoal, sources, ["one"])
    expect(log).to_have_text("one\n")
    sources.get_by_label("Search the log of m-1").fill("o")
    shoal.logs["m-1"].append("two")
    sources.evaluate("sources.findLast((one) => one.url.includes('/logs/')).close()")  # of which nobody is told
    expect(sources.locator(".log-note")).to_contain_text("Live.")
    sources.evaluate("sources.findLast((one) => one.url.includes('/events')).dispatchEvent(new Event('error'))")
    expect(log).to_have_text("one\ntwo\n")
    expect(sources.locator(".log-count")).to_have_text("1 of 2")
    expect(sources.get_by_label("Search the log of m-1")).to_have_value("o")


def test_a_log_outlives_a_restart_with_its_search_its_place_and_its_pause(page: Page) -> None:
    lines = [f"{n} {'ERROR' if n % 50 == 0 else 'fine'}" for n in range(400)]
    note, search = page.locator(".log-note"), page.get_by_label("Search the log of m-1")
    with scripted() as first:
        port = int(first.url.rpartition(":")[2])
        log = show(first, page, lines)
        expect(log).to_contain_text("399 fine")
        search.fill("error")
        search.press("Shift+Enter")
        expect(log.locator(".log-line.current")).to_have_text("300 ERROR")
        place = log.evaluate("log => log.scrollTop")
        shown = texts(log)
    expect(note).to_contain_text("What is shown is old. Paused.")
    expect(log).to_have_class("lines old")
    expect(page.get_by_role("button", name="Read it again")).to_be_hidden()
    assert texts(log) == shown
    with scripted(port) as second:
        second.add("m", instance("m-1", "m", "ready"))
        second.logs["m-1"] = [*lines, "400 ERROR", "401 fine"]
        expect(note).to_have_text("Live. Paused: 2 new.")
        expect(log).to_have_class("lines")
        expect(search).to_have_value("error")
        expect(page.locator(".log-count")).to_have_text("7 of 9")
        assert log.evaluate("log => log.scrollTop") == place
        assert texts(log) == shown
        page.get_by_role("button", name="Follow").press("Enter")
        expect(log).to_contain_text("399 fine\n400 ERROR\n401 fine\n")
        expect(note).to_have_text("Live.")


def test_where_more_was_written_than_is_told_again_it_says_so(page: Page) -> None:
    with scripted() as first:
        port = int(first.url.rpartition(":")[2])
        log = show(first, page, ["old"])
        expect(log).to_have_text("old\n")
    expect(log).to_have_class("lines old")
    with scripted(port) as second:
        second.add("m", instance("m-1", "m", "ready"))
        second.logs["m-1"] = ["new"]
        expect(log.locator(".log-line")).to_have_count(3)
        old, missing, new = texts(log)
        assert (old.strip(), new.strip()) == ("old", "new")
        assert "Lines may be missing here" in missing


def joined(page: Page, cases: list[tuple[list[str], list[str], int]]) -> list[tuple[list[str], bool]]:
    """What is new of what was told again, and whether there was a gap, for (known, told, most)."""
    found = page.evaluate(
        """async (cases) => {
          const { Joint } = await import("./static/log_lines.js");
          return cases.map(([known, told, most]) => {
            const joint = new Joint(known, most);
            return [told.flatMap((line) => joint.take(line)), joint.gap];
          });
        }""",
        cases,
    )
    return [(news, gap) for news, gap in found]


def test_what_is_told_again_goes_on_where_it_ended(shoal: ScriptedShoal, page: Page) -> None:
    page.goto(shoal.url)
    dice = random.Random(7)
    cases, wanted = [], []
    for _ in range(300):
        most = dice.randint(1, 30)
        log = [f"{n} {dice.choice('ab')}" for n in range(dice.randint(1, 90))]
        seen, later = sorted(dice.randint(0, len(log)) for _ in range(2))
        known = log[max(0, seen - dice.randint(most, 60)) : seen]
        told = [*log[max(0, later - most) : later], *log[later:]]
        cases.append((known, told, most))
        missed = bool(known) and later - seen >= most
        wanted.append((log[max(0, later - most) :] if missed else log[max(seen, later - most) :], missed))
    assert joined(page, cases) == wanted


@pytest.mark.parametrize(
    ("known", "told", "news", "gap"),
    [
        (["a"], [], [], False),
        ([], ["a", "a"], ["a", "a"], False),
        (["a", "b"], ["a", "b"], [], False),
        (["a", "a"], ["a", "a", "a"], ["a"], False),  # alike: as few are new as can be
        (["a"] * 30, ["a"] * 12, ["a"] * 2, False),  # ten at most are told again; the others are new
        (["x", "a", "b", "a", "b", "c"], ["a", "b", "c", "d"], ["d"], False),
        (["a", "b"], ["c"], ["c"], True),
        (["a", "b", "be", "gin", "c"], ["b", "begin", "c", "d"], ["d"], False),  # a line that was told in two parts
        (["a", "10%", "30%", "c"], ["a", "30%", "c", "d"], ["d"], False),  # what was drawn over before its line ended
        (["a", "be"], ["a", "begin", "c"], ["begin", "c"], False),
        (["\x1b[1mred\x1b[0m"], ["\x1b[1mred\x1b[0m", "x"], ["\x1b[1mred\x1b[0m", "x"], True),  # known is as it is kept
        (["red"], ["\x1b[1mred\x1b[0m", "\x1b[1mx"], ["\x1b[1mx"], False),
    ],
)
def test_what_is_known_is_told_from_what_is_new(
    shoal: ScriptedShoal, page: Page, known: list[str], told: list[str], news: list[str], gap: bool
) -> None:
    page.goto(shoal.url)
    assert joined(page, [(known, told, 10)]) == [(news, gap)]


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


def test_a_log_is_used_by_keys_alone(shoal: ScriptedShoal, page: Page) -> None:
    log = show(shoal, page, ["one", "two"])
    expect(log).to_have_text("one\ntwo\n")
    search, only = page.get_by_label("Search the log of m-1"), page.get_by_label("only matches")
    search.focus()
    page.keyboard.type("two")
    expect(page.locator(".log-count")).to_have_text("1 of 1")
    for name in ("Previous match", "Next match"):
        page.keyboard.press("Tab")
        expect(page.get_by_role("button", name=name)).to_be_focused()
    page.keyboard.press("Tab")
    expect(only).to_be_focused()
    page.keyboard.press("Space")
    expect(log).to_have_text("two\n")
    page.keyboard.press("Space")
    expect(log).to_have_text("one\ntwo\n")
    page.keyboard.press("Tab")
    toggle = page.get_by_role("button", name=re.compile("^(Pause|Follow)$"))
    expect(toggle).to_be_focused()
    expect(toggle).to_have_text("Follow")  # who goes to a match pauses the log
    for key, word in (("Enter", "Pause"), ("Enter", "Follow"), ("Space", "Pause"), ("Space", "Follow")):
        page.keyboard.press(key)
        expect(toggle).to_have_text(word)
    page.keyboard.press("Tab")
    expect(log).to_be_focused()
    page.keyboard.press("Tab")
    download = page.get_by_role("link", name="Download the whole log")
    expect(download).to_be_focused()
    with page.expect_download() as fetched:
        page.keyboard.press("Enter")
    assert fetched.value.suggested_filename == "m-1.log"


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_a_log_that_has_ended_is_read_again_by_keys(shoal: ScriptedShoal, page: Page, key: str) -> None:
    shoal.add("m", instance("m-1", "m", "failed"))
    shoal.logs["m-1"] = ["it broke"]
    page.goto(f"{shoal.url}/#/models/m")
    log, again = page.get_by_role("log"), page.get_by_role("button", name="Read it again")
    expect(log).to_have_text("it broke\n")
    page.get_by_label("Search the log of m-1").fill("b")
    shoal.logs["m-1"].append("to bits")
    again.focus()
    page.keyboard.press(key)
    expect(log).to_have_text("it broke\nto bits\n")
    expect(log).to_be_focused()
    expect(again).to_be_visible()
    expect(page.get_by_label("Search the log of m-1")).to_have_value("b")
