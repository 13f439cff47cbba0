"""The opening of the page: before anything is told, and of one that was opened before Shoal was changed."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Route, expect

from tests.dashboard.conftest import NewPage
from tests.system.harness import Shoal, a_shoal


@pytest.fixture(scope="module")
def served() -> Iterator[Shoal]:
    with a_shoal() as shoal:
        shoal.start()
        yield shoal


def test_a_view_of_another_release_is_not_mixed_in(served: Shoal, new_page: NewPage) -> None:
    page = new_page()
    old = "0123456789abcdef"

    def as_before(route: Route) -> None:
        answer = route.fetch(url=route.request.url.replace(old, release))
        route.fulfill(response=answer)

    with served.http() as http:
        index = http.get("/").text
    found = re.search(r"static/([0-9a-f]{16})/app\.js", index)
    assert found is not None
    release = found[1]
    # The page begins with the files of a release that is no longer there; what it asks for later is asked of Shoal.
    page.route(
        f"{served.url}/",
        lambda route: route.fulfill(body=index.replace(release, old), content_type="text/html"),
        times=1,
    )
    for name in ("app.js", "theme.js+early.js", "base.css+overview.css"):
        page.route(f"**/static/{old}/{name}", as_before)
    page.goto(f"{served.url}/")
    expect(page.locator("#connection")).to_have_text("Live")
    page.get_by_role("link", name="Requests").click()
    expect(page.get_by_text("Shoal was changed since this page was opened")).to_be_visible()
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("heading", name="Requests", level=2)).to_be_visible()
    assert page.evaluate("location.hash") == "#/requests"


def test_the_page_is_drawn_though_the_stream_tells_nothing_yet(served: Shoal, new_page: NewPage) -> None:
    page = new_page()
    held: list[Route] = []
    page.route("**/api/v1/events", lambda route: held.append(route), times=1)
    page.goto(f"{served.url}/")
    expect(page.locator("main")).to_contain_text("Reading what there is…")
    expect(page.locator("#connection")).to_have_text("Connecting…")
    held[0].continue_()
    expect(page.locator("#connection")).to_have_text("Live")
    expect(page.get_by_role("heading", name="Devices")).to_be_visible()
