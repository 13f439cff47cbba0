"""Users by the page, against a real `shoal serve`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, Page, expect

from shoal.errors import ShoalError
from tests.dashboard.acts import button, choose, confirm
from tests.dashboard.conftest import NewPage
from tests.dashboard.keys import press, tab_to
from tests.dashboard.test_sign_in import dialog, sign_in
from tests.dashboard.test_whole import AXE, violations
from tests.system.harness import Shoal, a_shoal

ANN, EVE = "correct horse", "<b>eve 🐟 שלום"


@pytest.fixture(scope="module")
def shared() -> Iterator[Shoal]:
    with a_shoal(simulated_devices=["8GiB"]) as shoal:
        yield shoal.start()


@pytest.fixture
def served(shared: Shoal) -> Shoal:
    """Without users, whatever an attempt before this one left."""
    with shared.client as client:
        for user in client.users():
            client.remove_user(user["name"])
    return shared


def row(page: Page, name: str) -> Locator:
    return page.get_by_role("table", name="Users").get_by_role("row").filter(has=page.get_by_text(name, exact=True))


def make(page: Page, name: str, password: str, role: str = "admin") -> None:
    page.get_by_role("button", name="New user").click()
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_label("Role", exact=True).select_option(role)
    page.get_by_label("Password", exact=True).fill(password)
    page.get_by_role("button", name="Make the user").click()


def test_the_first_user_is_made_and_signs_in_others_follow_and_the_last_opens_shoal_again(
    served: Shoal, page: Page
) -> None:
    page.goto(f"{served.url}/#/access")
    expect(page.get_by_text("shoal users set --role admin NAME", exact=True)).to_be_visible()
    make(page, "ann", "short")
    panel = page.get_by_role("form", name="New user")
    expect(panel.get_by_role("alert")).to_contain_text("8")
    expect(panel.get_by_label("Name", exact=True)).to_have_value("ann")
    panel.get_by_label("Password", exact=True).fill(ANN)
    expect(panel.get_by_text("shoal users set --role admin ann", exact=True)).to_be_visible()
    panel.get_by_label("Password", exact=True).press("Enter")
    expect(dialog(page)).to_be_visible()
    sign_in(page, "ann", ANN)
    expect(dialog(page)).to_have_count(0)
    expect(row(page, "ann")).to_contain_text("you")
    make(page, "a/b", "battery staple", "read-only")
    expect(panel.get_by_role("alert")).to_contain_text("slashes")
    panel.get_by_label("Name", exact=True).fill(EVE)
    page.get_by_role("button", name="Make the user").click()
    expect(row(page, EVE)).to_contain_text("read-only")
    page.get_by_role("button", name=f"Change {EVE}", exact=True).click()
    page.get_by_label("Role", exact=True).select_option("admin")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(row(page, EVE)).to_contain_text("admin")
    for name, lost in ((EVE, "ends at once"), ("ann", "It is the last one")):
        page.get_by_role("button", name=f"Remove {name}", exact=True).click()
        question = page.get_by_role("dialog", name=f"Remove the user {name}?")
        expect(question).to_contain_text(lost)
        question.get_by_role("button", name="Remove", exact=True).click()
        expect(row(page, name)).to_have_count(0)  # until then the other one is not the last
    expect(page.get_by_role("heading", name="No users")).to_be_visible()
    with served.client as client:
        assert client.users() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_it(served: Shoal, new_page: NewPage, scheme: str) -> None:
    if not AXE.exists():
        pytest.skip("no axe-core here (make page-types)")
    with served.client as client:
        client.set_user("ann", role="admin", password=ANN)
    page = new_page(viewport={"width": 390, "height": 900}, color_scheme=scheme)
    page.goto(f"{served.url}/#/access")
    sign_in(page, "ann", ANN)
    page.get_by_role("button", name="Change ann", exact=True).click()
    expect(page.get_by_role("form", name="Change ann")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.evaluate(AXE.read_text(encoding="utf-8"))
    assert violations(page) == []


def test_a_form_is_opened_filled_in_and_closed_by_keys(served: Shoal, page: Page) -> None:
    page.goto(f"{served.url}/#/access")
    opens = page.get_by_role("button", name="New user")
    opens.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Name", exact=True)).to_be_focused()
    page.keyboard.type("bob")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Password", exact=True)).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Close", exact=True)).to_be_focused()
    page.keyboard.press("Enter")
    expect(opens).to_be_focused()
    with served.client as client, pytest.raises(ShoalError):
        client.remove_user("bob")


def test_users_are_made_changed_and_removed_by_keyboard(served: Shoal, page: Page) -> None:
    page.goto(f"{served.url}/#/access")
    press(page, button(page, "New user"))
    panel = page.get_by_role("form", name="New user")
    expect(panel.get_by_label("Name", exact=True)).to_be_focused()
    page.keyboard.type("ann")
    tab_to(page, panel.get_by_label("Password", exact=True))
    page.keyboard.type(ANN)
    page.keyboard.press("Enter")
    expect(dialog(page).get_by_label("Name", exact=True)).to_be_focused()
    page.keyboard.type("ann")
    page.keyboard.press("Tab")
    page.keyboard.type(ANN)
    page.keyboard.press("Enter")
    expect(row(page, "ann")).to_contain_text("you")
    press(page, button(page, "New user"))
    expect(panel.get_by_label("Name", exact=True)).to_be_focused()
    page.keyboard.type("bob")
    choose(page, panel.get_by_label("Role", exact=True), "read-only")
    tab_to(page, panel.get_by_label("Password", exact=True))
    page.keyboard.type("battery staple")
    press(page, button(panel, "Make the user"))
    expect(row(page, "bob")).to_contain_text("read-only")
    press(page, button(page, "Change bob"))
    changed = page.get_by_role("form", name="Change bob")
    choose(page, changed.get_by_label("Role", exact=True), "admin", "ArrowUp")
    press(page, button(changed, "Save"))
    expect(row(page, "bob")).to_contain_text("admin")
    press(page, button(page, "Remove bob"))
    confirm(page, "Remove")
    expect(row(page, "bob")).to_have_count(0)
    with served.client as client:
        assert [(user["name"], user["role"]) for user in client.users()] == [("ann", "admin")]
