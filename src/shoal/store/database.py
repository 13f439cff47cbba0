"""The store's side of the database: open it whatever its condition, write batches, read. Runs in one thread."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, text, update
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError, StatementError

from shoal.fleet.keys import KeyRecord
from shoal.fleet.profiles import Profile
from shoal.fleet.records import Event, LoadRecord
from shoal.fleet.state import Instance, Model
from shoal.fleet.users import User
from shoal.fleet.virtual import Virtual
from shoal.messages import UsageReport
from shoal.store import queries, schema, usage
from shoal.store.connect import Target, connect
from shoal.store.errors import StoreError
from shoal.store.faults import DamagedError, about_the_disk, cause, damaged, why
from shoal.store.marks import Marks
from shoal.store.pending import Batch, Key
from shoal.store.saved import Saved
from shoal.store.tables import KEYS_SINCE, USERS_SINCE, schema_version

log = logging.getLogger(__name__)

PRUNE_EVERY = 100
"""Events between two prunings: so many more than `events_kept` may stand in the table."""


class Database:
    """One database. Blocking; every call from one thread."""

    def __init__(self, target: Target, *, history: int, events_kept: int, usage_kept: int) -> None:
        self.target = target
        self._history = history
        self._events_kept = events_kept
        self._usage_kept = usage_kept
        self._engine: Engine | None = None
        self._writable = False
        self._since_prune = PRUNE_EVERY  # whatever an earlier process left is pruned with the first events
        self._notes: list[str] = []
        self._complete = True
        self._keys_lost = False
        self._users_lost = False
        self._marks = Marks(target.file)

    def open(self) -> str | None:
        """Open for writing, or else for reading, or else not at all. Returns why it cannot be written, or None.

        A damaged SQLite file is moved aside. Raises StoreError where going on would harm or mislead: the database is
        a newer Shoal's or another program's, an upgrade of it failed, or the PostgreSQL server cannot be reached.
        """
        try:
            self._open_for_writing()
        except (OSError, SQLAlchemyError) as error:
            if self.target.file is None or not about_the_disk(error):
                raise self._unusable(error) from error
            return self._open_for_reading(error)
        return None

    def close(self) -> None:
        """Give the connection back; SQLite folds its log into the file."""
        if self._engine is not None:
            self._engine.dispose()
        self._engine, self._writable = None, False

    def write(self, batch: Batch) -> list[str]:
        """Write a batch in one transaction, and prune. Returns what the database refuses for good, a clause each.

        Raises OSError, SQLAlchemyError or StoreError if nothing was written and it may work later.
        """
        if not self._writable:
            self._reopen()
        if not batch:
            return []
        refused: list[str] = []
        try:
            with self._begin(write=True) as connection:
                queries.write(connection, batch)
                self._marks.follow(connection, {kind for kind, _ in batch.records})
                pruned = self._prune(connection, batch)
        except (DataError, IntegrityError, StatementError, ValueError, TypeError, OverflowError) as error:
            if isinstance(error, DBAPIError) and not isinstance(error, (DataError, IntegrityError)):
                raise
            with self._begin(write=True) as connection:
                refused = _write_singly(connection, batch)
                self._marks.follow(connection, {kind for kind, _ in batch.records})
                pruned = self._prune(connection, batch)
        self._since_prune = 0 if pruned else self._since_prune + len(batch.events)
        return refused

    def load(self) -> Saved:
        """Every model, instance, key and virtual model, and what was noticed while opening."""
        marked = self._marks.present()
        if self._engine is None:
            return Saved(
                problems=list(self._notes),
                keys_lost=self._keys_lost or "key" in marked,
                users_lost=self._users_lost or "user" in marked,
                complete=False,
            )
        with self._begin() as connection:
            models, unread_models = queries.read_models(connection)
            instances, unread_instances = queries.read_instances(connection)
            keys, unread_keys = queries.read_keys(connection)
            virtual, unread_virtual = queries.read_virtual(connection)
            profiles = queries.read_profiles(connection)
            presets, unread_presets = queries.read_presets(connection)
            moves, unread_moves = queries.read_moves(connection)
            users, unread_users = queries.read_users(connection)
            sessions = queries.read_sessions(connection)
        problems = unread_models + unread_instances
        some_key, some_user = any(key.revoked_at is None for key in keys), bool(users)
        self._marks.add_quietly(["key"] * some_key + ["user"] * some_user)  # an earlier version made none
        return Saved(
            models,
            instances,
            self._notes + problems + unread_keys + unread_virtual + unread_presets + unread_moves + unread_users,
            keys,
            virtual,
            profiles,
            presets,
            moves,
            users,
            sessions,
            keys_lost=self._keys_lost or bool(unread_keys) or ("key" in marked and not some_key),
            users_lost=self._users_lost or bool(unread_users) or ("user" in marked and not some_user),
            complete=self._complete and not problems,
        )

    def add_usage(self, report: UsageReport, now: float) -> None:
        """Count a report of usage, once, in a transaction of its own. Raises StoreError if nothing can be written."""
        if not self._writable:
            raise StoreError(f"nothing can be saved in {self.target.label} now; usage waits")
        with self._begin(write=True) as connection:
            usage.add(connection, report, now)
            usage.prune(connection, self._usage_kept, now)

    def usage(self, query: usage.Query) -> list[usage.UsageSum]:
        """What was used, as `query` asks."""
        if self._engine is None:
            return []
        with self._begin() as connection:
            return usage.read(connection, query)

    def events(
        self,
        limit: int,
        before: int | None,
        model: str | None,
        kinds: Collection[str] = (),
        since: float | None = None,
    ) -> list[Event]:
        """The newest events, oldest of them first."""
        if self._engine is None:
            return []
        with self._begin() as connection:
            return queries.read_events(connection, limit, before, model, kinds, since)

    def loads(self, limit: int, model: str | None) -> list[LoadRecord]:
        """The newest loads, oldest of them first."""
        if self._engine is None:
            return []
        with self._begin() as connection:
            return queries.read_loads(connection, limit, model)

    def _prune(self, connection: Connection, batch: Batch) -> bool:
        if any(isinstance(change, Instance) and change.state.ended for change in batch.records.values()):
            queries.prune_instances(connection, self._history)
        if any(isinstance(change, Profile) for change in batch.records.values()):
            queries.prune_profiles(connection)
        if batch.loads:
            queries.prune_loads(connection, {load.model for load in batch.loads})
        if not batch.events or self._since_prune + len(batch.events) < PRUNE_EVERY:
            return False
        queries.prune_events(connection, self._events_kept)
        return True

    @contextmanager
    def _begin(self, *, write: bool = False) -> Iterator[Connection]:
        assert self._engine is not None
        with self._engine.execution_options(shoal_write=write).begin() as connection:
            yield connection

    def _open_for_writing(self) -> None:
        self.close()
        if self.target.file is not None:
            _make_file(self.target)
        self._engine = connect(self.target)
        try:
            with self._begin(write=True) as connection:
                if self.target.file is not None:
                    _check(connection)
                schema.prepare(connection, self.target.label)
                if self.target.file is not None:
                    _touch(connection)
        except (SQLAlchemyError, DamagedError) as error:
            self.close()
            if self.target.file is None or not damaged(error):
                raise
            rescued, marked = self._move_aside(), self._marks.present()
            self._open_for_writing()
            self.write(rescued)
            self._marks.add_quietly(marked)  # what is lost is missed at later starts too
        except BaseException:
            self.close()
            raise
        self._writable = True

    def _reopen(self) -> None:
        try:
            self._open_for_writing()
        except (OSError, SQLAlchemyError) as error:
            if self.target.file is not None:
                self._open_for_reading(error)  # what was readable stays readable
            raise

    def _move_aside(self) -> Batch:
        file = self.target.file
        assert file is not None
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        aside, n = file.with_name(f"{file.name}.corrupt-{stamp}"), 1
        while aside.exists():
            aside, n = file.with_name(f"{file.name}.corrupt-{stamp}-{n}"), n + 1
        for end in ("", "-wal", "-shm"):
            part = file.with_name(file.name + end)
            if part.exists():
                part.rename(aside.with_name(aside.name + end))
        rescued, lost = _rescue(aside)
        self._keys_lost, self._users_lost = queries.read_keys in lost, queries.read_users in lost
        self._notes.append(
            f"The database {file} was damaged: it was moved to {aside} and a new one begun, "
            f"with the {len(rescued)} models, instances and keys that could still be read."
        )
        self._complete = False
        log.error("%s", self._notes[-1])
        return rescued

    def _open_for_reading(self, error: Exception) -> str:
        """After writing failed with `error`."""
        engine = connect(self.target, read_only=True)
        try:
            with engine.begin() as connection:
                _check(connection)
                if not schema.is_current(connection, self.target.label):
                    raise DamagedError("it needs an upgrade, which it cannot get while it cannot be written")
        except (OSError, SQLAlchemyError, DamagedError):
            engine.dispose()
            file = self.target.file
            self._keys_lost = self._users_lost = file is not None and file.exists() and file.stat().st_size > 0
            because = why(error, file)
            return (
                f"Nothing can be saved in {self.target.label}, and nothing was read from it: {because}. "
                "Shoal goes on with what it holds in memory and keeps trying."
            )
        except BaseException:
            engine.dispose()
            raise
        self._engine = engine
        return (
            f"{self.target.label} can be read but nothing can be saved in it: {why(error, self.target.file)}. "
            "Shoal goes on and keeps trying."
        )

    def _unusable(self, error: Exception) -> StoreError:
        advice = (
            "start its server or correct database_url" if self.target.file is None else "move it away or restore it"
        )
        return StoreError(f"the database {self.target.label} cannot be used: {why(error, self.target.file)}; {advice}")


def _make_file(target: Target) -> None:
    """The folder and an empty file that only its owner may read: models can carry tokens in their environment."""
    file = target.file
    assert file is not None
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not file.exists():
        os.close(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))


def _check(connection: Connection) -> None:
    answer = connection.scalar(text("PRAGMA quick_check(1)"))
    if answer != "ok":
        raise DamagedError(str(answer))


def _touch(connection: Connection) -> None:
    """Write something: SQLite opens a file that it cannot write, and even begins a transaction, without a word."""
    connection.execute(update(schema_version).values(version_num=schema_version.c.version_num))


def _rescue(aside: Path) -> tuple[Batch, set[Callable[..., Any]]]:
    """The records that a damaged file still gives, and by which readings it may not give all of what guards Shoal:
    keys, users."""
    rescued = Batch()
    lost: set[Callable[..., Any]] = set()
    engine = connect(Target(URL.create("sqlite"), aside, str(aside)), read_only=True)
    guarding: dict[Callable[..., Any], str] = {queries.read_keys: KEYS_SINCE, queries.read_users: USERS_SINCE}
    others = (queries.read_models, queries.read_instances, queries.read_virtual)
    for read in (*others, queries.read_keys, queries.read_users):
        try:
            with engine.begin() as connection:
                found, unread = read(connection)
        except (OSError, SQLAlchemyError, ValueError) as error:
            log.warning("%s: %s", aside, why(error))
            never = "no such table" in str(cause(error)) and _is_older(engine, guarding.get(read, ""))
            if read in guarding and not never:
                lost.add(read)
            continue
        if read in guarding and unread:
            lost.add(read)
        rescued.records.update({_key_of(record): record for record in found})
    engine.dispose()
    return rescued, lost


def _is_older(engine: Engine, revision: str) -> bool:
    """Whether a damaged file still says that its schema is older than a revision's."""
    try:
        with engine.begin() as connection:
            current = schema.current(connection) or ""
    except (OSError, SQLAlchemyError, ValueError):
        return False
    return re.fullmatch(r"\d{4}", current) is not None and current < revision


def _key_of(record: Model | Instance | KeyRecord | Virtual | User) -> Key:
    match record:
        case Model():
            return "model", record.spec.name
        case Instance():
            return "instance", record.id
        case KeyRecord():
            return "key", record.id
        case Virtual():
            return "virtual", record.spec.name
        case User():
            return "user", record.name


def _write_singly(connection: Connection, batch: Batch) -> list[str]:
    """Write each item under a savepoint of its own, so that one bad item does not keep back the others."""
    refused = []
    singles = [(f"{kind} {name}", Batch(records={(kind, name): c})) for (kind, name), c in batch.records.items()]
    singles += [(f"the load of {load.model}", Batch(loads=[load])) for load in batch.loads]
    singles += [(f"an event ({event.kind})", Batch(events=[event])) for event in batch.events]
    for name, single in singles:
        try:
            with connection.begin_nested():
                queries.write(connection, single)
        except (DataError, IntegrityError, StatementError, ValueError, TypeError, OverflowError) as error:
            if isinstance(error, DBAPIError) and not isinstance(error, (DataError, IntegrityError)):
                raise
            refused.append(f"{name} ({why(cause(error))})")
    return refused
