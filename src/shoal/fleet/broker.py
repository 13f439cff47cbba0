"""The memory broker, from the fleet's side: what it says is told to the manager, and starts get room through it."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from shoal.errors import ShoalError
from shoal.fleet import facts
from shoal.fleet.memory import Hold, Terms
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Device, Progress
from shoal.memory.tools import AsyncBrokerTool, Books, BrokerError, DeviceBook
from shoal.units import format_bytes, format_seconds

INTERVAL = 1.0
"""Seconds between two readings of the books at most."""
FIRST_LOOK, LAST_LOOK = 0.02, 0.2
"""Seconds between two looks at whether there is room, the first two and later ones: engines give back at once, or when
requests end."""
_log = logging.getLogger(__name__)

ReadDevices = Callable[[], Awaitable[Sequence[Device]]]


class Broker:
    """One connection for what is asked and held back, one for the books; both come back by themselves."""

    def __init__(self, path: Path, tell: Callable[[facts.Fact], None], read: ReadDevices, patience: float) -> None:
        self.path = path
        self._tell = tell
        self._read = read
        self._patience = patience
        self._tool = AsyncBrokerTool(path)
        self._held: dict[str, set[str]] = {}
        """Device keys, by the instance that something is held back of them for."""
        self._waiting: dict[str, dict[str, int]] = {}
        """Who waits for room, in the order in which they came, and the bytes that each needs, by device key."""
        self._lock = asyncio.Lock()

    @property
    def problem(self) -> str | None:
        """Why there is no broker now."""
        return self._tool.problem

    async def watch(self) -> None:
        """Tell the books for ever."""
        async for books in self._tool.listings(INTERVAL):
            self._tell(facts.BooksRead(books))

    async def set_terms(self, instance: str, terms: Terms) -> None:
        """Change what a running instance may lease. Raises ShoalError with the broker's numbers."""
        try:
            await self._tool.set_terms(
                instance,
                floor=terms.floor,
                ceiling=terms.ceiling,
                unlimited=terms.ceiling is None,
                priority=terms.priority,
            )
        except BrokerError as error:
            away = error.code in ("no_broker", "not_ours", "timeout", "closed", "protocol")
            raise ShoalError(str(error), status=503 if away else 409, code=f"memory_{error.code}") from None

    async def make_room(
        self, instance: str, spec: ModelSpec, devices: Sequence[Device], needs: int, *, kv: int | None,
        wanted: Callable[[], bool], patience: float | None = None,
    ) -> Sequence[Device]:  # fmt: skip
        """Hold `needs` bytes of each device back for `instance`, and wait until they are free; the devices then.

        From then on it is taken to take them: what it has taken is held back no longer, and nothing is after `let_go`.
        `kv` of them it will lease by itself, and so it needs the broker; None: it leases nothing. Ends early when it is
        not `wanted` any more. Raises ShoalError (`too_little_memory`) with the numbers when it takes longer than
        `patience` seconds, at most as long as everybody waits.
        """
        limit = self._patience if patience is None else min(patience, self._patience)
        self._waiting[instance] = {device.key: needs for device in devices}
        try:
            if (found := await self._room(instance, spec, devices, needs, kv, wanted, limit)) is not None:
                return found
        except BaseException:
            await self.let_go(instance)
            raise
        finally:
            self._waiting.pop(instance, None)
        await self.let_go(instance)
        return devices

    async def _room(
        self,
        instance: str,
        spec: ModelSpec,
        devices: Sequence[Device],
        needs: int,
        kv: int | None,
        wanted: Callable[[], bool],
        patience: float,
    ) -> Sequence[Device] | None:
        self._held[instance] = set()
        for device in devices:
            await self._hold(instance, device, needs)
        deadline = time.monotonic() + patience
        told, pause = False, FIRST_LOOK
        while wanted():
            books = await self._list()
            now = await self._now(devices)
            holds = {
                device.id: Hold.of(device, _book(books, device), needs, kv or 0, self._behind(instance, device.key))
                for device in now
            }
            away = kv is not None and books is None
            if not away and all(hold.ready for hold in holds.values()):
                for device in devices:
                    await self._hold(instance, device, holds[device.id].arriving, arriving=True)
                return now
            if time.monotonic() >= deadline:
                if away:
                    raise self._no_broker(spec)
                short = next(device for device in now if not holds[device.id].ready)
                raise self._too_little(spec, short, holds[short.id].free, needs, patience, _book(books, short))
            if not told:
                told = True
                self._tell(
                    facts.Progressed(
                        instance, Progress("waiting for the memory broker" if away else "waiting for memory", 0)
                    )
                )
            await asyncio.sleep(pause)
            pause = min(LAST_LOOK, 1.5 * pause)
        return None

    async def let_go(self, instance: str) -> None:
        """Hold nothing back for an instance any more: it has what it needs, or will not have it."""
        async with self._lock:
            for key in self._held.pop(instance, set()):
                await self._reserve(instance, key, 0, None)

    async def close(self) -> None:
        """End the connection, and with it what is held back."""
        await self._tool.close()

    async def _hold(self, instance: str, device: Device, size: int, *, arriving: bool = False) -> None:
        async with self._lock:
            if (keys := self._held.get(instance)) is not None:  # it may have been let go meanwhile
                keys.add(device.key)
                await self._reserve(instance, device.key, size, device.memory_total, arriving=arriving)

    def _behind(self, instance: str, key: str) -> int:
        """Bytes of a device that those who came after an instance wait for."""
        order = list(self._waiting)
        return sum(
            self._waiting[later].get(key, 0) for later in order[order.index(instance) + 1 :] if later in self._held
        )

    async def _reserve(self, holder: str, key: str, size: int, whole: int | None, *, arriving: bool = False) -> None:
        try:
            await self._tool.reserve(key, size, whole, holder=holder, arriving=arriving)
        except BrokerError as error:  # a start must not fail because the broker is away; the next one is told
            if error.code != "no_broker":
                _log.warning("the memory broker does not hold %s of %s back: %s", format_bytes(size), key, error)

    async def _list(self) -> Books | None:
        try:
            return await self._tool.list()
        except BrokerError:
            return None

    async def _now(self, devices: Sequence[Device]) -> list[Device]:
        """The devices as they are now; one that has gone is full."""
        read = {device.id: device for device in await self._read()}
        gone = {device.id: dataclasses.replace(device, memory_used=device.memory_total) for device in devices}
        return [{**gone, **read}[device.id] for device in devices]

    def _no_broker(self, spec: ModelSpec) -> ShoalError:
        return ShoalError(
            f"{spec.name} is elastic, but no memory broker answers on {self.path}: {self.problem or 'it is away'}; "
            "mend that, or give the model a KV cache of fixed size with kv_cache_memory",
            status=503,
            code="memory_no_broker",
        )

    def _too_little(
        self, spec: ModelSpec, device: Device, free: int, needs: int, patience: float, book: DeviceBook | None
    ) -> ShoalError:
        more = ", or give it more time with memory_wait" if patience == self._patience else ""
        kv = ""
        if book is not None:
            used = sum(member.used for member in book.members)
            kv = f"; KV caches lease {format_bytes(book.device.leased)}, of which requests use {format_bytes(used)}"
        return ShoalError(
            f"{spec.name} needs {format_bytes(needs)} on {device.id}, but after {format_seconds(patience)} "
            f"{format_bytes(free)} of {format_bytes(device.memory_total)} are free{kv}; unload a model or lower a "
            f"floor{more}",
            status=409,
            code="too_little_memory",
        )


def _book(books: Books | None, device: Device) -> DeviceBook | None:
    return (books or {}).get(device.key)
