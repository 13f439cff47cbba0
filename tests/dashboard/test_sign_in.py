"""Signing in on the page, against a real `shoal serve` that has users."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.dashboard.acts import button
from tests.dashboard.conftest import NewPage
from tests.dashboard.keys import press
from tests.system.harness import Shoal, a_shoal, until

AXE = Path(__file__).parents[2] / "tools" / "node_modules" / "axe-core" / "axe.min.js"
ANN, BOB = "correct horse", "battery staple"
LONG = "x" * 60 + "<b>🐟</b>" + "שלום"


@pytest.fixture(scope="module")
def served() -> Iterator[Shoal]:
    with a_shoal(simulated_devices=["8GiB"]) as shoal:
        shoal.start()
        shoal.add("qwen", "--enable-sleep-mode")
        yield shoal


@pytest.fixture(autouse=True)
def users(served: Shoal) -> None:
    """As each test finds them; that also ends the sessions of those before."""
    with served.client as client:
        client.set_user("ann", role="admin", password=ANN)
        client.set_user("bob", role="read-only", password=BOB)


def dialog(page: Page) -> Locator:
    return page.get_by_role("dialog", name="Sign in to Shoal")


def sign_in(page: Page, name: str, password: str) -> None:
    dialog(page).get_by_label("Name", exact=True).fill(name)
    dialog(page).get_by_label("Password", exact=True).fill(password)
    dialog(page).get_by_role("button", name="Sign in").click()


def row(page: Page) -> Locator:
    return page.locator('.model[aria-label="qwen"]')


def test_signing_in_and_out_by_mouse(served: Shoal, page: Page) -> None:
    page.goto(served.url)
    expect(dialog(page)).to_be_visible()
    sign_in(page, "ann", "wrong password")
    expect(dialog(page).get_by_role("alert")).to_have_text("the name or the password is wrong")
    expect(dialog(page).get_by_label("Name", exact=True)).to_have_value("ann")
    expect(dialog(page).get_by_label("Password", exact=True)).to_be_focused()
    sign_in(page, "ann", ANN)
    expect(dialog(page)).to_have_count(0)
    expect(page.locator("#connection")).to_have_text("Live")
    expect(page.get_by_role("button", name="Load qwen", exact=True)).to_be_visible()
    expect(page.locator(".signed-in")).to_contain_text("ann")
    page.reload()
    expect(row(page)).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(dialog(page)).to_be_visible()
    expect(row(page)).to_have_count(0)


def test_signing_in_and_out_by_keyboard(served: Shoal, page: Page) -> None:
    page.goto(served.url)
    expect(dialog(page).get_by_label("Name", exact=True)).to_be_focused()
    for _ in range(3):
        page.keyboard.press("Escape")
    expect(dialog(page)).to_be_visible()
    dialog(page).get_by_label("Name", exact=True).focus()
    page.keyboard.type("ann")
    page.keyboard.press("Tab")
    page.keyboard.type(ANN)
    page.keyboard.press("Enter")
    expect(dialog(page)).to_have_count(0)
    expect(row(page)).to_be_visible()
    press(page, button(page, "Sign out"))
    expect(dialog(page).get_by_label("Name", exact=True)).to_be_focused()
    expect(row(page)).to_have_count(0)
    with served.client as client:
        assert {user["name"]: user["sessions"] for user in client.users()}["ann"] == 0


def test_an_admin_acts(served: Shoal, page: Page) -> None:
    page.goto(served.url)
    sign_in(page, "ann", ANN)
    page.get_by_role("button", name="Details of qwen").click()
    pin = row(page).get_by_role("button", name="Pin", exact=True)
    unpin = row(page).get_by_role("button", name="Unpin", exact=True)
    before = served.model("qwen")["spec"]["pin"]
    (unpin if before else pin).click()
    expect(pin if before else unpin).to_be_visible()
    assert served.model("qwen")["spec"]["pin"] is not before


def test_who_may_only_look_is_offered_nothing_to_do(served: Shoal, page: Page) -> None:
    page.goto(served.url)
    sign_in(page, "bob", BOB)
    expect(page.locator(".signed-in")).to_contain_text("read-only")
    expect(page.locator("#connection")).to_have_text("Live")
    page.get_by_role("button", name="Details of qwen").click()
    expect(row(page).locator(".details")).to_be_visible()
    for name in ("Load", "Load qwen", "Pin", "Unpin", "Unload", "Sleep"):
        expect(page.get_by_role("button", name=name, exact=True)).to_have_count(0)
    refused = page.evaluate(
        """async () => {
          const answer = await fetch("api/v1/models/qwen/load", {method: "POST", headers: {"x-shoal-page": "1"}});
          return [answer.status, (await answer.json()).error.message];
        }"""
    )
    assert refused[0] == 403
    assert "read-only" in refused[1]


def test_a_session_that_ends_elsewhere_leaves_what_was_typed(served: Shoal, page: Page) -> None:
    page.goto(served.url)
    sign_in(page, "ann", ANN)
    expect(page.locator("#connection")).to_have_text("Live")
    field = page.get_by_role("searchbox").first
    field.fill("qwe")
    with served.client as client:
        client.set_user("ann", password="another one")
    expect(dialog(page)).to_be_visible()
    sign_in(page, "ann", "another one")
    expect(dialog(page)).to_have_count(0)
    expect(page.locator("#connection")).to_have_text("Live")
    expect(field).to_have_value("qwe")


def test_what_one_has_typed_another_does_not_find(served: Shoal, page: Page) -> None:
    page.goto(served.url)
    sign_in(page, "ann", ANN)
    page.get_by_role("button", name="Details of qwen").click()
    expect(row(page).locator(".details")).to_be_visible()
    with served.client as client:
        client.set_user("ann", password="another one")
    expect(dialog(page)).to_be_visible()
    sign_in(page, "bob", BOB)
    expect(page.locator(".signed-in")).to_contain_text("bob")
    expect(row(page)).to_be_visible()
    expect(row(page).locator(".details")).to_have_count(0)


KEPT = """async () => {
  const stores = JSON.stringify([sessionStorage, localStorage]);
  if (!(await indexedDB.databases()).some(({ name }) => name === "shoal.playground")) return stores;
  const database = await new Promise((resolve) => {
    indexedDB.open("shoal.playground").onsuccess = (event) => resolve(event.target.result);
  });
  const store = database.transaction("sessions").objectStore("sessions");
  const sessions = await new Promise((resolve) => {
    store.getAll().onsuccess = (event) => resolve(event.target.result);
  });
  database.close();
  return stores + JSON.stringify(sessions);
}"""


def leave_secrets(page: Page) -> None:
    """Type things that are nobody else's: a key, a setting, a prompt that is kept, and one that is to be kept soon."""
    expect(row(page)).to_be_visible()
    page.evaluate("sessionStorage.setItem('shoal.play.key', 'sk-secret-key')")
    page.evaluate("sessionStorage.setItem('shoal-add', JSON.stringify({typed: {env: 'TOKEN=secret-variable'}}))")
    page.evaluate("location.hash = '#/playground?models=qwen'")
    expect(page.get_by_role("combobox", name="Model")).to_have_value("qwen")
    prompt = page.get_by_role("textbox", name="Prompt", exact=True)
    expect(page).to_have_url(re.compile("session="))
    prompt.fill("secret prompt")
    until(lambda: page.evaluate(KEPT).count("secret prompt") > 1, seconds=10)
    prompt.fill("secret draft")
    until(lambda: "secret draft" in page.evaluate(KEPT))


def test_signing_out_leaves_no_secrets_to_the_next(served: Shoal, page: Page) -> None:
    page.goto(served.url)
    sign_in(page, "ann", ANN)
    leave_secrets(page)
    with page.expect_navigation():
        page.get_by_role("button", name="Sign out").click()
    expect(dialog(page)).to_be_visible()
    assert "secret" not in page.evaluate(KEPT)
    sign_in(page, "bob", BOB)
    expect(page.locator(".signed-in")).to_contain_text("bob")
    expect(page.get_by_role("textbox", name="Prompt", exact=True)).to_have_value("")
    assert "secret" not in page.evaluate(KEPT)


def test_another_finds_no_secrets_after_a_session_has_ended(served: Shoal, page: Page) -> None:
    page.goto(served.url)
    sign_in(page, "ann", ANN)
    leave_secrets(page)
    with served.client as client:
        client.set_user("ann", password="another one")
    page.reload()
    expect(dialog(page)).to_be_visible()
    sign_in(page, "bob", BOB)
    expect(page.locator(".signed-in")).to_contain_text("bob")
    expect(page.get_by_role("textbox", name="Prompt", exact=True)).to_have_value("")
    assert "secret" not in page.evaluate(KEPT)
    # What is one's own stays through a sign-in.
    page.get_by_role("textbox", name="Prompt", exact=True).fill("bob's own")
    with served.client as client:
        client.set_user("bob", password="another one")
    expect(dialog(page)).to_be_visible()
    sign_in(page, "bob", "another one")
    expect(dialog(page)).to_have_count(0)
    page.reload()
    expect(page.get_by_role("textbox", name="Prompt", exact=True)).to_have_value("bob's own")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_it_fits_and_everybody_can_use_it(served: Shoal, new_page: NewPage, scheme: str, width: int) -> None:
    if not AXE.exists():
        pytest.skip("no axe-core here (make page-types)")
    with served.client as client:
        client.set_user(LONG.replace("/", "|"), role="read-only", password=BOB)
    page = new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(served.url)
    expect(dialog(page)).to_be_visible()
    sign_in(page, "nobody", BOB)
    expect(dialog(page).get_by_role("alert")).to_be_visible()
    page.evaluate(AXE.read_text(encoding="utf-8"))
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    sign_in(page, LONG.replace("/", "|"), BOB)
    expect(page.locator(".signed-in")).to_contain_text("<b>🐟<|b>")
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def violations(page: Page) -> list[str]:
    found = page.evaluate("axe.run().then((result) => result.violations)")
    return [f"{one['id']}: {json.dumps([node['html'][:160] for node in one['nodes'][:4]])}" for one in found]
