"""What a database's error means, in words that say what to do."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from sqlalchemy.exc import DBAPIError

_LEAST_SPACE = 128 * 1024
_SQLITE = {
    "SQLITE_FULL": "the disk is full; free some space",
    "SQLITE_READONLY": "the file or its folder is read-only; make both writable",
    "SQLITE_CANTOPEN": "the file cannot be opened or made; make its folder writable",
    "SQLITE_PERM": "the file may not be used; make it and its folder writable",
    "SQLITE_BUSY": "another process keeps it locked; end that one",
    "SQLITE_IOERR": "the disk reports an error; check its health and its free space",
    "SQLITE_CORRUPT": "the file is damaged; restart Shoal, which sets a damaged file aside",
    "SQLITE_NOTADB": "the file is not a database; restart Shoal, which sets such a file aside",
}


class DamagedError(Exception):
    """The file is not a sound database."""


def cause(error: BaseException) -> BaseException:
    """The driver's own error."""
    return error.orig if isinstance(error, DBAPIError) and error.orig is not None else error


def sqlite_code(error: BaseException) -> str:
    """`SQLITE_FULL` and so on, without the finer part of it; empty if it is not SQLite's."""
    name = getattr(cause(error), "sqlite_errorname", "") if isinstance(cause(error), sqlite3.Error) else ""
    return "_".join(str(name).split("_")[:2])


def about_the_disk(error: BaseException) -> bool:
    """Whether the disk, the file's rights or another process stands in the way: it may pass, and reading may work."""
    return isinstance(error, OSError) or sqlite_code(error) in _SQLITE


def damaged(error: BaseException) -> bool:
    """Whether the error says that the file itself is broken."""
    return isinstance(error, DamagedError) or sqlite_code(error) in ("SQLITE_CORRUPT", "SQLITE_NOTADB")


def why(error: BaseException, file: Path | None = None) -> str:
    """The error in a clause, with what to do about it where that is known. `file` is the database, if it is one."""
    code = sqlite_code(error)
    if code in ("SQLITE_IOERR", "SQLITE_CANTOPEN") and file is not None and _is_full(file.parent):
        code = "SQLITE_FULL"  # what SQLite says depends on which of its files did not fit
    known = _SQLITE.get(code)
    if known is not None:
        return known
    inner = cause(error)
    if isinstance(inner, OSError) and inner.strerror:
        return f"{inner.strerror}: {inner.filename}" if inner.filename else inner.strerror
    return " ".join(str(inner).split()) or type(inner).__name__


def _is_full(folder: Path) -> bool:
    try:
        space = os.statvfs(folder)
    except OSError:
        return False
    return space.f_bavail * space.f_frsize < _LEAST_SPACE
