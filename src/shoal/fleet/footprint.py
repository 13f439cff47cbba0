"""What an instance holds on its devices, as well as it can be told apart from what others hold there.

A sleep counts only if memory came back, so this is read before and after it. In this order:

- what the engine itself reports, with what its processes hold of the host's memory (the simulated engine);
- on GPUs, what the driver counts for its processes;
- where the driver does not tell processes apart (in containers it knows other process ids), what is in use on its
  devices altogether, less what KV caches of others lease there, who may grow at that moment;
- on the host, what its processes hold and could not be read from a file again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from shoal.engines.base import EngineMetrics
from shoal.fleet.state import Device, Instance
from shoal.memory.tools import AsyncBrokerTool, Books, BrokerError
from shoal.units import format_bytes

TOLERANCE = 0.9
"""Part of weights and leased KV cache that has to come back: readings have grains, and sizes are estimates."""
LEAST = 64 * 2**20
"""Bytes that have to come back where the size of the weights is not known."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes over all devices of an instance: `held` altogether, `kv` of them leased for its KV cache."""

    held: int
    kv: int


def must_free(weights: int | None, kv: int) -> int:
    """Bytes that a sleep has to give back at least; `weights` over all devices, None if they are not known."""
    return int(TOLERANCE * (weights + kv)) if weights is not None else max(LEAST, int(TOLERANCE * kv))


def why_not_asleep(held: int, weights: int | None, kv: int, now: Footprint) -> str:
    """Why what is held now does not show a sleep; empty if it does. `held` and `kv` are as they were before."""
    freed, needed = max(0, held - now.held), must_free(weights, kv)
    if freed < needed:
        return f"{format_bytes(freed)} came back, and its weights and KV cache are {format_bytes(needed)} at least"
    return f"its KV cache still leases {format_bytes(now.kv)}" if now.kv else ""


class Footprints:
    """Reads what instances hold. `host` gives the host memory of each instance, `pid` an engine's first process."""

    def __init__(
        self,
        socket: Path,
        devices: Callable[[], Awaitable[Sequence[Device]]],
        host: Callable[[], Mapping[str, int]],
        pid: Callable[[str], int | None],
    ) -> None:
        self._tool = AsyncBrokerTool(socket)
        self._devices = devices
        self._host = host
        self._pid = pid
        self._nvml: Any = None

    async def read(self, instance: Instance, metrics: EngineMetrics | None) -> Footprint:
        """What it holds now; `metrics` are its engine's own readings."""
        devices = [device for device in await self._devices() if device.id in instance.devices]
        gpus = [device for device in devices if device.kind == "cuda"]
        books = await self._books()
        kv = _backed(books, lambda engine: engine == instance.id)
        reported = metrics.device_memory if metrics is not None else None
        if reported is not None or not gpus:
            held = (await asyncio.to_thread(self._host)).get(instance.id, 0)
            return Footprint(held + int(reported or 0), kv)
        held_by_processes = await asyncio.to_thread(self._by_process, instance.id, gpus)
        if held_by_processes is not None:
            return Footprint(held_by_processes, kv)
        on_them = {device.key: (books or {})[device.key] for device in gpus if device.key in (books or {})}
        others = _backed(on_them, lambda engine: engine != instance.id)
        return Footprint(max(0, sum(device.memory_used for device in gpus) - others), kv)

    async def close(self) -> None:
        """End its connection to the memory broker."""
        await self._tool.close()

    async def _books(self) -> Books | None:
        try:
            return await self._tool.list()
        except BrokerError:
            return None

    def _by_process(self, instance: str, devices: Sequence[Device]) -> int | None:
        """Bytes of GPU memory that the driver counts for its processes; None if it knows none of them."""
        first = self._pid(instance)
        if first is None:
            return None
        pids = {first}
        with contextlib.suppress(psutil.Error):
            pids |= {child.pid for child in psutil.Process(first).children(recursive=True)}
        try:
            sizes = [self._on_gpu(device, pids) for device in devices]
        except Exception as error:  # no driver, or one that does not count: there are other readings
            _log.debug("the driver does not say what processes hold: %s", error)
            return None
        return None if None in sizes or not sizes else sum(size or 0 for size in sizes)

    def _on_gpu(self, device: Device, pids: set[int]) -> int | None:
        if self._nvml is None:
            import pynvml

            pynvml.nvmlInit()
            self._nvml = pynvml
        handle = self._nvml.nvmlDeviceGetHandleByUUID(device.uuid)
        found = [p.usedGpuMemory for p in self._nvml.nvmlDeviceGetComputeRunningProcesses(handle) if p.pid in pids]
        return None if not found or None in found else sum(map(int, found))


def _backed(books: Books | None, mine: Callable[[str], bool]) -> int:
    members = (member for book in (books or {}).values() for member in book.members)
    return sum(member.backed for member in members if mine(member.engine))
