"""SQLAlchemy engines as the store wants them: one connection, explicit transactions, nothing secret in labels."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.pool import QueuePool

from shoal.store.errors import StoreError

BUSY_SECONDS = 5.0
_CONNECT_SECONDS = 5
_POSTGRES = {"connect_timeout": _CONNECT_SECONDS, "tcp_user_timeout": 20_000, "application_name": "shoal"}


@dataclass(frozen=True, slots=True)
class Target:
    """Which database: a SQLite file, or another URL. `label` names it for people, without its password."""

    url: URL
    file: Path | None
    label: str


def find_target(url: str | None, path: Path) -> Target:
    """The database that `url` names, or the SQLite file `path`. Raises StoreError for one that cannot be used."""
    if url is None:
        return Target(URL.create("sqlite", database=str(path)), path, str(path))
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, NoSuchModuleError):
        parsed, backend = None, ""
    if parsed is not None and backend == "sqlite":
        in_memory = parsed.database in (None, "", ":memory:")
        file = None if in_memory else Path(str(parsed.database))
        return Target(URL.create("sqlite", database=parsed.database), file, "memory" if in_memory else str(file))
    if parsed is None or backend != "postgresql":
        raise StoreError(
            "database_url has to begin with postgresql+psycopg:// (such as postgresql+psycopg://user@host/shoal) "
            "or with sqlite:///; leave it out for a SQLite file in the state folder"
        )
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    return Target(parsed, None, parsed.render_as_string(hide_password=True))


def connect(target: Target, *, read_only: bool = False) -> Engine:
    """An engine with one connection. With `read_only` it never writes, not even the files beside SQLite's."""
    if target.url.get_backend_name() == "sqlite":
        return _sqlite(target, read_only=read_only)
    try:
        engine = create_engine(
            target.url,
            pool_size=1,
            max_overflow=0,
            pool_pre_ping=True,
            connect_args={name: value for name, value in _POSTGRES.items() if name not in target.url.query},
        )
    except ModuleNotFoundError as error:
        raise StoreError(
            f"database_url needs the Python package {error.name}, which is not installed; "
            "run `pip install 'shoal[postgresql]'`"
        ) from None

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("SET LOCAL lock_timeout = '10s'")

    return engine


def _sqlite(target: Target, *, read_only: bool) -> Engine:
    name = ":memory:" if target.file is None else str(target.file)

    def make() -> sqlite3.Connection:
        if not read_only or target.file is None:
            return sqlite3.connect(name, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        # A write-ahead log that was not folded in needs its index beside it; without a log the file is all there is.
        log = target.file.with_name(target.file.name + "-wal")
        how = "mode=ro" if log.exists() and log.stat().st_size else "immutable=1"
        uri = f"file:{quote(name)}?{how}"
        return sqlite3.connect(uri, timeout=BUSY_SECONDS, isolation_level=None, uri=True, check_same_thread=False)

    engine = create_engine("sqlite://", creator=make, poolclass=QueuePool, pool_size=1, max_overflow=0)

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _: Any) -> None:
        if not read_only:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # Taking the write lock at once lets a second process wait for it; upgrading a read lock fails instead.
        writes = connection.get_execution_options().get("shoal_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
