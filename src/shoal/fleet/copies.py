"""Copies of weights in the host's memory, taken while an instance is idle, so that its first sleep copies nothing.

`next_step` decides: one copy at a time, of an instance that has been idle for a moment, within the budget for the
host's memory; where that is too small, the least recently used have none. `Copies` carries that out, and is what the
residency policy knows of copies. What instances hold is asked of them: nothing is remembered over a restart.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from shoal.engines.base import CopyAction, Engine, HostCopy, KeepsCopies
from shoal.fleet.host_room import promised
from shoal.fleet.monitor import Probe
from shoal.fleet.snapshot import Fleet
from shoal.fleet.state import Device, Instance
from shoal.fleet.state import InstanceState as S
from shoal.memory.sizes import Amount

IDLE = 2.0
"""Seconds without a request after which an instance is copied."""
LOOK, FOLLOW = 1.0, 0.25
"""Seconds between two looks, and while a copy is being taken."""
REST = 60.0
"""Seconds for which an instance is left alone whose copy was forgotten, or could not be taken."""
GIVEN_BACK = 10.0
"""Seconds after which what was forgotten is taken to have come back, whatever readings of the host show."""
ANSWER = 5.0
"""Seconds that an instance may take to answer."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An instance as far as its copy goes. Sizes in bytes, times in seconds of one clock."""

    id: str
    copy: HostCopy
    last_use: float
    busy: bool = False
    asleep: bool = False
    """Its weights are in the copy alone."""
    spared: bool = False
    """It never sleeps, so that a copy would be for nothing."""
    rests_until: float = 0.0

    def may_be_copied(self, now: float) -> bool:
        """Whether a copy of it could be taken now."""
        if self.busy or self.asleep or self.spared or self.copy.whole or not self.copy.size:
            return False
        return now >= self.last_use + IDLE and now >= self.rests_until

    @property
    def missing(self) -> int:
        """Bytes that a whole copy takes beyond what it has."""
        return max(0, self.copy.size - self.copy.taken)


@dataclass(frozen=True, slots=True)
class Take:
    """Have a copy taken."""

    id: str


@dataclass(frozen=True, slots=True)
class Drop:
    """Have a copy forgotten."""

    id: str


def next_step(now: float, candidates: Iterable[Candidate], budget: int) -> Take | Drop | None:
    """What to do next so that those used last have copies, at most `budget` bytes together; None: nothing.

    A copy gives way only to one of an instance that was used later. What sleeps keeps its own.
    """
    ordered = sorted(candidates, key=lambda one: (one.last_use, one.id))
    room = budget - sum(one.copy.taken for one in ordered)
    droppable = [one for one in ordered if one.copy.taken and not one.asleep and not one.busy]
    if room < 0:
        return Drop(droppable[0].id) if droppable else None
    for one in ordered:
        if one.spared and one in droppable:
            return Drop(one.id)
    if any(one.copy.taking for one in ordered):
        return None
    for one in reversed(ordered):
        if not one.may_be_copied(now):
            continue
        if one.missing <= room:
            return Take(one.id)
        older = [other for other in droppable if (other.last_use, other.id) < (one.last_use, one.id)]
        if one.missing <= room + sum(other.copy.taken for other in older):
            return Drop(older[0].id)
    return None


class Asks(Protocol):
    """Asks an instance about its copy, and has it take or forget it."""

    async def __call__(self, instance: Instance, action: CopyAction) -> HostCopy | None:
        """What it says, or that there can be none; None if it does not answer."""
        ...


class AskOverHttp:
    """Over its engine's own HTTP."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self._engines = engines

    async def __call__(self, instance: Instance, action: CopyAction) -> HostCopy | None:
        engine = self._engines[instance.engine]
        if not isinstance(engine, KeepsCopies):
            return HostCopy()
        probe = Probe(instance.address)
        try:
            answer = await probe.ask(*engine.copy_request(action), limit=ANSWER)
        finally:
            await probe.close()
        if answer is None:
            return None
        status, text = answer
        try:
            return engine.read_copy(text) if status == 200 else HostCopy()
        except ValueError as error:
            _log.warning("%s: %s", instance.id, error)
            return HostCopy()


@dataclass(slots=True)
class _Known:
    """What is known of an instance's copy. `of` is when the instance had changed when it was asked for."""

    copy: HostCopy
    of: float
    rests_until: float = 0.0


class Copies:
    """The copies of a fleet's instances: the residency policy's `HostCopies`. `now` is the fleet's clock."""

    def __init__(self, fleet: Fleet, ask: Asks, host_memory: Amount, now: Callable[[], float]) -> None:
        self._fleet = fleet
        self._ask = ask
        self._host_memory = host_memory
        self._now = now
        self._known: dict[str, _Known] = {}
        self._used: dict[str, tuple[float, float | None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._coming: tuple[int, float] | None = None  # free bytes of the host that will show it, and how long to wait

    # -- for the residency policy -------------------------------------------------------------------------------------

    def held(self, instance: str) -> int:
        """Bytes of the host's memory that the copy of an instance's weights takes; 0 if there is none."""
        known = self._known.get(instance)
        return known.copy.taken if known is not None else 0

    def forget(self, instance: str) -> None:
        """Drop the copy of an instance's weights, and take no other for a while."""
        known, of = self._known.get(instance), self._fleet.instances.get(instance)
        if known is None or of is None:
            return
        self._await(known.copy.taken)
        known.copy = dataclasses.replace(known.copy, held=0, taken=0, taking=False)
        known.rests_until = self._now() + REST
        task = asyncio.create_task(self._tell(of, "forget"))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def unsettled(self) -> bool:
        """Whether what was forgotten may not have come back yet, by the last reading of the host: to unpin memory takes
        a moment."""
        host = self._host()
        if self._coming is None or host is None:
            return False
        free, until = self._coming
        if host.memory_free >= free or self._now() >= until:
            self._coming = None
        return self._coming is not None

    # -- the loop -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look after copies for ever."""
        while True:
            try:
                await self.look()
            except Exception:  # one look that fails must not be the last
                _log.exception("while looking after copies of weights")
            taking = any(known.copy.taking for known in self._known.values())
            await asyncio.sleep(FOLLOW if taking else LOOK)

    async def look(self) -> None:
        """Ask who has changed, and do what is to be done next."""
        present = [one for one in self._fleet.instances.values() if one.state in (S.READY, S.SLEEPING)]
        self._note_use(present)
        for gone in self._known.keys() - {one.id for one in self._fleet.instances.values() if not one.state.ended}:
            del self._known[gone]
        for instance in present:
            known = self._known.get(instance.id)
            if instance.can_sleep and (known is None or known.of != instance.changed_at or known.copy.taking):
                await self._tell(instance, "look")
        if self.unsettled():
            return  # what is dropped meanwhile might be dropped in vain
        step = next_step(self._now(), self._candidates(), self.budget())
        instance_now = self._fleet.instances.get(step.id) if step is not None else None
        if step is None or instance_now is None:
            return
        if isinstance(step, Drop):
            self.forget(step.id)
            return
        _log.info("%s is idle: its weights are copied to the host", step.id)
        await self._tell(instance_now, "take")
        known = self._known.get(step.id)
        if known is not None and known.copy.reason:
            _log.info("%s: no copy of its weights: %s", step.id, known.copy.reason)
            known.rests_until = self._now() + REST

    def budget(self) -> int:
        """Bytes that copies may take: what the settings allow of the host's memory, as far as it is free, less what is
        promised to models on their way to sleep."""
        host = self._host()
        if host is None:
            return self._host_memory.size
        taken = sum(known.copy.taken for known in self._known.values())
        promised_away = promised(self._fleet, self.held)
        free = max(0, host.memory_free - promised_away)
        return min(self._host_memory.of(host.memory_total) - promised_away, taken + free)

    async def close(self) -> None:
        """Wait for nothing any more."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- steps --------------------------------------------------------------------------------------------------------

    def _host(self) -> Device | None:
        return next((device for device in self._fleet.devices if device.kind == "host"), None)

    def _await(self, size: int) -> None:
        """Expect most of `size` bytes to come back: other programs may take some meanwhile."""
        if (host := self._host()) is not None and size:
            free = self._coming[0] if self._coming is not None else host.memory_free
            self._coming = free + size - size // 4, self._now() + GIVEN_BACK

    async def _tell(self, instance: Instance, action: CopyAction) -> None:
        copy = await self._ask(instance, action)
        if copy is None:  # it is asked again
            self._known.pop(instance.id, None)
            return
        known = self._known.get(instance.id)
        self._known[instance.id] = _Known(copy, instance.changed_at, known.rests_until if known is not None else 0.0)

    def _note_use(self, instances: Sequence[Instance]) -> None:
        now, before = self._now(), self._used
        self._used = {}
        for one in instances:
            metrics = self._fleet.metrics.get(one.id)
            count = metrics.generation_tokens_total if metrics is not None else None
            # One that has just come, also out of its sleep, came because it was asked for.
            last, known = before.get(one.id, (max(one.ready_at or 0.0, one.changed_at), count))
            used = self._fleet.outstanding(one.id) > 0 or (known is not None and count is not None and count > known)
            self._used[one.id] = (now if used else last, count)

    def _candidates(self) -> list[Candidate]:
        found = []
        for id, known in self._known.items():
            instance = self._fleet.instances.get(id)
            if instance is None:
                continue
            last_use, _ = self._used.get(id, (self._now(), None))
            found.append(
                Candidate(
                    id,
                    known.copy,
                    last_use,
                    busy=instance.state not in (S.READY, S.SLEEPING) or self._fleet.outstanding(id) > 0,
                    asleep=instance.sleeps and instance.rest.level == 1,
                    spared=instance.spec is not None and instance.spec.pin,
                    rests_until=known.rests_until,
                )
            )
        return found
