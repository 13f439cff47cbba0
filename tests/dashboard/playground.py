"""The playground as somebody uses it."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Locator, Page, expect

from tests.system.harness import Shoal

FOUR = ("one", "two", "three", "four")


def go(page: Page, served: Shoal, *models: str) -> None:
    page.goto(f"{served.url}/#/playground?{'&'.join(f'models={name}' for name in models)}")
    expect(page.get_by_role("combobox", name="Model")).to_have_count(len(models))
    expect(page.get_by_role("combobox", name="Model").first).to_have_value(models[0])


def prompt(page: Page) -> Locator:
    return page.get_by_role("textbox", name="Prompt", exact=True)


def say(page: Page, text: str) -> None:
    prompt(page).fill(text)
    prompt(page).press("Enter")


def answer(page: Page, name: str) -> Locator:
    """The last answer of a model."""
    return page.get_by_role("article", name=f"Answer of {name}", exact=True).last


def under_way(served: Shoal, model: str) -> list[Any]:
    with served.http() as http:
        found: list[Any] = http.get("/api/v1/requests", params={"model": model}).json()["requests"]
    return found
