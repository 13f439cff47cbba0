"""`shoal top` with its keys, against a scripted Shoal; and as a process that has no terminal."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from shoal.cli.top_app import Picture, Top
from shoal.errors import ShoalError
from tests.cli.conftest import Run
from tests.cli.scripted import GIB, ScriptedShoal, device, instance, memory, scripted

Screen = Pilot[None]
PATIENCE = 20.0


def text(app: Top) -> str:
    """All that is on the screen, line by line, as plain text."""
    return "\n".join("".join(segment.text for segment in line) for line in app.screen._compositor.render_strips())


async def until(pilot: Screen, condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, text(top_of(pilot))
        await pilot.pause(0.02)


async def see(pilot: Screen, *words: str) -> None:
    """Until all of these are on the screen; what is said may go over several lines."""

    def there() -> bool:
        shown = text(top_of(pilot))
        flat = " ".join(shown.split())
        return all(word in shown or word in flat for word in words)

    await until(pilot, there)


def top_of(pilot: Screen) -> Top:
    assert isinstance(pilot.app, Top)
    return pilot.app


@contextlib.asynccontextmanager
async def running(url: str, size: tuple[int, int] = (80, 24), **options: Any) -> AsyncIterator[Screen]:
    async with Top(url, **options).run_test(size=size) as pilot:
        yield pilot


def asked(shoal: ScriptedShoal) -> list[tuple[str, str, Any]]:
    """What it was asked to do."""
    return [request for request in shoal.requests if request[0] != "GET"]


async def test_it_shows_devices_models_and_what_happened(shoal: ScriptedShoal) -> None:
    shoal.add("qwen", instance("q-1", "qwen", "ready"), floor="4GiB")
    shoal.add("tiny", instance("t-1", "tiny", "queued", reason="waits for cuda:0"))
    shoal.history = [{"at": time.time(), "level": "error", "kind": "failed", "model": "tiny", "instance": None,
                      "message": "tiny ran out of memory"}]  # fmt: skip
    async with running(shoal.url) as pilot:
        await see(pilot, "live", "cuda:0", "60.0 of 140.0 GiB", "> qwen", "● ready", "○ queued", "waits for cuda:0")
        await see(pilot, "error: tiny ran out of memory", "floor 4.0 GiB", "q leave")
        assert not pilot.app.query_one("#prompt").display
        shoal.devices = [device("cuda:0", memory_used=70 * GIB)]
        shoal.tell("devices", {"devices": shoal.devices})
        await see(pilot, "70.0 of 140.0 GiB")
        shoal.tell("model_removed", {"name": "qwen"})
        await see(pilot, "> tiny")


async def test_keys_act_on_the_selected_model(shoal: ScriptedShoal) -> None:
    shoal.add("a", instance("a-1", "a", "ready"))
    shoal.add("b", desired=0)
    async with running(shoal.url) as pilot:
        await see(pilot, "> a", "– unloaded")
        await pilot.press("down", "l")
        await see(pilot, "> b", "2 ready", "done: shoal load b")
        await pilot.press("up", "s")
        await see(pilot, "☾ sleeping", "done: shoal sleep a")
        # In the order of states it has gone down, and it is still the one that is selected.
        await see(pilot, "> a")
        await pilot.press("w")
        await see(pilot, "2 ready", "done: shoal wake a")
        await pilot.press("p")
        await see(pilot, "pinned", "done: shoal models set --pin a")
        await pilot.press("p")
        await see(pilot, "done: shoal models set --no-pin a")
    assert asked(shoal) == [
        ("POST", "/api/v1/models/b/load", {}),
        ("POST", "/api/v1/models/a/sleep", {"level": 1, "force": False}),
        ("POST", "/api/v1/models/a/wake", {}),
        ("PATCH", "/api/v1/models/a", {"pin": True}),
        ("PATCH", "/api/v1/models/a", {"pin": False}),
    ]


async def test_an_unload_is_asked_for_once_and_says_what_is_lost(shoal: ScriptedShoal) -> None:
    shoal.add("a", instance("a-1", "a", "ready"))
    async with running(shoal.url) as pilot:
        await see(pilot, "> a")
        await pilot.press("u")
        await see(pilot, "Unload a?", "KV cache is lost", "(shoal unload a)")
        await pilot.press("q")  # any other key: neither does it leave
        await see(pilot, "a is left as it is")
        assert asked(shoal) == []
        await pilot.press("u", "y")
        await see(pilot, "– unloaded")
        assert [path for _, path, _ in asked(shoal)] == ["/api/v1/models/a/unload"]
        await pilot.press("u")
        await until(pilot, lambda: len(asked(shoal)) == 2)  # nothing to lose, nothing to ask
        assert top_of(pilot).asking is None


async def test_refusals_are_shown_with_their_reason(shoal: ScriptedShoal, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise ShoalError("a cannot sleep: [b]its engine[/b] has no sleep mode", status=409, code="cannot_sleep")

    shoal.add("a", instance("a-1", "a", "ready"))
    monkeypatch.setattr(shoal, "nap", refuse)
    async with running(shoal.url) as pilot:
        await see(pilot, "> a")
        await pilot.press("s")
        await see(pilot, "refused: a cannot sleep: [b]its engine[/b] has no sleep mode (shoal sleep a)")
        await pilot.press("escape")
        await until(pilot, lambda: "refused" not in text(top_of(pilot)))
        # What another act is answered does not hide a question.
        await pilot.press("s", "u")
        await until(pilot, lambda: "refused" in top_of(pilot).notice)
        await see(pilot, "Unload a?")


async def test_warnings_are_shown(shoal: ScriptedShoal) -> None:
    shoal.add("a", desired=0)
    shoal.warning = "the change could not be saved"
    async with running(shoal.url) as pilot:
        await see(pilot, "> a")
        await pilot.press("p")
        await see(pilot, "warning: the change could not be saved")


async def test_limits_are_typed_in_bytes_or_percent(shoal: ScriptedShoal) -> None:
    shoal.add("a", instance("a-1", "a", "ready"), ceiling="80GiB")
    async with running(shoal.url) as pilot:
        await see(pilot, "> a")
        await pilot.press("f")
        await see(pilot, "floor of a (8GiB, or 20% of its device):")
        await pilot.press(*"lots", "enter")
        await see(pilot, "refused: 'lots' is not a size")
        assert pilot.app.query_one("#typed", Input).value == "lots"  # what was typed stays
        pilot.app.query_one("#typed", Input).value = ""
        await pilot.press(*"1.5GiB", "enter")
        await see(pilot, "done: shoal models set --floor 1610612736 a")
        assert not pilot.app.query_one("#prompt").display
        await pilot.press("c", *"50%", "enter")
        await see(pilot, "ceiling 70.0 GiB")
        await pilot.press("c", *"none", "enter")
        await see(pilot, "done: shoal models set --ceiling none a")
        await pilot.press("c", *"1", "escape", "l")
        await until(pilot, lambda: len(asked(shoal)) == 4)
    assert [body for _, _, body in asked(shoal)] == [
        {"floor": 3 * GIB // 2},
        {"ceiling": 70 * GIB},
        {"ceiling": None},
        {},
    ]


async def test_a_refused_limit_can_be_mended(shoal: ScriptedShoal) -> None:
    shoal.add("a", instance("a-1", "a", "ready"))
    async with running(shoal.url) as pilot:
        await see(pilot, "> a")
        await pilot.press("f", *"8GiB")
        with shoal.lock:
            kept = shoal.models.pop("a")
        await pilot.press("enter")
        await see(pilot, "refused: there is no model a")
        assert pilot.app.query_one("#typed", Input).value == "8GiB"
        with shoal.lock:
            shoal.models["a"] = kept
        await pilot.press("enter")
        await see(pilot, "done: shoal models set --floor 8589934592 a")


async def test_search_order_and_help(shoal: ScriptedShoal) -> None:
    for name in ("qwen-8b", "qwen-32b", "gemma"):
        shoal.add(name, desired=0)
    async with running(shoal.url) as pilot:
        await see(pilot, "> gemma", "MODEL by state")
        await pilot.press("slash", *"qwen")
        await see(pilot, "search:", "2/3 state", "> qwen-32b")
        assert "gemma" not in text(top_of(pilot))
        await pilot.press("down")
        await see(pilot, "> qwen-8b")
        await pilot.press("enter", "o")
        await see(pilot, "2/3 name")
        await pilot.press("slash", "end", *" nothing", "enter")
        await see(pilot, "No model has 'qwen nothing'")
        await pilot.press("l")
        await see(pilot, "no model is selected")
        await pilot.press("escape")
        await see(pilot, "> gemma", "MODEL by name")
        await pilot.press("question_mark")
        await see(pilot, "asks once and says what is lost", "█ weights", "Any key goes back")
        await pilot.press("l")
        await see(pilot, "> gemma")
        assert asked(shoal) == []
        await pilot.press("end")
        await see(pilot, "> qwen-8b")
        await pilot.press("q")
        await until(pilot, lambda: not pilot.app.is_running)


STRANGE = ["[b]x[/b]", "🐟🐟", "x" * 200, "שלום עולם", "[red]", "\\[b]"]


async def test_names_are_text(shoal: ScriptedShoal) -> None:
    for name in STRANGE:
        shoal.add(name, instance(f"i-{len(name)}", name, "queued", reason=name))
    shoal.devices = [device("[b]x[/b]", name="[i]", error="[u]cracked[/u]")]
    async with running(shoal.url) as pilot:
        await see(pilot, *(name[:14] for name in STRANGE), "[u]cracked[/u]")
        await pilot.press("end", "home")
        for name in STRANGE:
            top_of(pilot)._look(selected=name)
            await pilot.press("f")
            await pilot.press("escape", "u")
            assert top_of(pilot).asking is not None
            await pilot.press("n")
        await see(pilot, "is left as it is")
        picture = pilot.app.query_one(Picture)
        assert picture.size.width == 80
        lines = [line.cell_length for line in picture.render_lines(picture.region.reset_offset)]
        assert set(lines) == {80}


async def test_a_lost_connection_is_said_and_taken_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.cli.top_feed.READ_EVERY", 0.1)
    monkeypatch.setattr("shoal.cli.top_feed._LONGEST_PAUSE", 0.3)
    with scripted() as first:
        port = int(first.url.rsplit(":", 1)[1])
        first.add("a", instance("a-1", "a", "ready"))
        pilot_of = running(first.url)
        pilot = await pilot_of.__aenter__()
        await see(pilot, "live", "> a", "● ready")
        await pilot.press("f", *"8Gi")
    try:
        await see(pilot, "OLD", "as of", "trying again", "> a", "● ready")
        await pilot.press(*"B", "enter")
        await see(pilot, "refused: nothing listens at")
        with scripted(port) as second:
            second.add("a", instance("a-1", "a", "sleeping"))
            await see(pilot, "live", "☾ sleeping")
            assert "OLD" not in text(top_of(pilot))
            assert pilot.app.query_one("#typed", Input).value == "8GiB"
            await pilot.press("enter")
            await see(pilot, "done: shoal models set --floor")
    finally:
        await pilot_of.__aexit__(None, None, None)


async def test_a_relay_that_stops_ends_the_stream_with_its_reason(
    shoal: ScriptedShoal, monkeypatch: pytest.MonkeyPatch
) -> None:
    shoal.add("a", desired=0)
    monkeypatch.setattr("shoal.cli.top_feed._FIRST_PAUSE", 3.0)
    async with running(shoal.url) as pilot:
        await see(pilot, "live", "> a")
        shoal.tell("message", {"error": {"message": "The relay is stopping; send the request again."}})
        await see(pilot, "OLD", "The relay is stopping")
        await see(pilot, "live")
        assert shoal.event_connections == 2


async def test_a_shoal_that_answers_nothing_in_time_is_lost(
    shoal: ScriptedShoal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a laptop's sleep: the connection of the stream is there, and nothing comes."""
    monkeypatch.setattr("shoal.cli.top_feed.READ_EVERY", 0.1)
    monkeypatch.setattr("shoal.cli.top_feed._PATIENCE", 0.3)
    shoal.add("a", desired=0)
    async with running(shoal.url) as pilot:
        await see(pilot, "live", "> a")
        shoal.answer_delay = 30
        await see(pilot, "OLD", "does not answer in time")
        shoal.answer_delay = 0
        await see(pilot, "live")


async def test_many_models_on_many_devices_in_any_size(shoal: ScriptedShoal) -> None:
    shoal.devices = [device(f"cuda:{n}") for n in range(8)]
    for n in range(100):
        held = memory(weights=10 * GIB, held={f"cuda:{n % 8}": 12 * GIB})
        shoal.add(f"model-{n:03}", instance(f"i-{n}", f"model-{n:03}", "ready", devices=[f"cuda:{n % 8}"], memory=held))
    async with running(shoal.url) as pilot:
        await see(pilot, "100 ready", "> model-000", "cuda:7")
        await pilot.press("pagedown", "down")
        await see(pilot, "> model-011")
        for size in ((200, 60), (40, 12), (20, 5), (80, 24)):
            await pilot.resize_terminal(*size)
            await until(pilot, lambda size=size: top_of(pilot).size == size)  # type: ignore[misc]
        await see(pilot, "> model-011")


async def test_ascii_alone(shoal: ScriptedShoal) -> None:
    shoal.add("a", instance("a-1", "a", "ready", memory=memory(weights=70 * GIB, held={"cuda:0": 75 * GIB})))
    async with running(shoal.url, ascii_only=True) as pilot:
        await see(pilot, "* ready", "####")
        assert text(top_of(pilot)).isascii()


async def test_without_colour_no_colour_is_written(shoal: ScriptedShoal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    shoal.add("a", instance("a-1", "a", "failed", failure={"code": "x", "message": "broken", "hint": ""}))
    async with running(shoal.url) as pilot:
        await see(pilot, "✕ failed", "broken")
        strips = pilot.app.screen._compositor.render_strips()
        filters = pilot.app.get_line_filters()
        for strip in strips:
            for one in filters:
                strip = strip.apply_filter(one, pilot.app.screen.styles.background)
            for segment in strip:
                style = segment.style
                assert style is None or style.color is None or style.color.is_default
                assert style is None or style.bgcolor is None or style.bgcolor.is_default


def test_without_a_shoal_it_says_what_every_command_says(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setattr("shoal.cli.top._on_a_terminal", lambda: True)
    result = run("top", "--url", "http://127.0.0.1:9")
    assert result.exit_code == 3
    assert "nothing listens at http://127.0.0.1:9" in result.stderr


def test_without_a_terminal_it_names_what_lists(shoal: ScriptedShoal) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shoal.cli", "top"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "shoal ps" in done.stderr
    assert done.stdout == ""
    assert shoal.requests == []


def test_no_other_command_imports_textual() -> None:
    program = (
        "import sys; from shoal.cli.app import app\n"
        "try: app(['top', '--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in sys.modules if m.partition('.')[0] == 'textual' or m.startswith('shoal.cli.top_')],"
        " file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.strip() == "[]"
    assert "--ascii" in done.stdout
