"""The page's files as they are sent: read and compressed once, its modules linked into one script, and each at an
address that names the release, so that a browser that has it need not ask again. Scripts that follow each other in the
index are one file as well, and so are style sheets: while a page is opened each request takes longer than what it asks.
"""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from shoal.api.page_modules import LinkError, Module, is_module, linked, needed, parse

SMALL = 500
"""Bytes below which compressing is not worth it."""
ENTRY = "app.js"
"""The module with which the page begins: what it needs is there when others come."""
JOINT = "+"
"""Between the names of files that are sent as one."""
_ELEMENTS = (r'<script src="static/[^"/]+"></script>', r'<link rel="stylesheet" href="static/[^"/]+">')
_NEIGHBOURS = re.compile("|".join(rf"(?:{one})(?:\s*{one})+" for one in _ELEMENTS))
_NAME = re.compile(r'(?<="static/)[^"]+')
_REFERENCE = re.compile(r'(?<=(?:href|.src)="static/)(?=[^"]+")')


@dataclass(frozen=True)
class PageFile:
    """A file: its `body`, and what else an answer says of it."""

    body: bytes
    etag: str
    type: str

    @cached_property
    def zipped(self) -> bytes | None:
        """gzip's form of it; None where that is not worth it."""
        zipped = gzip.compress(self.body, mtime=0) if len(self.body) > SMALL else None
        return zipped if zipped is not None and len(zipped) < len(self.body) else None


class PageFiles:
    """The files of a folder, each as it is now: one that was changed is read again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, tuple[tuple[int, int], PageFile]] = {}
        self._marks: tuple[tuple[str, int, int], ...] | None = None
        self._release = ""
        self._made: dict[str, PageFile] = {}  # of that release, as are the modules
        self._modules: dict[str, Module] = {}

    def get(self, path: str) -> PageFile | None:
        """A file by its path below the folder; None if there is none. No path leads out of the folder."""
        if "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
            return None
        try:
            found = (self._folder / path).stat()
            if not stat.S_ISREG(found.st_mode):
                return None
            mark = (found.st_mtime_ns, found.st_size)
            known = self._known.get(path)
            if known is None or known[0] != mark:
                body = (self._folder / path).read_bytes()
                known = self._known[path] = (mark, _made(body, _type(path)))
        except OSError:
            return None
        return known[1]

    def release(self) -> str:
        """A word for all files as they are now; another one as soon as any of them changes."""
        marks = tuple(sorted(_marks(self._folder, "")))
        if marks == self._marks:
            return self._release
        summed = hashlib.sha256()
        for path, _, _ in marks:
            if (file := self.get(path)) is not None:
                summed.update(f"{path} {file.etag}\n".encode())
        self._marks, release = marks, summed.hexdigest()[:16]
        if release != self._release:
            self._release, self._made, self._modules = release, {}, {}
        return release

    def released(self, release: str, path: str) -> tuple[PageFile | None, bool]:
        """A file of a release, modules linked; and whether it is of that one. Of others only what stands alone is
        there, as it is now: a module of this release does not fit to those that a browser has of another.

        Raises LinkError.
        """
        there = release == self._release or release == self.release()
        if JOINT in path:
            return self._joint(path), there
        file = self.get(path)
        if file is None or not path.endswith(".js") or not is_module(_text(file)):
            return file, there
        if not there:
            return None, False
        if path not in self._made:
            self._made[path] = self._linked(path)
        return self._made[path], True

    def index(self) -> PageFile:
        """`index.html`, whose files are those of the release. Raises OSError."""
        release = self.release()
        if "" not in self._made:
            text = (self._folder / "index.html").read_text(encoding="utf-8")
            text = _NEIGHBOURS.sub(self._as_one, text)
            self._made[""] = _made(_REFERENCE.sub(f"{release}/", text).encode(), _type("index.html"))
        return self._made[""]

    def _as_one(self, neighbours: re.Match[str]) -> str:
        """One element for several that follow each other, which asks for one file."""
        names = _NAME.findall(neighbours[0])
        path = JOINT.join(names)
        files = [file for name in names if (file := self.get(name)) is not None]
        if len(files) < len(names):
            return neighbours[0]  # what is missing is seen by its own name
        between = b"\n;\n" if path.endswith(".js") else b"\n"
        self._made[path] = _made(between.join(file.body for file in files), _type(path))
        (first, _), *_, (_, last) = (name.span() for name in _NAME.finditer(neighbours[0]))
        return f"{neighbours[0][:first]}{path}{neighbours[0][last:]}"

    def _joint(self, path: str) -> PageFile | None:
        """Files that the index asks for together; None for others, or if there is no index."""
        if path not in self._made:
            with suppress(OSError):
                self.index()
        return self._made.get(path)

    def _linked(self, path: str) -> PageFile:
        there = set() if path == ENTRY else {module.path for module in needed(ENTRY, self._module)}
        modules = [module for module in needed(path, self._module) if module.path == path or module.path not in there]
        return _made(linked(modules).encode(), _type(path))

    def _module(self, path: str) -> Module:
        if path not in self._modules:
            file = self.get(path)
            if file is None:
                raise LinkError(f"{path} is imported, and there is no such file")
            self._modules[path] = parse(path, _text(file))
        return self._modules[path]


def _marks(folder: Path, below: str) -> Iterator[tuple[str, int, int]]:
    """Of each file in a folder: its path, and what becomes another when it is changed."""
    with os.scandir(folder) as found:
        for one in found:
            if one.is_dir():
                yield from _marks(folder / one.name, f"{below}{one.name}/")
            elif one.is_file():
                with suppress(FileNotFoundError):  # it was there a moment ago
                    about = one.stat()
                    yield f"{below}{one.name}", about.st_mtime_ns, about.st_size


def _text(file: PageFile) -> str:
    return file.body.decode("utf-8", "replace")


def _type(path: str) -> str:
    # Whatever this machine's table of types says of scripts: browsers run nothing else.
    kind = "text/javascript" if path.endswith(".js") else mimetypes.guess_type(path)[0] or "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


def _made(body: bytes, kind: str) -> PageFile:
    # Weak: it stands for either form.
    return PageFile(body, f'W/"{hashlib.sha256(body).hexdigest()[:32]}"', kind)
