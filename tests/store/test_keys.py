"""Keys and virtual models outlive the process; keys that cannot be read open nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import text

from shoal.fleet.keys import Former
from shoal.store import StoreError, schema
from shoal.store.connect import connect, find_target
from shoal.store.peek import peek_keys

from . import records
from .conftest import MakeStore

ROTATED = records.key("bbbb0000", "rotated", rotated_at=5.0, former=Former("1" * 64, 9.0))


async def test_keys_and_virtual_models_survive_a_restart(make_store: MakeStore, url: str | None) -> None:
    store = make_store(url)
    await store.open()
    store.save_key(records.key(name="plain"))
    store.save_key(ROTATED)
    revoked = dataclasses.replace(records.key("cccc0000"), revoked_at=7.0)
    store.save_key(records.key("cccc0000"))
    store.save_key(revoked)
    store.save_virtual(records.virtual("v"))
    store.save_virtual(records.virtual("gone"))
    assert await store.flush(30)
    store.delete_virtual("gone")
    await store.close()
    again = make_store(url)
    await again.open()
    saved = await again.load()
    assert saved.keys == [records.key(name="plain"), ROTATED, revoked]
    assert saved.virtual == [records.virtual("v")]
    assert (saved.keys_lost, saved.complete, saved.problems) == (False, True, [])
    await again.close()
    assert peek_keys(url, Path(again._path)) == saved.keys


async def test_what_another_version_wrote_is_left_out_and_told(make_store: MakeStore, url: str | None) -> None:
    store = make_store(url)
    await store.open()
    store.save_key(records.key("good0000"))
    store.save_key(records.key("bad00000", "odd"))
    store.save_virtual(records.virtual("v"))
    await store.close()
    engine = connect(find_target(url, Path(store._path))).execution_options(shoal_write=True)
    with engine.begin() as connection:
        record = json.dumps({"settings": {"name": "odd", "future": 1}})
        connection.execute(text("UPDATE api_keys SET record = :r WHERE id = 'bad00000'"), {"r": record})
        connection.execute(text("UPDATE virtual_models SET spec = '{'"))
    engine.dispose()
    again = make_store(url)
    await again.open()
    saved = await again.load()
    assert saved.keys == [records.key("good0000")]
    assert saved.virtual == []
    assert saved.keys_lost
    assert saved.complete, "of what runs, all is known"
    assert any("API key odd (bad00000) was left out" in problem for problem in saved.problems)
    assert any("virtual model v was left out" in problem for problem in saved.problems)
    await again.close()


async def test_keys_are_rescued_from_a_damaged_file(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store()
    await store.open()
    store.save_key(ROTATED)
    store.save_virtual(records.virtual("v"))
    for n in range(300):
        store.add_event(records.event("x" * 500 + str(n)))
    await store.close()
    file = tmp_path / "state" / "shoal.db"
    with sqlite3.connect(file) as connection:
        root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'ix_events_model_id'").fetchone()[0]
        size = connection.execute("PRAGMA page_size").fetchone()[0]
    connection.close()
    with file.open("r+b") as raw:
        raw.seek((root - 1) * size)
        raw.write(os.urandom(size))
    again = make_store()
    await again.open()
    saved = await again.load()
    assert not saved.complete
    assert saved.keys == [ROTATED]
    assert saved.virtual == [records.virtual("v")]
    assert not saved.keys_lost
    await again.close()


async def test_a_file_that_gives_no_keys_back_may_have_had_some(make_store: MakeStore, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "shoal.db").write_bytes(b"no database at all" * 1000)
    store = make_store()
    await store.open()
    assert (await store.load()).keys_lost
    await store.close()


async def test_a_folder_without_a_file_never_had_any(make_store: MakeStore, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("no folder")
    store = make_store()
    await store.open()
    assert store.problem is not None
    assert not (await store.load()).keys_lost
    await store.close()


async def test_a_damaged_file_of_an_older_version_had_none(make_store: MakeStore, tmp_path: Path) -> None:
    path = tmp_path / "state" / "shoal.db"
    path.parent.mkdir()
    engine = connect(find_target(None, path)).execution_options(shoal_write=True)
    with engine.begin() as connection:
        schema.upgrade(connection, "0001")
        root = connection.scalar(text("SELECT rootpage FROM sqlite_master WHERE name = 'ix_events_model_id'"))
        size = connection.scalar(text("PRAGMA page_size"))
    engine.dispose()
    assert peek_keys(None, path) == []
    with path.open("r+b") as raw:
        raw.seek((root - 1) * size)
        raw.write(os.urandom(size))
    store = make_store()
    await store.open()
    saved = await store.load()
    assert not saved.complete
    assert not saved.keys_lost
    await store.close()


# -- looking without opening -------------------------------------------------------------------------------------------


async def test_a_look_at_the_keys_changes_nothing(make_store: MakeStore, tmp_path: Path) -> None:
    path = tmp_path / "state" / "shoal.db"
    assert peek_keys(None, path) == []
    assert not path.parent.exists()
    store = make_store()
    await store.open()
    store.save_key(ROTATED)
    assert await store.flush(30)
    assert peek_keys(None, path) == [ROTATED]  # while another process writes
    await store.close()
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    assert peek_keys(None, path) == [ROTATED]
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


def test_a_look_at_what_is_no_database_says_so(tmp_path: Path) -> None:
    (tmp_path / "shoal.db").write_bytes(b"no database at all" * 1000)
    with pytest.raises(StoreError, match=r"the API keys in .*shoal.db cannot be read"):
        peek_keys(None, tmp_path / "shoal.db")
    assert [file.name for file in tmp_path.iterdir()] == ["shoal.db"]
