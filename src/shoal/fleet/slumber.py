"""Instances that go to sleep, sleep and wake: what people and requests ask for, and what becomes of it.

No I/O and no clock of its own, as in `life.py`, of which it is a part. What leads where says `lifecycle.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

from shoal.errors import ConflictError
from shoal.fleet import facts, rests
from shoal.fleet.drains import Drains
from shoal.fleet.effects import Effects
from shoal.fleet.host_room import copy_size, promised
from shoal.fleet.lifecycle import Effect, Event, step
from shoal.fleet.profiles import Profile
from shoal.fleet.room import Room
from shoal.fleet.snapshot import Fleet, NapKind
from shoal.fleet.state import Failure, Instance
from shoal.fleet.state import InstanceState as S
from shoal.units import format_bytes, format_seconds

_COMES = (S.QUEUED, S.STARTING, S.WAKING)
STRAYS_AFTER = 2.0
"""Seconds after which relays have told that the requests which a sleep ended are gone."""
AWAKE_AFTER_ALL = 600.0
"""Seconds for which an instance that would not sleep is unloaded instead: what kept it from it may pass."""
LEVELS = (1, 2)
"""1: the weights go to host memory. 2: they are dropped, and read anew when it wakes."""


class Apply(Protocol):
    """Take an instance through the lifecycle table; the instance as it is then."""

    def __call__(self, instance: Instance, event: Event, reason: str, *, level: str = "info") -> Instance: ...


class Slumber:
    """Who sleeps. `drain` is how many seconds running requests get; `put` keeps an instance that has changed, `blame`
    why one is ended in order to start anew."""

    def __init__(
        self,
        fleet: Fleet,
        effects: Effects,
        drains: Drains,
        room: Room,
        drain: float,
        put: Callable[[Instance], None],
        apply: Apply,
        blame: Callable[[Instance, Failure], None],
    ) -> None:
        self._fleet = fleet
        self._effects = effects
        self._drains = drains
        self._room = room
        self._drain = drain
        self._put = put
        self._apply = apply
        self._blame = blame
        self._began: dict[str, float] = {}
        self._asked: dict[str, str] = {}  # why those in `rouse` are wanted awake
        self._firm: set[str] = set()  # they make room for another model, and sleep although they are asked for
        self.sleepless: dict[str, float] = {}
        """Instances that would not sleep when they were told to, and until when they are not told again."""
        self.never: Callable[[Instance], str | None] = lambda _: None
        """Why an instance that sleeps cannot wake whoever gives way to it."""
        self.copied: Callable[[str], int] = lambda _: 0
        """Bytes of an instance's weights that the host holds already."""
        self._found: set[str] = set()  # taken back midway: how long that takes in all is not known
        self._suspending: set[str] = set()  # drained, and between the canary and the proof that memory came back

    # -- what is asked for --------------------------------------------------------------------------------------------

    def refuse(self, instance: Instance, level: int) -> None:
        """Raise ConflictError if an instance cannot be put to sleep at that level, with what to do instead."""
        if level not in LEVELS:
            raise ConflictError(f"there is no sleep level {level}; it is 1 or 2", param="level")
        if instance.state is S.READY and not instance.can_sleep:
            why = instance.sleepless_because or "it was started without"
            raise ConflictError(
                f"{instance.model} cannot sleep: {why}; unload it instead with `shoal unload {instance.model}`",
                code="cannot_sleep",
            )
        if instance.state is S.READY and level == 1:
            self._refuse_if_host_is_full(instance)
        deeper = instance.sleeps and instance.rest.level != level
        if deeper and (instance.state is S.SLEEPING or instance.id in self._suspending):
            raise ConflictError(
                f"{instance.model} sleeps at level {instance.rest.level}; wake it first, then put it to sleep at "
                f"level {level}",
                code="wrong_state",
            )
        if not instance.retires:
            step(instance.state, Event.SLEEP)

    def _refuse_if_host_is_full(self, instance: Instance) -> None:
        """The host never swaps for it: its weights go to memory that is free, or have gone there already, or it sleeps
        at level 2."""
        host = next((device for device in self._fleet.devices if device.kind == "host"), None)
        if not any(device.kind == "cuda" and device.id in instance.devices for device in self._fleet.devices):
            return  # pretended weights take nothing
        copy = copy_size(self._fleet, instance) - self.copied(instance.id)
        others = self.promised(but=instance.id)
        if host is not None and copy > 0 and copy > host.memory_free - others:
            also = f", of which {format_bytes(others)} are for models on their way to sleep" if others else ""
            raise ConflictError(
                f"{instance.model} cannot sleep at level 1: its weights need {format_bytes(copy)} of host memory, "
                f"which has {format_bytes(host.memory_free)} free{also}; put it to sleep at level 2, or unload it",
                code="too_little_memory",
            )

    @property
    def falls_asleep(self) -> bool:
        """Whether an engine copies its weights to the host just now, so that readings show part of that."""
        return bool(self._suspending)

    def promised(self, *, but: str = "") -> int:
        """Bytes of the host's memory that sleeps which have begun will take, and that are free by the last reading."""
        return promised(self._fleet, self.copied, read_at=self._room.read_at, but=but)

    def sleep(self, instance: Instance, level: int, *, force: bool, why: str = "", firm: bool = False) -> bool:
        """Put an instance to sleep after its running requests, or at once if forced; whether that changed anything.

        `firm`: it sleeps also if it is asked for meanwhile, and wakes when there is room for it again.
        """
        self.refuse(instance, level)
        wanted_awake = instance.id in self._fleet.rouse
        self._fleet.rouse.discard(instance.id)
        if firm:
            self._firm.add(instance.id)
        if instance.state is S.SLEEPING:
            if wanted_awake:  # a table that says so has relays ask again for what they hold
                instance = dataclasses.replace(instance, reason="was to wake, and is to sleep on")
                self._put(instance)
                self._apply(instance, Event.SLEEP, instance.reason)
            return wanted_awake
        now = self._effects.now()
        asleep_later = dataclasses.replace(instance, rest=dataclasses.replace(instance.rest, level=level))
        if instance.retires:
            self._put(asleep_later)
            if force and instance.id not in self._suspending:
                self._drains.put(instance.id, now)
            return wanted_awake or force
        self._apply(asleep_later, Event.SLEEP, why or f"is to sleep (level {level})")
        self._drains.put(instance.id, now + (0.0 if force else self._drain))
        return True

    def wake(self, instance: Instance, why: str) -> bool:
        """Wake an instance as soon as that is possible; whether that changed anything."""
        if not instance.sleeps or instance.id in self._fleet.rouse:
            return False
        self._fleet.rouse.add(instance.id)
        self._asked[instance.id] = why
        if instance.retires:
            self._serve_on(instance, why)
        return True

    def sleep_all(self, name: str, level: int, *, force: bool) -> bool:
        """Put a model to sleep; whether that changed anything. Raises ConflictError before anything is changed."""
        live = [i for i in self._fleet.of_model(name) if not i.state.ended]
        comes = next((i for i in live if i.state in _COMES or self._fleet.comes_back(i)), None)
        if comes is not None:
            raise ConflictError(
                f"{name} is {comes.state.value}; put it to sleep once it is ready, or unload it", code="wrong_state"
            )
        sleepers = [i for i in live if i.sleeps or i.state is S.READY]
        if not sleepers:
            raise ConflictError(f"{name} is not loaded: there is nothing to put to sleep", code="not_loaded")
        for instance in sleepers:
            self.refuse(instance, level)
        changed = [self.sleep(instance, level, force=force) for instance in sleepers]
        return any(changed)

    def wake_all(self, name: str) -> bool:
        """Wake a model; whether that changed anything. Raises ConflictError if it is not loaded, or can never fit."""
        live = [i for i in self._fleet.of_model(name) if not i.state.ended]
        sleepers = [i for i in live if i.sleeps]
        if not sleepers and not any(i.state is S.READY or i.state in _COMES for i in live):
            raise ConflictError(f"{name} is not loaded; load it with `shoal load {name}`", code="not_loaded")
        changed = [self.wake_now(instance) for instance in sleepers]
        return any(changed)

    def wake_now(self, instance: Instance) -> bool:
        """Wake an instance because somebody says so, as soon as there is room for it; whether that changed anything.
        Raises ConflictError with the numbers if it can never fit, or if there is nothing to wake."""
        if instance.state is S.READY or instance.state in _COMES:
            return False
        if not instance.sleeps:
            step(instance.state, Event.WAKE)
        if instance.state is S.SLEEPING and (why := self.never(instance)) is not None:
            raise ConflictError(f"{instance.model} cannot wake: {why}", code="too_little_memory")
        return self.wake(instance, "asked for")

    def give_up(self, instance: Instance) -> Instance:
        """An instance on its way to sleep is to end instead; as it is then."""
        self._fleet.rouse.discard(instance.id)
        self._fleet.stuck.discard(instance.id)
        self._firm.discard(instance.id)
        if not instance.retires:
            return instance
        if instance.id in self._suspending:  # it has drained already
            self._suspending.discard(instance.id)
            self._drains.put(instance.id, self._effects.now())
        instance = dataclasses.replace(instance, rest=dataclasses.replace(instance.rest, level=None))
        self._put(instance)
        return instance

    # -- what follows from the state ----------------------------------------------------------------------------------

    def quiet(self, instance: Instance, reason: str) -> None:
        """No request runs on it any more: put it to sleep now."""
        self._suspending.add(instance.id)
        self._found.discard(instance.id)
        self._began[instance.id] = self._effects.now()
        instance = dataclasses.replace(instance, reason=f"falls asleep: {reason}")
        self._put(instance)
        self._apply(instance, Event.QUIET, reason)

    def carry_out(self, effect: Effect, instance: Instance) -> None:
        """Have done outside what the lifecycle table says."""
        match effect:
            case Effect.WEIGH:
                self._effects.weigh(instance)
            case Effect.SUSPEND:
                self._effects.suspend(instance)
            case _:
                self._effects.resume(instance)

    def settle(self) -> None:
        """See who is wanted awake: one that does not sleep yet serves on; `residing.py` wakes the others."""
        self._wake_for_strays()
        for instance_id in sorted(self._fleet.rouse):
            instance = self._fleet.instances.get(instance_id)
            if instance is None or not instance.sleeps:
                self._fleet.rouse.discard(instance_id)
            elif instance.retires:
                self._serve_on(instance, "wanted")

    def try_to_wake(self, instance: Instance) -> str | None:
        """Wake an instance that sleeps if it fits by now; what it lacks if it does not."""
        short = self._room.short_of(instance)
        if short is None:
            self._begin_to_wake(instance, self._asked.get(instance.id, "wanted"))
        return short

    def _wake_for_strays(self) -> None:
        """A request may have been on its way to one that was put to sleep at once. There it would wait for ever."""
        late = self._effects.now() - STRAYS_AFTER
        asleep = [i for i in self._fleet.instances.values() if i.state is S.SLEEPING and i.changed_at <= late]
        for instance in asleep:
            if self._fleet.outstanding(instance.id):
                self.wake(instance, "a request reached it on its way to sleep")

    def adopt(self, instance: Instance) -> None:
        """Go on with an instance that an earlier controller left; whether it sleeps, the engine knows."""
        self._began[instance.id] = self._effects.now()
        self._found.add(instance.id)
        if instance.sleeps or instance.state is S.WAKING or (instance.state is S.READY and instance.can_sleep):
            self._effects.look(instance)
        if instance.state is S.WAKING:
            self._effects.resume(instance)

    def ended(self, instance_id: str) -> None:
        """Its process group is gone."""
        self._fleet.rouse.discard(instance_id)
        self._fleet.stuck.discard(instance_id)
        self._firm.discard(instance_id)
        self._asked.pop(instance_id, None)
        self.sleepless.pop(instance_id, None)
        self._suspending.discard(instance_id)
        self._found.discard(instance_id)
        self._began.pop(instance_id, None)

    # -- facts --------------------------------------------------------------------------------------------------------

    def take(self, fact: facts.Slumber) -> None:
        """What became of an effect. A fact that comes too late, because something else was wanted since, is nothing."""
        instance = self._fleet.instances.get(fact.instance)
        if instance is None:
            return
        suspending = instance.retires and instance.id in self._suspending
        match fact:
            case facts.Weighed() if suspending:
                self._weighed(instance, fact)
            case facts.Asleep() if suspending:
                self._fell_asleep(instance, fact)
            case facts.NotAsleep() if suspending:
                self._stayed_awake(instance, fact)
            case facts.Awake() if instance.state is S.WAKING:
                self._woke(instance)
            case facts.NoRoom() if instance.state is S.WAKING:
                self._sleeps_on(instance, fact)
            case facts.NotAwake() if instance.state is S.WAKING:
                self._did_not_wake(instance, fact)
            case facts.LookedAt(asleep=True) if instance.state is S.READY:
                self._begin_to_wake(instance, "was found asleep although it should serve", level="warning")
            case facts.LookedAt(asleep=False) if instance.state is S.SLEEPING:
                self._begin_to_wake(instance, "was found awake although it should sleep", level="warning")
            case _:
                pass

    def _weighed(self, instance: Instance, fact: facts.Weighed) -> None:
        rest = instance.rest
        if fact.held is not None:
            rest = dataclasses.replace(rest, held=fact.held, kv=fact.kv)
        if fact.canary is not None:
            rest = dataclasses.replace(rest, canary=fact.canary)
        # Kept before the engine is told to sleep: after a crash of this process nobody else could say it.
        instance = dataclasses.replace(instance, rest=rest)
        self._put(instance)
        self._apply(instance, Event.WEIGHED, "")

    def _fell_asleep(self, instance: Instance, fact: facts.Asleep) -> None:
        self._suspending.discard(instance.id)
        self._firm.discard(instance.id)
        self.sleepless.pop(instance.id, None)
        took = self._count(instance, "slept")
        now, held = self._effects.now(), instance.rest.held
        if instance.id not in self._found:
            self._keep(rests.slept(self._fleet, instance, took, held, fact.freed, now))
        rest = dataclasses.replace(instance.rest, freed=max(0, fact.freed - fact.kv))
        self._room.ended(instance)  # readings of the devices still show what it held
        self._effects.read_devices()
        text = f"slept after {format_seconds(took)}, {format_bytes(fact.freed)} came back (level {rest.level})"
        self._apply(dataclasses.replace(instance, rest=rest), Event.ASLEEP, text)

    def _stayed_awake(self, instance: Instance, fact: facts.NotAsleep) -> None:
        self._suspending.discard(instance.id)
        self._firm.discard(instance.id)
        self.sleepless[instance.id] = self._effects.now() + AWAKE_AFTER_ALL
        self._count(instance, "sleep_failed")
        self._fleet.rouse.discard(instance.id)
        self._began[instance.id] = self._effects.now()
        self._apply(instance, Event.NOT_ASLEEP, f"did not sleep: {fact.reason}; it is woken", level="warning")

    def _woke(self, instance: Instance) -> None:
        took = self._count(instance, "woke")
        copy = self.copied(instance.id)
        if instance.id not in self._found:
            self._keep(rests.woke(self._fleet, instance, took, copy, self._effects.now()))
        rest = dataclasses.replace(instance.rest, level=None, freed=0)
        checked = " and answers as before" if rest.canary else ""
        text = f"awake after {format_seconds(took)}{checked}"
        self._apply(dataclasses.replace(instance, rest=rest), Event.AWAKE, text)

    def _sleeps_on(self, instance: Instance, fact: facts.NoRoom) -> None:
        self._count(instance, "wake_failed")
        rest = dataclasses.replace(instance.rest, level=instance.rest.level or 1)
        text = f"sleeps on: {fact.reason}"
        self._apply(dataclasses.replace(instance, rest=rest), Event.NO_ROOM, text, level="warning")

    def _did_not_wake(self, instance: Instance, fact: facts.NotAwake) -> None:
        self._count(instance, "wake_failed")
        self._blame(instance, fact.failure)
        text = f"did not wake: {fact.failure.message}; it is started again"
        self._apply(instance, Event.NOT_AWAKE, text, level="error")

    # -- steps --------------------------------------------------------------------------------------------------------

    def _serve_on(self, instance: Instance, why: str) -> None:
        """Have one that is on its way to sleep serve on, if it has not gone too far and need not make room."""
        if instance.id in self._suspending or instance.id in self._firm:
            return
        self._fleet.rouse.discard(instance.id)
        self._drains.ended(instance.id)
        rest = dataclasses.replace(instance.rest, level=None)
        self._apply(dataclasses.replace(instance, rest=rest), Event.AWAKE, f"serves on before it slept: {why}")

    def _begin_to_wake(self, instance: Instance, why: str, *, level: str = "info") -> None:
        self._fleet.rouse.discard(instance.id)
        self._fleet.stuck.discard(instance.id)
        self._asked.pop(instance.id, None)
        self._found.discard(instance.id)
        self._began[instance.id] = self._effects.now()
        self._apply(instance, Event.WAKE, f"is woken: {why}", level=level)

    def _keep(self, profile: Profile | None) -> None:
        if profile is not None:
            self._effects.save_profile(profile)

    def _count(self, instance: Instance, kind: NapKind) -> float:
        """Count one, with the seconds that it took."""
        now = self._effects.now()
        took = max(0.0, now - self._began.pop(instance.id, now))
        count, seconds = self._fleet.naps.get((instance.model, kind), (0, 0.0))
        self._fleet.naps[(instance.model, kind)] = (count + 1, seconds + took)
        return took
