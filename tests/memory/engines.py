"""Engines with leases of one device, and what becomes of those."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from shoal.memory.broker import Broker
from shoal.memory.client import Callbacks, Lease, Rank

from .tool import eventually

MIB = 2**20
GPU = 1024 * MIB


class Engines:
    """Leases that are closed when the test ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.leases: list[Lease] = []

    def start(self, name: str, callbacks: Callbacks | None = None, **rank: Any) -> Lease:
        lease = Lease(self.path, Rank(name, "gpu", GPU, **rank), callbacks)
        self.leases.append(lease)
        return lease

    async def joined(self, name: str, callbacks: Callbacks | None = None, **rank: Any) -> Lease:
        lease = self.start(name, callbacks, **rank)
        await asyncio.to_thread(lease.wait_connected, 30)
        return lease

    def close(self) -> None:
        for lease in self.leases:
            lease.close()


async def has(lease: Lease, size: int) -> None:
    await eventually(lambda: lease.lease == size)


async def owes(lease: Lease, size: int) -> None:
    await eventually(lambda: lease.excess == size)


async def leased(broker: Broker, size: int) -> None:
    await eventually(lambda: broker.ledger.devices["gpu"].leased == size)
