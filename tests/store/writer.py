"""A process that saves until it is killed or has saved `count` times: `writer.py FILE NAME COUNT`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from shoal.fleet.records import Event
from shoal.fleet.state import Instance, InstanceState
from shoal.store import Store


async def main(path: Path, name: str, count: int) -> None:
    """Save numbered events and an instance that carries the same number; print how many are promised to be saved."""
    store = Store(None, path, history=10, events_kept=1_000_000, usage_kept=400)
    await store.open()
    for n in range(count):
        store.add_event(Event(float(n), "info", "test", str(n), model=name))
        store.save_instance(
            Instance(name, name, "simulated", InstanceState.READY, ("host",), created_at=0.0, changed_at=float(n))
        )
        if n % 7 == 0:
            if await store.flush(60):
                print(n + 1, flush=True)
        elif n % 3 == 0:
            await asyncio.sleep(0)
    await store.close(60)
    assert store.unsaved == 0


asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
