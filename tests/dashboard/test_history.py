"""The strips behind the tins and the histories of models: filled by the server, also after a break."""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import Page, Route, expect

from tests.cli.scripted import GIB, ScriptedShoal, instance
from tests.system.harness import until

MODULE = "const history = await import('./static/history.js');"
COLUMNS = (
    "requests", "tokens", "first_byte_p50", "first_byte_p95", "running", "waiting", "kv_used", "kv_cached", "state",
)  # fmt: skip


class Told:
    """What the server answers when it is asked for its history, and how often it was asked."""

    def __init__(self, page: Page, skew: float = 0.0) -> None:
        self.asked: list[dict[str, list[str]]] = []
        self.skew = skew
        self.since = time.time() - 580
        page.route("**/api/v1/history?*", self.answer)
        page.route("**/api/v1/history", self.answer)

    def answer(self, route: Route) -> None:
        asked = parse_qs(urlsplit(route.request.url).query)
        self.asked.append(asked)
        now = time.time()
        at = [self.since + 5 * n for n in range(int((now - self.since) / 5) + 1)]
        used: list[int | None] = [(n % 100) * GIB for n in range(len(at))]
        used[3] = None
        device = {"memory_used": used, "kv_backed": [None] * len(at)}
        values: dict[str, list[Any]] = {name: [1] * len(at) for name in COLUMNS}
        answer = {
            "now": now + self.skew,
            "every": 5,
            "at": [one + self.skew for one in at],
            "states": ["unloaded", "ready"],
            "devices": {} if "model" in asked else {"cuda:0": device, "cuda:1": device},
            "models": dict.fromkeys(asked.get("model", ()), values),
        }
        route.fulfill(content_type="application/json", body=json.dumps(answer))


def shares(page: Page, device: str = "cuda:0") -> Any:
    return page.evaluate(f"async () => {{ {MODULE} return history.sharesOf('{device}'); }}")


def filled(page: Page, times: int) -> None:
    until(lambda: page.evaluate(f"async () => {{ {MODULE} return history.filled.value >= {times}; }}"), "the history")


def test_the_ten_minutes_before_the_page_was_opened_are_there(shoal: ScriptedShoal, page: Page) -> None:
    """By the clock of this machine, however the server's goes."""
    told = Told(page, skew=-7200)
    page.goto(shoal.url)
    filled(page, 1)
    found = shares(page)
    assert len(found["at"]) in range(115, 125) and found["at"] == sorted(set(found["at"]))
    assert abs(found["at"][0] - told.since) < 30 and abs(found["at"][-1] - time.time()) < 30
    assert found["used"][:3] == [0, 1 / 140, 2 / 140] and found["used"][3] == 4 / 140
    assert set(found["kv"]) == {0}
    expect(page.get_by_role("img", name="Memory of cuda:0 in the last ten minutes")).to_be_visible()


def test_after_a_break_what_was_missed_is_told(shoal: ScriptedShoal, page: Page) -> None:
    told = Told(page)
    shoal.drop_events_after = 2
    page.goto(shoal.url)
    filled(page, 1)
    shoal.add("wakes-it-up")
    filled(page, 2)
    assert len(told.asked) >= 2
    assert shares(page)["at"] == sorted(set(shares(page)["at"]))


def test_a_server_without_a_history_leaves_what_the_page_sees(shoal: ScriptedShoal, page: Page) -> None:
    page.route("**/api/v1/history*", lambda route: route.fulfill(status=404, json={"error": {"message": "no"}}))
    page.goto(shoal.url)
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")
    until(lambda: shares(page)["at"], "a reading")


def test_what_the_page_saw_before_and_after_is_kept(shoal: ScriptedShoal, page: Page) -> None:
    page.goto(shoal.url)
    merged = page.evaluate(
        f"""async () => {{ {MODULE}
        const of = (...at) => ({{ at, used: at.map((one) => one / 1000), kv: at.map(() => 0), version: 4 }});
        const own = of(1, 500, 990, 1005, 1020);
        return [history.merge(own, of(800, 900, 1000)), history.merge(own, of()), history.merge(of(), of(1, 2))];
        }}"""
    )
    assert [one["at"] for one in merged] == [[500, 800, 900, 1000, 1005, 1020], [1, 500, 990, 1005, 1020], [1, 2]]
    assert merged[0]["used"] == [one / 1000 for one in merged[0]["at"]]
    assert merged[0]["version"] == 5


def test_a_models_history_is_read_while_somebody_looks(shoal: ScriptedShoal, page: Page) -> None:
    name = "a b/ü&<i>"
    shoal.add(name, instance("i-1", name, "ready"))
    told = Told(page)
    page.goto(shoal.url)
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")
    found = page.evaluate(
        f"""async (name) => {{ {MODULE}
        const signal = history.historyOf(name, "24h");
        const same = history.historyOf(name, "24h") === signal;
        const got = await new Promise((resolve) => {{
          const stop = signal.subscribe((value) => value && setTimeout(() => (stop(), resolve(value))));
        }});
        return {{ same, forgotten: history.historyOf(name, "24h") !== signal, ...got }};
        }}""",
        name,
    )
    assert found["same"] and found["forgotten"]
    assert set(COLUMNS) <= found.keys()
    assert len(found["at"]) == len(found["state"]) and set(found["state"]) == {"ready"}
    asked = [one for one in told.asked if "model" in one]
    assert asked == [{"model": [name], "span": ["24h"]}]
