"""Moving a model by the page: both devices before and after, by menu, keys and drag; its way, and back."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from shoal.errors import ShoalError
from tests.cli.scripted import GIB, ScriptedShoal, device, instance, memory
from tests.dashboard.conftest import NewPage
from tests.dashboard.keys import press, tab_to
from tests.dashboard.test_whole import AXE, violations
from tests.system.harness import Shoal, a_shoal

FIRST, SECOND, THIRD = "simulated:0", "simulated:1", "simulated:2"


@pytest.fixture(scope="module")
def served() -> Iterator[Shoal]:
    with a_shoal(simulated_devices=["8GiB", "4GiB", "4GiB"]) as shoal:
        yield shoal.start()


def serving(served: Shoal, name: str, *args: str, **settings: Any) -> None:
    """Have a model serve on the first device, whatever an attempt before this one left of it."""
    with served.client as client, contextlib.suppress(ShoalError):
        client.remove_model(name, unload=True)
    served.add(name, "--device-memory", "1GiB", *args, **{"devices": [FIRST], **settings})
    served.load(name)


def model(page: Page, name: str) -> Locator:
    return page.locator(f'.model[aria-label="{name}"]')


def test_a_model_is_moved_by_the_menu_and_a_move_is_cancelled(served: Shoal, page: Page) -> None:
    serving(served, "moved")
    page.goto(f"{served.url}/#/?q=moved")
    page.get_by_role("button", name="Details of moved").click()
    model(page, "moved").get_by_role("button", name="Move…").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("radio", name=SECOND)).to_be_checked()
    expect(dialog.locator(".fit-verdict")).to_contain_text("It fits")
    before, after = (dialog.get_by_role("img", name=f"Memory of {SECOND} {word}") for word in ("now", "then"))
    expect(before).not_to_have_attribute("aria-label", re.compile("moved"))
    expect(after).to_have_attribute("aria-label", re.compile(r"moved: weights 1\.0 GiB"))
    expect(dialog.get_by_role("img", name=f"Memory of {FIRST} then")).not_to_have_attribute(
        "aria-label", re.compile("moved")
    )
    expect(dialog.get_by_text(f"shoal move --to {SECOND} moved", exact=True)).to_be_visible()
    dialog.get_by_role("button", name="Move it").click()
    expect(dialog).to_have_count(0)
    expect(model(page, "moved").locator(".row")).to_contain_text(SECOND)
    expect(page.get_by_role("list", name="Moves under way")).to_be_hidden()
    # Back again, with an engine that takes its time: there is time to think better of it.
    with served.client as client:
        client.change_model("moved", {"args": ["--device-memory", "1GiB", "--start-seconds", "600"]})
    expect(model(page, "moved").get_by_role("button", name="Roll out new settings")).to_be_visible()
    model(page, "moved").get_by_role("button", name="Roll out new settings").click()
    strip = page.get_by_role("list", name="Moves under way")
    expect(strip).to_contain_text("another one loads")
    expect(strip).to_contain_text(re.compile("shoal moves cancel move-"))
    expect(model(page, "moved").get_by_role("button", name="Move…")).to_have_count(0)
    page.get_by_role("button", name="Cancel the move of moved").click()
    expect(strip).to_be_hidden()
    assert served.chat("moved").status_code == 200


def test_it_is_dragged_to_another_device(served: Shoal, page: Page) -> None:
    serving(served, "dragged")
    page.goto(served.url)
    tin = page.locator(f'[data-device="{FIRST}"] .holding.movable[title^="dragged:"]')
    expect(tin).to_have_count(1)
    tin.hover()
    page.mouse.down()
    target = page.locator(f'[data-device="{SECOND}"]')
    target.hover()
    expect(target).to_have_class(re.compile("landing here"))
    expect(page.locator(".carried")).to_contain_text(f"move to {SECOND}")
    page.keyboard.press("Escape")  # given up
    page.mouse.up()
    expect(page.locator(".carried")).to_have_count(0)
    expect(page.get_by_role("dialog")).to_have_count(0)
    tin.hover()
    page.mouse.down()
    target.hover()
    page.mouse.up()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("heading", name="Move dragged")).to_be_visible()
    expect(dialog.get_by_role("radio", name=SECOND)).to_be_checked()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    assert served.model("dragged")["instances"][0]["devices"] == [FIRST]
    tin.hover()
    page.mouse.down()
    page.locator(f'[data-device="{THIRD}"]').hover()
    page.mouse.up()
    expect(dialog.get_by_role("radio", name=THIRD)).to_be_checked()
    dialog.get_by_role("button", name="Move it").click()
    expect(page.locator(f'[data-device="{THIRD}"] .holding[title^="dragged:"]')).to_have_count(1)
    expect(page.get_by_role("list", name="Moves under way")).to_be_hidden()
    expect(tin).to_have_count(0)
    on_third(served, "dragged")


def on_third(served: Shoal, name: str) -> None:
    """The model serves on the third device, and on no other."""
    (instance,) = served.model(name)["instances"]
    assert (instance["state"], instance["devices"]) == ("ready", [THIRD])
    assert served.chat(name).status_code == 200


def detailed(served: Shoal, page: Page, name: str) -> Locator:
    """The model's line, whose details were opened by keyboard."""
    page.goto(f"{served.url}/#/?q={name}")
    press(page, page.get_by_role("button", name=f"Details of {name}"))
    return model(page, name)


def test_it_is_moved_by_keyboard_alone(served: Shoal, page: Page) -> None:
    serving(served, "keyed")
    row = detailed(served, page, "keyed")
    press(page, row.get_by_role("button", name="Move…"))
    dialog = page.get_by_role("dialog")
    tab_to(page, dialog.get_by_role("radio", name=SECOND))
    expect(dialog.get_by_role("radio", name=SECOND)).to_be_checked()
    page.keyboard.press("ArrowDown")
    expect(dialog.get_by_role("radio", name=THIRD)).to_be_checked()
    expect(dialog.get_by_text(f"shoal move --to {THIRD} keyed", exact=True)).to_be_visible()
    expect(dialog.get_by_role("img", name=f"Memory of {THIRD} then")).to_have_attribute(
        "aria-label", re.compile(r"keyed: weights 1\.0 GiB")
    )
    press(page, dialog.get_by_role("button", name="Move it"))
    expect(dialog).to_have_count(0)
    expect(page.get_by_role("button", name="Details of keyed")).to_be_focused()
    expect(row.locator(".row")).to_contain_text(THIRD)
    expect(page.get_by_role("list", name="Moves under way")).to_be_hidden()
    on_third(served, "keyed")


def test_a_move_is_cancelled_and_new_settings_are_rolled_out_by_keyboard_alone(served: Shoal, page: Page) -> None:
    serving(served, "rolled")
    with served.client as client:
        client.change_model("rolled", {"args": ["--device-memory", "1GiB", "--start-seconds", "600"]})
    row = detailed(served, page, "rolled")
    expect(row).to_contain_text("Runs with older settings")
    press(page, row.get_by_role("button", name="Move…"))  # with an engine that takes its time
    press(page, page.get_by_role("dialog").get_by_role("button", name="Move it"), "Space")
    strip = page.get_by_role("list", name="Moves under way")
    expect(strip).to_contain_text(f"{FIRST} → {SECOND}: another one loads")
    press(page, page.get_by_role("button", name="Cancel the move of rolled"))
    expect(page.get_by_role("button", name="Details of rolled")).to_be_focused()
    expect(strip).to_be_hidden()
    with served.client as client:
        client.change_model("rolled", {"args": ["--device-memory", "900MiB"]})
    (before,) = served.wait("rolled", "ready")
    assert before["devices"] == [FIRST]
    press(page, row.get_by_role("button", name="Roll out new settings"))
    expect(row.get_by_role("button", name="Roll out new settings")).to_have_count(0)
    expect(row).not_to_contain_text("Runs with older settings")
    expect(strip).to_be_hidden()
    (after,) = served.wait("rolled", "ready")
    assert after["id"] != before["id"]
    assert not after["outdated"]
    assert served.chat("rolled").status_code == 200


# -- what can go otherwise, against a script ---------------------------------------------------------------------------

NAME = 'm "<b>" שלום'


def answer(route: Route, verdict: str = "fits_if_others_give_way", **fields: Any) -> None:
    """What `POST fit` says: the one asked about fits where it is to go, if `other` sleeps."""
    asked = json.loads(route.request.post_data or "{}")
    (spec,) = asked["models"]
    name, (place, *_) = spec["name"], asked["devices"]
    sizes = {"weights": 60, "overhead": 4, "KV cache from the start": 1, "others hold": 100}
    parts = [{"what": what, "bytes": size * GIB} for what, size in sizes.items()]
    one = {"device": place, "verdict": verdict, "needed": 65 * GIB, "free": 40 * GIB, "size": 140 * GIB,
           "message": f"{name} needs 65.0 GiB", "parts": parts, "sleep": ["other"], "unload": [], "measured": True,
           **fields}  # fmt: skip
    message = f"{name} needs 65.0 GiB: it fits if other sleeps"
    told = {"name": name, "verdict": verdict, "message": message, "on": [place], "needs": None, "load": None}
    route.fulfill(json={"models": [{**told, "devices": [one]}], "collisions": []})


@pytest.fixture
def two(shoal: ScriptedShoal) -> ScriptedShoal:
    """A model on the first of two devices; on the second another one, which can sleep."""
    here = memory(weights=60 * GIB, held={"cuda:0": 60 * GIB})
    there = memory(weights=100 * GIB, held={"cuda:1": 100 * GIB})
    shoal.add(NAME, instance("m-1", NAME, "ready", memory=here))
    shoal.add("other", instance("o-1", "other", "ready", devices=["cuda:1"], memory=there))
    shoal.devices = [device("cuda:0", instances=["m-1"]), device("cuda:1", memory_used=100 * GIB, instances=["o-1"]),
                     device("cuda:2", error="fell off the bus"), device("host", kind="host")]  # fmt: skip
    return shoal


def asked(two: ScriptedShoal, page: Page) -> Locator:
    page.goto(two.url)
    page.get_by_role("button", name=f"Details of {NAME}", exact=True).click()
    model_row = page.locator(".model", has=page.get_by_role("heading", name=NAME))
    button = model_row.get_by_role("button", name="Move…")
    button.focus()
    page.keyboard.press("Enter")
    return page.get_by_role("dialog")


def test_who_would_sleep_is_said_and_shown(two: ScriptedShoal, page: Page) -> None:
    page.route("**/api/v1/fit", lambda route: answer(route))
    dialog = asked(two, page)
    expect(dialog.get_by_role("radio")).to_have_count(1)  # no broken device, none of another kind
    expect(dialog.locator(".fit-verdict")).to_contain_text("It fits if others give way")
    expect(dialog.locator(".fit")).to_contain_text(f"{NAME} needs 65.0 GiB: it fits if other sleeps")
    then = dialog.get_by_role("img", name="Memory of cuda:1 then")
    expect(then).to_have_attribute("aria-label", re.compile(r"weights 60\.0 GiB.*; free 75\.0 GiB"))
    expect(then).not_to_have_attribute("aria-label", re.compile("other:"))
    expect(dialog.get_by_text(f"shoal move --to cuda:1 '{NAME}'", exact=True)).to_be_visible()
    dialog.get_by_role("checkbox", name="End the old one first").check()
    expect(dialog.get_by_text(f"shoal move --to cuda:1 --stop-first '{NAME}'", exact=True)).to_be_visible()


def test_what_does_not_fit_is_not_begun_unless_the_old_one_ends_first(two: ScriptedShoal, page: Page) -> None:
    page.route("**/api/v1/fit", lambda route: answer(route, "does_not_fit"))
    dialog = asked(two, page)
    expect(dialog.locator(".fit-verdict")).to_contain_text("It does not fit")
    expect(dialog.get_by_role("button", name="Move it")).to_be_disabled()
    dialog.get_by_role("checkbox", name="End the old one first").check()
    expect(dialog.get_by_role("button", name="Move it")).to_be_enabled()


def test_a_refusal_is_said_in_the_dialog_which_stays(two: ScriptedShoal, page: Page) -> None:
    page.route("**/api/v1/fit", lambda route: answer(route))
    reason = {"error": {"message": "m is moved already (move-1)", "type": "x", "code": "model_moving"}}
    page.route("**/api/v1/moves", lambda route: route.fulfill(status=409, json=reason))
    dialog = asked(two, page)
    dialog.get_by_role("button", name="Move it").click()
    expect(dialog.get_by_role("alert")).to_have_text("m is moved already (move-1)")
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_have_count(0)
    expect(page.get_by_role("button", name="Move…")).to_be_focused()


def test_a_move_is_followed_by_the_stream_and_its_failure_is_said(two: ScriptedShoal, page: Page) -> None:
    leg = {"source": "m-1", "was_on": ["cuda:0"], "devices": ["cuda:1"], "step": "loading", "target": "m-2",
           "cause": "", "note": ""}  # fmt: skip
    move = {"id": "move-7", "model": NAME, "state": "running", "message": "", "changes": {}, "stop_first": False,
            "drain": None, "cancelling": False, "created_at": 1.0, "ended_at": None, "legs": [leg]}  # fmt: skip
    page.goto(two.url)
    strip = page.get_by_role("list", name="Moves under way")
    expect(page.get_by_role("heading", name=NAME)).to_be_visible()
    expect(strip).to_be_hidden()
    two.tell("move", move)
    expect(strip).to_contain_text("cuda:0 → cuda:1: another one loads")
    expect(strip.get_by_role("button", name=f"Cancel the move of {NAME}")).to_be_visible()
    two.tell("move", {**move, "legs": [{**leg, "step": "draining"}]})
    expect(strip).to_contain_text("the new one serves")
    expect(strip.get_by_role("button")).to_have_count(0)  # there is no way back any more
    two.tell("move", {**move, "state": "failed", "ended_at": 2.0, "legs": [{**leg, "step": "failed"}]})
    two.tell("message", {"id": 5, "at": 2.0, "level": "error", "kind": "move_failed", "model": NAME, "instance": None,
                         "message": f"{NAME} was not moved: there is no room"})  # fmt: skip
    expect(strip).to_be_hidden()
    expect(page.locator(".notices[role=alert]")).to_contain_text("was not moved: there is no room")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 390)])
def test_the_dialog_fits_and_everybody_can_use_it(
    two: ScriptedShoal, new_page: NewPage, scheme: str, width: int
) -> None:
    if not AXE.exists():
        pytest.skip("no axe-core here (make page-types)")
    page = new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.route("**/api/v1/fit", lambda route: answer(route))
    dialog = asked(two, page)
    expect(dialog.locator(".before-after section")).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert dialog.evaluate("dialog => dialog.scrollWidth <= dialog.clientWidth")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    assert violations(page) == []
