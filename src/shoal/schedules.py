"""Presets that are applied at their times. Decisions are `fleet/schedules.py`'s; this waits and carries them out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from shoal.errors import ShoalError
from shoal.fleet.manager import Manager
from shoal.fleet.schedules import Due, due, next_time
from shoal.presets import PresetControl

LONGEST = 30.0
"""Seconds between two looks at the clock, which somebody may set."""
AGAIN = 2.0
"""Seconds after which is looked again while another preset is being applied, or after a fault."""
_log = logging.getLogger(__name__)


class Timed(Protocol):
    """What schedules need of the controller."""

    manager: Manager
    presets: PresetControl


class Scheduler:
    """Applies presets at their times, one at a time. `clock` gives Unix seconds by the wall's clock, because that is
    what schedules are about."""

    def __init__(self, controller: Timed, clock: Callable[[], float] = time.time) -> None:
        self._controller = controller
        self._clock = clock

    async def run(self) -> None:
        """Look for ever."""
        while True:
            try:
                pause = await self.look()
            except Exception:  # one look that fails must not be the last
                _log.exception("while looking for presets that are due")
                pause = AGAIN
            await asyncio.sleep(pause)

    async def look(self) -> float:
        """Apply what is due now; seconds until the next look."""
        presets, now = self._controller.presets, self._clock()
        found = due(presets.planned(), now)
        if found and self._controller.manager.fleet.closing:
            return AGAIN
        if found:
            if presets.running is not None:
                return AGAIN  # what is due then is applied: it may be another by then
            await self._apply(found[-1], found[:-1], now)
        upcoming = next_time(presets.planned(), now)
        return LONGEST if upcoming is None else min(LONGEST, max(0.0, upcoming - self._clock()))

    async def _apply(self, latest: Due, others: list[Due], now: float) -> None:
        presets = self._controller.presets
        name, schedule = latest.preset, latest.schedule
        for other in others:
            if other.preset != name:
                text = f"the preset {other.preset} was due too, and {name} is the later one: it is not applied"
                presets.say("info", "preset_skipped", text)
        try:
            await presets.apply(name, exclusive=schedule.exclusive)
        except ShoalError as error:
            if error.code == "preset_running":  # somebody was faster
                return
            presets.say("error", "preset_failed", f"the preset {name} was due and was not applied: {error.message}")
        else:
            presets.say("info", "preset_due", f"the preset {name} is applied because it was due {schedule.words}")
        # Only now: if this process is killed before, the next one applies it, and then it is a smaller difference.
        await presets.done_with(now)
