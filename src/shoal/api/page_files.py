"""The page's files as they are sent: read and compressed once, and an index that names every module needed first.

A browser finds the modules of a page level by level, for each names those that it imports; with eight levels that is
eight round trips before anything is drawn. Named in the index, they all come in one.
"""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from posixpath import dirname, join, normpath

SMALL = 500
"""Bytes below which compressing is not worth it."""
_ENTRY = re.compile(r'<script type="module" src="static/([^"]+)"></script>')
_IMPORT = re.compile(r'(?:\bfrom|^import)\s*"(\.{1,2}/[^"]+)"', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file: its `body`, gzip's form of it (None: not worth it), and the files that it imports at once."""

    body: bytes
    zipped: bytes | None
    etag: str
    type: str
    imports: tuple[str, ...] = ()


class PageFiles:
    """The files of a folder, each as it is now: one that was changed is read again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, tuple[tuple[int, int], PageFile]] = {}
        self._index = _made(b"", "text/html")

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
                known = self._known[path] = (mark, _read(path, (self._folder / path).read_bytes()))
        except OSError:
            return None
        return known[1]

    def index(self) -> PageFile:
        """`index.html`, with a preload for each module that its script needs before it can begin. Raises OSError."""
        text = (self._folder / "index.html").read_text(encoding="utf-8")
        if (entry := _ENTRY.search(text)) is not None:
            names = [name for name in self._needed(entry[1]) if f'href="static/{name}"' not in text]
            links = "".join(f'<link rel="modulepreload" href="static/{name}">\n  ' for name in names)
            text = text[: entry.start()] + links + text[entry.start() :]
        body = text.encode()
        if body != self._index.body:
            self._index = _made(body, "text/html")
        return self._index

    def _needed(self, entry: str) -> Iterator[str]:
        """The modules that one imports, and those that they import, the nearest first; without itself."""
        seen, todo = {entry}, [entry]
        for name in todo:
            file = self.get(name)
            for other in file.imports if file is not None else ():
                if other not in seen:
                    seen.add(other)
                    todo.append(other)
                    yield other


def _read(path: str, body: bytes) -> PageFile:
    kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
    imports: tuple[str, ...] = ()
    if path.endswith(".js"):
        kind = "text/javascript"  # whatever this machine's table of types says: browsers run nothing else
        names = _IMPORT.findall(body.decode("utf-8", "replace"))
        imports = tuple(dict.fromkeys(normpath(join(dirname(path), name)) for name in names))
    return _made(body, kind, imports)


def _made(body: bytes, kind: str, imports: tuple[str, ...] = ()) -> PageFile:
    zipped = gzip.compress(body, mtime=0) if len(body) > SMALL else None
    if kind.startswith("text/"):
        kind += "; charset=utf-8"
    # Weak: it stands for either form.
    etag = f'W/"{hashlib.sha256(body).hexdigest()[:32]}"'
    return PageFile(body, zipped if zipped is not None and len(zipped) < len(body) else None, etag, kind, imports)
