"""Copying commands, keys and programs, and what is said where the browser lends no clipboard."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.dashboard.acts import By, button, use
from tests.dashboard.conftest import NewPage
from tests.system.harness import Shoal, a_shoal

COPY = "Copy the command shoal keys create copied"
BY_HAND = "Select and copy it by hand"
NO_CLIPBOARD = {
    "a page without TLS": "Object.defineProperty(navigator, 'clipboard', {value: undefined});",
    "a refusal": """Object.defineProperty(navigator.clipboard, "writeText", {
      value: () => Promise.reject(new DOMException("Write permission denied.", "NotAllowedError")),
    });""",
}


@pytest.fixture(scope="module")
def shared() -> Iterator[Shoal]:
    with a_shoal(simulated_devices=["8GiB"]) as shoal:
        shoal.start()
        shoal.add("real")
        yield shoal


@pytest.fixture
def served(shared: Shoal) -> Shoal:
    """Without keys, whatever an attempt before this one left."""
    with shared.client as client:
        living = client.keys()
        for key in living:
            client.revoke_key(key["id"])
    return shared


def fill_in(page: Page, served: Shoal) -> Locator:
    page.goto(f"{served.url}/#/access")
    button(page, "New key").click()
    form = page.get_by_role("form", name="New key")
    form.get_by_role("textbox", name="Name").fill("copied")
    return form


def clipboard(page: Page) -> str:
    return str(page.evaluate("navigator.clipboard.readText()"))


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_a_command_a_key_and_a_program_are_copied(served: Shoal, new_page: NewPage, by: By) -> None:
    page = new_page(permissions=["clipboard-read", "clipboard-write"])
    form = fill_in(page, served)
    use(page, button(form, COPY), by)
    expect(form.locator(".command").get_by_role("status")).to_have_text("Copied")
    assert clipboard(page) == "shoal keys create copied"
    form.get_by_label("Requests a minute").fill("5")  # another command, which is not copied yet
    expect(form.locator(".command").get_by_role("status")).to_have_text("")
    use(page, button(form, "Make the key"), by)
    shown = page.get_by_role("region", name="The key copied")
    use(page, button(shown, "Copy the key"), by)
    expect(shown.get_by_role("status")).to_have_text("Copied")
    assert clipboard(page) == shown.locator("code").inner_text()
    page.goto(f"{served.url}/#/models/real")
    calling = page.get_by_role("region", name="How to call it", exact=True)
    use(page, button(calling, "Python"), by)
    expect(calling.locator(".program")).to_contain_text("from openai import OpenAI")
    expect(calling.locator(".program")).to_contain_text("SHOAL_API_KEY")
    use(page, button(calling, "Copy the Python program"), by)
    expect(calling.locator(".languages").get_by_role("status")).to_have_text("Copied")
    assert clipboard(page) == calling.locator(".program").inner_text()
    use(page, button(calling, "curl"), by)
    expect(calling.locator(".languages").get_by_role("status")).to_have_text("")


def is_selected(page: Page, text: Locator) -> None:
    text.select_text()
    assert page.evaluate("getSelection().toString()") == text.inner_text()


@pytest.mark.parametrize("why", NO_CLIPBOARD)
@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_without_a_clipboard_it_says_how_to_copy(served: Shoal, page: Page, by: By, why: str) -> None:
    page.add_init_script(NO_CLIPBOARD[why])
    form = fill_in(page, served)
    use(page, button(form, COPY), by)
    expect(form.locator(".command").get_by_role("status")).to_have_text(BY_HAND)
    is_selected(page, form.locator(".command code"))
    button(form, "Make the key").click()
    shown = page.get_by_role("region", name="The key copied")
    use(page, button(shown, "Copy the key"), by)
    expect(shown.get_by_role("status")).to_have_text(BY_HAND)
    is_selected(page, shown.locator("code"))
    page.goto(f"{served.url}/#/models/real")
    calling = page.get_by_role("region", name="How to call it", exact=True)
    expect(calling.locator(".program")).to_contain_text("SHOAL_API_KEY")  # it is known by now that there is a key
    use(page, button(calling, "Copy the curl program"), by)
    expect(calling.locator(".languages").get_by_role("status")).to_have_text(BY_HAND)
    is_selected(page, calling.locator(".program"))
