"""The page's modules as one script."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from posixpath import dirname, join, normpath

import pytest

from shoal.api.page_modules import LinkError, Module, is_module, linked, needed, parse
from shoal.dashboard import STATIC


def run(entry: str, files: dict[str, str], then: str) -> object:
    """What `then` comes to in a script that is linked from some files."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on this machine")
    script = linked(needed(entry, lambda path: parse(path, files[path])))
    said = subprocess.run(
        [node, "--input-type=module", "-e", f"{script}\nconsole.log(JSON.stringify({then}))"],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    return json.loads(said.stdout)


def test_one_script_does_what_its_modules_do() -> None:
    files = {
        "app.js": 'import { add, sub as minus, version } from "./math/sum.js";\nimport twice from "./math/twice.js";\n'
        'import "./effect.js";\nexport const result = [add(2, 3), minus(5, 1), twice(4), version, globalThis.seen];',
        "math/sum.js": 'export { version } from "../about.js";\nfunction sub(a, b) { return a - b; }\n'
        "export const add = (a, b) => a + b;\nexport { sub };",
        "math/twice.js": 'import{add as a}from"./sum.js";export default function(n){return a(n,n)}',
        "about.js": "const inner = 7;\nexport { inner as version };",
        "effect.js": 'import { version } from "./about.js";\nglobalThis.seen = version;\nlet result = "of its own";',
    }
    assert run("app.js", files, "result") == [5, 4, 8, 7, 7]


def test_every_kind_of_export_arrives() -> None:
    files = {
        "app.js": 'import { a, b, c, D } from "./all.js";\nimport e from "./default.js";\n'
        "export const all = [a, b(), await c(), new D().d, e];",
        "all.js": "export const a = 1;\nexport function b() { return 2; }\nexport async function c() { return 3; }\n"
        "export class D { d = 4; }",
        "default.js": "const five = 5;\nexport default five;",
    }
    with pytest.raises(subprocess.CalledProcessError):  # nothing may be waited for while a module is made
        run("app.js", files, "all")
    files["app.js"] = files["app.js"].replace("await c()", "typeof c")
    assert run("app.js", files, "all") == [1, 2, "function", 4, 5]


def test_a_module_that_two_scripts_bring_is_made_once() -> None:
    files = {
        "one.js": 'import { made } from "./shared.js";\nexport const one = made;',
        "two.js": 'import { made } from "./shared.js";\nexport const two = made;',
        "shared.js": "globalThis.times = (globalThis.times ?? 0) + 1;\nexport const made = {};",
    }
    second = linked(needed("two.js", lambda path: parse(path, files[path])))
    assert run("one.js", files, f"[(() => {{ {second.replace('export ', '')} return two === one; }})(), times]") == [
        True, 1,
    ]  # fmt: skip


def test_imports_at_some_later_time_are_found_from_the_script_they_are_part_of() -> None:
    files = {
        "app.js": 'import "./views/a.js";\nimport("./views/b.js");',
        "views/a.js": 'const later = () => import("../vendor/c.js");\nconst beside = () => import("./d.js");',
    }
    app = linked(needed("app.js", lambda path: parse(path, files[path])))
    assert re.findall(r'import\("([^"]+)"\)', app) == ["./vendor/c.js", "./views/d.js", "./views/b.js"]
    view = linked((parse("views/a.js", files["views/a.js"]),))
    assert re.findall(r'import\("([^"]+)"\)', view) == ["../vendor/c.js", "./d.js"]


def test_what_stands_in_texts_is_left_alone() -> None:
    text = 'export const code = `\nimport OpenAI from "openai";\nconst { a } = await import("x");\n`;'
    assert (
        run("app.js", {"app.js": text}, "code") == '\nimport OpenAI from "openai";\nconst { a } = await import("x");\n'
    )


@pytest.mark.parametrize(
    "text",
    [
        "export let count = 0;",
        "export var old = 1;",
        "export const { a, b } = found;",
        "export default function named() {}",
        "export default class Named {}",
        'export * from "./other.js";',
        'import * as all from "./other.js";',
        "import { a } from './single.js';",
    ],
)
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(LinkError, match=r"^views/x\.js: "):
        parse("views/x.js", f"const before = 1;\n{text}\n")


def test_modules_in_a_circle_are_refused() -> None:
    files = {"a.js": 'import "./b.js";', "b.js": 'import "./c.js";', "c.js": 'import "./b.js";'}
    with pytest.raises(LinkError, match=r"circle: b\.js → c\.js → b\.js"):
        needed("a.js", lambda path: parse(path, files[path]))


def test_each_module_comes_after_those_that_it_imports_and_once() -> None:
    files = {
        "a.js": 'import "./b.js";\nimport "./c.js";',
        "b.js": 'import "./d.js";',
        "c.js": 'import "./d.js";',
        "d.js": "",
    }
    found = needed("a.js", lambda path: parse(path, files[path]))
    assert [one.path for one in found] == ["d.js", "b.js", "c.js", "a.js"]


def page() -> dict[str, Module]:
    """All modules of the page. The reference is a page of its own, with files as they are."""
    files = (file for file in STATIC.rglob("*.js") if file.name != "reference.js" and is_module(file.read_text()))
    paths = (file.relative_to(STATIC).as_posix() for file in files)
    return {path: parse(path, (STATIC / path).read_text()) for path in paths}


def test_every_import_of_the_page_is_there() -> None:
    modules = page()
    assert len(modules) > 80
    for module in modules.values():
        text = (STATIC / module.path).read_text()
        for names, path in re.findall(r'^import \{([^}]*)\} from "(\.[^"]+)"', text, re.MULTILINE):
            other = modules[normpath(join(dirname(module.path), path))]
            assert {name.split(" as ")[0].strip() for name in names.split(",") if name.strip()} <= {*other.exports}


def test_every_script_that_the_page_asks_for_can_be_read(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on this machine")
    modules = page()
    lazy = {
        normpath(join(dirname(path), found))
        for path in modules
        for found in re.findall(r'\bimport\("(\.[^"]+)"\)[).,]', (STATIC / path).read_text())
    }
    scripts = {"app.js", *lazy}
    assert {"app.js", "views/playground.js", "components/palette_panel.js", "vendor/uplot.js"} <= scripts
    for entry in sorted(scripts):
        script = tmp_path / entry.replace("/", "_").replace(".js", ".mjs")
        script.write_text(linked(needed(entry, modules.__getitem__)))
        subprocess.run([node, "--check", script], check=True, timeout=30)
