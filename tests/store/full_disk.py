"""Live through a full disk: `full_disk.py FOLDER space|limit`. With `space`, FOLDER is a small disk of its own."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from shoal.fleet.records import Event
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Model
from shoal.store import Store

FOLDER, HOW = Path(sys.argv[1]), sys.argv[2]
SAYS = {"space": "the disk is full", "limit": "disk"}[HOW]


def fill() -> None:
    """From now on nothing more can be written."""
    if HOW == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        return
    with (FOLDER / "ballast").open("ab", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(b"x" * 4096)


def free() -> None:
    """Now it can again."""
    if HOW == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    else:
        (FOLDER / "ballast").unlink()


def model(name: str) -> Model:
    """A plain model."""
    return Model(ModelSpec(name=name, source="/m"), "api", 1.0)


def event(n: int) -> Event:
    """An event that takes some space."""
    return Event(float(n), "info", "test", f"{n} " + "x" * 2000)


async def until(what: Callable[[], object]) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + 40
    while not what():
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.05)


async def names(store: Store) -> list[str]:
    """The models in the database."""
    saved = await store.load()
    assert saved.problems == [], saved.problems
    return [model.spec.name for model in saved.models]


async def main() -> None:
    """While it runs, at a start, and with no database yet."""
    file = FOLDER / "state" / "shoal.db"
    told: list[str | None] = []
    store = Store(None, file, history=10, events_kept=1000, usage_kept=400, on_problem=told.append)
    await store.open()
    store.save_model(model("before"))
    assert await store.flush(30)
    fill()
    written = 0
    while await store.flush(30):  # what is allocated already may still take some
        store.add_event(event(written))
        written += 1
        assert written < 1000
    assert store.problem is not None
    assert SAYS in store.problem, store.problem
    store.save_model(model("during"))
    assert store.unsaved >= 2
    assert len(await store.events(1000)) == written  # serving goes on, with what is in memory
    free()
    await until(lambda: store.problem is None)  # by itself
    assert store.unsaved == store.dropped == 0
    assert told[0] is not None
    assert told[-1] is None
    assert await names(store) == ["before", "during"]
    await store.close()

    fill()
    store = Store(None, file, history=10, events_kept=1000, usage_kept=400)
    await store.open()
    assert await names(store) == ["before", "during"]
    assert len(await store.events(1000)) == written
    for n in range(200):
        store.add_event(event(n))
    assert not await store.flush(30)
    assert SAYS in (store.problem or ""), store.problem
    free()
    assert await store.flush(30)
    assert store.problem is None
    await store.close()

    fill()
    store = Store(None, FOLDER / "other" / "shoal.db", history=10, events_kept=1000, usage_kept=400)
    await store.open()
    assert "nothing was read from it" in (store.problem or ""), store.problem
    assert SAYS in (store.problem or ""), store.problem
    assert await names(store) == []
    store.save_model(model("new"))
    store.add_event(event(0))
    assert not await store.flush(30)
    assert len(await store.events()) == 1
    free()
    await until(lambda: store.problem is None)
    assert await names(store) == ["new"]
    await store.close()


asyncio.run(main())
