"""The page's modules as one script: what `import` and `export` say is said with functions and one table of modules.

A browser asks for each module of a page on its own, and takes longer over each request than a whole page of them takes
to send; with some fifty of them nothing is drawn for a third of a second. So the modules that one needs are sent as
one file. It is made when it is asked for: the files stay what is written, read, and checked.

Only the plain forms are understood: `import {…} from`, `import name from` and `import "…"` of a relative path at the
beginning of a line or after a semicolon; `export` before a declaration of one name, `export {…}`, `export {…} from` and
`export default` of a value. Anything else is refused, and so are modules that import each other in a circle. An
exported name is never assigned again (`export let` is refused), so that its value can be handed on, and no module waits
for anything while it is made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from posixpath import dirname, join, normpath, relpath

TABLE = "shoalModules"
"""The global variable of the browser in which modules are found by their paths: each is made once, in whichever script
it came."""
_DEFAULT_NAME = f"{TABLE}Default"
_START = r"(?:^|(?<=;))"
_IMPORT = re.compile(
    _START + r'import\s*(?:(?P<default>[\w$]+)|\{(?P<names>[^}]*)\})?\s*(?:from\s*)?"(?P<path>\.[^"]+)";?', re.MULTILINE
)
_PASSED = re.compile(r'(?:^|(?<=[;}]))export\s*\{(?P<names>[^}]*)\}\s*from\s*"(?P<path>\.[^"]+)";?', re.MULTILINE)
_LISTED = re.compile(r"(?:^|(?<=[;}]))export\s*\{(?P<names>[^}]*)\};?", re.MULTILINE)
_DEFAULT = re.compile(_START + r"export\s+default\s+(?!(?:async\s+)?(?:function\*?|class)\s+[\w$])", re.MULTILINE)
_DECLARED = re.compile(r"^export\s+(?=(?:const|class|(?:async\s+)?function\*?)\s+(?P<name>[\w$]+))", re.MULTILINE)
_LEFT = re.compile(r"""^(?:export\b.*|import\b(?!\s*\().*["']\..*)""", re.MULTILINE)
_LAZY = re.compile(r'\bimport\("(?P<path>\.[^"]+)"\)')
_ANY = re.compile(r"(?:^|(?<=[;}]))(?:import|export)\b(?!\s*\()", re.MULTILINE)


class LinkError(ValueError):
    """A module that cannot be part of one script, and why."""


@dataclass(frozen=True, slots=True)
class Module:
    """A module by its `path`: what it `imports` (paths, in their order), and the function body that makes it.

    `exports`: the names that others see, each with what it is called in the body.
    """

    path: str
    imports: tuple[str, ...]
    body: str
    exports: Mapping[str, str]


def is_module(text: str) -> bool:
    """Whether a script imports or exports anything."""
    return _ANY.search(text) is not None


def parse(path: str, text: str) -> Module:
    """Read a module. Raises LinkError for what is not understood."""
    imports: dict[str, None] = {}
    exports: dict[str, str] = {}

    def resolved(found: re.Match[str]) -> str:
        name = normpath(join(dirname(path), found["path"]))
        imports.setdefault(name)
        return f'{TABLE}["{name}"]'

    def imported(found: re.Match[str]) -> str:
        module = resolved(found)
        if found["default"]:
            return f"const {found['default']} = {module}.default;"
        if found["names"] is None:
            return ""
        names = ", ".join(name if name == own else f"{name}: {own}" for name, own in _pairs(found["names"]))
        return f"const {{ {names} }} = {module};"

    def passed_on(found: re.Match[str]) -> str:
        module = resolved(found)
        exports.update({shown: f"{module}.{name}" for name, shown in _pairs(found["names"])})
        return ""

    def listed(found: re.Match[str]) -> str:
        exports.update({shown: name for name, shown in _pairs(found["names"])})
        return ""

    def declared(found: re.Match[str]) -> str:
        exports[found["name"]] = found["name"]
        return ""

    def default(_: re.Match[str]) -> str:
        exports["default"] = _DEFAULT_NAME
        return f"const {_DEFAULT_NAME} = "

    body = text
    for pattern, said in (
        (_IMPORT, imported),
        (_PASSED, passed_on),
        (_LISTED, listed),
        (_DEFAULT, default),
        (_DECLARED, declared),
    ):
        body = pattern.sub(said, body)
    if (left := _LEFT.search(body)) is not None:
        raise LinkError(f"{path}: this is not understood in a module of the page: {left[0].strip()[:120]}")
    return Module(path, tuple(imports), body, exports)


def _pairs(names: str) -> Iterator[tuple[str, str]]:
    """Of `a, b as c`: each name, and what it is called on the other side."""
    for one in names.split(","):
        name, _, other = (part.strip() for part in one.strip().partition(" as "))
        if name:
            yield name, other or name


def needed(entry: str, module: Callable[[str], Module]) -> tuple[Module, ...]:
    """A module and all that it needs, each after those that it imports. Raises LinkError, and what `module` raises."""
    done: dict[str, Module] = {}
    open_: list[str] = []

    def visit(path: str) -> None:
        if path in done:
            return
        if path in open_:
            raise LinkError(f"modules import each other in a circle: {' → '.join([*open_[open_.index(path) :], path])}")
        open_.append(path)
        found = module(path)
        for other in found.imports:
            visit(other)
        done[open_.pop()] = found

    visit(entry)
    return tuple(done.values())


def linked(modules: Sequence[Module]) -> str:
    """One script that does what the last of `modules` does, and exports what it exports. Each is after those that it
    imports; those that were made by another script before are not made again."""
    entry = modules[-1]
    parts = [f"globalThis.{TABLE} ??= Object.create(null);"]
    for module in modules:
        body = _moved(module, entry.path)
        names = ", ".join(one if one == name else f"{one}: {name}" for one, name in module.exports.items())
        parts.append(f'{TABLE}["{module.path}"] ??= (() => {{\n{body}\nreturn {{ {names} }};\n}})();')
    shown = [name for name in entry.exports if name != "default"]
    if shown:
        parts.append(f'export const {{ {", ".join(shown)} }} = {TABLE}["{entry.path}"];')
    if "default" in entry.exports:
        parts.append(f'export default {TABLE}["{entry.path}"].default;')
    return "\n".join(parts) + "\n"


def _moved(module: Module, entry: str) -> str:
    """The body of a module in the script of `entry`, from which its imports at some later time are found there."""

    def lazy(found: re.Match[str]) -> str:
        way = relpath(normpath(join(dirname(module.path), found["path"])), dirname(entry) or ".")
        return f'import("{way if way.startswith(".") else "./" + way}")'

    return _LAZY.sub(lazy, module.body)
