"""The view of events: filtered by the address, older on demand, live without jumping."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Page, Route, expect

from tests.cli.scripted import ScriptedShoal
from tests.dashboard.acts import button, choose
from tests.dashboard.conftest import NewPage
from tests.dashboard.keys import press, tab_to
from tests.dashboard.test_whole import AXE, violations
from tests.system.harness import Shoal, a_shoal

START = time.time() - 7200


def event(n: int, **fields: Any) -> dict[str, Any]:
    view = {"id": n, "at": START + n, "level": "info", "kind": "ready", "message": f"event number {n}", "model": None,
            "instance": None, "seconds": None}  # fmt: skip
    return view | fields


def kept(page: Page, events: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Have the API page through these, the oldest first; what it was asked."""
    asked: list[dict[str, str]] = []

    def answer(route: Route) -> None:
        query = {name: values[-1] for name, values in parse_qs(urlsplit(route.request.url).query).items()}
        asked.append(query)
        found = [one for one in events if one["id"] < int(query.get("before", 10**9))]
        found = [one for one in found if query.get("kind", one["kind"]) == one["kind"]]
        found = [one for one in found if query.get("model", one["model"]) == one["model"]]
        found = [one for one in found if one["at"] >= float(query.get("since", 0))]
        body = json.dumps({"events": found[-int(query["limit"]) :]})
        route.fulfill(content_type="application/json", body=body)

    page.route(re.compile("/events/history"), answer)
    return asked


def lines(page: Page) -> Any:
    return page.locator(".event")


def choice(page: Page, word: str) -> Any:
    return page.get_by_role("combobox", name=word, exact=True)


def test_what_happened_is_filtered_by_the_address(shoal: ScriptedShoal, page: Page) -> None:
    shoal.add("org/m", desired=0)
    kept(page, [
        event(1, message="org/m failed: too large", level="error", kind="failed", model="org/m", instance="m-1"),
        event(2, message="it came slowly", level="warning", kind="slow", seconds=83.0),
        event(3, message="all is well", at=time.time() - 60),
    ])  # fmt: skip
    page.goto(shoal.url)
    page.get_by_role("link", name="All events").click()
    expect(lines(page)).to_have_count(3)
    expect(lines(page).first).to_contain_text("all is well")
    expect(lines(page).nth(1)).to_contain_text("1 min 23 s")
    expect(lines(page).last.get_by_role("link", name="org/m")).to_have_attribute("href", "#/models/org%2Fm")
    choice(page, "Level").select_option("warning")
    expect(lines(page)).to_have_count(2)
    choice(page, "Level").select_option("error")
    expect(lines(page)).to_have_count(1)
    page.reload()
    expect(choice(page, "Level")).to_have_value("error")
    expect(lines(page)).to_have_count(1)
    choice(page, "Level").select_option("")
    choice(page, "Kind").select_option("slow")
    expect(lines(page)).to_have_count(1)
    expect(page.get_by_text("shoal events --kind slow", exact=True)).to_be_visible()
    choice(page, "Kind").select_option("")
    choice(page, "Model").select_option("org/m")
    expect(page.get_by_text("shoal events --model org/m", exact=True)).to_be_visible()
    expect(lines(page)).to_have_count(1)
    choice(page, "Model").select_option("")
    choice(page, "Since").select_option("1h")
    expect(lines(page)).to_have_count(1)
    page.goto(f"{shoal.url}/#/events?q=SLOWLY&since=%3Cb%3E")
    expect(lines(page)).to_have_count(1)
    page.get_by_role("searchbox").fill("nothing of the kind")
    page.get_by_role("link", name="Show all events").click()
    expect(lines(page)).to_have_count(3)


def nothing_of(page: Page, count: int) -> None:
    """So many events were read, and none matches. A page that has read none yet says of itself that none matches."""
    expect(page.get_by_role("status").filter(has_text=f"0 events of {count} read")).to_be_visible()
    expect(page.get_by_text("No event matches")).to_be_visible()


def test_older_ones_are_read_on_demand_and_saved_as_json_lines(shoal: ScriptedShoal, page: Page) -> None:
    asked = kept(page, [event(n, level="error" if n in (3, 4) else "info") for n in range(1, 1201)])
    page.goto(f"{shoal.url}/#/events")
    expect(lines(page)).to_have_count(200)
    expect(lines(page).first).to_contain_text("event number 1200")
    older = page.get_by_role("button", name="Older")
    for count in (400, 600):
        older.click()
        expect(lines(page)).to_have_count(count)
    expect(page.get_by_role("status").filter(has_text="1,000 events")).to_be_visible()
    assert asked[-1]["before"] == "701"
    # With a filter that matches little, one press reads on until it is found, or all is read.
    page.goto(f"{shoal.url}/#/events?level=error")
    page.reload()
    nothing_of(page, 500)
    older.click()
    expect(lines(page)).to_have_count(2)
    expect(page.get_by_text("That is all that is kept.")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as JSON lines").click()
    rows = [json.loads(line) for line in download.value.path().read_text().splitlines()]
    assert [row["id"] for row in rows] == [3, 4]
    assert set(rows[0]) == set(event(1))


def saved(page: Page) -> list[int]:
    """The ids of what is saved; of an event that only the stream told, 0."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as JSON lines").click()
    return [json.loads(line)["id"] or 0 for line in download.value.path().read_text().splitlines()]


def test_a_change_of_filter_leaves_no_gap(shoal: ScriptedShoal, page: Page) -> None:
    asked = kept(page, [event(n, kind="failed" if n % 300 == 0 else "ready") for n in range(1, 3001)])
    page.goto(f"{shoal.url}/#/events")
    expect(lines(page)).to_have_count(200)
    choice(page, "Kind").select_option("failed")
    expect(lines(page)).to_have_count(10)
    expect(page.get_by_text("That is all that is kept.")).to_be_visible()
    choice(page, "Kind").select_option("")
    expect(page.get_by_role("status").filter(has_text="500 events")).to_be_visible()
    for count in (400, 600):
        page.get_by_role("button", name="Older").click()
        expect(lines(page)).to_have_count(count)
    assert asked[-1].get("before") == "2501"
    assert saved(page) == list(range(2001, 3001))
    # What was read with all of them is known of one kind too.
    choice(page, "Kind").select_option("ready")
    expect(page.get_by_role("status").filter(has_text="996 events")).to_be_visible()


@pytest.mark.parametrize("missed", [300, 1700])
def test_what_was_missed_while_the_connection_was_lost_is_read(shoal: ScriptedShoal, page: Page, missed: int) -> None:
    events = [event(n) for n in range(1, 2001)]
    kept(page, events)
    shoal.drop_events_after = 2
    page.goto(f"{shoal.url}/#/events")
    expect(lines(page)).to_have_count(200)
    last = 2001 + missed
    events += [event(n) for n in range(2001, last + 1)]
    shoal.tell("message", events[2000] | {"id": None})
    expect(lines(page).first).to_contain_text(f"event number {last}")
    expect(page.get_by_text("Reading…")).to_have_count(0)
    ids = saved(page)
    assert ids == list(range(ids[0], last + 1))
    assert ids[0] <= 1501
    expect(page.get_by_text("the list ends at this gap")).to_have_count(0)


def test_a_gap_that_is_too_long_to_read_at_once_is_told(shoal: ScriptedShoal, page: Page) -> None:
    events = [event(n) for n in range(1, 601)]
    kept(page, events)
    shoal.drop_events_after = 2
    page.goto(f"{shoal.url}/#/events?level=error")
    nothing_of(page, 500)
    events += [event(n, level="error" if n == 700 else "info") for n in range(601, 5601)]
    shoal.tell("message", events[600] | {"id": None})
    expect(page.get_by_text("the list ends at this gap")).to_be_visible()
    expect(page.get_by_text("That is all that is kept.")).to_have_count(0)
    page.get_by_role("button", name="Older").click()
    expect(lines(page)).to_have_count(1)
    expect(page.get_by_text("the list ends at this gap")).to_have_count(0)
    page.goto(f"{shoal.url}/#/events")
    expect(page.get_by_role("status").filter(has_text="5,600 events")).to_be_visible()
    assert saved(page) == list(range(1, 5601))


def test_what_comes_waits_above_while_somebody_reads(shoal: ScriptedShoal, page: Page) -> None:
    kept(page, [event(n) for n in range(1, 301)])
    page.goto(f"{shoal.url}/#/events")
    expect(lines(page)).to_have_count(200)
    shoal.tell("message", event(0, id=None, at=time.time(), message="news at the top"))
    expect(lines(page).first).to_contain_text("news at the top")
    page.mouse.wheel(0, 3000)
    seen = page.get_by_text("event number 260", exact=True)
    expect(page.get_by_text("event number 295", exact=True)).not_to_be_in_viewport()
    place = seen.bounding_box()
    for n in range(3):
        shoal.tell("message", event(0, id=None, at=time.time() + 1 + n, message=f"later {n}"))
    news = page.get_by_role("button", name="3 new")
    expect(news).to_be_visible()
    expect(page.get_by_text("later 1", exact=True)).to_have_count(0)
    after = seen.bounding_box()
    assert place and after
    assert abs(after["y"] - place["y"]) < 60  # the button itself may take a line
    news.click()
    expect(lines(page).first).to_contain_text("later 2")
    expect(lines(page).first).to_be_in_viewport()
    expect(news).to_have_count(0)


def test_the_same_event_of_stream_and_history_is_one(shoal: ScriptedShoal, page: Page) -> None:
    at = time.time()
    kept(page, [event(7, at=at, message="once <b>only</b>")])
    page.goto(f"{shoal.url}/#/events")
    expect(lines(page)).to_have_count(1)
    shoal.tell("message", event(0, id=None, at=at, message="once <b>only</b>"))
    shoal.tell("message", event(0, id=None, at=at + 1, message="another"))
    expect(lines(page)).to_have_count(2)
    expect(lines(page).last).to_contain_text("once <b>only</b>")


def test_why_nothing_is_shown_is_told(shoal: ScriptedShoal, page: Page) -> None:
    page.route(re.compile("/events/history"), lambda route: route.fulfill(status=503, body="{}"))
    page.goto(f"{shoal.url}/#/events")
    expect(page.get_by_role("alert").filter(has_text="Shoal answered 503.")).to_be_visible()
    page.unroute_all()
    kept(page, [])
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_text("Nothing has happened yet")).to_be_visible()


@pytest.fixture(scope="module")
def served() -> Iterator[Shoal]:
    """With more events than the list shows at once, and one failure among them."""
    with a_shoal(simulated_devices=["8GiB"]) as shoal:
        shoal.start()
        shoal.add("broken", "--fail", "oom", "--device-memory", "100MiB")
        shoal.add("whole")
        with shoal.client as client:
            client.load("broken")
            shoal.wait("broken", "failed")
            for _ in range(105):
                client.add_model({"name": "passing", "source": "anything"})
                client.remove_model("passing")
        yield shoal


def test_real_events_are_filtered_and_read_by_keyboard(served: Shoal, page: Page) -> None:
    page.goto(f"{served.url}/#/events")
    expect(lines(page)).to_have_count(200)
    for _ in range(8):  # backwards from the end of the page: the list before it has hundreds of stops
        page.keyboard.press("Shift+Tab")
        if button(page, "Older").evaluate("older => older === document.activeElement"):
            break
    expect(button(page, "Older")).to_be_focused()
    page.keyboard.press("Enter")
    expect(lines(page).nth(211)).to_be_attached()
    expect(page.get_by_text("That is all that is kept.")).to_be_visible()
    choose(page, choice(page, "Level"), "error")
    expect(lines(page).first).to_contain_text("broken")
    expect(lines(page).filter(has_text="passing")).to_have_count(0)
    kind = lines(page).first.get_by_role("button").inner_text()
    choose(page, choice(page, "Level"), "", "ArrowUp")
    choose(page, choice(page, "Kind"), kind)
    expect(page.get_by_text(f"shoal events --kind {kind}", exact=True)).to_be_visible()
    expect(lines(page).filter(has_text="passing")).to_have_count(0)
    choose(page, choice(page, "Kind"), "", "ArrowUp")
    tab_to(page, choice(page, "Model"))
    page.keyboard.type("whole")
    expect(choice(page, "Model")).to_have_value("whole")
    expect(lines(page)).to_have_count(1)
    expect(lines(page)).to_contain_text("whole was added")
    choose(page, choice(page, "Model"), "", "ArrowUp")
    choose(page, choice(page, "Since"), "1d")
    page.keyboard.press("Tab")
    page.keyboard.press("/")  # from anywhere but a field, which takes the letter itself
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("out of memory")
    expect(lines(page).filter(has_text="passing")).to_have_count(0)
    with page.expect_download() as download:
        press(page, button(page, "Save as JSON lines"))
    rows = [json.loads(line) for line in download.value.path().read_text().splitlines()]
    assert rows
    assert {row["model"] for row in rows} == {"broken"}
    press(page, lines(page).first.get_by_role("button"))  # its kind alone
    expect(choice(page, "Kind")).to_have_value(rows[-1]["kind"])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_it_fits_and_everybody_can_use_it(shoal: ScriptedShoal, new_page: NewPage, scheme: str, width: int) -> None:
    if not AXE.exists():
        pytest.skip("no axe-core here (make page-types)")
    page = new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    odd = ["<img src=x onerror=alert(1)> 🐟", "שלום-עולם", "w" * 200]
    levels = ("info", "warning", "error")
    kept(page, [event(n, level=levels[n], model=odd[n], instance=odd[n], message=odd[n] * 3) for n in range(3)])
    page.goto(f"{shoal.url}/#/events")
    expect(lines(page)).to_have_count(3)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("main img").count() == 0
    page.evaluate(AXE.read_text(encoding="utf-8"))
    assert violations(page) == []
