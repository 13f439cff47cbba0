"""What a database's error means, in words that say what to do."""

from __future__ import annotations

import sqlite3

from sqlalchemy.exc import DBAPIError

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


def damaged(error: BaseException) -> bool:
    """Whether the error says that the file itself is broken."""
    return isinstance(error, DamagedError) or sqlite_code(error) in ("SQLITE_CORRUPT", "SQLITE_NOTADB")


def why(error: BaseException) -> str:
    """The error in a clause, with what to do about it where that is known."""
    known = _SQLITE.get(sqlite_code(error))
    if known is not None:
        return known
    inner = cause(error)
    if isinstance(inner, OSError) and inner.strerror:
        return f"{inner.strerror}: {inner.filename}" if inner.filename else inner.strerror
    return " ".join(str(inner).split()) or type(inner).__name__
