"""Adding a model by the page: from a folder to a model that serves, and what happens on the way if it does not."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from shoal.errors import ShoalError
from tests.dashboard.conftest import NewPage
from tests.dashboard.keys import press, write
from tests.dashboard.test_whole import AXE, violations
from tests.system.harness import Shoal, a_shoal, until

COMMAND = ".send .command code"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shoal]:
    """Two devices, of which a model that can sleep fills most of the second; a home with a folder of models."""
    home = tmp_path_factory.mktemp("home").resolve()
    for name in ("qwen3-8b", "<b>שלום 🐟"):
        folder = home / "models" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
        (folder / "model.safetensors").write_bytes(b"")
    (home / "notes").mkdir()
    with a_shoal(simulated_devices=["8GiB", "4GiB"]) as shoal:
        shoal.env = {"HOME": str(home)}
        shoal.start()
        shoal.add("sleeper", "--device-memory", "3GiB", "--enable-sleep-mode", devices=["simulated:1"])
        shoal.load("sleeper")
        yield shoal


def gone(served: Shoal, *names: str) -> None:
    """Forget models that an attempt before this one may have left."""
    with served.client as client:
        for name in names:
            with contextlib.suppress(ShoalError):
                client.remove_model(name, unload=True)


def opened(page: Page, served: Shoal) -> Page:
    page.goto(f"{served.url}/#/add")
    expect(page.get_by_role("heading", name="Add a model")).to_be_visible()
    return page


def field(page: Page, word: str) -> Any:
    return page.get_by_label(word, exact=True)


def arguments(page: Page, text: str) -> None:
    if not field(page, "Engine arguments").is_visible():
        page.get_by_text("Advanced settings").click()
    field(page, "Engine arguments").fill(text)


def test_a_model_is_chosen_from_folders_and_served(served: Shoal, page: Page) -> None:
    gone(served, "qwen3-8b", "from-page")
    page.goto(served.url)
    page.get_by_role("link", name="Add a model").click()
    page.get_by_role("button", name="Browse…").click()
    page.get_by_role("button", name="models", exact=True).click()
    expect(page.get_by_role("list", name="Folders here")).to_contain_text("<b>שלום 🐟")
    page.get_by_role("button", name="Choose qwen3-8b").click()
    expect(field(page, "Source")).to_have_value(re.compile(r"/models/qwen3-8b$"))
    expect(field(page, "Source")).to_be_focused()
    expect(field(page, "Name")).to_have_attribute("placeholder", "qwen3-8b")
    field(page, "Name").fill("from-page")
    field(page, "Ceiling").fill("2GiB")
    field(page, "Priority").fill("200")
    arguments(page, "--device-memory\n1GiB\n--start-seconds\n1")
    expect(page.locator(".fit-verdict")).to_contain_text("It fits on simulated:0")
    expect(page.locator(".fit-chance")).to_contain_text("the chance that they want more together is")
    source = field(page, "Source").input_value()
    expect(page.locator(COMMAND)).to_have_text(
        f"shoal models add from-page --source {source} --ceiling 2GiB --priority 200 -- --device-memory 1GiB "
        "--start-seconds 1 && shoal load from-page"
    )
    page.get_by_role("button", name="Add and load").click()
    expect(page.get_by_role("list", name="Phases")).to_contain_text("loading weights")
    expect(page.get_by_role("log")).to_contain_text("Starting to load model")
    expect(page.get_by_text("It serves on simulated:0")).to_be_visible()
    spec = served.model("from-page")["spec"]
    assert (spec["ceiling"], spec["priority"], spec["source"]) == (2 * 2**30, 200, source)
    page.get_by_role("button", name="Add another one").click()
    expect(field(page, "Source")).to_have_value("")
    gone(served, "from-page")


def test_the_verdict_follows_what_is_typed(served: Shoal, page: Page) -> None:
    opened(page, served)
    expect(page.get_by_text("Give a source, and this says where it fits.")).to_be_visible()
    expect(page.get_by_role("button", name="Add and load")).to_be_disabled()
    field(page, "Source").fill("toy")
    arguments(page, "--device-memory\n2GiB")
    page.get_by_role("checkbox", name="simulated:1").check()
    verdict = page.locator(".fit-verdict")
    expect(verdict).to_contain_text("It fits if others give way")
    expect(page.locator(".fit-device")).to_contain_text("sleeper would sleep")
    expect(page.locator(".fit-device")).to_contain_text("weights 2.0 GiB")
    expect(field(page, "Tensor parallel")).to_be_disabled()
    expect(page.locator(COMMAND)).to_contain_text("--devices simulated:1")
    arguments(page, "--device-memory\n90GiB")
    expect(verdict).to_contain_text("It does not fit")
    expect(page.locator(".fit")).to_contain_text("90.0 GiB")
    field(page, "Floor").fill("much")
    expect(page.locator(".fit .failure")).to_contain_text("floor")


def test_a_bad_source_is_said_beside_it(served: Shoal, page: Page) -> None:
    opened(page, served)
    field(page, "Engine").select_option("vllm")
    field(page, "Source").fill("/nowhere/at/all")
    expect(page.locator(".field", has=field(page, "Source")).locator(".wrong")).to_contain_text("there is no folder")
    expect(field(page, "Source")).to_have_attribute("aria-invalid", "true")


def test_what_is_refused_is_said_beside_the_field_and_nothing_typed_is_lost(served: Shoal, page: Page) -> None:
    opened(page, served)
    field(page, "Source").fill("toy")
    field(page, "Name").fill("typed-model")
    field(page, "Context length").fill("many")
    page.get_by_role("button", name="Add and load").click()
    wrong = page.locator(".field", has=field(page, "Context length")).locator(".wrong")
    expect(wrong).to_contain_text("integer")
    page.reload()
    expect(field(page, "Name")).to_have_value("typed-model")
    expect(field(page, "Context length")).to_have_value("many")
    expect(wrong).to_contain_text("integer")
    field(page, "Context length").fill("")
    expect(wrong).to_have_count(0)
    page.get_by_role("button", name="Empty the form").click()
    expect(field(page, "Name")).to_have_value("")


def test_a_start_that_fails_is_explained_and_tried_again_with_other_settings(served: Shoal, page: Page) -> None:
    gone(served, "breaks", "breaks-not")
    opened(page, served)
    field(page, "Source").fill("toy")
    field(page, "Name").fill("breaks")
    arguments(page, "--fail\noom")
    page.get_by_role("button", name="Add and load").click()
    expect(page.get_by_text("It failed")).to_be_visible()
    expect(page.locator(".going .failure")).to_contain_text("ran out of memory")
    page.reload()  # it is still there
    expect(page.locator(".going .failure")).to_contain_text("ran out of memory")
    (before,) = served.wait("breaks", "failed")
    page.get_by_role("button", name="Try again").click()
    until(lambda: served.wait("breaks", "failed")[0]["changed_at"] != before["changed_at"], "another attempt")
    expect(page.get_by_text("It failed")).to_be_visible()
    page.get_by_role("button", name="Back to the settings").click()
    expect(field(page, "Name")).to_have_value("breaks")
    arguments(page, "--device-memory\n100MiB")
    expect(page.locator(COMMAND)).to_have_text(
        "shoal models rm --unload breaks && shoal models add breaks --source toy -- --device-memory 100MiB "
        "&& shoal load breaks"
    )
    page.get_by_role("button", name="Add and load").click()
    expect(page.get_by_text(re.compile(r"It serves on simulated:\d"))).to_be_visible()
    gone(served, "breaks")


def test_a_model_that_has_served_is_not_replaced(served: Shoal, page: Page) -> None:
    gone(served, "has-served")
    opened(page, served)
    field(page, "Source").fill("toy")
    field(page, "Name").fill("has-served")
    arguments(page, "--device-memory\n100MiB\n--enable-sleep-mode\n--start-seconds\n600")
    page.get_by_role("button", name="Add and load").click()
    page.get_by_role("button", name="Back to the settings").click()
    replaces = page.get_by_text("This replaces")
    expect(replaces).to_contain_text("has-served")
    expect(page.locator(COMMAND)).to_contain_text("shoal models rm --unload has-served && ")
    arguments(page, "--device-memory\n100MiB\n--enable-sleep-mode\n--start-seconds\n1")
    page.get_by_role("button", name="Add and load").click()
    page.get_by_role("button", name="Back to the settings").click()
    served.wait("has-served", "ready")
    expect(replaces).to_have_count(0)
    with served.client as client:
        client.sleep("has-served")
        served.wait("has-served", "sleeping")
        expect(page.get_by_text("There is a model of this name already")).to_be_visible()
        expect(page.locator(COMMAND)).to_have_text(re.compile("^shoal models add has-served "))
        client.unload("has-served")
    until(lambda: served.model("has-served")["state"] == "unloaded", "its end")
    page.reload()
    field(page, "Name").fill("another")
    expect(page.locator(COMMAND)).to_have_text(re.compile("^shoal models add another "))
    expect(replaces).to_have_count(0)
    # Nor is one that was there before it was asked for here, with the same settings.
    field(page, "Name").fill("has-served")
    page.get_by_role("checkbox", name="Load it at once").uncheck()
    page.get_by_role("button", name="Add", exact=True).click()
    page.get_by_role("button", name="Back to the settings").click()
    expect(page.locator(COMMAND)).to_have_text(re.compile("^shoal models add has-served "))
    gone(served, "has-served")


def test_a_name_that_is_taken_is_said_and_refused(served: Shoal, page: Page) -> None:
    opened(page, served)
    field(page, "Source").fill("toy")
    field(page, "Name").fill("sleeper")
    expect(page.get_by_text("There is a model of this name already")).to_be_visible()
    page.get_by_role("button", name="Add and load").click()
    expect(page.locator(".send .failure")).to_contain_text("sleeper")
    expect(field(page, "Name")).to_have_value("sleeper")


def test_what_was_typed_survives_a_shoal_that_does_not_answer(served: Shoal, page: Page) -> None:
    opened(page, served)
    field(page, "Source").fill("it's; $(rm -rf /)")
    expect(page.locator(COMMAND)).to_contain_text(r"--source 'it'\''s; $(rm -rf /)'")
    page.route("**/api/v1/models", lambda route: route.abort())
    page.get_by_role("button", name="Add and load").click()
    expect(page.locator(".send .failure")).to_contain_text("Shoal does not answer")
    expect(field(page, "Source")).to_have_value("it's; $(rm -rf /)")


def test_only_added_and_by_keyboard_alone(served: Shoal, page: Page) -> None:
    gone(served, "by-keys")
    opened(page, served)
    field(page, "Source").focus()
    page.keyboard.type("toy")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.type("by-keys")
    load = page.get_by_role("checkbox", name="Load it at once")
    load.focus()
    page.keyboard.press("Space")
    page.get_by_role("button", name="Add", exact=True).focus()
    page.keyboard.press("Enter")
    expect(page.get_by_text("It is declared")).to_be_visible()
    assert served.model("by-keys")["state"] == "unloaded"
    gone(served, "by-keys")


def test_a_folder_is_chosen_filled_in_and_loaded_by_keyboard_alone(served: Shoal, page: Page) -> None:
    gone(served, "keyed")
    opened(page, served)
    press(page, page.get_by_role("button", name="Browse…"))
    folders = page.get_by_role("group", name="Folders of Shoal's machine")
    press(page, folders.get_by_role("button", name="models", exact=True))
    expect(folders.locator(".where")).to_have_text(re.compile("/models$"))
    expect(folders.locator(".where")).to_be_focused()
    page.keyboard.press("Escape")  # thought better of it
    expect(folders).to_have_count(0)
    expect(field(page, "Source")).to_be_focused()
    press(page, page.get_by_role("button", name="Browse…"), "Space")
    press(page, folders.get_by_role("button", name="Choose qwen3-8b"))  # it goes on where one was
    expect(field(page, "Source")).to_be_focused()
    expect(field(page, "Source")).to_have_value(re.compile(r"/models/qwen3-8b$"))
    write(page, field(page, "Name"), "keyed")
    press(page, page.get_by_role("checkbox", name="simulated:0"), "Space")
    write(page, field(page, "Ceiling"), "2GiB")
    press(page, page.locator("summary", has_text="Advanced settings"))
    write(page, field(page, "Engine arguments"), "--device-memory\n1GiB")
    expect(page.locator(".fit-verdict")).to_contain_text("It fits on simulated:0")
    press(page, page.get_by_role("button", name="Add and load"))
    expect(page.get_by_role("heading", name="keyed")).to_be_focused()
    expect(page.get_by_text("It serves on simulated:0")).to_be_visible()
    assert served.model("keyed")["spec"]["ceiling"] == 2 * 2**30
    assert served.chat("keyed").status_code == 200
    press(page, page.get_by_role("button", name="Add another one"))
    expect(field(page, "Source")).to_have_value("")
    expect(field(page, "Source")).to_be_focused()
    gone(served, "keyed")


def test_a_start_that_fails_is_tried_again_and_mended_by_keyboard_alone(served: Shoal, page: Page) -> None:
    gone(served, "keyed-breaks")
    opened(page, served)
    write(page, field(page, "Source"), "toy")
    write(page, field(page, "Name"), "keyed-breaks")
    press(page, page.locator("summary", has_text="Advanced settings"))
    write(page, field(page, "Engine arguments"), "--fail\noom")
    press(page, page.get_by_role("button", name="Add and load"))
    expect(page.locator(".going .failure")).to_contain_text("ran out of memory")
    (before,) = served.wait("keyed-breaks", "failed")
    press(page, page.get_by_role("button", name="Try again"))
    expect(page.get_by_role("heading", name="keyed-breaks")).to_be_focused()
    until(lambda: served.wait("keyed-breaks", "failed")[0]["changed_at"] != before["changed_at"], "another attempt")
    expect(page.get_by_text("It failed")).to_be_visible()
    press(page, page.get_by_role("button", name="Back to the settings"))
    expect(field(page, "Source")).to_be_focused()
    expect(field(page, "Name")).to_have_value("keyed-breaks")
    write(page, field(page, "Engine arguments"), "--device-memory\n100MiB")
    press(page, page.get_by_role("button", name="Add and load"))
    expect(page.get_by_text(re.compile(r"It serves on simulated:\d"))).to_be_visible()
    gone(served, "keyed-breaks")


def test_a_name_is_proposed_from_the_source(served: Shoal, page: Page) -> None:
    opened(page, served)
    name = field(page, "Name")
    for source, proposed in {
        "Qwen/Qwen3-8B": "Qwen/Qwen3-8B",
        "/data/models/my-model/": "my-model",
        "/cache/hub/models--Qwen--Qwen3-8B": "Qwen/Qwen3-8B",
        "/cache/hub/models--Qwen--Qwen3-8B/snapshots/0123abcd": "Qwen/Qwen3-8B",
        "": "my-model",
    }.items():
        field(page, "Source").fill(source)
        expect(name).to_have_attribute("placeholder", proposed)
    expect(name).to_have_value("")  # a proposal, which any name that is typed takes the place of


def test_a_hub_id_is_declared_under_its_own_name(served: Shoal, page: Page) -> None:
    gone(served, "some-org/some-model")
    opened(page, served)
    write(page, field(page, "Source"), "some-org/some-model")
    press(page, page.get_by_role("checkbox", name="Load it at once"), "Space")
    command = "shoal models add some-org/some-model --source some-org/some-model"
    expect(page.locator(COMMAND)).to_have_text(command)
    press(page, page.get_by_role("button", name="Add", exact=True))
    expect(page.get_by_text("It is declared")).to_be_visible()
    assert served.model("some-org/some-model")["spec"]["source"] == "some-org/some-model"
    gone(served, "some-org/some-model")


def test_each_setting_has_its_help_and_says_what_is_usual(served: Shoal, page: Page) -> None:
    opened(page, served)
    page.get_by_text("Advanced settings").click()
    expect(field(page, "Engine arguments")).to_be_visible()
    with served.http() as http:
        paths = http.get("/api/openapi.json").json()["paths"]
    schema = paths["/api/v1/models"]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
    helps = " ".join(" ".join(page.locator(".add .help").all_inner_texts()).split())
    apart = {"name", "source", "devices"}  # they have fields, and words, of their own
    for setting, described in schema.items():
        assert described["description"]
        assert setting in apart or " ".join(described["description"].replace("`", "").split()) in helps, setting
    for word, setting in {"Priority": "priority", "Unload after": "unload_after"}.items():
        default = schema[setting].get("default")
        expect(field(page, word)).to_have_attribute("placeholder", "" if default is None else str(default))
    expect(field(page, "Priority")).not_to_have_attribute("placeholder", "")
    expect(field(page, "Engine").locator("option").first).to_have_text("simulated (default)")
    expect(field(page, "Pinned").locator("option").first).to_have_text("no (default)")
    described_by = field(page, "Priority").get_attribute("aria-describedby")
    expect(page.locator(f"#{described_by}")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_it_fits_and_everybody_can_use_it(served: Shoal, new_page: NewPage, scheme: str, width: int) -> None:
    if not AXE.exists():
        pytest.skip("no axe-core here (make page-types)")
    page = opened(new_page(viewport={"width": width, "height": 900}, color_scheme=scheme), served)
    field(page, "Source").fill("x" * 200)
    page.get_by_role("button", name="Browse…").click()
    page.get_by_text("Advanced settings").click()
    expect(page.get_by_role("list", name="Folders here")).to_be_visible()
    expect(page.locator(".fit-verdict")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate(AXE.read_text(encoding="utf-8"))
    assert violations(page) == []


def test_the_folders_are_of_the_machine_that_shoal_runs_on(served: Shoal, page: Page) -> None:
    opened(page, served)
    page.get_by_role("button", name="Browse…").click()
    expect(page.locator(".folders .where")).to_have_text(re.compile("home"))
    assert Path(page.locator(".folders .where").inner_text()).is_dir()
    page.keyboard.press("Escape")
    expect(page.locator(".folders")).to_have_count(0)
    expect(field(page, "Source")).to_be_focused()
