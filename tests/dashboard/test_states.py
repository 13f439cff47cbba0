"""States that a page is seldom in: everybody can use it there too, by keyboard, and with nothing that moves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.dashboard.conftest import NewPage
from tests.dashboard.test_whole import AXE, violations
from tests.system.harness import Shoal, a_shoal

pytestmark = pytest.mark.timeout(120)  # axe looks at everything, several times in a test
NAME = "<b>qwen 🐟</b> שלום"


@pytest.fixture(scope="module")
def empty() -> Iterator[Shoal]:
    with a_shoal() as shoal:
        yield shoal.start()


@pytest.fixture(scope="module")
def served() -> Iterator[Shoal]:
    """One that serves with a floor and a ceiling, one that starts for ever, one that failed, one that is not loaded."""
    with a_shoal(simulated_devices=["8GiB"]) as shoal:
        shoal.start()
        shoal.add("serves", "--simulated-block-bytes", "4MiB", "--device-memory", "1GiB", floor=2**29, ceiling=2**31)
        shoal.add("slow", "--start-seconds", "3000", "--device-memory", "100MiB")
        shoal.add(NAME, "--fail", "oom", "--device-memory", "100MiB")
        shoal.add("idle")
        shoal.load("serves")
        with shoal.client as client:
            client.load(NAME)
            shoal.wait(NAME, "failed")
            client.load("slow")
            shoal.wait("slow", "starting")
        yield shoal


@pytest.fixture(params=[(1440, "light"), (390, "dark")], ids=str)
def looks(request: pytest.FixtureRequest) -> dict[str, Any]:
    width, scheme = request.param
    return {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}


def usable(page: Page) -> None:
    """Nothing that axe finds, and nothing beside the screen."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    if not AXE.exists():
        pytest.skip("no axe-core here (make page-types)")
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text(encoding="utf-8"))
    assert violations(page) == []


def lose(page: Page) -> None:
    """Have the connection end, as it does for a laptop without a network."""
    page.route("**/api/v1/**", lambda route: route.abort())
    page.evaluate("dispatchEvent(new Event('online'))")  # which begins anew
    expect(page.locator("#connection")).to_contain_text("Disconnected: this is from")
    expect(page.locator("main")).to_have_class("old")


def test_a_lost_connection(served: Shoal, new_page: NewPage, looks: dict[str, Any]) -> None:
    page = new_page(**looks)
    page.goto(served.url)
    page.get_by_role("button", name="Details of serves", exact=True).click()
    page.get_by_role("button", name=f"Details of {NAME}", exact=True).click()
    lose(page)
    usable(page)
    page.evaluate("location.hash = '#/models/serves'")
    expect(page.get_by_role("heading", name="serves", exact=True).or_(page.get_by_role("alert"))).not_to_have_count(0)
    usable(page)


def test_an_empty_fleet(empty: Shoal, new_page: NewPage, looks: dict[str, Any]) -> None:
    page = new_page(**looks)
    page.goto(empty.url)
    expect(page.get_by_role("heading", name="No models yet")).to_be_visible()
    usable(page)
    for title in ("Requests", "Presets", "Access", "Playground", "Events"):
        page.evaluate("place => (location.hash = `#/${place}`)", title.lower())
        expect(page).to_have_title(f"{title} · Shoal")
        expect(page.locator("main .loading")).to_have_count(0)
        usable(page)


def test_a_place_that_does_not_exist(empty: Shoal, new_page: NewPage, looks: dict[str, Any]) -> None:
    page = new_page(**looks)
    page.goto(f"{empty.url}/#/nowhere")
    expect(page.get_by_role("heading", name="There is nothing here")).to_be_visible()
    usable(page)
    page.goto(f"{empty.url}/#/models/{'x' * 200}")
    expect(page.get_by_role("heading", name="There is no model")).to_be_visible()
    usable(page)


@pytest.mark.parametrize("name", ["slow", NAME])
def test_adding_under_way_and_failed(served: Shoal, new_page: NewPage, looks: dict[str, Any], name: str) -> None:
    page = new_page(**looks)
    kept = json.dumps(json.dumps({"typed": {}, "shown": name, "sent": name}))
    page.add_init_script(f"sessionStorage.setItem('shoal-add', {kept})")  # as if it had been added in this tab
    page.goto(f"{served.url}/#/add")
    expect(page.locator("#going-title")).to_have_text(name)
    expect(page.get_by_role("list", name="Phases")).to_be_visible()
    expect(page.get_by_role("log")).to_be_visible()
    usable(page)


def test_the_keys_that_the_page_knows(empty: Shoal, new_page: NewPage, looks: dict[str, Any]) -> None:
    page = new_page(**looks)
    page.goto(empty.url)
    expect(page.get_by_role("heading", name="No models yet")).to_be_visible()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    usable(page)


def test_the_form_to_sign_in(new_page: NewPage) -> None:
    with a_shoal() as shoal:
        shoal.start()
        with shoal.client as client:
            client.set_user("ann", role="admin", password="correct horse")
        for width in (1440, 390):
            page = new_page(viewport={"width": width, "height": 900}, color_scheme="dark")
            page.goto(shoal.url)
            form = page.get_by_role("dialog", name="Sign in to Shoal")
            expect(form).to_be_visible()
            usable(page)
            form.get_by_label("Name", exact=True).fill("ann")
            form.get_by_label("Password", exact=True).fill("wrong")
            page.keyboard.press("Enter")
            expect(form.get_by_role("alert")).to_be_visible()
            usable(page)


# -- keyboard and motion -----------------------------------------------------------------------------------------------


def outline(element: Locator) -> Any:
    """The outline's width in pixels; nothing where it is not drawn or the browser shows no focus."""
    return element.evaluate(
        """element => {
          const { outlineStyle, outlineWidth, outlineColor } = getComputedStyle(element);
          const drawn = element.matches(":focus-visible") && outlineStyle !== "none" && !outlineColor.endsWith(", 0)");
          return drawn ? parseFloat(outlineWidth) : 0;
        }"""
    )


def test_the_first_tab_skips_to_the_content(served: Shoal, page: Page) -> None:
    page.goto(f"{served.url}/#/events")
    expect(page.get_by_role("heading", name="Events", exact=True)).to_be_visible()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the content")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    assert page.url.endswith("#/events"), "it stays where it is"
    page.keyboard.press("Tab")
    assert page.evaluate("document.querySelector('main').contains(document.activeElement)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_has_the_focus_is_seen(served: Shoal, new_page: NewPage, scheme: str) -> None:
    """Whatever the Tab key comes to on the overview has an outline, and it is in view: nothing lies over it."""
    page = new_page(color_scheme=scheme)
    page.goto(served.url)
    for wanted in (
        page.get_by_role("button", name="Load idle", exact=True),
        page.get_by_role("button", name="Details of serves", exact=True),
        page.get_by_role("link", name="Playground"),
        page.get_by_role("link", name="serves", exact=True),
        page.get_by_role("slider", name="floor of serves on simulated:0"),
        page.get_by_role("searchbox"),
        page.get_by_label("Theme"),
    ):
        expect(wanted).to_be_visible()
        wanted.focus()
        assert outline(wanted) > 0, wanted
    page.locator("body").evaluate("() => document.activeElement.blur()")
    places = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        if focused.count() == 0:
            break  # it went back to the browser
        places.add(focused.evaluate("element => element.tagName + (element.getAttribute('role') ?? '')"))
        assert outline(focused) > 0, focused.evaluate("element => element.outerHTML.slice(0, 200)")
        expect(focused).to_be_in_viewport()
    assert {"A", "BUTTON", "INPUT", "SELECT", "SPANslider"} <= places


MOVING = """() => [
  ...document.getAnimations().filter((one) => one.playState === "running").map((one) => one.constructor.name),
  ...[...document.querySelectorAll("*")].flatMap((element) => ["", "::before", "::after"].flatMap((part) => {
    const { animationName, transitionDuration, scrollBehavior } = getComputedStyle(element, part || null);
    const still = animationName === "none" && /^[0s, ]*$/.test(transitionDuration) && scrollBehavior !== "smooth";
    return still ? [] : [`${element.outerHTML.slice(0, 120)} ${part}`];
  })),
]"""


def test_nothing_moves_for_who_wants_no_motion(served: Shoal, new_page: NewPage) -> None:
    page = new_page(reduced_motion="reduce")
    page.goto(served.url)
    expect(page.get_by_role("progressbar").first).to_be_visible()
    page.get_by_role("button", name="Details of slow", exact=True).click()
    page.get_by_role("button", name="Unload", exact=True).click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert page.evaluate(MOVING) == []
    page.keyboard.press("Escape")
    page.keyboard.press("Control+k")
    expect(page.get_by_role("dialog")).to_be_visible()
    assert page.evaluate(MOVING) == []
    page.keyboard.press("Escape")
    for place in ("models/serves", "add", "playground?models=serves", "requests", "presets", "access", "events"):
        page.evaluate("place => (location.hash = `#/${place}`)", place)
        expect(page.locator("main .loading")).to_have_count(0)
        expect(page.locator("main").get_by_role("heading").first).to_be_visible()
        assert page.evaluate(MOVING) == [], place
