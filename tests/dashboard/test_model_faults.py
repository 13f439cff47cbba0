"""A model's page when things go wrong, and its pure parts, in a real browser against a scripted Shoal."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from shoal.config import parse_spec
from shoal.fleet.spec import LIVE, ModelSpec
from tests.cli.scripted import GIB, ScriptedShoal, instance, memory, scripted

NAMES = ["<img src=x onerror=alert(1)> 🐟 [b]", "שלום-עולם", "w" * 200, "it's; $(rm -rf /)", "a/b?c#d%20"]
SCHEMA = {"requestBody": {"content": {"application/json": {"schema": ModelSpec.model_json_schema()}}}}
OPENAPI = json.dumps({"paths": {"/api/v1/models": {"post": SCHEMA}}})


def serve(page: Page, pattern: str, body: str, status: int = 200) -> None:
    def answer(route: Route) -> None:
        route.fulfill(status=status, content_type="application/json", body=body)

    page.route(pattern, answer)


@pytest.fixture
def known(page: Page) -> Page:
    """A page that knows what can be set."""
    serve(page, "**/api/openapi.json", OPENAPI)
    return page


def go(page: Page, url: str, name: str) -> None:
    page.goto(f"{url}/#/models/{quote(name, safe='')}")


def field(page: Page, name: str) -> Locator:
    return page.get_by_label(name, exact=True)


@pytest.mark.parametrize("name", NAMES)
def test_any_name_has_a_page(shoal: ScriptedShoal, known: Page, name: str) -> None:
    shoal.add(
        name, instance("odd-1", name, "failed", failure={"code": "x", "message": "<b>No</b>", "hint": "<i>Do</i>"})
    )
    go(known, shoal.url, name)
    expect(known.locator(".model-title h2")).to_have_text(name)
    expect(known.get_by_role("alert").filter(has_text="<b>No</b>")).to_contain_text("What to do: <i>Do</i>")
    expect(field(known, "priority")).to_be_visible()
    assert known.locator("main img").count() == 0
    known.set_viewport_size({"width": 390, "height": 800})
    assert known.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_model_that_is_not_there_says_so_and_comes(shoal: ScriptedShoal, known: Page) -> None:
    go(known, shoal.url, "<b>later</b>")
    expect(known.get_by_role("heading", name="There is no model <b>later</b>")).to_be_visible()
    shoal.add("<b>later</b>", desired=0)
    expect(known.locator(".model-title h2")).to_have_text("<b>later</b>")
    shoal.tell("model_removed", {"name": "<b>later</b>"})
    expect(known.get_by_role("heading", name="There is no model <b>later</b>")).to_be_visible()
    known.get_by_role("link", name="Go to the overview").click()
    expect(known.get_by_role("heading", name="No models yet")).to_be_visible()


def test_what_was_typed_outlives_a_lost_connection_and_a_restart(known: Page) -> None:
    with scripted() as first:
        port = int(first.url.rpartition(":")[2])
        first.add("m", desired=0)
        go(known, first.url, "m")
        field(known, "floor").fill("3GiB")
        field(known, "args").fill("--one\n--two")
    expect(known.locator("#connection")).to_contain_text("Disconnected")
    known.get_by_role("button", name="Save", exact=True).click()
    expect(known.locator(".save")).to_contain_text("Shoal does not answer.")
    expect(field(known, "floor")).to_have_value("3GiB")
    with scripted(port) as second:
        second.add("m", desired=0, priority=9)
        expect(field(known, "priority")).to_have_value("9")
        expect(field(known, "floor")).to_have_value("3GiB")
        known.get_by_role("button", name="Save", exact=True).click()
        expect(known.get_by_text("Saved.", exact=True)).to_be_visible()
        changes = [body for method, path, body in second.requests if (method, path) == ("PATCH", "/api/v1/models/m")]
        assert changes == [{"floor": "3GiB", "args": ["--one", "--two"]}]


@pytest.mark.parametrize("where", ["page", "line"])
def test_what_is_typed_while_an_answer_is_awaited_stays(shoal: ScriptedShoal, known: Page, where: str) -> None:
    shoal.add("m", desired=0)
    if where == "page":
        go(known, shoal.url, "m")
        floor, save = field(known, "floor"), known.get_by_role("button", name="Save", exact=True)
    else:
        known.goto(shoal.url)
        known.get_by_role("button", name="Details of m").click()
        floor, save = field(known, "Floor"), known.get_by_role("button", name="Set", exact=True)
    floor.fill("3GiB")
    held: list[Route] = []
    known.route("**/api/v1/models/m", lambda route: held.append(route))
    with known.expect_request("**/api/v1/models/m"):
        save.click()
    floor.fill("4GiB")
    with known.expect_response("**/api/v1/models/m"):
        held.pop().continue_()
    expect(save).to_be_enabled()
    expect(floor).to_have_value("4GiB")
    expect(known.get_by_text("by somebody else")).to_have_count(0)
    known.unroute_all()
    save.click()
    expect(save).to_have_count(0)
    changes = [body for method, path, body in shoal.requests if (method, path) == ("PATCH", "/api/v1/models/m")]
    assert changes == [{"floor": "3GiB"}, {"floor": "4GiB"}]


def test_terms_that_are_typed_stay_when_the_line_moves(shoal: ScriptedShoal, known: Page) -> None:
    shoal.add("m", instance("m-1", "m", "starting"))
    known.goto(shoal.url)
    known.get_by_role("button", name="Details of m").click()
    field(known, "Priority").fill("7")
    for state in ("failed", "ready"):
        shoal.models["m"]["instances"][0]["state"] = state
        shoal.publish("m")
        expect(known.locator(f'.instance .badge[data-state="{state}"]')).to_be_visible()
        expect(field(known, "Priority")).to_have_value("7")


def test_parts_that_cannot_be_read_say_so_and_leave_the_rest(shoal: ScriptedShoal, page: Page) -> None:
    serve(page, "**/api/openapi.json", json.dumps({"error": {"message": "<b>no</b> schema"}}), 503)
    shoal.add("m", instance("m-1", "m", "ready"))
    shoal.logs["m-1"] = ["still here"]
    go(page, shoal.url, "m")
    expect(page.get_by_role("region", name="Settings", exact=True)).to_contain_text("This may be old: <b>no</b> schema")
    expect(page.get_by_role("log")).to_contain_text("still here")
    expect(page.get_by_role("button", name="Unload", exact=True)).to_be_enabled()


def test_who_may_only_look_is_offered_nothing_to_change(shoal: ScriptedShoal, known: Page) -> None:
    serve(known, "**/api/v1/session", json.dumps({"needed": True, "name": "bob", "role": "read-only"}))
    asked = {
        "id": "req-1",
        "model": "m",
        "tenant": "t",
        "key": None,
        "priority": "normal",
        "phase": "answering",
        "age": 1.0,
        "tokens": 3,
        "instance": "m-1",
        "position": None,
        "path": "/v1/chat/completions",
    }
    serve(known, "**/api/v1/requests?model=m", json.dumps({"requests": [asked], "silent": []}))
    shoal.add("m", instance("m-1", "m", "ready"))
    go(known, shoal.url, "m")
    expect(known.locator("[data-request]")).to_have_count(1)
    expect(field(known, "priority")).to_be_disabled()
    expect(known.get_by_text("to change them takes an admin")).to_be_visible()
    for name in ("Unload", "Remove…", "Cancel the request req-1", "Save"):
        expect(known.get_by_role("button", name=name, exact=True)).to_have_count(0)
    expect(known.get_by_label("Search the log of m-1")).to_be_enabled()


def test_memory_is_drawn_to_the_scale_of_what_it_may_hold(shoal: ScriptedShoal, known: Page) -> None:
    lease = {"device": "cuda:0", "rank": 0, "lease": 9 * GIB, "backed": 8 * GIB, "used": 5 * GIB, "cached": 3 * GIB,
             "floor": 2 * GIB, "ceiling": 23 * GIB, "missing": GIB, "waiting": 2, "recalled": None}  # fmt: skip
    sums = {key: lease[key] for key in ("lease", "backed", "used", "cached", "floor", "ceiling", "missing", "waiting")}
    held = memory(**sums, weights=15 * GIB, held={"cuda:0": 25 * GIB}, leases=[lease])
    shoal.add("m", instance("m-1", "m", "ready", memory=held, restarts=2, outdated=True))
    go(known, shoal.url, "m")
    bar = known.get_by_role("img", name="m-1 on cuda:0: graphs and other 2.0 GiB, weights 15.0 GiB, KV in use 5.0 GiB")
    expect(bar).to_be_visible()
    reach = (17 + 23) * 1.04
    widths = bar.evaluate("bar => [...bar.querySelectorAll('.part')].map((part) => part.offsetWidth / bar.clientWidth)")
    assert widths == pytest.approx([2 / reach, 15 / reach, 5 / reach, 3 / reach], abs=0.01)
    marks = known.locator(".block .mark")
    places = [one.evaluate("mark => parseFloat(mark.style.left)") for one in marks.all()]
    assert places == pytest.approx([100 * 19 / reach, 100 * 40 / reach, 100 * 26 / reach], abs=0.1)
    memory_section = known.get_by_role("region", name="Memory", exact=True)
    for text in ("2 requests wait for memory: 1.0 GiB short", "restarted 2×", "Runs with older settings", "9.0 GiB"):
        expect(memory_section).to_contain_text(text)


def test_older_events_come_on_demand(shoal: ScriptedShoal, known: Page) -> None:
    asked: list[str] = []

    def answer(route: Route) -> None:
        asked.append(route.request.url)
        before = route.request.url.partition("before=")[2]
        last = int(before) - 1 if before else 100
        told = [
            {
                "id": n,
                "at": 1000.0 + n,
                "level": "info",
                "kind": "ready",
                "model": "m",
                "instance": "m-1",
                "seconds": 61.0,
                "message": f"event <{n}>",
            }
            for n in range(max(1, last - 39), last + 1)
        ]
        route.fulfill(status=200, content_type="application/json", body=json.dumps({"events": told}))

    known.route("**/events/history?model=m*", answer)
    shoal.add("m", desired=0)
    go(known, shoal.url, "m")
    states = known.get_by_role("region", name="What it went through", exact=True)
    expect(states.locator("time")).to_have_count(40)
    expect(states.locator("li").first).to_contain_text("event <100>")
    expect(states.locator("li").first).to_contain_text("the state before lasted 1 min 1 s")
    states.get_by_role("button", name="Older ones").click()
    expect(states.locator("time")).to_have_count(80)
    states.get_by_role("button", name="Older ones").click()
    expect(states.locator("time")).to_have_count(100)
    expect(states.get_by_role("button", name="Older ones")).to_have_count(0)
    shoal.tell(
        "message",
        {
            "id": 101,
            "at": 2000.0,
            "level": "warning",
            "kind": "failed",
            "model": "m",
            "instance": "m-1",
            "message": "just now",
        },
    )
    expect(states.locator("li").first).to_contain_text("warning: just now")
    assert sum("before=" in url for url in asked) == 2


def test_what_a_model_went_through_unseen_is_read(shoal: ScriptedShoal, known: Page) -> None:
    last = 100

    def one(n: int) -> dict[str, Any]:
        return {"id": n, "at": 1000.0 + n, "level": "info", "kind": "ready", "model": "m", "instance": "m-1",
                "seconds": None, "message": f"event {n}"}  # fmt: skip

    def answer(route: Route) -> None:
        before = route.request.url.partition("before=")[2]
        until = int(before) if before else last + 1
        found = [one(n) for n in range(max(1, until - 40), until)]
        route.fulfill(status=200, content_type="application/json", body=json.dumps({"events": found}))

    known.route("**/events/history?model=m*", answer)
    shoal.add("m", desired=0)
    shoal.drop_events_after = 2
    go(known, shoal.url, "m")
    states = known.get_by_role("region", name="What it went through", exact=True)
    expect(states.locator("time")).to_have_count(40)
    last = 240
    shoal.tell("message", one(101) | {"id": None})
    expect(states.locator("li").first).to_contain_text("event 240")
    expect(states.locator("time")).to_have_count(180)
    told = states.locator(".what").all_inner_texts()
    assert [text.split()[1] for text in told] == [str(n) for n in range(240, 60, -1)]


def test_what_was_measured_is_shown(shoal: ScriptedShoal, known: Page) -> None:
    profile = {
        "model": "m",
        "device": "NVIDIA <H200>",
        "current": False,
        "version": "0.26",
        "measured_at": 1.0,
        "loads": 3,
        "weights": 15 * GIB,
        "overhead": None,
        "kv_token": 131072.0,
        "load_seconds": 42.0,
        "phases": {"loading weights": 30.0, "compiling": 10.0},
        "sleep_seconds": None,
        "wake_seconds": 1.5,
        "asleep": None,
    }
    canaries = [
        {"model": "m", "instance": "m-1", "asked": True, "completes": True, "answer": " <Paris>"},
        {"model": "m", "instance": "m-2", "asked": False, "completes": False, "answer": None},
        {"model": "m", "instance": "m-3", "asked": True, "completes": False, "answer": None},
    ]
    body = {"profiles": [profile], "prompt": "The capital of France is", "canaries": canaries}
    serve(known, "**/api/v1/profiles?model=m", json.dumps(body))
    shoal.add("m", instance("m-1", "m", "ready"))
    go(known, shoal.url, "m")
    measured = known.get_by_role("region", name="Measured", exact=True)
    for text in (
        "NVIDIA <H200>",
        "3 starts",
        "with other settings",
        "15.0 GiB",
        "128 KiB",
        "1.5 s",
        "<Paris>",
        "was not asked yet",
        "completes no text",
    ):
        expect(measured).to_contain_text(text)
    expect(measured).not_to_contain_text("graphs and other")
    expect(
        measured.get_by_role("img", name="Phases of the last start: loading weights 30 s, compiling 10 s")
    ).to_be_visible()


def in_page(page: Page, shoal: ScriptedShoal, module: str, body: str, given: Any) -> Any:
    """What a function of one of the page's modules makes of values."""
    page.goto(shoal.url)
    return page.evaluate(
        f"""async (given) => {{
          const it = await import(new URL("static/{module}", document.baseURI).href);
          {body}
        }}""",
        given,
    )


def test_settings_are_the_same_after_they_were_text(shoal: ScriptedShoal, page: Page) -> None:
    specs = [
        ModelSpec(name="a", source="x"),
        ModelSpec(
            name="a",
            source="org/m b",
            devices=("cuda:0", "cuda:1"),
            tensor_parallel=2,
            context_length=4096,
            floor=3 * 2**20 + 1,
            ceiling=5 * GIB,
            sleep_after=0,
            unload_after=5400,
            priority=1,
            pin=True,
            args=("--a", " b c ", "--d=é"),
            env={"A": "1=2", "B": ""},
            port=8080,
            start_timeout=0.5,
            max_concurrency=3,
            on_request=False,
        ),
        ModelSpec(
            name="a", source="x", kv_cache_memory=2**40, elastic="off", sleep="off", sleep_after=1.5, unload_after=86400
        ),
    ]
    found = in_page(
        page, shoal, "settings_text.js",
        """const settings = it.settingsOf(given.schema);
           const again = (spec) => (one) => [one.name, it.valueOf(one, it.textOf(one, spec[one.name]))];
           return given.specs.map((spec) => Object.fromEntries(settings.map(again(spec))));
        """,
        {"schema": ModelSpec.model_json_schema(), "specs": [spec.model_dump(mode="json") for spec in specs]},
    )  # fmt: skip
    assert [parse_spec({"name": "a", **one}) for one in found] == specs
    assert found[1]["ceiling"] == "5GiB"


def test_settings_in_force_at_once_are_known(shoal: ScriptedShoal, page: Page) -> None:
    body = "return it.settingsOf(given).filter((one) => one.live).map((one) => one.name);"
    found = in_page(page, shoal, "settings_text.js", body, ModelSpec.model_json_schema())
    assert set(found) == set(LIVE)


def test_errors_are_told_apart_by_setting(shoal: ScriptedShoal, page: Page) -> None:
    said = "floor: '-' is not a size; give one such as 1GiB; args.0: bad; priority: no; args.1.x: worse"
    body = "return given.map((text) => it.faultsOf(text, ['floor', 'args', 'priority']));"
    found = in_page(page, shoal, "settings_text.js", body, [said, "the floor: of x; lower it", "first; floor: then"])
    assert found == [
        {"floor": "'-' is not a size; give one such as 1GiB", "args": "bad; worse", "priority": "no"},
        {"": "the floor: of x; lower it"},
        {"": "first", "floor": "then"},
    ]


def test_commands_are_quoted(shoal: ScriptedShoal, page: Page) -> None:
    found = in_page(
        page, shoal, "settings_text.js",
        """return [
             it.setCommand("-a b", { pin: false, ceiling: null, floor: "1 GiB" }, "H"),
             it.setCommand("a'b/c", { dtype: "auto", pin: true }, "H"),
             it.changeCommand("-a", { args: ["it's"] }),
           ];""",
        None,
    )  # fmt: skip
    assert found == [
        "shoal models set --no-pin --ceiling=none --floor='1 GiB' -- '-a b'",
        """curl -X PATCH 'H/models/a'\\''b%2Fc' -H 'content-type: application/json' -d '{"dtype":"auto","pin":true}'""",
        """shoal change --set 'args=["it'\\''s"]' -- -a""",
    ]


@pytest.mark.parametrize(
    ("settings", "api"),
    [({}, "chat"), ({"args": ["--task", "embed"]}, "embeddings"), ({"args": ["--task=transcription"]}, "transcription"),
     ({"args": ["--runner", "pooling"]}, "embeddings"), ({"args": ["--task", "generate"], "source": "bge-x"}, "chat"),
     ({"source": "openai/whisper-large-v3"}, "transcription"), ({"source": "BAAI/bge-reranker-v2"}, "rerank"),
     ({"source": "BAAI/bge-m3"}, "embeddings"), ({"args": ["--task"]}, "chat")],
)  # fmt: skip
def test_the_api_is_guessed_from_the_arguments_or_else_the_name(
    shoal: ScriptedShoal, page: Page, settings: Any, api: str
) -> None:
    spec = {"name": "m", "source": "org/llama", "args": [], **settings}
    assert in_page(page, shoal, "calling.js", "return it.apiOf(given);", spec) == api
