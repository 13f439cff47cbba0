"""Sleep and wake for real: what is said to engines, and the proof that it happened. What comes of it are facts.

Nothing that an engine answers counts as proof: one may say that it sleeps and keep its memory, or say that it woke with
weights that are gone. So memory is read before and after, and a canary is asked. Sleeps that only the device as a whole
can show come one after the other there: two at once would show each other's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from functools import partial
from typing import Any

from shoal.engines.base import Engine
from shoal.errors import ShoalError
from shoal.fleet import canary, facts
from shoal.fleet.footprint import ASK_WORKERS, Footprint, Footprints, Way, why_not_asleep
from shoal.fleet.monitor import Probe
from shoal.fleet.state import Failure, Instance

PATIENCE = 5.0
"""Seconds in which memory has to come back once the engine says that it sleeps."""
LOOK = 0.05
LOOKS = 20
"""How often an engine is asked whether it sleeps before it counts as silent."""
PAUSE = 0.25
_log = logging.getLogger(__name__)

Call = tuple[str, str, Mapping[str, object] | None]


def suspend_calls(level: int) -> tuple[Call, ...]:
    """What puts an engine to sleep. Requests that still run are ended: they had their time to."""
    return (("POST", f"/sleep?level={level}&mode=abort", None),)


def resume_calls(level: int) -> tuple[Call, ...]:
    """What wakes an engine from that level. Weights that were dropped are read anew before there is a KV cache."""
    if level < 2:
        return (("POST", "/wake_up", None),)
    return (
        ("POST", "/wake_up?tags=weights", None),
        ("POST", "/collective_rpc", {"method": "reload_weights"}),
        ("POST", "/wake_up?tags=kv_cache", None),
    )


class Sleeper:
    """Puts instances to sleep and wakes them, one thing at a time for each.

    `flush` has what is known saved; `room` waits until what an instance takes when it wakes is free, and raises
    ShoalError with the numbers if that takes too long.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        footprints: Footprints,
        tell: Callable[[facts.Fact], None],
        flush: Callable[[], Awaitable[object]],
        room: Callable[[Instance], Awaitable[None]],
    ) -> None:
        self._engines = engines
        self._footprints = footprints
        self._tell = tell
        self._flush = flush
        self._room = room
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._weighed: dict[str, Footprint] = {}
        self._falling: set[str] = set()
        """Who was told to sleep, until something else is wanted of it."""
        self._waking: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """By device: what is free for one wake must not be given to another, whose engine would run out of it midway
        and end. Side by side they would not be faster: they share the device's bus."""
        self._suspending: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """By device: sleeps that are shown by the whole device alone."""

    def weigh(self, instance: Instance) -> None:
        """→ Weighed, or NotAsleep."""
        self._falling.discard(instance.id)
        self._weighed.pop(instance.id, None)
        self._begin(instance, self._weigh(instance))

    def suspend(self, instance: Instance) -> None:
        """→ Asleep, or NotAsleep."""
        self._begin(instance, self._suspend(instance))

    def resume(self, instance: Instance) -> None:
        """→ Awake, NoRoom or NotAwake."""
        self._falling.discard(instance.id)
        self._begin(instance, self._resume(instance))

    def look(self, instance: Instance) -> None:
        """→ LookedAt."""
        self._begin(instance, self._look(instance))

    def stop(self, instance: str) -> None:
        """Do nothing more with an instance: it ends."""
        self._falling.discard(instance)
        self._weighed.pop(instance, None)
        if (task := self._tasks.pop(instance, None)) is not None:
            task.cancel()

    async def close(self) -> None:
        """Stop all. What was begun is gone on with by the next controller."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._footprints.close()

    # -- steps --------------------------------------------------------------------------------------------------------

    def _begin(self, instance: Instance, work: Coroutine[Any, Any, facts.Fact]) -> None:
        before = self._tasks.get(instance.id)
        if before is not None and not before.done():
            # It was asked while the engine is looked at after a restart: one after the other.
            before.cancel()
        self._tasks[instance.id] = task = asyncio.create_task(self._run(instance, work))
        task.add_done_callback(lambda done: self._forget(instance.id, done))

    def _forget(self, instance: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(instance) is task:
            del self._tasks[instance]

    async def _run(self, instance: Instance, work: Coroutine[Any, Any, facts.Fact]) -> None:
        try:
            fact = await work
        except Exception as error:  # whatever it is, the instance must not be left between two states for ever
            _log.exception("while %s was to sleep or wake", instance.id)
            self._tell(facts.NotAsleep(instance.id, str(error)))
            self._tell(facts.NotAwake(instance.id, _wake_failed(str(error))))
        else:
            self._tell(fact)

    async def _weigh(self, instance: Instance) -> facts.Fact:
        probe = Probe(instance.address)
        try:
            if await _sleeps(probe):  # an earlier controller put it to sleep, and knew what it held
                return facts.Weighed(instance.id)
            answer = None
            if instance.rest.canary is None and (answer := await canary.ask(probe, instance.model)) is None:
                return facts.NotAsleep(instance.id, "it did not answer the canary")
            now = await self._footprint(instance, probe)
            if now is None:
                return facts.NotAsleep(instance.id, "what it holds cannot be read")
            self._weighed[instance.id] = now
            return facts.Weighed(instance.id, now.held, now.kv, answer)
        finally:
            await probe.close()

    async def _suspend(self, instance: Instance) -> facts.Fact:
        probe = Probe(instance.address)
        try:
            await self._flush()
            before = self._weighed.get(instance.id)
            if before is None or before.way is not Way.DEVICES:
                return await self._fall_asleep(instance, probe, before)
            async with _alone(self._suspending, instance):
                return await self._fall_asleep(instance, probe, before)
        finally:
            await probe.close()

    async def _fall_asleep(self, instance: Instance, probe: Probe, before: Footprint | None) -> facts.Fact:
        """`before` is what was read of it, None if an earlier controller did that."""
        rest = instance.rest
        asleep = await _sleeps(probe)
        if asleep is False and (before is None or before.way is Way.DEVICES):  # others may have slept since
            before = await self._footprint(instance, probe)
        if not asleep:
            self._falling.add(instance.id)
            if wrong := await _say(probe, suspend_calls(rest.level or 1), _limit(instance)):
                return facts.NotAsleep(instance.id, wrong)
        if not await _sleeps(probe):
            return facts.NotAsleep(instance.id, "it says that it does not sleep")
        if before is None and rest.held is not None:
            before = Footprint(rest.held, rest.kv)
        if before is None:
            return facts.NotAsleep(instance.id, "what it held before is not known any more")
        return await self._proof(instance, probe, before)

    async def _proof(self, instance: Instance, probe: Probe, before: Footprint) -> facts.Fact:
        """What its sleep gave back; readings may lag a little behind."""
        weights = await self._weights(instance)
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while True:
            now = await self._footprint(instance, probe, before.way)
            wrong = why_not_asleep(before, weights, now)
            if now is not None and not wrong:
                return facts.Asleep(instance.id, max(0, before.held - now.held), before.kv)
            if asyncio.get_running_loop().time() >= deadline:
                return facts.NotAsleep(instance.id, f"it says that it sleeps, but {wrong}")
            await asyncio.sleep(LOOK)

    async def _resume(self, instance: Instance) -> facts.Fact:
        rest, probe = instance.rest, Probe(instance.address)
        try:
            asleep = await _sleeps(probe)
            if asleep:
                async with _alone(self._waking, instance):
                    try:
                        await self._room(instance)
                    except ShoalError as error:
                        return facts.NoRoom(instance.id, error.message)
                    wrong = await _say(probe, resume_calls(rest.level or 1), _limit(instance))
                if wrong:
                    return facts.NotAwake(instance.id, _wake_failed(wrong))
            if asleep is None or await _sleeps(probe) is not False:
                silent = "it does not say whether it sleeps" if asleep is None else "it says that it still sleeps"
                return facts.NotAwake(instance.id, _wake_failed(silent))
            if rest.canary and (answer := await canary.ask(probe, instance.model)) != rest.canary:
                if answer is None:
                    return facts.NotAwake(instance.id, _wake_failed("it did not answer the canary"))
                hint = "its weights did not come back whole"
                text = f"it answers the canary with {answer!r}, not with {rest.canary!r} as before its sleep"
                return facts.NotAwake(instance.id, Failure("canary_differs", text, hint))
            return facts.Awake(instance.id)
        finally:
            await probe.close()

    async def _look(self, instance: Instance) -> facts.Fact:
        probe = Probe(instance.address)
        try:
            return facts.LookedAt(instance.id, await _sleeps(probe))
        finally:
            await probe.close()

    async def _weights(self, instance: Instance) -> int | None:
        engine, spec = self._engines[instance.engine], instance.spec
        if spec is None:
            return None
        try:
            each = await asyncio.to_thread(engine.sleep_frees, spec)
        except ShoalError:  # its files have gone since it was started
            return None
        return None if each is None else each * len(instance.devices)

    async def _footprint(self, instance: Instance, probe: Probe, way: Way | None = None) -> Footprint | None:
        text = await probe.get("/metrics")
        metrics = self._engines[instance.engine].read_metrics(text) if text is not None else None
        ask = partial(probe.ask, *ASK_WORKERS)
        return await self._footprints.read(instance, metrics, ask, falling=self._falling, way=way)


@contextlib.asynccontextmanager
async def _alone(locks: defaultdict[str, asyncio.Lock], instance: Instance) -> AsyncIterator[None]:
    """While nobody else who asks for these locks is at it on any of its devices."""
    async with contextlib.AsyncExitStack() as held:
        for device in sorted(instance.devices):  # in one order: two that share several must not wait for each other
            await held.enter_async_context(locks[device])
        yield


async def _sleeps(probe: Probe) -> bool | None:
    """Whether the engine says that it sleeps; None if it does not say, however often it is asked."""
    for _ in range(LOOKS):
        text = await probe.get("/is_sleeping")
        try:
            return bool(json.loads(text or "")["is_sleeping"])
        except (ValueError, KeyError, TypeError):
            await asyncio.sleep(PAUSE)
    return None


async def _say(probe: Probe, calls: tuple[Call, ...], limit: float) -> str:
    """Say all of it in order; what went wrong, or nothing."""
    for method, path, body in calls:
        name = path.partition("?")[0]
        answer = await probe.ask(method, path, body, limit=limit)
        if answer is None:
            return f"it did not answer {name}"
        status, text = answer
        if status >= 400:
            what = " ".join(text.split())[:200]
            return f"it answered {name} with {status}" + (f": {what}" if what else "")
    return ""


def _limit(instance: Instance) -> float:
    """Seconds that a sleep or a wake may take: a wake may read all weights anew, as a start does."""
    return instance.spec.start_timeout if instance.spec is not None else 1800.0


def _wake_failed(why: str) -> Failure:
    return Failure("wake_failed", why, "its log may say why; it is started again")
