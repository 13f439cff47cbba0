"""What is done on a page by mouse and by keyboard alike."""

from __future__ import annotations

from typing import Literal

from playwright.sync_api import Locator, Page, expect

from tests.dashboard.keys import press, tab_to

By = Literal["mouse", "keyboard"]
LONGEST = 60
"""Options of a list, beyond which an arrow key counts as without effect."""


def button(within: Page | Locator, name: str) -> Locator:
    return within.get_by_role("button", name=name, exact=True)


def use(page: Page, control: Locator, by: By) -> None:
    if by == "mouse":
        control.click()
    else:
        press(page, control)


def choose(page: Page, field: Locator, value: str, key: str = "ArrowDown") -> None:
    """Go to a list by Tab, and by an arrow key to one of its options."""
    tab_to(page, field)
    for _ in range(LONGEST):
        if field.input_value() == value:
            break
        page.keyboard.press(key)
    expect(field).to_have_value(value)


def confirm(page: Page, word: str, by: By = "keyboard") -> None:
    """Say yes to the question that is open. It stands at Cancel, so that Enter alone does nothing."""
    question = page.get_by_role("dialog")
    expect(button(question, "Cancel")).to_be_focused()
    use(page, button(question, word), by)
    expect(question).to_have_count(0)
