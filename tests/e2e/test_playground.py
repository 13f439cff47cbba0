"""The page with a real engine: a model is loaded by its button and talked to in the playground."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from tests.dashboard.conftest import browser, new_page, page  # noqa: F401
from tests.e2e.conftest import settings
from tests.e2e.elastic import START
from tests.system.harness import Shoal, a_shoal, until

PATIENCE = 120_000


@pytest.fixture(scope="module")
def served(source: Path) -> Iterator[Shoal]:
    """A Shoal that knows the model and has not loaded it."""
    with a_shoal(health_interval=1) as shoal:
        shoal.start()
        with shoal.client as client:
            client.add_model({"name": "smollm2", **settings(source)})
        yield shoal
        assert shoal.stop() == 0


def endless(route: Route) -> None:
    """Have the engine write until it is stopped, whatever the model finds to say."""
    route.continue_(post_data={**(route.request.post_data_json or {}), "ignore_eos": True})


def test_a_model_is_loaded_and_talked_to_by_the_page(served: Shoal, page: Page) -> None:  # noqa: F811
    page.goto(served.url)
    page.get_by_role("button", name="Load smollm2", exact=True).click()
    badge = page.locator('.model[aria-label="smollm2"] .row .badge')
    expect(page.get_by_role("progressbar")).to_be_visible(timeout=PATIENCE)
    expect(badge).to_have_attribute("data-state", "ready", timeout=1000 * START)

    page.get_by_role("link", name="Playground").click()
    page.get_by_role("combobox", name="Model").select_option("smollm2")
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_label("Temperature").first.fill("0")
    page.get_by_label("Most tokens").first.fill("32")
    prompt = page.get_by_role("textbox", name="Prompt", exact=True)
    prompt.fill("What is the capital of France? Answer in one sentence.")
    prompt.press("Enter")
    answer = page.get_by_role("article", name="Answer of smollm2").last
    expect(answer).to_have_attribute("data-state", "done", timeout=PATIENCE)
    expect(answer).to_contain_text("Paris")
    for word in ("first token", "tokens/s", "prompt tokens", "answer tokens"):
        expect(answer.locator("dl")).to_contain_text(word)
    with served.http() as http:
        body = {"model": "smollm2", "max_tokens": 32, "temperature": 0, "messages": [
            {"role": "user", "content": "What is the capital of France? Answer in one sentence."}]}  # fmt: skip
        whole = http.post("/v1/chat/completions", json=body, timeout=300).json()
    assert f"answer tokens{whole['usage']['completion_tokens']}" in (answer.locator("dl").text_content() or "")

    page.route("**/v1/chat/completions", endless)
    page.get_by_label("Most tokens").first.fill("1500")
    prompt.fill("Count from one to one thousand in words.")
    prompt.press("Enter")
    expect(answer.locator(".prose")).to_be_visible(timeout=PATIENCE)
    page.keyboard.press("Escape")
    expect(answer).to_have_attribute("data-state", "stopped")

    def ended() -> bool:
        with served.http() as http:
            return not http.get("/api/v1/requests").json()["requests"]

    until(ended, "the end of the request in the engine")
