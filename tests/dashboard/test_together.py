"""Two people at one Shoal: both see what each of them does, and who comes second is told why it cannot be."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from shoal.errors import ShoalError
from tests.dashboard.conftest import NewPage
from tests.system.harness import Shoal, a_shoal

FIRST, SECOND = "simulated:0", "simulated:1"
NAME = "shared"


@pytest.fixture(scope="module")
def served() -> Iterator[Shoal]:
    with a_shoal(simulated_devices=["8GiB", "4GiB"]) as shoal:
        yield shoal.start()


@pytest.fixture
def both(served: Shoal, new_page: NewPage) -> Iterator[tuple[Page, Page]]:
    """Two pages on a model that is not loaded. Neither may be fetched anew."""
    declare(served)
    pages = (new_page(), new_page())
    for page in pages:
        page.goto(served.url)
        expect(badge(page)).to_have_attribute("data-state", "unloaded")
        page.evaluate("window.stayed = true")
    yield pages
    assert all(page.evaluate("window.stayed") for page in pages)


def declare(served: Shoal, *args: str, **settings: Any) -> None:
    with served.client as client, contextlib.suppress(ShoalError):
        client.remove_model(NAME, unload=True)
    served.add(NAME, "--enable-sleep-mode", "--device-memory", "300MiB", *args, **{"devices": [FIRST], **settings})


def row(page: Page) -> Locator:
    return page.locator(f'.model[aria-label="{NAME}"]')


def badge(page: Page) -> Locator:
    return row(page).locator(".row .badge")


def alert(page: Page) -> Locator:
    return page.locator(".notices[role=alert]")


def button(page: Page, word: str) -> Locator:
    """What is offered first for the model."""
    return page.get_by_role("button", name=f"{word} {NAME}", exact=True)


def both_in(pages: tuple[Page, Page], state: str) -> None:
    for page in pages:
        expect(badge(page)).to_have_attribute("data-state", state)


def loaded(served: Shoal, pages: tuple[Page, Page]) -> None:
    served.load(NAME)
    both_in(pages, "ready")
    for page in pages:
        if not row(page).locator(".details").is_visible():
            page.get_by_role("button", name=f"Details of {NAME}", exact=True).click()


@contextlib.contextmanager
def late(page: Page, pattern: str, press: Callable[[], None]) -> Iterator[None]:
    """What `press` asks for comes to Shoal only after the body of this: somebody else was quicker."""
    held: list[Route] = []
    page.route(pattern, lambda route: held.append(route))
    with page.expect_request(pattern):
        press()
    yield
    with page.expect_response(pattern):
        held.pop().continue_()
    page.unroute(pattern)


def unload(page: Page) -> None:
    row(page).get_by_role("button", name="Unload", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Unload", exact=True).click()


def test_what_one_does_both_see(served: Shoal, both: tuple[Page, Page]) -> None:
    one, other = both
    for page, word, state in ((one, "Load", "ready"), (other, "Sleep", "sleeping"), (one, "Wake", "ready")):
        button(page, word).click()
        both_in(both, state)
    one.get_by_role("button", name=f"Details of {NAME}", exact=True).click()
    row(one).get_by_role("button", name="Pin", exact=True).click()
    for page in both:
        expect(row(page).locator(".pin")).to_be_visible()
    unload(one)
    both_in(both, "unloaded")
    for page in both:
        expect(page.locator("#events")).to_contain_text(re.compile(f"{NAME}[^:]*: unloaded"))
        expect(alert(page)).to_be_empty()
        expect(button(page, "Load")).to_be_enabled()


def test_who_both_load_it_load_it_once(served: Shoal, both: tuple[Page, Page]) -> None:
    one, other = both
    with late(other, "**/load", button(other, "Load").click):
        button(one, "Load").click()
        expect(badge(one)).to_have_attribute("data-state", "ready")
    both_in(both, "ready")
    assert len(served.model(NAME)["instances"]) == 1
    for page in both:
        expect(alert(page)).to_be_empty()
        expect(button(page, "Sleep")).to_be_enabled()


def test_who_presses_what_is_over_is_told_why(served: Shoal, both: tuple[Page, Page]) -> None:
    one, other = both
    loaded(served, both)
    with late(other, "**/sleep", button(other, "Sleep").click):
        unload(one)
        both_in(both, "unloaded")
    expect(alert(other)).to_contain_text(f"{NAME} is not loaded: there is nothing to put to sleep (shoal sleep {NAME})")
    expect(alert(one)).to_be_empty()
    both_in(both, "unloaded")
    with late(other, "**/load", button(other, "Load").click), served.client as client:
        client.remove_model(NAME)
        for page in both:
            expect(row(page)).to_have_count(0)
    expect(alert(other)).to_contain_text(f"there is no model {NAME}")
    for page in both:
        expect(row(page)).to_have_count(0)


def test_a_question_that_is_settled_meanwhile_says_so(served: Shoal, both: tuple[Page, Page]) -> None:
    """What it says would be lost is what is there now; once another has done it, there is nothing to say yes to."""
    one, other = both
    loaded(served, both)
    row(other).get_by_role("button", name="Unload", exact=True).click()
    asked = other.get_by_role("dialog")
    yes = asked.get_by_role("button", name="Unload", exact=True)
    expect(asked).to_contain_text("Running requests may finish.")
    button(one, "Sleep").click()
    expect(asked).to_contain_text("Its weights leave the host's memory")
    expect(yes).to_be_enabled()
    unload(one)
    both_in(both, "unloaded")
    expect(asked.get_by_role("status").first).to_have_text(
        f"It cannot be done now: {NAME} is unloaded. Somebody else was quicker, or it happened by itself."
    )
    expect(asked).not_to_contain_text("Its weights")
    expect(yes).to_be_disabled()
    other.keyboard.press("Escape")
    expect(asked).to_have_count(0)
    both_in(both, "unloaded")
    expect(button(other, "Load")).to_be_enabled()


def test_a_question_about_a_model_that_is_removed_says_so(served: Shoal, both: tuple[Page, Page]) -> None:
    _, other = both
    loaded(served, both)
    row(other).get_by_role("button", name="Unload", exact=True).click()
    with served.client as client:
        client.remove_model(NAME, unload=True)
    asked = other.get_by_role("dialog")
    expect(asked.get_by_role("status").first).to_contain_text(f"It cannot be done now: {NAME} is not there any more.")
    expect(asked.get_by_role("button", name="Unload", exact=True)).to_be_disabled()
    asked.get_by_role("button", name="Cancel").click()
    for page in both:
        expect(row(page)).to_have_count(0)


def move_asked(page: Page) -> Locator:
    row(page).get_by_role("button", name="Move…").click()
    asked = page.get_by_role("dialog", name=f"Move {NAME}")
    expect(asked.locator(".fit-verdict")).to_contain_text("It fits")
    return asked


def test_one_moves_what_the_other_has_unloaded(served: Shoal, both: tuple[Page, Page]) -> None:
    one, other = both
    loaded(served, both)
    asked = move_asked(other)
    move = asked.get_by_role("button", name="Move it")
    with late(other, "**/api/v1/moves", move.click):
        unload(one)
        both_in(both, "unloaded")
    expect(asked.get_by_role("alert")).to_have_text(
        f"{NAME} is not loaded: there is nothing to move; load it with `shoal load {NAME}`"
    )
    expect(asked).to_contain_text("There is nowhere to move it now: it does not serve")
    expect(move).to_be_disabled()
    other.keyboard.press("Escape")
    expect(asked).to_have_count(0)
    both_in(both, "unloaded")


def test_both_move_it_and_one_unloads_it_on_its_way(served: Shoal, both: tuple[Page, Page]) -> None:
    one, other = both
    loaded(served, both)
    slow = ["--enable-sleep-mode", "--device-memory", "300MiB", "--start-seconds", "600"]
    with served.client as client:
        client.change_model(NAME, {"args": slow})
    asked = move_asked(other)
    with late(other, "**/api/v1/moves", asked.get_by_role("button", name="Move it").click):
        move_asked(one).get_by_role("button", name="Move it").click()
        for page in both:
            expect(page.get_by_role("list", name="Moves under way")).to_contain_text("another one loads")
    expect(asked.get_by_role("alert")).to_contain_text(f"{NAME} is being moved already")
    other.keyboard.press("Escape")
    unload(other)
    for page in both:
        expect(page.get_by_role("list", name="Moves under way")).to_be_hidden()
        expect(alert(page)).to_contain_text(f"{NAME} was not moved")
    both_in(both, "unloaded")
    assert served.model(NAME)["instances"] == []
