"""Live on a disk that turns read-only: `read_only.py FOLDER`, where FOLDER is a disk of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from shoal.fleet.records import Event
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Model
from shoal.store import Store

FOLDER = Path(sys.argv[1])


def remount(how: str) -> None:
    """Make the disk `ro` or `rw`."""
    subprocess.run(["mount", "-o", f"remount,{how}", str(FOLDER)], check=True)


def model(name: str) -> Model:
    """A plain model."""
    return Model(ModelSpec(name=name, source="/m"), "api", 1.0)


async def names(store: Store) -> list[str]:
    """The models in the database."""
    return [model.spec.name for model in (await store.load()).models]


async def check_read_only(file: Path, found: list[str]) -> None:
    """A start on a read-only disk: everything is read, nothing is lost, and writing comes back with the disk."""
    remount("ro")
    store = Store(None, file, history=10, events_kept=1000, usage_kept=400)
    await store.open()
    assert "nothing can be saved" in (store.problem or "").lower(), store.problem
    assert "writable" in (store.problem or "") or "Read-only" in (store.problem or ""), store.problem
    assert await names(store) == found, await names(store)
    store.save_model(model("more"))
    store.add_event(Event(1.0, "info", "test", "unsaved"))
    assert not await store.flush(30)
    assert await names(store) == found, await names(store)
    assert [event.message for event in await store.events()][-1:] == ["unsaved"]
    remount("rw")
    assert await store.flush(30)
    assert store.problem is None
    assert await names(store) == sorted({*found, "more"})
    await store.close()


async def leave_a_log(file: Path) -> None:
    """A process that dies leaves its log beside the database."""
    store = Store(None, file, history=10, events_kept=1000, usage_kept=400)
    await store.open()
    store.save_model(model("in the log"))
    assert await store.flush(30)
    os._exit(0)


def crash(file: Path) -> None:
    """Run `leave_a_log` in a process of its own."""
    subprocess.run([sys.executable, __file__, str(FOLDER), "crash"], check=True)
    assert file.with_name("shoal.db-wal").stat().st_size > 0


async def main() -> None:
    """With no database yet, after a clean stop, and after a crash."""
    file = FOLDER / "state" / "shoal.db"
    if sys.argv[2:] == ["crash"]:
        await leave_a_log(file)
    await check_read_only(file, [])
    await check_read_only(file, ["more"])
    crash(file)
    await check_read_only(file, ["in the log", "more"])


asyncio.run(main())
