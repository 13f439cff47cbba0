"""Floor and ceiling by their marks in the tin, and by numbers in a model's details."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.cli.scripted import GIB, ScriptedShoal, device, instance, memory
from tests.dashboard.conftest import NewPage
from tests.dashboard.test_whole import AXE, violations
from tests.system.harness import until

NAME = "m; rm -rf"


@pytest.fixture
def tinned(shoal: ScriptedShoal) -> ScriptedShoal:
    """A device of 140 GiB with a model of 20 GiB of weights, a floor of 16 GiB and a ceiling of 64."""
    lease = {"device": "cuda:0", "rank": 0, "lease": 4 * GIB, "backed": 4 * GIB, "used": GIB, "cached": 3 * GIB,
             "floor": 16 * GIB, "ceiling": 64 * GIB, "missing": 0, "waiting": 0, "recalled": None}  # fmt: skip
    held = memory(lease=4 * GIB, backed=4 * GIB, used=GIB, cached=3 * GIB, floor=16 * GIB, ceiling=64 * GIB,
                  weights=20 * GIB, held={"cuda:0": 24 * GIB}, leases=[lease])  # fmt: skip
    shoal.add(NAME, instance("m-1", NAME, "ready", memory=held), floor=16 * GIB, ceiling=64 * GIB)
    shoal.devices = [device("cuda:0", memory_used=24 * GIB, instances=["m-1"])]
    return shoal


def mark(page: Page, kind: str) -> Locator:
    return page.get_by_role("slider", name=f"{kind} of {NAME} on cuda:0")


def changes(shoal: ScriptedShoal) -> list[Any]:
    return [body for method, _, body in shoal.requests if method == "PATCH"]


def asked(shoal: ScriptedShoal, bodies: list[Any]) -> None:
    """These changes were asked for, or are in a moment: a mark is drawn where it goes before its request is sent."""
    until(lambda: len(changes(shoal)) >= len(bodies), "the change")
    assert changes(shoal) == bodies


def drag(page: Page, kind: str, to: int, drop: bool = True) -> None:
    """Take a mark to so many bytes of KV cache."""
    frame = page.locator(".marks").bounding_box()
    at = mark(page, kind).bounding_box()
    assert frame and at
    y = at["y"] + at["height"] / 2
    page.mouse.move(at["x"] + at["width"] / 2, y)
    page.mouse.down()
    page.mouse.move(frame["x"] + frame["width"] * (20 * GIB + to) / (140 * GIB), y, steps=4)
    if drop:
        page.mouse.up()


def follow(shoal: ScriptedShoal, **terms: Any) -> None:
    """As the broker's numbers follow a change."""
    with shoal.lock:
        (one,) = shoal.models[NAME]["instances"]
        one["memory"]["leases"][0] |= terms
        shoal.publish(NAME)


def test_a_mark_is_dragged_and_says_where_it_is(tinned: ScriptedShoal, page: Page) -> None:
    page.goto(tinned.url)
    expect(mark(page, "ceiling")).to_have_attribute("aria-valuetext", "64.0 GiB of KV cache")
    drag(page, "ceiling", 100 * GIB, drop=False)
    expect(page.locator(".mark-value")).to_have_text("ceiling 100.0 GiB")
    assert changes(tinned) == []
    page.mouse.up()
    expect(mark(page, "ceiling")).to_have_attribute("aria-valuenow", str(100 * GIB))
    follow(tinned, ceiling=100 * GIB)
    expect(page.locator(".mark-value")).to_have_count(0)
    expect(mark(page, "ceiling")).to_have_attribute("aria-valuenow", str(100 * GIB))
    asked(tinned, [{"ceiling": 100 * GIB}])


def test_the_end_of_the_tin_is_no_ceiling_wherever_the_steps_fall(tinned: ScriptedShoal, page: Page) -> None:
    with tinned.lock:
        (one,) = tinned.models[NAME]["instances"]
        one["memory"]["held"]["cuda:0"] += 700 * 2**20  # what lies before the cache is no multiple of a step
        tinned.publish(NAME)
    page.goto(tinned.url)
    mark(page, "ceiling").press("End")
    expect(page.locator(".mark-value")).to_have_text("ceiling none · Enter sets it")
    page.keyboard.press("Enter")
    asked(tinned, [{"ceiling": None}])


def test_a_click_on_a_mark_changes_nothing(tinned: ScriptedShoal, page: Page) -> None:
    follow(tinned, floor=16 * GIB + 300 * 2**20, ceiling=64 * GIB - 123)  # between two steps
    page.goto(tinned.url)
    for kind, value in (("floor", 16 * GIB + 300 * 2**20), ("ceiling", 64 * GIB - 123)):
        at = mark(page, kind).bounding_box()
        assert at
        page.mouse.move(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
        page.mouse.down()
        page.mouse.move(at["x"] + at["width"] / 2 + 1, at["y"] + at["height"] / 2)  # a hand is never still
        expect(page.locator(".mark-value")).to_contain_text(kind)
        expect(mark(page, kind)).to_have_attribute("aria-valuenow", str(value))
        page.mouse.up()
        expect(page.locator(".mark-value")).to_have_count(0)
        expect(mark(page, kind)).to_have_attribute("aria-valuenow", str(value))
    floor = mark(page, "floor")
    floor.press("ArrowRight")
    expect(floor).to_have_attribute("aria-valuenow", str(17 * GIB))
    floor.click()  # what the keys did stays, and waits
    expect(page.locator(".mark-value")).to_contain_text("Enter sets it")
    expect(floor).to_have_attribute("aria-valuenow", str(17 * GIB))
    assert changes(tinned) == []
    floor.press("Escape")


def test_a_ceiling_at_the_end_is_none_and_a_floor_stays_below_it(tinned: ScriptedShoal, page: Page) -> None:
    page.goto(tinned.url)
    drag(page, "floor", 90 * GIB, drop=False)
    expect(mark(page, "floor")).to_have_attribute("aria-valuenow", str(64 * GIB))
    page.keyboard.press("Escape")
    expect(mark(page, "floor")).to_have_attribute("aria-valuenow", str(16 * GIB))
    page.mouse.up()
    drag(page, "ceiling", 200 * GIB, drop=False)
    expect(mark(page, "ceiling")).to_have_attribute("aria-valuetext", "no ceiling")
    page.mouse.up()
    follow(tinned, ceiling=None)
    expect(mark(page, "ceiling")).to_have_count(0)
    asked(tinned, [{"ceiling": None}])


def test_a_mark_is_moved_by_keys_and_given_up(tinned: ScriptedShoal, page: Page) -> None:
    page.goto(tinned.url)
    floor = mark(page, "floor")
    floor.focus()
    for key, value in (("ArrowRight", 17), ("ArrowUp", 18), ("ArrowLeft", 17), ("PageUp", 25), ("PageDown", 17),
                       ("Home", 0), ("End", 64), ("PageDown", 56)):  # fmt: skip
        page.keyboard.press(key)
        expect(floor).to_have_attribute("aria-valuenow", str(value * GIB))
    page.keyboard.press("Escape")
    expect(floor).to_have_attribute("aria-valuenow", str(16 * GIB))
    assert changes(tinned) == []
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(floor).to_have_attribute("aria-valuenow", str(17 * GIB))
    follow(tinned, floor=17 * GIB)
    expect(page.locator(".mark-value")).to_have_count(0)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")  # who goes on has meant it
    follow(tinned, floor=18 * GIB)
    expect(page.locator(".mark-value")).to_have_count(0)
    asked(tinned, [{"floor": 17 * GIB}, {"floor": 18 * GIB}])


def test_what_is_refused_goes_back_and_says_why(tinned: ScriptedShoal, page: Page) -> None:
    page.goto(tinned.url)
    reason = {"error": {"message": "floors together would be 150 GiB of 140 GiB", "type": "x", "code": "x"}}
    page.route("**/api/v1/models/*", lambda route: route.fulfill(status=409, json=reason))
    drag(page, "floor", 40 * GIB)
    alert = page.get_by_role("alert").first
    expect(alert).to_contain_text("floors together would be 150 GiB of 140 GiB")
    expect(alert).to_contain_text(f"shoal models set --floor 40GiB '{NAME}'")
    expect(mark(page, "floor")).to_have_attribute("aria-valuenow", str(16 * GIB))


def test_a_mark_that_was_dragged_says_the_command_that_does_the_same(tinned: ScriptedShoal, page: Page) -> None:
    page.goto(tinned.url)
    said = page.locator(".mark-done")
    drag(page, "ceiling", 100 * GIB, drop=False)
    expect(said).to_have_count(0)  # nothing is set yet
    page.mouse.up()
    expect(said).to_contain_text("Set: ceiling 100.0 GiB")
    expect(said.locator("code")).to_have_text(f"shoal models set --ceiling 100GiB '{NAME}'")
    follow(tinned, ceiling=100 * GIB)
    expect(page.locator(".mark-value")).to_have_count(0)
    said.get_by_role("button", name="Copy the command").click()
    expect(said.get_by_role("status")).not_to_be_empty()
    expect(page.locator(".notices[role=alert]")).to_be_empty()
    drag(page, "ceiling", 200 * GIB)  # a ceiling at the end of the tin is none, and its mark goes
    follow(tinned, ceiling=None)
    expect(mark(page, "ceiling")).to_have_count(0)
    expect(said.locator("code")).to_have_text(f"shoal models set --ceiling none '{NAME}'")
    page.locator("h1").click()
    expect(said).to_have_count(0)


def test_a_mark_that_was_moved_by_keys_says_its_command_until_one_goes_on(tinned: ScriptedShoal, page: Page) -> None:
    page.goto(tinned.url)
    floor, said = mark(page, "floor"), page.locator(".mark-done")
    copy = said.get_by_role("button", name="Copy the command")
    floor.press("ArrowRight")
    expect(said).to_have_count(0)
    page.keyboard.press("Enter")
    expect(said.locator("code")).to_have_text(f"shoal models set --floor 17GiB '{NAME}'")
    follow(tinned, floor=17 * GIB)
    page.keyboard.press("Tab")
    expect(copy).to_be_focused()
    page.keyboard.press("Enter")
    expect(said.get_by_role("status")).not_to_be_empty()
    page.keyboard.press("Escape")
    expect(said).to_have_count(0)
    expect(floor).to_be_focused()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(said).to_contain_text("--floor 18GiB")
    page.keyboard.press("ArrowRight")  # it is moved again
    expect(said).to_have_count(0)
    page.keyboard.press("Enter")
    expect(said).to_contain_text("--floor 19GiB")
    page.get_by_role("button", name=f"Details of {NAME}").focus()
    expect(said).to_have_count(0)
    asked(tinned, [{"floor": n * GIB} for n in (17, 18, 19)])


@pytest.mark.parametrize("width", [390, 1440])
def test_a_name_of_any_length_stays_within_its_device(shoal: ScriptedShoal, new_page: NewPage, width: int) -> None:
    name = "w" * 200
    lease = {"device": "cuda:0", "rank": 0, "lease": GIB, "backed": GIB, "used": 0, "cached": 0,
             "floor": GIB, "ceiling": None, "missing": 0, "waiting": 0, "recalled": None}  # fmt: skip
    held = memory(lease=GIB, backed=GIB, floor=GIB, weights=GIB, held={"cuda:0": 2 * GIB}, leases=[lease])
    shoal.add(name, instance("w-1", name, "ready", memory=held), floor=GIB)
    shoal.devices = [device("cuda:0", memory_used=2 * GIB, instances=["w-1"])]
    page = new_page(viewport={"width": width, "height": 900})
    page.goto(shoal.url)
    page.get_by_role("slider", name=f"floor of {name}").press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator(".mark-done code")).to_have_text(f"shoal models set --floor 2GiB {name}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_finger_moves_a_mark(tinned: ScriptedShoal, new_page: NewPage) -> None:
    page = new_page(viewport={"width": 390, "height": 900}, has_touch=True)
    page.goto(tinned.url)
    expect(mark(page, "ceiling")).to_have_css("touch-action", "none")
    frame = page.locator(".marks").bounding_box()
    assert frame
    at = frame["x"] + frame["width"] * (20 + 32) / 140
    page.evaluate(
        """([label, x]) => {
          const mark = document.querySelector(`[aria-label="${label}"]`);
          mark.setPointerCapture = () => {};
          for (const [kind, clientX] of [["pointerdown", 0], ["pointermove", x], ["pointerup", x]])
            mark.dispatchEvent(
              new PointerEvent(kind, { bubbles: true, button: 0, pointerId: 7, pointerType: "touch", clientX }));
        }""",
        [f"ceiling of {NAME} on cuda:0", at],
    )
    expect(mark(page, "ceiling")).to_have_attribute("aria-valuenow", str(32 * GIB))
    asked(tinned, [{"ceiling": 32 * GIB}])


def test_numbers_are_set_where_there_is_no_mark_yet(shoal: ScriptedShoal, page: Page) -> None:
    shoal.add("plain", desired=0)
    shoal.add("fixed", desired=0, elastic="off")
    page.goto(shoal.url)
    page.get_by_role("button", name="Details of fixed").click()
    fixed = page.get_by_role("form", name="Share of the memory of fixed")
    expect(fixed.get_by_label("Priority")).to_be_visible()
    expect(fixed.get_by_label("Floor")).to_have_count(0)
    page.get_by_role("button", name="Details of plain").click()
    form = page.get_by_role("form", name="Share of the memory of plain")
    form.get_by_label("Floor", exact=True).fill("2GiB")
    form.get_by_label("Priority", exact=True).fill("300")
    expect(form.get_by_text("shoal models set --floor 2GiB --priority 300 plain", exact=True)).to_be_visible()
    reason = {"error": {"message": "floor: too much", "type": "x", "code": "x"}}
    page.route("**/api/v1/models/*", lambda route: route.fulfill(status=409, json=reason))
    form.get_by_role("button", name="Set", exact=True).click()
    expect(form.get_by_role("alert")).to_have_text("floor: too much")
    expect(form.get_by_label("Floor", exact=True)).to_have_value("2GiB")
    page.unroute("**/api/v1/models/*")
    form.get_by_role("button", name="Set", exact=True).click()
    expect(form.get_by_role("button", name="Set", exact=True)).to_have_count(0)
    assert changes(shoal)[-1] == {"floor": "2GiB", "priority": "300"}


def test_an_error_that_happens_is_said_once_and_the_past_is_not(shoal: ScriptedShoal, page: Page) -> None:
    said = {"level": "error", "kind": "failed", "model": "m", "instance": None, "at": 1.0}
    shoal.history = [{**said, "id": 1, "message": "m failed long ago"}]
    shoal.add("m", desired=0)
    page.goto(shoal.url)
    expect(page.locator("#events")).to_contain_text("m failed long ago")
    alert = page.locator(".notices[role=alert]")
    expect(alert).to_be_empty()
    for number in (2, 2, 3):  # the second is told twice, and the third says the same
        shoal.tell("message", {**said, "id": number, "at": float(number), "message": "it ran out of memory"})
    shoal.tell("message", {**said, "id": 9, "at": 9.0, "level": "info", "message": "m is to be loaded"})
    expect(page.locator("#events")).to_contain_text("m is to be loaded")
    expect(alert.locator(".notice")).to_have_text(["m: it ran out of memoryDismiss"])
    for number in range(10, 17):
        shoal.tell("message", {**said, "id": number, "at": float(number), "message": f"fault {number}"})
    expect(alert).to_contain_text("fault 16")
    expect(alert.locator(".notice")).to_have_count(5)
    for _ in range(5):
        alert.get_by_role("button", name="Dismiss this message").first.click()
    expect(alert).to_be_empty()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_marks_and_numbers_can_be_used_by_everybody(tinned: ScriptedShoal, new_page: NewPage, scheme: str) -> None:
    if not AXE.exists():
        pytest.skip("no axe-core here (make page-types)")
    page = new_page(viewport={"width": 390, "height": 900}, color_scheme=scheme)
    page.goto(tinned.url)
    page.get_by_role("button", name=f"Details of {NAME}").click()
    mark(page, "ceiling").focus()
    page.keyboard.press("End")
    expect(page.locator(".mark-value")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.locator(".mark-done")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.evaluate(AXE.read_text(encoding="utf-8"))
    assert violations(page) == []
