"""Keys, usage and virtual models by the page, against a real `shoal serve`."""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from shoal.client import Client
from shoal.dashboard import STATIC
from shoal.errors import ShoalError
from tests.dashboard.acts import button, choose, confirm
from tests.dashboard.conftest import NewPage
from tests.dashboard.keys import press, tab_to, write
from tests.dashboard.test_whole import AXE, violations
from tests.system.harness import Shoal, a_shoal, until

NAMES = ("alice", "bob", "alice 2", "spender")


@pytest.fixture(scope="module")
def shared() -> Iterator[Shoal]:
    with a_shoal(simulated_devices=["8GiB"]) as shoal:
        shoal.start()
        shoal.add("real", "--device-memory", "1GiB", "--tokens-per-second", "0")
        shoal.add("spare")
        shoal.load("real")
        yield shoal


@pytest.fixture
def served(shared: Shoal) -> Shoal:
    """No living keys and no virtual models, whatever an attempt before this one left."""
    with shared.client as client:
        living = client.keys()
        for key in living:
            client.revoke_key(key["id"])
        for one in client.virtual_models():
            client.remove_virtual_model(one["name"])
    return shared


def row(page: Page, name: str) -> Any:
    return page.get_by_role("row").filter(has=page.get_by_text(name, exact=True))


def key_of(client: Client, name: str) -> dict[str, Any]:
    living = client.keys()
    return next(key for key in living if key["name"] == name)


def works(served: Shoal, key: str) -> bool:
    with served.http(headers={"authorization": f"Bearer {key}"}) as http:
        return http.get("/v1/models").status_code == 200


def test_a_key_is_made_shown_once_changed_rotated_and_revoked(served: Shoal, page: Page) -> None:
    page.goto(f"{served.url}/#/access")
    expect(page.get_by_text("No keys yet")).to_be_visible()
    page.get_by_role("button", name="New key").click()
    form = page.get_by_role("form", name="New key")
    expect(form.get_by_role("textbox", name="Name")).to_be_focused()
    page.keyboard.type("alice")
    form.get_by_label("Requests a minute").fill("6000")
    form.get_by_label("Class").select_option("high")
    form.get_by_label("Last day").fill("2099-12-31")
    models = form.get_by_role("combobox", name="Models")
    models.fill("real")
    page.keyboard.press("Enter")
    expect(form.get_by_role("button", name="Take out real")).to_be_visible()
    command = "shoal keys create --model real --priority high --rpm 6000 --expires 2099-12-31 alice"
    expect(form.get_by_text(command, exact=True)).to_be_visible()
    form.get_by_role("button", name="Make the key").click()
    shown = page.get_by_role("region", name="The key alice")
    expect(shown.locator("code")).to_have_text(re.compile("^sk-shoal-[a-z0-9]{8}-[A-Za-z0-9]{32}$"))
    key = shown.locator("code").inner_text()
    until(lambda: works(served, key), "the key")
    with served.client as client:
        record = key_of(client, "alice")
    assert (record["models"], record["priority"], record["requests_per_minute"]) == (["real"], "high", 6000)
    end = datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)
    assert record["expires_at"] == end.timestamp()
    shown.get_by_role("button", name="I have it").click()
    expect(page.get_by_text(key)).to_have_count(0)
    row(page, "alice").get_by_role("button", name="Change alice").click()
    form = page.get_by_role("form", name="Change the key alice")
    expect(form.get_by_role("button", name="Save", exact=True)).to_be_disabled()
    form.get_by_label("Requests a minute").fill("")
    form.get_by_role("button", name="Take out real").click()
    command = f"shoal keys edit --all-models --rpm none {record['id']}"
    expect(form.get_by_text(command, exact=True)).to_be_visible()
    form.get_by_role("button", name="Save", exact=True).click()
    expect(row(page, "alice")).to_contain_text("every model")
    with served.client as client:
        changed = key_of(client, "alice")
    assert changed == record | {"models": [], "requests_per_minute": None} | {
        "last_used_at": changed["last_used_at"],
        "used": changed["used"],
    }
    row(page, "alice").get_by_role("button", name="Rotate alice").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("The secret that it has").select_option("3600")
    expect(dialog.get_by_text(f"shoal keys rotate --grace 1h {record['id']}", exact=True)).to_be_visible()
    dialog.get_by_role("button", name="Give another secret").click()
    expect(shown.locator("code")).to_contain_text(record["prefix"])
    second = shown.locator("code").inner_text()
    assert second != key
    until(lambda: works(served, second) and works(served, key), "both secrets")
    row(page, "alice").get_by_role("button", name="Revoke alice").click()
    expect(dialog).to_contain_text("It is the last key")
    expect(dialog).to_contain_text(f"shoal keys revoke {record['id']}")
    page.keyboard.press("Escape")
    expect(row(page, "alice")).to_contain_text("living")
    row(page, "alice").get_by_role("button", name="Revoke alice").click()
    dialog.get_by_role("button", name="Revoke", exact=True).click()
    expect(page.get_by_text("No keys yet")).to_be_visible()
    page.get_by_label("Those that were revoked, too").check()
    expect(row(page, "alice").first).to_contain_text("revoked")


def test_a_key_is_made_changed_rotated_and_revoked_by_keyboard(served: Shoal, page: Page) -> None:
    page.goto(f"{served.url}/#/access")
    press(page, button(page, "New key"))
    form = page.get_by_role("form", name="New key")
    expect(form.get_by_role("textbox", name="Name")).to_be_focused()
    page.keyboard.type("alice")
    choose(page, form.get_by_label("Class"), "high", "ArrowUp")
    write(page, form.get_by_label("Requests a minute"), "6000")
    tab_to(page, form.get_by_label("Last day"))
    page.keyboard.type("12312099")
    tab_to(page, form.get_by_role("combobox", name="Models"))
    for name in ("real", "spare"):
        page.keyboard.type(name)
        page.keyboard.press("Enter")
        expect(button(form, f"Take out {name}")).to_be_visible()
    tab_to(page, button(form, "Take out spare"))
    page.keyboard.press("Enter")
    expect(button(form, "Take out spare")).to_have_count(0)
    press(page, button(form, "Make the key"))
    shown = page.get_by_role("region", name="The key alice")
    first = shown.locator("code").inner_text()
    until(lambda: works(served, first), "the key")
    with served.client as client:
        record = key_of(client, "alice")
    assert (record["models"], record["priority"], record["requests_per_minute"]) == (["real"], "high", 6000)
    assert record["expires_at"] == datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC).timestamp()
    press(page, button(shown, "I have it"))
    expect(shown).to_have_count(0)
    press(page, button(page, "Change alice"))
    form = page.get_by_role("form", name="Change the key alice")
    write(page, form.get_by_label("Requests a minute"), "7")
    page.keyboard.press("Enter")  # in a field sends the form
    expect(row(page, "alice")).to_contain_text("7 requests/min")
    expect(button(page, "Change alice")).to_be_focused()
    press(page, button(page, "Rotate alice"))
    choose(page, page.get_by_role("dialog").get_by_label("The secret that it has"), "3600")
    press(page, button(page.get_by_role("dialog"), "Give another secret"))
    expect(shown.locator("code")).to_contain_text(record["prefix"])
    second = shown.locator("code").inner_text()
    assert second != first
    until(lambda: works(served, second) and works(served, first), "both secrets")
    press(page, button(page, "Revoke alice"))
    confirm(page, "Revoke")
    expect(page.get_by_text("No keys yet")).to_be_visible()


def test_what_is_refused_is_told_and_what_was_typed_stays(served: Shoal, page: Page) -> None:
    with served.client as client:
        client.create_key({"name": "bob"})
    page.goto(f"{served.url}/#/access")
    page.get_by_role("button", name="New key").click()
    form = page.get_by_role("form", name="New key")
    form.get_by_role("textbox", name="Name").fill("bob")
    form.get_by_label("Last day").fill("2001-01-01")
    form.get_by_role("button", name="Make the key").click()
    expect(form.get_by_role("alert")).to_contain_text("expires_at is in the past")
    form.get_by_label("Last day").fill("")
    form.get_by_role("button", name="Make the key").click()
    expect(form.get_by_role("alert")).to_contain_text("there is a key bob already")

    def nobody(route: Route) -> None:
        route.abort() if route.request.method == "POST" else route.continue_()

    page.route("**/api/v1/keys", nobody)
    form.get_by_role("textbox", name="Name").fill("alice 2")
    form.get_by_role("button", name="Make the key").click()
    expect(form.get_by_role("alert")).to_contain_text("Shoal does not answer")
    expect(form.get_by_role("textbox", name="Name")).to_have_value("alice 2")
    page.unroute_all()
    form.get_by_role("button", name="Make the key").click()
    expect(page.get_by_role("region", name="The key alice 2")).to_be_visible()


def test_a_day_that_is_none_is_a_fault_of_its_field(served: Shoal, page: Page) -> None:
    page.goto(f"{served.url}/#/access")
    page.get_by_role("button", name="New key").click()
    form = page.get_by_role("form", name="New key")
    form.get_by_role("textbox", name="Name").fill("for ever")
    day = form.get_by_label("Last day")
    expect(day).to_have_attribute("max", "9999-12-31")
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    # A year of five digits, however it came into the field.
    day.evaluate(
        """(field) => {
          field.removeAttribute("max");
          field.value = "12026-01-01";
          field.dispatchEvent(new Event("input", {bubbles: true}));
        }"""
    )
    expect(day).to_have_attribute("aria-invalid", "true")
    expect(form).to_contain_text("give a year of four digits")
    expect(form.get_by_role("button", name="Make the key")).to_be_disabled()
    form.evaluate("(form) => form.requestSubmit()")
    day.fill("2101-01-01")
    expect(day).not_to_have_attribute("aria-invalid", "true")
    expect(form.get_by_role("button", name="Make the key")).to_be_enabled()
    assert sent == []


def test_usage_is_shown_by_key_and_day(served: Shoal, page: Page) -> None:
    with served.client as client:
        key = client.create_key({"name": "spender"})
    body = {"model": "real", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
    with served.http(headers={"authorization": f"Bearer {key['key']}"}) as http:
        until(lambda: http.post("/v1/chat/completions", json=body).status_code == 200, "an answer")
    with served.client as client:
        until(lambda: client.usage(["key"], key=key["id"])["usage"], "its usage")
    page.goto(f"{served.url}/#/access")
    row(page, "spender").get_by_role("button", name="Usage of spender").click()
    expect(page).to_have_url(re.compile(f"key={key['id']}"))
    usage = page.get_by_role("table", name="Usage")
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    expect(usage.get_by_role("row").nth(1)).to_contain_text(today)
    page.get_by_role("combobox", name="By", exact=True).select_option("key,model")
    expect(usage.get_by_role("row").nth(1)).to_contain_text("real")
    expect(usage.get_by_role("row").nth(1)).to_contain_text("spender")
    expect(page.get_by_text(re.compile(f"^shoal usage --by key,model --from .* --key {key['id']}$"))).to_be_visible()
    page.reload()
    expect(usage.get_by_role("row").nth(1)).to_contain_text("spender")
    page.get_by_role("combobox", name="Key", exact=True).select_option("-")
    expect(page.get_by_text(re.compile("Nothing was used since"))).to_be_visible()


def test_a_virtual_model_is_added_changed_and_removed(served: Shoal, page: Page) -> None:
    page.goto(f"{served.url}/#/access")
    page.get_by_role("button", name="Add a virtual model").click()
    form = page.get_by_role("form", name="Add a virtual model")
    form.get_by_role("textbox", name="Name").fill("exact/one")
    form.get_by_role("combobox", name="Model").fill("real")
    form.get_by_label("Fields to replace").fill("temperature")
    expect(form.get_by_text("Line 1 is not name=value.")).to_be_visible()
    expect(form.get_by_role("button", name="Add", exact=True)).to_be_disabled()
    form.get_by_label("Fields to replace").fill('temperature=0\nstop=["a b"]')
    form.get_by_label("Fields to add where they are missing").fill("user=it's")
    form.get_by_label("System message").fill("Be brief.")
    form.get_by_role("combobox", name="Fallbacks").fill("spare")
    page.keyboard.press("Enter")
    command = (
        r"""shoal virtual set --model real --set temperature=0 --set 'stop=["a b"]' --default 'user=it'\''s' """
        "--system 'Be brief.' --fallback spare exact/one"
    )
    expect(form.get_by_text(command, exact=True)).to_be_visible()
    form.get_by_role("button", name="Add", exact=True).click()
    expect(row(page, "exact/one")).to_contain_text("real → spare")
    with served.client as client:
        [view] = client.virtual_models()
    assert view["spec"]["set"] == {"temperature": 0, "stop": ["a b"]} and view["spec"]["defaults"] == {"user": "it's"}
    page.get_by_role("button", name="Change exact/one").click()
    form = page.get_by_role("form", name="Change exact/one")
    expect(form.get_by_label("Fields to replace")).to_have_value('temperature=0\nstop=["a b"]')
    form.get_by_role("combobox", name="Model").fill("exact/one")
    form.get_by_role("button", name="Save", exact=True).click()
    expect(form.get_by_role("alert")).to_contain_text("cannot stand for itself")
    form.get_by_role("combobox", name="Model").fill("spare")
    form.get_by_role("button", name="Take out spare").click()
    form.get_by_role("button", name="Save", exact=True).click()
    expect(row(page, "exact/one")).not_to_contain_text("→")
    page.get_by_role("button", name="Remove exact/one").click()
    expect(page.get_by_role("dialog")).to_contain_text("shoal virtual rm exact/one")
    page.get_by_role("dialog").get_by_role("button", name="Remove", exact=True).click()
    expect(page.get_by_text("No virtual models yet")).to_be_visible()


def test_a_virtual_model_is_added_changed_and_removed_by_keyboard(served: Shoal, page: Page) -> None:
    page.goto(f"{served.url}/#/access")
    press(page, button(page, "Add a virtual model"))
    form = page.get_by_role("form", name="Add a virtual model")
    expect(form.get_by_role("textbox", name="Name")).to_be_focused()
    page.keyboard.type("exact/keys")
    write(page, form.get_by_role("combobox", name="Model", exact=True), "real")
    tab_to(page, form.get_by_role("combobox", name="Fallbacks"))
    page.keyboard.type("spare")
    page.keyboard.press("Enter")
    tab_to(page, form.get_by_label("Fields to replace"))
    page.keyboard.type("temperature=0")
    page.keyboard.press("Enter")  # begins a line
    page.keyboard.type("seed=1")
    press(page, button(form, "Add"))
    expect(row(page, "exact/keys")).to_contain_text("real → spare")
    press(page, button(page, "Change exact/keys"))
    form = page.get_by_role("form", name="Change exact/keys")
    write(page, form.get_by_label("System message"), "Be brief.")
    press(page, button(form, "Save"))
    expect(row(page, "exact/keys")).to_contain_text("temperature=0, seed=1, system message")
    with served.client as client:
        [view] = client.virtual_models()
    assert view["spec"]["set"] == {"temperature": 0, "seed": 1}
    assert view["spec"]["system"] == "Be brief."
    press(page, button(page, "Remove exact/keys"))
    confirm(page, "Remove")
    expect(page.get_by_text("No virtual models yet")).to_be_visible()


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js here")
def test_fields_as_lines_of_text(tmp_path: Path) -> None:
    shutil.copy(STATIC / "components" / "virtual_text.js", tmp_path / "text.mjs")
    fields: dict[str, Any] = {
        "a": 1, "b": "7", "c": "text with = and 'quotes'", "d": None, "e": ["x", {"y": 1}], "f": "two\nlines", "g": "",
        "h": " blank ", "i": "true", "j": False, "__proto__x": "שלום 🐟", "k": '"quoted"', "l": 1.5e300,
    }  # fmt: skip
    script = f"""
      import {{ fieldsOf, linesOf }} from "./text.mjs";
      const fields = {json.dumps(fields)};
      const errors = ["a", "=1", "a=1\\n\\na=2", " = x"].map((text) => fieldsOf(text).error);
      console.log(JSON.stringify([fieldsOf(linesOf(fields).join("\\n")), errors, fieldsOf(" \\n b = x=y \\n").fields]));
    """
    done = subprocess.run(
        ["node", "--input-type=module", "-e", script],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    there_and_back, errors, spaced = json.loads(done.stdout)
    assert there_and_back == {"fields": fields, "error": ""}
    assert errors == ["Line 1 is not name=value.", "Line 1 is not name=value.", "Line 3 has a a second time.",
                      "Line 1 is not name=value."]  # fmt: skip
    assert spaced == {"b": "x=y"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_it_fits_and_everybody_can_use_it(served: Shoal, new_page: NewPage, scheme: str, width: int) -> None:
    if not AXE.exists():
        pytest.skip("no axe-core here (make page-types)")
    odd = "<img src=x onerror=alert(1)> 🐟 שלום " + "w" * 60
    with served.client as client, contextlib.suppress(ShoalError):
        client.create_key({"name": odd, "models": ["real", "m" * 200], "concurrent": 3})
        client.put_virtual_model("v" * 200, {"model": "real", "set": {"w" * 200: "x" * 300}})
    page = new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(f"{served.url}/#/access")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    page.get_by_role("button", name=f"Change {odd}").click()
    page.get_by_role("button", name="Add a virtual model").click()
    expect(page.get_by_role("form", name="Add a virtual model")).to_be_visible()
    assert page.locator("main img").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert violations(page) == []
    page.get_by_role("button", name=f"Rotate {odd}").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert violations(page) == []


def test_who_may_only_look_is_offered_nothing_to_do(served: Shoal, page: Page) -> None:
    with served.client as client:
        client.create_key({"name": "bob"})
        client.put_virtual_model("seen", {"model": "real"})
        with contextlib.suppress(ShoalError):
            client.save_preset("seen")

    def answer(route: Route) -> None:
        route.fulfill(json={"needed": True, "name": "ann", "role": "read-only"})

    page.route("**/api/v1/session", answer)
    page.goto(f"{served.url}/#/access")
    expect(row(page, "bob").get_by_role("button")).to_have_text(["Usage"])
    expect(row(page, "seen").get_by_role("button")).to_have_count(0)
    expect(page.get_by_role("button", name=re.compile("New key|Add a virtual model"))).to_have_count(0)
    page.get_by_role("link", name="Presets").click()
    seen = page.get_by_role("listitem", name="seen", exact=True)
    expect(seen.get_by_role("button")).to_have_text(["Plan", "Show"])
    seen.get_by_role("button", name="Plan").click()
    expect(seen.get_by_role("table", name="Steps to seen")).to_be_visible()
    expect(seen.get_by_role("button", name=re.compile("^Apply"))).to_have_count(0)
    expect(page.get_by_role("button", name=re.compile("Save what runs|Import"))).to_have_count(0)
