"""What the driver says about devices, followed while somebody is there to follow it for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reading:
    """A device's bytes in all, and bytes free."""

    total: int
    free: int


PATIENCE = 1.0

LATE = 5
"""Measurements in a row that are made anew because somebody was in a hurry meanwhile, who asks for what is so from then
on. No more, or those in a hurry could keep everybody from being told."""

Measure = Callable[[], Mapping[str, Reading]]
"""Reads devices by key. Runs on a thread; what it raises is logged, and the last reading stays."""


class Follower:
    """Calls `tell` with a measurement every `interval` seconds while occupied, and not at all otherwise.

    One that takes longer than `patience` seconds, as that of a driver that hangs may, is told as one of no device, so
    that nobody waits for it for ever.
    """

    def __init__(
        self,
        measure: Measure,
        interval: float,
        tell: Callable[[Mapping[str, Reading]], None],
        patience: float = PATIENCE,
    ) -> None:
        self._measure = measure
        self._patience = patience
        self._interval = interval
        self._tell = tell
        self._occupied = asyncio.Event()
        self._hurry = asyncio.Event()
        self._measuring: asyncio.Task[Mapping[str, Reading]] | None = None

    def follow(self) -> None:
        """There is somebody to measure for: measure at once."""
        self._occupied.set()
        self._hurry.set()

    def empty(self) -> None:
        """There is nobody any more: rest."""
        self._occupied.clear()

    async def run(self) -> None:
        """Measure until cancelled."""
        late = 0
        try:
            while True:
                await self._occupied.wait()
                self._hurry.clear()
                readings = await self._readings()
                if self._hurry.is_set() and late < LATE:
                    late += 1
                    continue
                late = 0
                self._tell(readings)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), self._interval)
        finally:
            if self._measuring is not None:
                self._measuring.cancel()

    async def _readings(self) -> Mapping[str, Reading]:
        """One measurement; none of any device if it fails, or is not there in time. Then it is waited for again."""
        late = self._measuring is not None
        measuring = self._measuring = self._measuring or asyncio.create_task(asyncio.to_thread(self._measure))
        if not (await asyncio.wait((measuring,), timeout=self._patience))[0]:
            if not late:
                log.warning("measuring the devices takes more than %g s: budgets stay as they are", self._patience)
            return {}
        self._measuring = None
        try:
            return measuring.result()
        except Exception:
            log.exception("measuring the devices failed")
            return {}
