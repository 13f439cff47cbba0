"""The reference of the admin API at `/api/docs`, against a real `shoal serve`, and what it makes of odd words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from tests.dashboard.conftest import NewPage
from tests.system.harness import Shoal, a_shoal

AXE = Path(__file__).parents[2] / "tools" / "node_modules" / "axe-core" / "axe.min.js"


@pytest.fixture(scope="module")
def served() -> Iterator[Shoal]:
    with a_shoal() as shoal:
        shoal.start()
        yield shoal


def opened(page: Page, served: Shoal, anchor: str = "") -> Page:
    page.goto(f"{served.url}/api/docs{anchor}")
    return page


def operation(page: Page, method: str, path: str) -> Locator:
    title = page.locator("summary").filter(has=page.get_by_text(path, exact=True))
    return page.locator("details").filter(has=title.filter(has=page.get_by_text(method, exact=True)))


def answer(page: Page, body: Any, status: int = 200) -> None:
    def fulfil(route: Route) -> None:
        text = body if isinstance(body, str) else json.dumps(body)
        route.fulfill(status=status, content_type="application/json", body=text)

    page.route("**/api/openapi.json", fulfil)


def test_every_path_is_listed_and_nothing_comes_from_elsewhere(served: Shoal, page: Page) -> None:
    hosts = set()
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    opened(page, served)
    post = operation(page, "POST", "/api/v1/models")
    expect(post.locator("summary")).to_contain_text("Add Model")
    with served.http() as http:
        described = http.get("/api/openapi.json").json()
    operations = sum(len(methods) for methods in described["paths"].values())
    expect(page.locator("summary .method")).to_have_count(operations)
    expect(page.locator('details[id^="schema-"]')).to_have_count(len(described["components"]["schemas"]))
    expect(post.get_by_text("Declare a model.")).to_be_hidden()
    post.locator("summary").click()
    expect(post.get_by_text("Declare a model.")).to_be_visible()
    expect(post.locator("dt").filter(has_text="tensor_parallel")).to_have_text("tensor_parallel integer, default 1")
    assert hosts == {urlsplit(served.url).netloc}


def test_a_schema_is_gone_to_by_its_name_and_words_are_found(served: Shoal, page: Page) -> None:
    opened(page, served)
    folders = operation(page, "GET", "/api/v1/folders")
    folders.locator("summary").focus()
    page.keyboard.press("Enter")
    expect(folders.locator("dt").filter(has_text="path")).to_have_text("path string | null, in the query")
    folders.get_by_role("link", name="FolderList", exact=True).click()
    expect(page.locator("#schema-FolderList").get_by_text("left_out", exact=True)).to_be_visible()
    page.get_by_label("Find").fill("GET folders")
    expect(page.locator("summary .method:visible")).to_have_count(1)
    expect(folders).to_be_visible()
    expect(page.get_by_role("heading", name="system")).to_be_hidden()
    page.get_by_label("Find").fill("")
    expect(operation(page, "POST", "/api/v1/models")).to_be_visible()


def test_an_address_with_a_schema_opens_it(served: Shoal, page: Page) -> None:
    opened(page, served, "#schema-FolderView")
    expect(page.locator("#schema-FolderView").get_by_text("weights", exact=True)).to_be_visible()


def test_html_in_a_description_is_text(served: Shoal, page: Page) -> None:
    odd = "<img src=x onerror=alert(1)> 🐟 שלום " + "w" * 200
    schema = {"type": "object", "properties": {odd: {"$ref": f"#/x/{odd}", "description": odd}}, "required": [odd]}
    parameter = {"name": odd, "in": "query", "required": True, "description": odd, "schema": {"enum": [odd, None]}}
    get = {"summary": odd, "description": odd, "parameters": [parameter], "responses": {"200": {"description": odd}}}
    answer(page, {"info": {"title": odd}, "paths": {f"/{odd}": {"get": get}}, "components": {"schemas": {odd: schema}}})
    opened(page, served)
    for title in page.locator("summary").all():
        title.click()
    expect(page.locator("dt").first).to_contain_text(odd)
    assert page.locator("main img").count() == 0
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"error": {"message": "<b>sign in</b> first"}}, 401, "<b>sign in</b> first"),
        ("<html>", 502, "Shoal answered 502, and no JSON."),
        ({}, 500, "Shoal answered 500."),
    ],
)
def test_why_there_is_nothing_is_said(served: Shoal, page: Page, body: Any, status: int, said: str) -> None:
    answer(page, body, status)
    opened(page, served)
    expect(page.get_by_role("alert")).to_have_text(said)


def test_a_shoal_that_does_not_answer_is_said(served: Shoal, page: Page) -> None:
    page.route("**/api/openapi.json", lambda route: route.abort())
    opened(page, served)
    expect(page.get_by_role("alert")).to_contain_text("Shoal does not answer")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_it_fits_and_everybody_can_use_it(served: Shoal, new_page: NewPage, scheme: str, width: int) -> None:
    if not AXE.exists():
        pytest.skip("no axe-core here (make page-types)")
    page = opened(new_page(viewport={"width": width, "height": 900}, color_scheme=scheme), served)
    operation(page, "POST", "/api/v1/models").locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run().then(({ violations }) => violations.map((one) => one.id))")
    assert found == []
