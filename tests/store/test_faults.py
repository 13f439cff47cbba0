"""Disks that are full, read-only or damaged, processes that are killed, and two on one file: all of them real."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shoal.store import Store

from . import records
from .conftest import MakeStore

FOLDER = Path(__file__).parent


def _run(script: str, *args: str | Path, before: list[str] | None = None) -> None:
    """Run a script of this folder; what it asserts, it asserts for this test."""
    command = [*(before or []), sys.executable, "-W", "error", str(FOLDER / script), *map(str, args)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def _start_writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    """A process that saves `count` times under `name` and prints how many are promised to be saved."""
    command = [sys.executable, str(FOLDER / "writer.py"), str(path), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _with_tmpfs(folder: Path, size: str) -> list[str]:
    """The start of a command that sees a small disk at `folder`, in a mount namespace of its own."""
    folder.mkdir()
    shell = f'mount -t tmpfs -o size={size} none "{folder}" && exec "$@"'
    before = ["unshare", "--map-root-user", "--mount", "sh", "-c", shell, "sh"]
    tried = subprocess.run([*before, "true"], capture_output=True, text=True) if shutil.which("unshare") else None
    if tried is None or tried.returncode != 0:
        pytest.skip(f"cannot mount a small disk here: {tried.stderr.strip() if tried else 'there is no unshare'}")
    return before


def test_a_full_disk(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    _run("full_disk.py", folder, "space", before=_with_tmpfs(folder, "1m"))


def test_files_that_may_not_grow(tmp_path: Path) -> None:
    _run("full_disk.py", tmp_path, "limit")


def test_a_read_only_folder(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    _run("read_only.py", folder, before=_with_tmpfs(folder, "8m"))


@pytest.mark.parametrize("harm", ["garbage", "middle", "cut"])
async def test_a_damaged_file_is_set_aside(harm: str, make_store: MakeStore, tmp_path: Path) -> None:
    path = tmp_path / "state" / "shoal.db"
    store = make_store()
    await store.open()
    for n in range(500):
        store.add_event(records.event("x" * 200, at=float(n)))
    await store.close()
    data = bytearray(path.read_bytes())
    match harm:
        case "garbage":
            data[:] = b"this was never a database" * 100
        case "middle":
            data[4096 * 3 :] = random.Random(0).randbytes(len(data) - 4096 * 3)
        case "cut":
            del data[len(data) // 2 :]
    path.write_bytes(data)

    again = make_store()
    await again.open()
    saved = await again.load()
    (aside,) = path.parent.glob("shoal.db.corrupt-*")
    assert aside.read_bytes() == data
    assert saved.models == []
    assert not saved.complete
    assert len(saved.problems) == 1
    assert str(aside) in saved.problems[0]
    assert again.problem is None
    again.save_model(records.model())
    assert await again.flush(30)
    await again.close()
    third = make_store()
    await third.open()
    assert (await third.load()).models == [records.model()]
    assert (await third.load()).problems == []
    await third.close()


async def test_models_and_instances_are_rescued_from_a_damaged_file(make_store: MakeStore, tmp_path: Path) -> None:
    path = tmp_path / "state" / "shoal.db"
    store = make_store()
    await store.open()
    store.save_model(records.model("precious"))
    store.save_instance(records.instance("running"))
    assert await store.flush(30)
    for n in range(500):
        store.add_event(records.event("x" * 200, at=float(n)))
    await store.close()
    data = bytearray(path.read_bytes())
    data[-4096 * 10 :] = random.Random(0).randbytes(4096 * 10)  # the newest pages hold events
    path.write_bytes(data)

    again = make_store()
    await again.open()
    saved = await again.load()
    assert saved.models == [records.model("precious")]
    assert saved.instances == [records.instance("running")]
    assert not saved.complete
    assert "with the 2 models, instances and keys that could still be read" in saved.problems[0]
    assert len(list(path.parent.glob("shoal.db.corrupt-*"))) == 1
    await again.close()


async def test_a_killed_writer_loses_at_most_its_last_moments(make_store: MakeStore, tmp_path: Path) -> None:
    path = tmp_path / "state" / "shoal.db"
    for attempt in range(3):
        process = _start_writer(path, f"w{attempt}", 1_000_000)
        assert process.stdout is not None
        promised = -1
        deadline = time.monotonic() + 60
        while promised < 200:  # the writer prints what `flush` said is saved
            promised = int(await asyncio.to_thread(process.stdout.readline))
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGKILL)
        rest = await asyncio.to_thread(process.stdout.read)
        process.wait()
        process.stdout.close()
        complete = [line for line in rest.splitlines(keepends=True) if line.endswith("\n")]
        promised = int(complete[-1]) if complete else promised

        store = make_store(events_kept=1_000_000)
        await store.open()
        saved = await store.load()
        assert saved.problems == []
        assert store.problem is None
        events = await store.events(1_000_000, model=f"w{attempt}")
        numbers = [int(event.message) for event in events]
        assert numbers == list(range(len(numbers)))  # in order, none missing
        assert len(numbers) >= promised
        (instance,) = [instance for instance in saved.instances if instance.id == f"w{attempt}"]
        assert instance.changed_at == numbers[-1]  # one transaction: never half of it
        await store.close()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


async def test_two_processes_on_one_file(make_store: MakeStore, tmp_path: Path) -> None:
    path = tmp_path / "state" / "shoal.db"
    writers = [_start_writer(path, name, 300) for name in ("a", "b")]
    for writer in writers:
        await asyncio.to_thread(writer.communicate, timeout=100)
        assert writer.returncode == 0
    store = make_store(events_kept=10_000)
    await store.open()
    for name in ("a", "b"):
        assert [e.message for e in await store.events(10_000, model=name)] == [str(n) for n in range(300)]
    assert {i.id: i.changed_at for i in (await store.load()).instances} == {"a": 299.0, "b": 299.0}
    await store.close()


async def test_a_file_that_another_process_locks_is_tried_again(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.store.connect.BUSY_SECONDS", 0.1)
    store = make_store()
    await store.open()
    other = sqlite3.connect(tmp_path / "state" / "shoal.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store.save_model(records.model())
    assert not await store.flush(30)
    assert "another process keeps it locked" in (store.problem or "")
    other.execute("ROLLBACK")
    other.close()
    assert await store.flush(30)
    assert store.problem is None
    await store.close()


async def test_a_postgresql_server_that_drops_the_connection(make_store: MakeStore, postgres: str) -> None:
    import psycopg

    store = make_store(postgres)
    await store.open()
    store.save_model(records.model("a"))
    assert await store.flush(30)
    with psycopg.connect(postgres.replace("+psycopg", ""), autocommit=True) as connection:
        others = "datname = current_database() AND pid <> pg_backend_pid()"
        connection.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}".encode())
        store.save_model(records.model("b"))
        assert await store.flush(30)
        assert store.problem is None
        connection.execute("ALTER TABLE models RENAME TO hidden")
        store.save_model(records.model("c"))
        assert not await store.flush(30)
        assert "Models could not be saved" in (store.problem or "")
        connection.execute("ALTER TABLE hidden RENAME TO models")
    assert await store.flush(30)
    assert [model.spec.name for model in (await store.load()).models] == ["a", "b", "c"]
    await store.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
async def test_a_folder_without_write_permission(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o500)
    store = Store(None, folder / "shoal.db", history=10, events_kept=100, usage_kept=400)
    await store.open()
    assert "Nothing can be saved" in (store.problem or "")
    store.save_model(records.model())
    folder.chmod(0o700)
    assert await store.flush(30)
    assert store.problem is None
    await store.close()
