"""The residency policy at work: who sleeps, wakes, loads and gives way in a fleet that runs.

No I/O and no clock of its own, as in `life.py`, of which it is a part. `residing_view.py` makes the snapshot,
`residency_plan.py` decides, and what may begin of the plan is begun here. Nothing is remembered of a plan: what is
under way shows in the states of the instances, so the next controller goes on from there.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Collection
from math import inf
from typing import Protocol

from shoal.errors import ShoalError
from shoal.fleet.effects import Effects
from shoal.fleet.host_room import HostCopies, NoCopies
from shoal.fleet.residency import HOST, Action, Device, Kind, Resident, Rules, Snapshot
from shoal.fleet.residency_fit import Never
from shoal.fleet.residency_plan import decide
from shoal.fleet.residing_use import Uses
from shoal.fleet.residing_view import Learned, View, alone, budgets, words
from shoal.fleet.room import Room, Wants, headrooms
from shoal.fleet.slumber import Slumber
from shoal.fleet.snapshot import Fleet
from shoal.fleet.state import Failure, Instance
from shoal.fleet.state import InstanceState as S
from shoal.memory.sizes import Amount
from shoal.units import format_bytes

SOON = 0.25
"""Seconds after which models that were used are looked at for having been idle too long; looks cost time."""
SURE = 5.0
"""Seconds for which a model has to fit nowhere before it is refused for what others than models hold: readings of
devices and of KV caches are not of one moment. One that is too large for any device at all is refused at once."""
AGAIN = 1.0
"""Seconds after which it is tried again if nothing of a plan could begin."""
HOST_WAIT = 10.0
"""Seconds for which, at most, who is to sleep waits for a reading of the host that shows what others gave back."""
TOO_LITTLE = "too_little_memory"
MOST_LOOKS = 100
UNKNOWN = 2**62
"""Bytes of a host of which nothing can be read: engines themselves find out whether it has room."""
LEVEL = 1
"""Models that make room keep their weights in the host's memory; where that has no room, they are unloaded."""


class Acts(Protocol):
    """What the rest of `life.py` does for the policy."""

    def put(self, instance: Instance, *, save: bool = True) -> None:
        """Keep an instance that has changed."""
        ...

    def refuse(self, instance: Instance, failure: Failure) -> None:
        """A queued instance can never run."""
        ...

    def unload(self, instance: Instance, *, why: str) -> Instance:
        """End an instance after its running requests."""
        ...

    def replace(self, instance: Instance) -> None:
        """Queue another instance in place of one that ends."""
        ...

    def note(self, instance: Instance, kind: str, message: str, level: str = "info") -> None:
        """Keep an event."""
        ...

    def reroute(self) -> None:
        """Where requests go, or what they are told, has changed."""
        ...


class Residing:
    """The policy of a fleet. `copies` and `held` may be set by others: copies of weights, and instances of which
    something else is being made, which neither leave nor give way."""

    def __init__(
        self, fleet: Fleet, effects: Effects, room: Room, slumber: Slumber, acts: Acts, rules: Rules,
        host_memory: Amount,
    ) -> None:  # fmt: skip
        self.copies: HostCopies = NoCopies()
        self.held: set[str] = set()
        self.left: Counter[tuple[str, str, str]] = Counter()
        """How often models were put to sleep or unloaded: model, kind (`sleep`, `unload`), cause (see `Action`)."""
        self.awaited: Callable[[tuple[str, ...]], object] = lambda _: None
        """Told which instances others wait for to give their memory back."""
        self._fleet, self._effects, self._room, self._slumber, self._acts = fleet, effects, room, slumber, acts
        self._rules, self._host_memory = rules, host_memory
        self._uses = Uses()
        self._learned = Learned(sleepless=slumber.sleepless, held=self.held, copied=lambda id: self.copies.held(id))
        self._began: dict[str, float] = {}
        self._gave_way: dict[str, deque[float]] = {}
        self._budgets: dict[str, int] = {}
        self._hopeless: dict[str, float] = {}  # since when they fit nowhere
        self._refused: dict[str, Wants | None] = {}  # what those asked for that have failed for that, once it is known
        self._seen: tuple[object, object] = (None, None)
        self._rouse: frozenset[str] = frozenset()
        self._next = -inf
        self._host_awaited: float | None = None  # since when somebody waits for a reading of the host
        self._blocked = self._limits = False
        slumber.never = self.never
        slumber.copied = lambda id: self.copies.held(id)

    def was_refused(self, instance: Instance) -> bool:
        """Whether a failed instance had too little memory. If an earlier controller said so, it counts from now on as
        if this one had; what it needs is to be prepared anew."""
        if instance.state is not S.FAILED or instance.failure is None or instance.failure.code != TOO_LITTLE:
            return False
        self._refused.setdefault(instance.id, None)
        return True

    # -- when it looks ------------------------------------------------------------------------------------------------

    def settle(self, now: float, *, changed: bool) -> float | None:
        """Do what the policy says now; when it is to be asked again although nothing happens. `changed`: instances or
        models are not as they were at the last call."""
        fleet = self._fleet
        if fleet.closing:
            return None
        used = self._uses.take(fleet.relays, self._model_of, now)
        seen, self._seen = self._seen, (fleet.devices, fleet.ledger.books)
        read = any(one is not other for one, other in zip(seen, self._seen, strict=True))
        if used and (self._limits or self._uses.said):
            self._next = min(self._next, now + SOON)
        if changed or now >= self._next or fleet.rouse != self._rouse or (self._blocked and (used or read)):
            self._look_until_settled(now)
        return None if self._next == inf else self._next

    def _look_until_settled(self, now: float) -> None:
        for _ in range(MOST_LOOKS):
            began = self._look(now)
            if self._next > now:
                break
            if not began:
                self._next = now + AGAIN
                break
        self._rouse = frozenset(self._fleet.rouse)

    def never(self, instance: Instance) -> str | None:
        """Why a sleeping instance can never wake as things are, with the numbers; None if it may."""
        now = self._effects.now()
        snapshot = self._snapshot(self._view({}, now), now)
        if self._room.unsettled().intersection(instance.devices):
            snapshot = _whole(snapshot)
        why = Never(snapshot).why(instance.id)
        return None if why is None else self._words(why)

    def why_never(self, model: str, wants: Wants, *, stays: Collection[str], goes: Collection[str]) -> str | None:
        """Why an instance that nobody has made yet could never have what it asks for, with the numbers, as long as
        `stays` stay and once `goes` have ended; None if it could, be it only when others have left."""
        now, here = self._effects.now(), set(wants.usable)
        learned = dataclasses.replace(self._learned, held=frozenset(stays))
        snapshot = self._snapshot(View(self._fleet, self._room, self._uses, learned, {}, now), now)
        there = [i for i in self._fleet.instances.values() if not i.state.ended and here.intersection(i.devices)]
        if here & self._room.unsettled() or any(self._fleet.needs.get(i.id) is None for i in there):
            snapshot = _whole(snapshot)  # what others than models hold cannot be told from what these do
        residents = tuple(resident for resident in snapshot.residents if resident.name not in goes)
        one = Resident(model, usable=wants.usable, width=wants.width, awake=wants.needs)
        one = alone(one, snapshot)
        return Never(dataclasses.replace(snapshot, residents=residents)).why_not_yet(one, wants.usable)

    def room(self) -> tuple[dict[str, int], bool]:
        """Bytes by device that one more instance could have now, without anybody giving way, and whether the next
        readings may show more."""
        return self._room.now(), self._room.lags

    # -- a look -------------------------------------------------------------------------------------------------------

    def _look(self, now: float) -> bool:
        """Begin what may begin; whether anything did."""
        self._learn(now)
        wants = self._queued()
        view = self._view(wants, now)
        snapshot = self._snapshot(view, now)
        self._see_who_fits_now(view, snapshot)
        plan = decide(snapshot, self._rules)
        self._next = inf if plan.next_look is None else plan.next_look
        if self._fleet.unheard(now):
            self._next = min(self._next, self._fleet.hearing.until)
        self._hopeless = {refusal.name: self._hopeless.get(refusal.name, now) for refusal in plan.refusals}
        if plan.refusals:
            never = Never(_whole(snapshot))
            for refusal in plan.refusals:
                sure = now >= self._hopeless[refusal.name] + SURE or never.why(refusal.name) is not None
                self._refuse(self._fleet.instances[refusal.name], self._words(refusal.reason), wants, sure=sure)
        awaited = any(HOST in action.after for action in plan.actions)
        self._host_awaited = (now if self._host_awaited is None else self._host_awaited) if awaited else None
        began = False
        for action in plan.actions:
            instance = self._fleet.instances.get(action.name)
            if instance is None:
                continue
            self.awaited(action.after)
            if not action.after:
                began |= self._begin(instance, action, wants)
            elif action.kind in (Kind.LOAD, Kind.WAKE):
                names = ", ".join(dict.fromkeys(map(self._words, action.after)))
                self._waits(instance, f"waits for {names} to give its memory back")
        for wait in plan.waits:
            if (instance := self._fleet.instances.get(wait.name)) is not None:
                self._waits(instance, self._about(instance, wait.reason))
        coming = any(action.after for action in plan.actions)
        self._blocked = bool(plan.waits) or coming or bool(self._fleet.rouse or self._fleet.stuck or self._refused)
        self._blocked |= any(i.state is S.QUEUED and not i.devices for i in self._fleet.instances.values())
        self._limits = any(r.sleep_after is not None or r.unload_after is not None for r in snapshot.residents)
        return began

    def _learn(self, now: float) -> None:
        learned, rouse = self._learned, self._fleet.rouse
        for instance in self._fleet.instances.values():
            if instance.state is S.STARTING:
                self._began[instance.id] = instance.changed_at
            elif (began := self._began.pop(instance.id, None)) is not None and instance.state is S.READY:
                learned.loads[instance.model] = instance.changed_at - began
            elif instance.state is S.SLEEPING and instance.rest.freed:
                learned.freed[instance.model] = instance.wake_share
        learned.roused = {id: learned.roused.get(id, now) for id in rouse}
        self._uses.forget_but(self._fleet.models)

    def _queued(self) -> dict[str, Wants]:
        """What those ask for that are queued and have no devices. One of which that is not known goes where it may."""
        found = {}
        for instance in sorted(self._fleet.instances.values(), key=lambda i: (i.created_at, i.id)):
            if instance.state is not S.QUEUED or instance.devices:
                continue
            match self._room.wants(instance):
                case Failure() as failure:
                    self._acts.refuse(instance, failure)
                case Wants() as wants:
                    found[instance.id] = wants
                case None:
                    self._place_blindly(instance)
        return found

    def _place_blindly(self, instance: Instance) -> None:
        match self._room.find(instance):
            case Failure() as failure:
                self._acts.refuse(instance, failure)
            case str(reason):
                self._waits(instance, reason)
            case tuple(devices):
                self._acts.put(dataclasses.replace(instance, devices=devices))

    def _view(self, wants: dict[str, Wants], now: float) -> View:
        return View(self._fleet, self._room, self._uses, self._learned, wants, now)

    def _snapshot(self, view: View, now: float) -> Snapshot:
        unsettled = self._room.unsettled()
        sizes = budgets(self._fleet.devices, self._room.free(), view.residents, unsettled, self._budgets)
        self._budgets |= {name: size for name, size in sizes.items() if name not in unsettled}
        kept = headrooms(self._fleet)
        since = now - self._rules.switch_window
        for gave_way in self._gave_way.values():
            while gave_way and gave_way[0] < since:
                gave_way.popleft()
        totals = {device.id: device.memory_total for device in self._fleet.devices}
        devices = tuple(
            Device(name, size - kept[name], tuple(self._gave_way.get(name, ())), totals[name], kept[name])
            for name, size in sizes.items()
        )
        budget = self._host_budget(view.residents)
        found = Snapshot(now, devices, view.residents, budget, self._host_is_settled(budget, now))
        return dataclasses.replace(found, residents=tuple(alone(one, found) for one in view.residents))

    def _host_budget(self, residents: tuple[Resident, ...]) -> int:
        """What weights may take of the host's memory: what the settings allow, as far as it is free. What is only
        promised to models on their way to sleep is still part of what is free."""
        host = next((device for device in self._fleet.devices if device.kind == "host"), None)
        if host is None:
            return UNKNOWN if self._host_memory.share is not None else self._host_memory.size
        taken = sum(resident.host_taken for resident in residents)
        return min(self._host_memory.of(host.memory_total), taken - self._slumber.promised() + host.memory_free)

    def _host_is_settled(self, budget: int, now: float) -> bool:
        """Whether there is no more room on the host than a budget says. While somebody comes and goes all the time, it
        is believed in the end."""
        host = next((device for device in self._fleet.devices if device.kind == "host"), None)
        if host is None or budget >= self._host_memory.of(host.memory_total):
            return True
        if self._host_awaited is not None and now >= self._host_awaited + HOST_WAIT:
            return True
        return not (self.copies.unsettled() or self._room.in_doubt or self._slumber.falls_asleep)

    def _see_who_fits_now(self, view: View, snapshot: Snapshot) -> None:
        """Models that were refused because they could never fit may be asked for again once they could."""
        if not self._fleet.stuck and not self._refused:
            return
        never = Never(snapshot)
        for id in sorted(self._fleet.stuck):
            if never.why(id) is None:
                self._fleet.stuck.discard(id)
                self._acts.reroute()
        for id, known in list(self._refused.items()):
            instance = self._fleet.instances.get(id)
            if instance is None or instance.state is not S.FAILED:
                del self._refused[id]
                continue
            wants = known or self._room.wants(instance)
            if not isinstance(wants, Wants):
                continue
            one = alone(view.queued(instance, wants), snapshot)
            if never.why_not_yet(one, wants.usable) is None:
                del self._refused[id]
                self._acts.unload(instance, why="may be asked for again: it could fit now")

    # -- what is done -------------------------------------------------------------------------------------------------

    def _begin(self, instance: Instance, action: Action, wants: dict[str, Wants]) -> bool:
        why = self._about(instance, action.reason)
        match action.kind:
            case Kind.WAKE:
                short = self._slumber.try_to_wake(instance)
                if short is not None:
                    self._waits(instance, short)
                return short is None
            case Kind.LOAD:
                return self._place(instance, action.devices, wants[instance.id])
            case Kind.FORGET:
                self.copies.forget(instance.id)
                self._acts.note(instance, "copy_dropped", self._words(action.reason))
                return not self.copies.held(instance.id)
            case Kind.SLEEP | Kind.UNLOAD:
                self._leave(instance, action, why)
                return True
        return False  # floors are not lent: no model offers one

    def _place(self, instance: Instance, devices: tuple[str, ...], wants: Wants) -> bool:
        if self._room.take(instance, devices, wants.needs):
            self._acts.put(dataclasses.replace(instance, devices=devices))
            return True
        self._waits(instance, f"waits for {format_bytes(wants.needs)} to come free on {', '.join(devices)}")
        return False

    def _leave(self, instance: Instance, action: Action, why: str) -> None:
        """It goes to sleep or is unloaded: for itself, for another model, or to be loaded where it fits."""
        if action.gives_way_to:
            for device in action.devices:
                self._gave_way.setdefault(device, deque()).append(self._effects.now())
        if action.kind is Kind.SLEEP:
            try:
                self._slumber.sleep(instance, LEVEL, force=False, why=why, firm=bool(action.gives_way_to))
            except ShoalError as error:
                why = f"{why}; it cannot sleep: {error.message}"
            else:
                self.left[(instance.model, "sleep", action.cause)] += 1
                return
        self.left[(instance.model, "unload", action.cause)] += 1
        wanted = instance.id in self._fleet.rouse
        model = self._fleet.models.get(instance.model)
        self._acts.unload(instance, why=why)
        if wanted:
            self._acts.replace(instance)
        elif model is not None and model.desired:
            model = dataclasses.replace(model, desired=model.desired - 1)
            self._fleet.models[instance.model] = model
            self._effects.save_model(model)

    def _refuse(self, instance: Instance, why: str, wants: dict[str, Wants], *, sure: bool) -> None:
        if not sure:
            self._next = min(self._next, self._hopeless[instance.id] + SURE)
            self._waits(instance, why)
            return
        if instance.state is S.QUEUED:
            self._refused[instance.id] = wants[instance.id]
            self._acts.refuse(instance, Failure(TOO_LITTLE, why))
            return
        self._fleet.rouse.discard(instance.id)
        self._fleet.stuck.add(instance.id)
        self._acts.put(dataclasses.replace(instance, reason=f"cannot wake: {why}"))
        self._acts.reroute()

    def _waits(self, instance: Instance, reason: str) -> None:
        """Say what an instance waits for."""
        sleeps = instance.state is S.SLEEPING
        reason = f"wanted, and waits for room: {reason}" if sleeps else reason
        instance = self._fleet.instances[instance.id]
        if instance.reason != reason:
            self._acts.put(dataclasses.replace(instance, reason=reason), save=False)
            if sleeps:
                self._acts.reroute()

    # -- words --------------------------------------------------------------------------------------------------------

    def _words(self, text: str) -> str:
        return words(text, self._model_of)

    def _about(self, instance: Instance, text: str) -> str:
        """What is said of an instance, without its name."""
        return self._words(text.removeprefix(f"{instance.id} "))

    def _model_of(self, instance: str) -> str | None:
        found = self._fleet.instances.get(instance)
        return None if found is None else found.model


def _whole(snapshot: Snapshot) -> Snapshot:
    """The same if models could have all of each device."""
    devices = tuple(dataclasses.replace(device, budget=device.size - device.kept) for device in snapshot.devices)
    return dataclasses.replace(snapshot, devices=devices)
