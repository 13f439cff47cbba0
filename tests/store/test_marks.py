"""Users and keys are missed where a database comes back without them: empty, gone, of an earlier time, or damaged."""

from __future__ import annotations

import dataclasses
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import inspect

from shoal.fleet.keys import KeyRecord
from shoal.fleet.users import Cost, PasswordHash, User
from shoal.store import Saved, Store, schema
from shoal.store.connect import connect, find_target
from shoal.store.marks import Marks
from shoal.store.tables import KEYS_SINCE, USERS_SINCE, admin_users, api_keys

from . import records
from .conftest import MakeStore

ANN = User("ann", "admin", PasswordHash("00ff" * 8, "ab" * 32, Cost(4, 2, 1)), 1.0, 2.0)
KEY = records.key("bbbb0000")
Record = User | KeyRecord


async def keep(store: Store, *kept: Record) -> None:
    """Save these and close."""
    await store.open()
    for one in kept:
        if isinstance(one, User):
            store.save_user(one)
        else:
            store.save_key(one)
    await store.close()


async def start(store: Store) -> Saved:
    """What a start finds."""
    await store.open()
    saved = await store.load()
    await store.close()
    return saved


def lost(saved: Saved) -> tuple[bool, bool]:
    return saved.users_lost, saved.keys_lost


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "shoal.db"


@pytest.mark.parametrize("kept", [ANN, KEY], ids=["user", "key"])
@pytest.mark.parametrize("harm", ["empty", "gone", "older", "rows"])
async def test_what_came_back_without_them_has_lost_them_for_good(
    make_store: MakeStore, file: Path, kept: Record, harm: str
) -> None:
    await keep(make_store(), kept)
    assert lost(await start(make_store())) == (False, False)
    for part in ("-wal", "-shm"):
        file.with_name(file.name + part).unlink(missing_ok=True)
    if harm == "rows":
        with closing(sqlite3.connect(file, isolation_level=None)) as connection:
            connection.execute("DELETE FROM admin_users")
            connection.execute("DELETE FROM api_keys")
    else:
        file.unlink()
    if harm == "empty":
        file.touch()
    if harm == "older":
        engine = connect(find_target(None, file)).execution_options(shoal_write=True)
        with engine.begin() as opened:
            schema.upgrade(opened, "0001")
        engine.dispose()
    for _ in range(2):
        assert lost(await start(make_store())) == (kept is ANN, kept is KEY)
    await keep(make_store(), kept)
    assert lost(await start(make_store())) == (False, False)


async def test_with_the_last_of_them_nothing_is_missed_any_more(make_store: MakeStore, file: Path) -> None:
    assert lost(await start(make_store())) == (False, False)
    other = dataclasses.replace(KEY, id="cccc0000")
    await keep(make_store(), ANN, KEY, other)
    await keep(make_store(), dataclasses.replace(other, revoked_at=9.0))
    assert Marks(file).present() == {"user", "key"}
    store = make_store()
    await store.open()
    store.delete_user("ann")
    store.save_key(dataclasses.replace(KEY, revoked_at=9.0))
    await store.close()
    assert Marks(file).present() == set()
    file.unlink()
    assert lost(await start(make_store())) == (False, False)


async def test_what_an_earlier_version_kept_is_marked_at_the_start(make_store: MakeStore, file: Path) -> None:
    await keep(make_store(), ANN, KEY)
    for mark in file.parent.glob("shoal-has-*"):
        mark.unlink()
    assert lost(await start(make_store())) == (False, False)
    assert Marks(file).present() == {"user", "key"}


async def test_what_a_damaged_file_lost_is_missed_at_each_start(make_store: MakeStore, file: Path) -> None:
    await keep(make_store(), ANN, KEY)
    file.write_bytes(b"no database" * 1000)
    for _ in range(2):
        assert lost(await start(make_store())) == (True, True)


@pytest.mark.parametrize("table", ["admin_users", "api_keys"])
@pytest.mark.parametrize("revision", ["0007", "0001", "", "zzzz", None])
async def test_a_table_that_is_missing_never_was_only_if_the_schema_is_older(
    make_store: MakeStore, file: Path, table: str, revision: str | None
) -> None:
    await keep(make_store(), ANN, KEY)
    for mark in file.parent.glob("shoal-has-*"):
        mark.unlink()
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        if revision is None:
            connection.execute("DELETE FROM shoal_schema")
        else:
            connection.execute("UPDATE shoal_schema SET version_num = ?", (revision,))
        root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'ix_events_model_id'").fetchone()[0]
        size = connection.execute("PRAGMA page_size").fetchone()[0]
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("DELETE FROM sqlite_master WHERE tbl_name = ?", (table,))
    with file.open("r+b") as raw:
        raw.seek((root - 1) * size)
        raw.write(os.urandom(size))
    saved = await start(make_store())
    assert not saved.complete
    older = revision == "0001"
    assert lost(saved) == (table == "admin_users" and not older, table == "api_keys" and not older)


@pytest.mark.parametrize(("since", "table"), [(KEYS_SINCE, api_keys), (USERS_SINCE, admin_users)])
def test_the_revisions_that_made_the_tables(tmp_path: Path, since: str, table: object) -> None:
    engine = connect(find_target(None, tmp_path / "shoal.db")).execution_options(shoal_write=True)
    name = str(table)
    for revision, there in ((f"{int(since) - 1:04}", False), (since, True)):
        with engine.begin() as connection:
            schema.upgrade(connection, revision)
            assert (name in inspect(connection).get_table_names()) == there
            assert schema.current(connection) == revision
    engine.dispose()


def test_without_a_file_there_are_no_marks() -> None:
    marks = Marks(None)
    marks.add(["user", "key"])
    assert marks.present() == set()
