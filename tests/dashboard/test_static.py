"""The page's files: what they may hold, how large they are, and whether their types hold."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import pytest

from shoal.api.page_files import PageFiles
from shoal.dashboard import STATIC

TOOLS = Path(__file__).parents[2] / "tools"
MODULES = sorted(STATIC.rglob("*.js"))
OWN = [file for file in MODULES if "vendor" not in file.parts]
LIMIT = 150 * 1024
VIEW_LIMIT = 30 * 1024


@pytest.fixture(scope="module")
def vendor() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vendor", TOOLS / "vendor.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["vendor"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    for file in [*OWN, *STATIC.glob("*.css"), STATIC / "icon.svg", STATIC / "index.html"]:
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://", text), file.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text), file.name
    html = (STATIC / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]*src=)", html)
    assert not re.search(r'(?:src|href)="/', html), "an absolute address breaks behind a path prefix"


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(STATIC)))
def test_every_import_is_a_file_beside_it(file: Path) -> None:
    for name in re.findall(r'(?:from|^import|import\()\s*"([^"]+)"', file.read_text(encoding="utf-8"), re.MULTILINE):
        assert name.startswith("."), f"{name} would need an import map, which is an inline script"
        assert (file.parent / name).is_file(), name


def test_what_is_heard_early_is_all_that_the_page_hears() -> None:
    early = (STATIC / "early.js").read_text(encoding="utf-8")
    found = re.search(r"const kinds = \[([^\]]+)\]", early)
    store = (STATIC / "store.js").read_text(encoding="utf-8")
    takes = re.search(r"const take = \{\n(.+?)\n\};", store, re.DOTALL)
    assert found is not None and takes is not None
    assert re.findall(r'"(\w+)"', found[1]) == re.findall(r"^  (\w+)[:(]", takes[1], re.MULTILINE)


def test_every_route_has_its_style() -> None:
    text = (STATIC / "routes.js").read_text(encoding="utf-8")
    for name in re.findall(r'style: "([^"]+)"', text):
        assert (STATIC / name).is_file(), name


def sent(files: PageFiles, names: Iterable[str]) -> int:
    """Bytes of files as they are sent, compressed."""
    sizes = 0
    for name in names:
        file, _ = files.released(files.release(), name)
        assert file is not None, name
        sizes += len(file.zipped or file.body)
    return sizes


def test_what_opening_the_page_takes_is_small_and_so_is_each_view() -> None:
    files = PageFiles(STATIC)
    first = re.findall(r'="static/([^"]+)"', (STATIC / "index.html").read_text(encoding="utf-8"))
    assert {"app.js", "early.js", "base.css"} <= {*first}
    charts = ["vendor/uplot.js", "vendor/uplot.css"]
    assert sent(files, [*first, "index.html", *charts]) <= LIMIT
    asked = re.compile(r'(?:await |=> |\[)import\("(\.[^"]+)"\)')
    texts = {file: file.read_text(encoding="utf-8") for file in OWN}
    later = {(file.parent / name).resolve() for file, text in texts.items() for name in asked.findall(text)}
    assert {STATIC / "views" / f"{name}.js" for name in ("model", "playground", "events")} <= later
    for file in later:
        assert sent(files, [file.relative_to(STATIC.resolve()).as_posix()]) <= VIEW_LIMIT, file


def test_the_vendored_files_are_those_of_the_lock(vendor: ModuleType) -> None:
    assert vendor.faults() == []
    licences = {entry["license"] for entry in json.loads(vendor.MANIFEST.read_text())["files"]}
    assert licences <= {"MIT", "Apache-2.0"}


def test_a_vendored_file_that_was_changed_is_found(
    vendor: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "vendor"
    shutil.copytree(vendor.VENDOR, copy)
    monkeypatch.setattr(vendor, "VENDOR", copy)
    (copy / "htm.js").write_text("changed")
    (copy / "more.js").write_text("")
    (copy / "hooks.js").unlink()
    assert sorted(vendor.faults()) == [
        "hooks.js is not as it was written", "htm.js is not as it was written", "more.js is not in the manifest",
    ]  # fmt: skip


def test_bare_imports_become_relative_and_unknown_ones_are_refused(vendor: ModuleType) -> None:
    text = "import{h}from'preact';export*from\"preact/hooks\";import x from './own.js';"
    assert vendor.relative(text) == 'import{h}from"./preact.js";export*from"./hooks.js";import x from \'./own.js\';'
    with pytest.raises(SystemExit, match="left-pad is imported"):
        vendor.relative('import pad from "left-pad";')


def test_types_hold() -> None:
    tsc = TOOLS / "node_modules" / ".bin" / "tsc"
    if not tsc.exists() or shutil.which("node") is None:
        pytest.skip("no TypeScript here (make page-types)")
    done = subprocess.run([tsc, "-p", TOOLS / "tsconfig.json"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js here")
def test_rates_and_percentiles(tmp_path: Path) -> None:
    """The page's arithmetic, in the language that it is written in."""
    shutil.copy(STATIC / "rates.js", tmp_path / "rates.mjs")
    script = """
      import { keep, quantile, rates } from "./rates.mjs";
      const one = (at, requests, tokens, first_byte) => ({ at, bounds: [1, 2, 4], models: [{ model: "m", running: 1,
        queued: 2, held: 3, requests, prompt_tokens: 0, completion_tokens: tokens, first_byte }] });
      const grown = rates([one(0, 5, 50, [5, 0, 0, 0]), one(10, 25, 250, [5, 10, 10, 0])]).get("m");
      const anew = rates([one(0, 50, 50, [50, 0, 0, 0]), one(10, 2, 4, [2, 0, 0, 0])]).get("m");
      console.log(JSON.stringify({
        grown, anew, none: quantile([0, 0], [1], 0.5), beyond: quantile([0, 0, 0, 9], [1, 2, 4], 0.5),
        kept: keep([one(0), one(30), one(90)], one(91)).map((x) => x.at), first: [...rates([])],
      }));
    """
    done = subprocess.run(
        ["node", "--input-type=module", "-e", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["grown"] == {"requests": 2, "tokens": 20, "p50": 2, "p95": 3.8, "running": 1, "waiting": 5}
    assert (found["anew"]["requests"], found["anew"]["p50"]) == (0, 0.5)
    assert (found["none"], found["beyond"], found["kept"], found["first"]) == (None, 4, [90, 91], [])


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js here")
def test_what_lies_in_a_tin(tmp_path: Path) -> None:
    shutil.copy(STATIC / "tins.js", tmp_path / "tins.mjs")
    script = """
      import { scale, tinOf } from "./tins.mjs";
      const memory = (more) => ({ held: {}, weights: 30, leases: [], ...more });
      const one = (name, state, more) => ({ name, instances: [{ state, devices: ["d"], memory: memory(more) }] });
      const plain = { id: "d", kind: "cuda", memory_total: 100, pool: null };
      const device = (memory_used, more) => ({ ...plain, memory_used, ...more });
      const sizes = ({ holdings, others, free, total }) =>
        [Object.fromEntries(holdings.map((held) => [held.model, held.size])), others, free, total];
      console.log(JSON.stringify({
        empty: sizes(tinOf(device(0), [])),
        unknown: sizes(tinOf(device(50), [one("ready", "ready"), one("new", "starting"), one("off", "queued")])),
        begun: sizes(tinOf(device(35), [one("ready", "ready"), one("new", "starting")])),
        held: sizes(tinOf(device(50), [one("new", "starting", { held: { d: 12 } })])),
        more: sizes(tinOf(device(50), [one("a", "ready", { weights: 80 }), one("b", "ready", { weights: 40 })])),
        asleep: sizes(tinOf(device(9), [one("s", "sleeping", { held: { d: 3 } })])),
        scales: [100, 50, 1].map((size) => scale(device(0, { memory_total: size }), [device(0)])),
      }));
    """
    done = subprocess.run(
        ["node", "--input-type=module", "-e", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(done.stdout) == {
        "empty": [{}, 0, 100, 100],
        "unknown": [{"ready": 30, "new": 20}, 0, 50, 100],
        "begun": [{"ready": 30, "new": 5}, 0, 65, 100],
        "held": [{"new": 12}, 38, 50, 100],
        "more": [{"a": 80, "b": 40}, 0, 0, 120],  # what the readings say, though the device has less
        "asleep": [{"s": 3}, 6, 91, 100],
        "scales": [1, 0.5, 0.35],
    }
