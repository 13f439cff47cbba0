"""What an instance holds on its devices, as well as it can be told apart from what others hold there.

A sleep counts only if memory came back, so this is read before and after it, both times in the same way: the first of
these that there is.

- What the engine itself reports, with what its processes hold of the host's memory (the simulated engine).
- On GPUs, what the driver counts for its processes.
- Where the driver does not tell processes apart (in containers it knows other process ids), what its workers have
  measured that their processes hold (`engines/vllm/plugin/holding.py`).
- Where there is no such worker, what is in use on its devices altogether, less what KV caches of others lease there.
  What neighbours start, wake, let sleep or end meanwhile is in it: then it proves nothing where it could mislead.
- On the host, what its processes hold and could not be read from a file again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any

import msgspec
import psutil

from shoal.engines.base import EngineMetrics
from shoal.fleet import neighbours
from shoal.fleet.neighbours import Neighbours
from shoal.fleet.state import Device, Instance
from shoal.memory.tools import AsyncBrokerTool, Books, BrokerError
from shoal.units import format_bytes

TOLERANCE = 0.9
"""Part of weights and leased KV cache that has to come back: readings have grains, and sizes are estimates."""
LEAST = 64 * 2**20
"""Bytes that have to come back where the size of the weights is not known."""
ASK_WORKERS = ("POST", "/collective_rpc", {"method": "shoal_holds"})
"""The request of an engine that has each of its workers say what it holds."""
_log = logging.getLogger(__name__)


class Way(Enum):
    """How a footprint was read, from what tells most."""

    ENGINE = auto()
    PROCESSES = auto()
    WORKERS = auto()
    DEVICES = auto()
    HOST = auto()


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes over all devices of an instance: `held` altogether, `kv` of them leased for its KV cache.

    `way` is None for what an earlier controller read. `near` has who shares the devices, where that matters.
    """

    held: int
    kv: int
    way: Way | None = None
    near: Neighbours = field(default_factory=dict)


def must_free(weights: int | None, kv: int) -> int:
    """Bytes that a sleep has to give back at least; `weights` over all devices, None if they are not known."""
    return int(TOLERANCE * (weights + kv)) if weights is not None else max(LEAST, int(TOLERANCE * kv))


def why_not_asleep(before: Footprint, weights: int | None, now: Footprint | None) -> str:
    """Why what is held now does not show a sleep; empty if it does. `now` is None if it could not be read as before."""
    if now is None:
        return "what it holds cannot be read any more as it was before"
    freed, needed = max(0, before.held - now.held), must_free(weights, before.kv)
    enough = freed >= needed
    if enough and now.kv:
        return f"its KV cache still leases {format_bytes(now.kv)}"
    if now.way is Way.DEVICES and before.way is Way.DEVICES:
        others = neighbours.gave(before.near, now.near) if enough else neighbours.took(before.near, now.near)
        if others:
            did = "may have given memory back" if enough else "may have taken memory"
            return (
                "whether its memory came back cannot be told, because only all of its devices' memory can be read, and "
                f"{', '.join(others)} {did} there meanwhile"
            )
    if enough:
        return ""
    return f"{format_bytes(freed)} came back, and its weights and KV cache are {format_bytes(needed)} at least"


class _Worker(msgspec.Struct):
    """What one worker says that it holds of its device. Bytes."""

    held: int


class _Workers(msgspec.Struct):
    results: list[_Worker]


def read_workers(answer: tuple[int, str] | None, devices: int) -> int | None:
    """What the workers of an engine on so many devices hold together; None if not each of them says it."""
    if answer is None or answer[0] != 200:
        return None
    try:
        held = [worker.held for worker in msgspec.json.decode(answer[1], type=_Workers).results]
    except msgspec.MsgspecError:  # another worker, or one that could not measure it
        return None
    return sum(held) if len(held) == devices and min(held, default=-1) >= 0 else None


Ask = Callable[[], Awaitable[tuple[int, str] | None]]
"""Asks the engine's workers: the status and text of the answer, or None."""


class Footprints:
    """Reads what instances hold.

    `host` gives the host memory of each instance, `pid` an engine's first process, `instances` all that may share a
    device.
    """

    def __init__(
        self,
        socket: Path,
        devices: Callable[[], Awaitable[Sequence[Device]]],
        host: Callable[[], Mapping[str, int]],
        pid: Callable[[str], int | None],
        instances: Callable[[], Iterable[Instance]],
    ) -> None:
        self._tool = AsyncBrokerTool(socket)
        self._devices = devices
        self._host = host
        self._pid = pid
        self._instances = instances
        self._nvml: Any = None

    async def read(
        self,
        instance: Instance,
        metrics: EngineMetrics | None,
        ask: Ask,
        *,
        falling: Collection[str] = (),
        way: Way | None = None,
    ) -> Footprint | None:
        """What it holds now, read in that `way`, else in the first that there is. None: it cannot be read so.

        `metrics` are its engine's own readings; `falling` has those whose engines were told to sleep.
        """
        # Who moves between a look and the reading beside it must show: so the first is before, and the last after.
        near = self._near(instance, falling) if way is None else None
        devices = [device for device in await self._devices() if device.id in instance.devices]
        books = await self._books()
        kv = _backed(books, lambda engine: engine == instance.id)
        for one in Way if way is None else (way,):
            held = await self._held(one, instance, devices, metrics, books, ask)
            if held is None:
                continue
            if one is not Way.DEVICES:
                return Footprint(held, kv, one)
            return Footprint(held, kv, one, self._near(instance, falling) if near is None else near)
        return None

    async def close(self) -> None:
        """End its connection to the memory broker."""
        await self._tool.close()

    async def _held(
        self,
        way: Way,
        instance: Instance,
        devices: Sequence[Device],
        metrics: EngineMetrics | None,
        books: Books | None,
        ask: Ask,
    ) -> int | None:
        gpus = [device for device in devices if device.kind == "cuda"]
        match way:
            case Way.ENGINE:
                reported = metrics.device_memory if metrics is not None else None
                return None if reported is None else int(reported) + await self._on_host(instance)
            case Way.PROCESSES:
                return await asyncio.to_thread(self._by_process, instance.id, gpus) if gpus else None
            case Way.WORKERS:
                return read_workers(await ask(), len(gpus)) if gpus else None
            case Way.DEVICES if gpus:
                theirs = {gpu.key: book for gpu in gpus if (book := (books or {}).get(gpu.key)) is not None}
                others = _backed(theirs, lambda engine: engine != instance.id)
                return max(0, sum(gpu.memory_used for gpu in gpus) - others)
            case Way.HOST if not gpus:
                return await self._on_host(instance)
        return None

    async def _on_host(self, instance: Instance) -> int:
        return (await asyncio.to_thread(self._host)).get(instance.id, 0)

    def _near(self, instance: Instance, falling: Collection[str]) -> Neighbours:
        return neighbours.look(instance, self._instances(), falling)

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
