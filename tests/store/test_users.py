"""Users and their sessions outlive the process; users that cannot be read let nobody in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import text

from shoal.fleet.sessions import Session
from shoal.fleet.users import Cost, PasswordHash, User
from shoal.store.connect import connect, find_target

from .conftest import MakeStore

KEPT = PasswordHash("00ff" * 8, "ab" * 32, Cost(4, 2, 1))
ANN = User("ann", "admin", KEPT, 1.0, 2.0)
BOB = User("böb 🐟", "read-only", KEPT, 3.0, 3.0)
SESSION = Session("cd" * 32, "ann", 5.0, 6.0)


async def test_users_and_sessions_survive_a_restart(make_store: MakeStore, url: str | None) -> None:
    store = make_store(url)
    await store.open()
    store.save_user(ANN)
    store.save_user(BOB)
    store.save_session(SESSION)
    store.save_session(Session("ee" * 32, "ann", 5.0, 5.0))
    assert await store.flush(30)
    store.delete_session("ee" * 32)
    await store.close()
    again = make_store(url)
    await again.open()
    saved = await again.load()
    assert (saved.users, saved.sessions) == ([ANN, BOB], [SESSION])
    assert (saved.users_lost, saved.problems) == (False, [])
    again.delete_user("ann")
    await again.close()
    third = make_store(url)
    await third.open()
    assert (await third.load()).users == [BOB]
    await third.close()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("password", "{"),
        ("password", "[]"),
        ("password", "{}"),
        ("password", json.dumps({"scheme": "argon2", "salt": "00", "digest": "00"})),
        ("password", json.dumps({"scheme": "scrypt", "salt": "zz", "digest": "00", "n": 4, "r": 1, "p": 1})),
        ("password", json.dumps({"scheme": "scrypt", "salt": "00", "digest": "00", "n": 2**40, "r": 8, "p": 1})),
        ("password", json.dumps({"scheme": "scrypt", "salt": "00", "digest": "00", "n": "4", "r": 1, "p": 1})),
        ("role", "root"),
    ],
)
async def test_a_row_that_cannot_be_read_is_left_out_and_closes_the_door(
    make_store: MakeStore, column: str, value: str
) -> None:
    store = make_store()
    await store.open()
    store.save_user(ANN)
    store.save_user(BOB)
    await store.close()
    engine = connect(find_target(None, Path(store._path))).execution_options(shoal_write=True)
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE admin_users SET {column} = :v WHERE name = 'ann'"), {"v": value})
    engine.dispose()
    again = make_store()
    await again.open()
    saved = await again.load()
    assert saved.users == [BOB]
    assert saved.users_lost
    assert not saved.keys_lost
    (problem,) = saved.problems
    assert "The stored user ann was left out" in problem
    assert value not in problem or column == "role"
    await again.close()


async def test_users_of_a_damaged_file_are_rescued_or_missed(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store()
    await store.open()
    store.save_user(ANN)
    await store.close()
    file = tmp_path / "state" / "shoal.db"
    file.write_bytes(b"no database" * 1000)
    again = make_store()
    await again.open()
    saved = await again.load()
    assert (saved.users, saved.users_lost) == ([], True)
    await again.close()
