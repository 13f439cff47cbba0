"""Going through a page by the keyboard alone, as somebody without a mouse does."""

from __future__ import annotations

from playwright.sync_api import Locator, Page, expect

FAR = 250
"""Presses of Tab after which a control counts as out of reach."""


def tab_to(page: Page, target: Locator) -> None:
    """Press Tab until the control has the focus. Fails if Tab does not get there."""
    expect(target).to_be_enabled()
    for _ in range(FAR):
        if target.evaluate("control => control === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab does not reach {target}")


def press(page: Page, target: Locator, key: str = "Enter") -> None:
    """Go to a control by Tab and press a key there."""
    tab_to(page, target)
    page.keyboard.press(key)


def write(page: Page, target: Locator, text: str) -> None:
    """Go to a field by Tab, which chooses what is in it, and type over that."""
    tab_to(page, target)
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type(text)
