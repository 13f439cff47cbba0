"""The fleet as the residency policy sees it: instances as residents, devices with what residents may take. Pure.

A resident is named by its instance's id. What it takes of a device and what is free there add up to the budget, so that
the policy's free memory is exactly the room that an instance would find (`room.py`).
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from shoal.fleet.host_room import copy_size
from shoal.fleet.profiles import Profile, find_profile
from shoal.fleet.residency import Motion, Residency, Resident, Snapshot
from shoal.fleet.residing_use import Use, Uses
from shoal.fleet.room import Room, Wants
from shoal.fleet.snapshot import Fleet, NapKind
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Device, Instance
from shoal.fleet.state import InstanceState as S

_GPU, _HOST, _DISK = Residency.GPU, Residency.HOST, Residency.DISK
_PLAIN = Resident("")
_UNSEEN = Profile("", "", "", None, 0.0)


@dataclass(slots=True)
class Learned:
    """What was seen of instances and models since the controller began, and what is not to be touched.

    `loads`: seconds of a model's last load. `freed`: bytes of each device that its last sleep gave back. `roused`:
    since when an instance is wanted awake. `sleepless`: instances that would not sleep when they were told to, and
    until when that counts. `held`: instances that something else is being done with.
    """

    loads: dict[str, float] = field(default_factory=dict)
    freed: dict[str, int] = field(default_factory=dict)
    roused: dict[str, float] = field(default_factory=dict)
    sleepless: Mapping[str, float] = field(default_factory=dict)
    held: Collection[str] = ()
    copied: Callable[[str], int] = lambda _: 0
    """Bytes of the host's memory that hold a copy of an instance's weights."""


class View:
    """One look at the fleet. `wants`: what queued instances ask for that have no devices yet, by id."""

    def __init__(
        self, fleet: Fleet, room: Room, uses: Uses, learned: Learned, wants: Mapping[str, Wants], now: float
    ) -> None:
        self._fleet, self._room, self._uses, self._learned, self._now = fleet, room, uses, learned, now
        self._wants = wants
        self._unheard = fleet.unheard(now)
        self._kinds = {device.id: device for device in fleet.devices}
        self._ready = Counter(i.model for i in fleet.instances.values() if i.state is S.READY)
        found = (self.resident(instance) for instance in fleet.instances.values())
        self.residents = tuple(resident for resident in found if resident is not None)

    def resident(self, instance: Instance) -> Resident | None:
        """An instance as a resident. None: it holds nothing and asks for nothing that could be judged."""
        match instance.state:
            case S.READY:
                return self._on_it(instance, _GPU, None)
            case S.DRAINING:
                return self._on_it(instance, _GPU, Motion.SLEEPING if instance.retires else Motion.UNLOADING)
            case S.STOPPING if self._fleet.comes_back(instance):
                return self._on_it(instance, _DISK, Motion.LOADING)
            case S.STOPPING if instance.rest.level is not None:
                return self._asleep(instance, Motion.UNLOADING)
            case S.STOPPING:
                return self._on_it(instance, _GPU, Motion.UNLOADING)
            case S.SLEEPING:
                return self._asleep(instance, None)
            case S.WAKING:
                return self._asleep(instance, Motion.WAKING)
            case S.STARTING:
                return self._on_it(instance, _DISK, Motion.LOADING)
            case S.QUEUED if instance.devices:
                return self._on_it(instance, _DISK, Motion.LOADING)
            case S.QUEUED if (wants := self._wants.get(instance.id)) is not None:
                return self.queued(instance, wants)
        return None

    # -- by place -----------------------------------------------------------------------------------------------------

    def _on_it(self, instance: Instance, place: Residency, motion: Motion | None) -> Resident:
        needs = self._fleet.needs.get(instance.id) or 0
        used, first = self._kv(instance), self._room.first_kv(instance.id)
        awake = needs + max(0, used - first)
        share = self._learned.freed.get(instance.model)
        if share is None:
            share = self._fleet.weights.get(instance.id) or 0
            stays = needs - first - share
        else:
            stays = needs - share - (first if instance.elastic else 0)
        level = int(instance.can_sleep and self._now >= self._learned.sleepless.get(instance.id, self._now))
        if motion is Motion.SLEEPING:
            level = instance.rest.level or 1
        copy = self._learned.copied(instance.id) if place is _GPU and motion is None else 0
        return self._make(
            instance, place, motion, awake, max(0, stays) if level else 0, level, copied=copy, on=instance.devices
        )

    def _asleep(self, instance: Instance, motion: Motion | None) -> Resident:
        needs, share = self._fleet.needs.get(instance.id) or 0, instance.wake_share
        first = self._room.first_kv(instance.id) if instance.elastic else 0
        stays = max(0, needs - share - first)
        level = instance.rest.level or 1
        copy = self._learned.copied(instance.id) if level == 2 else 0  # at level 1 its weights are nowhere else
        return self._make(instance, _HOST, motion, stays + share, stays, level, copied=copy, on=instance.devices)

    def queued(self, instance: Instance, wants: Wants) -> Resident:
        """An instance that asks for devices."""
        return self._make(instance, _DISK, None, wants.needs, 0, 0, usable=wants.usable, width=wants.width)

    def _make(
        self, instance: Instance, place: Residency, motion: Motion | None, awake: int, asleep: int, level: int, *,
        on: tuple[str, ...] = (), usable: tuple[str, ...] = (), width: int = 0, copied: int = 0,
    ) -> Resident:  # fmt: skip
        use, spec = self._uses.of(instance.model), self._spec(instance)
        ready = max(1, self._ready[instance.model])
        waiting, since = self._waiting(instance, use, ready)
        last = instance.changed_at if use.last_use is None else use.last_use
        # What a request said holds for as long as its model stays: one that was woken since goes by its settings.
        came = instance.changed_at if instance.state is S.READY else 0.0
        held = instance.id in self._learned.held or instance.spec is None
        return Resident(
            name=instance.id,
            place=place,
            motion=motion,
            on=on,
            usable=usable or self._room.usable(instance),
            width=width or max(1, len(on)),
            awake=awake,
            asleep=asleep,
            host=copied or (copy_size(self._fleet, instance) if level == 1 else 0),
            copied=copied > 0,
            sleep_level=level,
            running=self._running(instance) if place is _GPU else 0,
            waiting=waiting,
            waiting_since=since,
            rate=use.rate / ready,
            last_use=min(last, self._now),
            awake_since=came,
            priority=spec.priority if spec is not None else 100,
            pinned=held or spec is None or spec.pin or not spec.on_request,
            sleep_after=spec.sleep_after if spec is not None else None,
            unload_after=spec.unload_after if spec is not None else None,
            keep_alive=use.keep_alive if last >= came else None,
            wake_cost=self._took(instance, "woke", _PLAIN.wake_cost),
            sleep_cost=self._took(instance, "slept", _PLAIN.sleep_cost),
            load_cost=self._load(instance),
        )

    # -- parts --------------------------------------------------------------------------------------------------------

    def _running(self, instance: Instance) -> int:
        """Requests that run on an instance. One at least while a relay is away that may carry it: none is put to sleep
        for being idle because nobody tells of its requests."""
        return max(self._fleet.outstanding(instance.id), int(self._unheard and instance.state is S.READY))

    def _waiting(self, instance: Instance, use: Use, ready: int) -> tuple[int, float | None]:
        """Requests that wait for an instance, and since when. One that is to come counts as one at least: somebody
        asked for it, though it may have been by hand."""
        if instance.state is S.READY:
            return -(-use.waiting // ready), use.waiting_since
        began = None
        if instance.id in self._fleet.rouse:
            began = self._learned.roused.get(instance.id, self._now)
        elif instance.id in self._wants:
            began = instance.changed_at
        if began is None or instance.id in self._fleet.stuck:
            return 0, None
        return max(1, use.waiting), began if use.waiting_since is None else min(began, use.waiting_since)

    def _spec(self, instance: Instance) -> ModelSpec | None:
        """The model's settings as they are now: how long it stays needs no new start."""
        model = self._fleet.models.get(instance.model)
        return instance.spec if model is None else model.spec

    def _kv(self, instance: Instance) -> int:
        """KV cache on its fullest device that comes back only when it leaves: what requests use, or its floor."""
        sizes = (self._fleet.ledger.kept(instance.id, d) for name in instance.devices if (d := self._kinds.get(name)))
        return max(sizes, default=0)

    def _took(self, instance: Instance, kind: NapKind, unknown: float) -> float:
        """Seconds on average since the controller began, else the last time, as the model's profile has it."""
        count, seconds = self._fleet.naps.get((instance.model, kind), (0, 0.0))
        if count:
            return seconds / count
        found = self._fleet.measured.get(instance.id, _UNSEEN)
        last = found.wake_seconds if kind == "woke" else found.sleep_seconds
        return unknown if last is None else last

    def _load(self, instance: Instance) -> float:
        if (seconds := self._learned.loads.get(instance.model)) is not None:
            return seconds
        for device in self._kinds.values():
            if instance.spec is not None and (found := find_profile(self._fleet.profiles, instance.spec, device)):
                return _PLAIN.load_cost if found.load_seconds is None else found.load_seconds
        return _PLAIN.load_cost


def budgets(
    devices: Iterable[Device],
    room: Mapping[str, int],
    residents: Iterable[Resident],
    unsettled: Collection[str],
    last: Mapping[str, int],
) -> dict[str, int]:
    """Bytes of each device that residents may take: what they take, and what is free.

    Where readings do not tell yet who holds what, they show too little; then what was known before counts, if that is
    more. What is really taken is looked at again when a model comes.
    """
    taken: Counter[str] = Counter()
    for resident in residents:
        for device in resident.on:
            taken[device] += resident.taken
    found = {}
    for one in devices:
        if one.error is None:
            found[one.id] = room[one.id] + taken[one.id]
            if one.id in unsettled:
                found[one.id] = max(found[one.id], last.get(one.id, one.memory_total))
    return found


def alone(one: Resident, snapshot: Snapshot) -> Resident:
    """One that fits a device only with what is kept of it takes all the rest of it: it has room there, and nobody
    beside it."""
    may = one.on or one.usable
    there = [device for device in snapshot.devices if not may or device.id in may]
    fit = [device.budget for device in there if one.awake <= device.budget + device.kept]
    most = min(fit, default=one.awake)
    return one if one.awake <= most else dataclasses.replace(one, awake=most)


def words(text: str, model_of: Callable[[str], str | None]) -> str:
    """What the policy says, with the names of models in place of instances' ids."""
    return _ID.sub(lambda match: model_of(match[0]) or match[0], text)


_ID = re.compile(r"[a-z0-9-]+-[0-9a-f]{8}")
