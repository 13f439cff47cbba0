"""Saving never blocks or raises; what fails is tried again and told."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from shoal.store import Store, StoreError
from shoal.store import store as store_module
from shoal.store.database import Database
from shoal.store.pending import Batch

from . import records
from .conftest import MakeStore


class Disk:
    """Stands between the store and its database: counts writes, and can hold them up or make them fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[Batch] = []
        self.failing = False
        self.attempts = 0
        self.free = threading.Event()
        self.free.set()
        real = Database.write

        def write(database: Database, batch: Batch) -> list[str]:
            self.attempts += 1
            self.free.wait(60)
            if self.failing:
                raise OperationalError("INSERT", {}, Exception("database or disk is full"))
            self.batches.append(batch)
            return real(database, batch)

        monkeypatch.setattr(Database, "write", write)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(monkeypatch)
    yield disk
    disk.free.set()


async def _until(what: object, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.01)


async def test_what_is_saved_together_is_written_together(make_store: MakeStore, disk: Disk) -> None:
    store = make_store()
    await store.open()
    for n in range(200):
        store.save_instance(records.instance(changed_at=float(n)))
        store.add_event(records.event(str(n)))
    assert await store.flush(30)
    assert len(disk.batches) == 1
    assert disk.batches[0].records == {("instance", "i"): records.instance(changed_at=199.0)}
    assert len(disk.batches[0].events) == 200
    await store.close()


async def test_a_slow_disk_blocks_nobody_and_gets_only_the_newest_version(make_store: MakeStore, disk: Disk) -> None:
    store = make_store()
    await store.open()
    disk.free.clear()
    store.save_model(records.model(created_at=0.0))
    await _until(lambda: disk.attempts == 1)
    for n in range(1, 50):
        store.save_model(records.model(created_at=float(n)))
        store.add_event(records.event(str(n)))
        await asyncio.sleep(0)
    assert store.unsaved == 1 + 1 + 49
    assert not await store.flush(0.05)  # too slow: says so, and goes on
    disk.free.set()
    assert await store.flush(30)
    assert [batch.records[("model", "m")] for batch in disk.batches] == [
        records.model(created_at=0.0),
        records.model(created_at=49.0),
    ]
    assert store.unsaved == 0
    await store.close()


async def test_failures_are_told_once_and_tried_again(
    make_store: MakeStore, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "RETRY_FIRST", 0.02)
    told: list[str | None] = []
    store = make_store()
    store.on_problem = told.append
    await store.open()
    store._delay = 0.02
    disk.failing = True
    store.save_model(records.model(desired=1))
    store.add_event(records.event("one"))
    await _until(lambda: disk.attempts >= 3)
    store.add_event(records.event("two"))
    store.save_model(records.model(desired=2))
    assert [event.message for event in await store.events()] == ["one", "two"]
    assert store.unsaved == 3
    assert not await store.flush(30)
    assert len(told) == 1
    assert told[0] is not None
    assert told[0].startswith("Models and events could not be saved in ")
    assert "database or disk is full" in told[0]
    assert "\n" not in told[0]
    disk.failing = False
    await _until(lambda: store.problem is None)
    await asyncio.sleep(0)
    assert told[1:] == [None]
    assert store.unsaved == store.dropped == 0
    assert [event.message for event in await store.events()] == ["one", "two"]
    assert (await store.load()).models == [records.model(desired=2)]
    await store.close()


async def test_the_wait_between_attempts_doubles_up_to_its_bound(
    make_store: MakeStore, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store()
    await store.open()
    disk.failing = True
    waits: list[float] = []
    loop = asyncio.get_running_loop()
    real = loop.call_later

    def call_later(delay: float, callback: object, *args: object) -> asyncio.TimerHandle:
        if callback == store._write:
            waits.append(delay)
            delay = 0.001
        return real(delay, callback, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(loop, "call_later", call_later)
        store.add_event(records.event())
        await _until(lambda: len(waits) >= 8)
        assert waits[:8] == [1, 2, 4, 8, 16, 30, 30, 30]
        disk.failing = False
        await _until(lambda: store.problem is None)
    await store.close()


async def test_too_many_waiting_events_drop_the_oldest(
    make_store: MakeStore, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "PENDING_MOST", 10)
    store = make_store()
    await store.open()
    disk.failing = True
    for n in range(25):
        store.add_event(records.event(str(n)))
        await asyncio.sleep(0)
    assert not await store.flush(30)
    assert store.dropped == 15
    assert store.unsaved == 10
    disk.failing = False
    assert await store.flush(30)
    assert [event.message for event in await store.events()] == [str(n) for n in range(15, 25)]
    await store.close()


async def test_saving_works_before_opening_and_does_no_harm_after_closing(make_store: MakeStore) -> None:
    store = make_store()
    store.save_model(records.model())
    assert not await store.flush(1)
    with pytest.raises(StoreError, match="not open"):
        await store.load()
    await store.open()
    assert await store.flush(30)
    await store.close()
    await store.close()
    store.save_model(records.model("late"))
    assert store.unsaved == 1
    again = make_store()
    await again.open()
    assert (await again.load()).models == [records.model()]
    await again.close()


async def test_concurrent_savers_readers_and_flushes(make_store: MakeStore, url: str | None) -> None:
    store = make_store(url, events_kept=10_000)
    await store.open()

    async def saver(name: str) -> None:
        for n in range(50):
            store.save_instance(records.instance(name, changed_at=float(n)))
            store.add_event(records.event(f"{name} {n}", model=name))
            if n % 10 == 0:
                assert await store.flush(60)
                seen = [event.message for event in await store.events(1000, model=name)]
                assert seen == [f"{name} {k}" for k in range(n + 1)]
            await asyncio.sleep(0)

    await asyncio.gather(*(saver(f"s{k}") for k in range(8)))
    assert await store.flush(60)
    saved = await store.load()
    assert {i.id: i.changed_at for i in saved.instances} == {f"s{k}": 49.0 for k in range(8)}
    assert len(await store.events(10_000)) == 400
    await store.close()


async def test_an_idle_store_wakes_up_for_nothing(make_store: MakeStore, disk: Disk) -> None:
    store = make_store()
    await store.open()
    store.add_event(records.event())
    assert await store.flush(30)
    await asyncio.sleep(0.05)
    assert store._next is None
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "shoal-store"]
    status = Path(f"/proc/self/task/{thread.native_id}/status")

    def switches() -> int:
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["voluntary_ctxt_switches"])

    gc.collect()
    before = switches()
    await asyncio.sleep(1)
    assert switches() == before
    await store.close()
    await asyncio.to_thread(thread.join, 30)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("mysql://x/y", "has to begin with postgresql"),
        ("nonsense", "has to begin with postgresql"),
        ("postgres://u:secret@h/d", "has to begin with postgresql"),
        ("postgresql+psycopg://u:secret@localhost:1/d", "start its server or correct database_url"),
    ],
)
async def test_a_url_that_cannot_work_is_refused_without_its_password(
    url: str, says: str, make_store: MakeStore
) -> None:
    store = make_store(url)
    with pytest.raises(StoreError) as caught:
        await store.open()
    assert says in caught.value.message
    assert "secret" not in caught.value.message
    await store.close()


async def test_sqlite_by_url_and_with_odd_file_names(tmp_path: Path) -> None:
    path = tmp_path / "what? 100% #1" / "ü.db"
    for store in (
        Store(None, path, history=1, events_kept=100, usage_kept=400),
        Store(f"sqlite:///{tmp_path}/plain.db", path, history=1, events_kept=100, usage_kept=400),
        Store("sqlite://", path, history=1, events_kept=100, usage_kept=400),
    ):
        await store.open()
        store.save_model(records.model())
        assert await store.flush(30)
        assert (await store.load()).models == [records.model()]
        assert store.problem is None
        await store.close()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [child.name for child in path.parent.iterdir()] == ["ü.db"]  # its log was folded in
    assert (tmp_path / "plain.db").exists()
