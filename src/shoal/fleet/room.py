"""The room on the devices: what they hold, what they will hold, and where a queued instance fits.

Readings of the devices are seconds old when they are used. So what has been given out since the last one counts too,
and a refusal for want of memory counts only once a reading shows what an ended instance gave back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf

from shoal.errors import ShoalError
from shoal.fleet.lifecycle import WITH_PROCESS
from shoal.fleet.placement import place, usable
from shoal.fleet.profiles import measured_needs
from shoal.fleet.snapshot import Fleet
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Device, Failure, Instance
from shoal.fleet.state import InstanceState as S
from shoal.units import format_bytes

# A reading may have been under way when a process ended, so the next one may still show what that process held.
READINGS_AFTER_AN_END = 2
MORE = 512 * 2**20
"""Bytes beyond those that it had for which an instance asks that ran out of memory at its start: what one of its larger
allocations takes, such as the activations of vLLM's longest batch."""


@dataclass(frozen=True, slots=True)
class Wants:
    """What a queued instance asks for: `needs` bytes on each of any `width` of the devices `usable`."""

    usable: tuple[str, ...]
    width: int
    needs: int


def headrooms(fleet: Fleet) -> dict[str, int]:
    """Bytes by device that no elastic KV cache may lease, where one is or may come: weights of several models that came
    into them would leave the KV caches of all of them nothing."""
    elastic: set[str] = set()
    for instance in fleet.instances.values():
        spec = instance.spec
        may = spec is not None and spec.may_be_elastic if instance.elastic is None else instance.elastic
        if not may or spec is None or (instance.state.ended and instance.state is not S.FAILED):
            continue
        if instance.devices or spec.devices != "auto":
            elastic.update(instance.devices or spec.devices)
        else:
            elastic.update(device.id for device in fleet.devices)
    return {device.id: fleet.ledger.headroom(device) * (device.id in elastic) for device in fleet.devices}


def beside(fleet: Fleet) -> dict[str, int]:
    """Those that whoever comes to a device now has to leave free. A model that has it to itself may come into them, as
    what it needs is an estimate before its first load."""
    instances = fleet.instances.values()
    there = {name for i in instances if i.state in WITH_PROCESS and i.state is not S.SLEEPING for name in i.devices}
    return {device: size * (device in there) for device, size in headrooms(fleet).items()}


class Room:
    """Where instances of a fleet find room. No I/O, no clock."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._kinds: dict[str, tuple[str, ...]] = {}
        self._estimates: dict[str, tuple[int | None, int | None]] = {}
        self._known: dict[str, Mapping[str, int]] = {}
        self._read_at = 0.0
        self._readings_to_wait = 0
        self._ended_last = ""
        self._unknown: set[str] = set()
        self._came: dict[str, float] = {}
        self._given: dict[str, int] = {}
        self._least: dict[str, int] = {}

    def prepared(self, instance: str, needs: int | None, kinds: tuple[str, ...], kv: int | None = None) -> None:
        """What an instance needs on each device, in bytes (None: unknown), and the kinds of device that it can use.

        `kv` is the KV cache in it. Where a load has shown what the rest is, that counts instead of the estimate.
        """
        self._fleet.needs[instance] = needs
        self._kinds[instance] = kinds
        self._estimates[instance] = needs, kv
        self._known.pop(instance, None)

    def expect(self, instance: str) -> None:
        """An instance was found running: what it needs is not known before it is prepared."""
        self._unknown.add(instance)

    def looked_at(self, instance: str) -> None:
        """Its files were looked at, whatever came of it."""
        self._unknown.discard(instance)

    def known(self, instance: Instance) -> None:
        """What a running instance needs, by what loads have shown, once it was prepared."""
        if instance.spec is None or instance.id not in self._estimates:
            return
        estimate, kv = self._estimates[instance.id]
        measured = self._measured(instance, instance.spec, kv)
        found = [measured.get(device, estimate) for device in instance.devices]
        self._fleet.needs[instance.id] = max((n for n in found if n is not None), default=estimate)

    def forget(self, instance: str) -> None:
        """Know nothing of an instance any more; it has to be prepared again."""
        self._fleet.needs.pop(instance, None)
        self._kinds.pop(instance, None)
        self._estimates.pop(instance, None)
        self._known.pop(instance, None)
        self._unknown.discard(instance)
        self._came.pop(instance, None)
        self._given.pop(instance, None)
        self._least.pop(instance, None)

    def came(self, instance: str, now: float) -> None:
        """It has all that it needs, since just now."""
        self._came[instance] = now

    def ended(self, instance: Instance) -> None:
        """A process group is gone; what it held comes back with the next readings."""
        self._readings_to_wait, self._ended_last = READINGS_AFTER_AN_END, instance.model

    def read(self, devices: Iterable[Device], at: float) -> None:
        """The devices, read anew. `at`: when that began, since what came or went meanwhile may be in it or not."""
        self._readings_to_wait = max(0, self._readings_to_wait - 1)
        self._read_at = at
        self._fleet.devices = tuple(self._with_pretended(device) for device in devices)

    def wants(self, instance: Instance) -> Wants | Failure | None:
        """What a queued instance asks for, or why it can never run. None: it is not prepared yet, or what it needs is
        not known."""
        spec = instance.spec
        if spec is None or instance.id not in self._kinds or self._unknown:
            return None
        estimate, kv = self._estimates[instance.id]
        measured = self._measured(instance, spec, kv)
        try:
            found = tuple(device.id for device in usable(spec, self._fleet.devices, self._kinds[instance.id]))
        except ShoalError as error:
            return Failure(error.code, error.message)
        needs = [measured.get(device, estimate) for device in found]
        known = [size for size in needs if size is not None]
        least = self._least.get(instance.id)
        if least is None and len(known) < len(needs):
            return None
        return Wants(found, spec.tensor_parallel, max([*known, least or 0]))

    def take(self, instance: Instance, devices: tuple[str, ...], needs: int) -> bool:
        """Give a queued instance its devices if it fits there by now; whether it does."""
        room = self.now()
        if any(room.get(device, -1) < needs for device in devices):
            return False
        self._fleet.needs[instance.id] = needs
        self._given[instance.id] = min(room[device] for device in devices)
        return True

    def ran_out(self, instance: Instance) -> bool:
        """It ran out of memory at its start: from now on it asks for more than it had. False if that is of no use: it
        had far more than it is known to need, nobody else is on its devices who could give way, or they are no larger.
        """
        given, needs = self._given.get(instance.id, inf), self._fleet.needs.get(instance.id)
        least = given + MORE
        if needs is not None and given > needs + max(2 * MORE, needs // 4):
            return False
        others = (i for i in self._fleet.instances.values() if i.id != instance.id and i.state in WITH_PROCESS)
        on = [device for device in self._fleet.devices if device.id in instance.devices]
        if any(device.memory_total < least for device in on) or not any(
            set(other.devices) & set(instance.devices) for other in others
        ):
            return False
        self._least[instance.id] = int(least)
        return True

    @property
    def read_at(self) -> float:
        """When the devices were last read."""
        return self._read_at

    @property
    def in_doubt(self) -> bool:
        """Whether readings may not show yet what ended instances gave back, or it is not known what was found."""
        return bool(self._readings_to_wait or self._unknown)

    @property
    def lags(self) -> bool:
        """Whether the next readings will show more room for certain, or may: somebody came or went a moment ago."""
        return self.in_doubt or any(map(self._is_new, self._fleet.instances.values()))

    def now(self) -> dict[str, int]:
        """Bytes by device that one more instance could have."""
        kept = beside(self._fleet)
        return {device: free - kept[device] for device, free in self.free().items()}

    def free(self) -> dict[str, int]:
        """Bytes by device that are free, or come free when somebody needs them, and promised to nobody."""
        promised = self._promised()
        return {
            device.id: device.memory_free + self._fleet.ledger.spare(device) - promised.get(device.id, 0)
            for device in self._fleet.devices
        }

    def unsettled(self) -> set[str]:
        """Devices of which readings do not tell yet who holds what: somebody comes, or went a moment ago."""
        if self.in_doubt:
            return {device.id for device in self._fleet.devices}
        coming = (i for i in self._fleet.instances.values() if i.state in (S.STARTING, S.WAKING) or self._is_new(i))
        return {device for instance in coming for device in instance.devices}

    def first_kv(self, instance: str) -> int:
        """Bytes of KV cache that are part of what an instance needs on each device."""
        return self._estimates.get(instance, (None, None))[1] or 0

    def usable(self, instance: Instance) -> tuple[str, ...]:
        """The devices that an instance may be on, as far as that is known; else those that it is on."""
        if instance.spec is None or instance.id not in self._kinds:
            return instance.devices
        try:
            return tuple(d.id for d in usable(instance.spec, self._fleet.devices, self._kinds[instance.id]))
        except ShoalError:
            return instance.devices

    def find(self, instance: Instance) -> tuple[str, ...] | str | Failure | None:
        """The devices for a queued instance of which it is not known what it needs, what it waits for, or why it can
        never run. None: not prepared yet."""
        spec = instance.spec
        if spec is None or instance.id not in self._kinds or self._unknown:
            return None
        estimate, kv = self._estimates[instance.id]
        measured = self._measured(instance, spec, kv)
        needs = {device.id: measured.get(device.id, estimate) for device in self._fleet.devices}
        kept = beside(self._fleet)
        spare = {d.id: self._fleet.ledger.spare(d) - kept[d.id] for d in self._fleet.devices}
        try:
            devices = place(spec, needs, self._fleet.devices, self._kinds[instance.id], self._promised(), spare)
        except ShoalError as error:
            leaving = [i.model for i in self._fleet.instances.values() if i.state in (S.DRAINING, S.STOPPING)]
            if self._readings_to_wait:
                leaving.append(self._ended_last)
            if error.code == "too_little_memory" and leaving:
                return f"waits for {leaving[0]} to give its memory back"
            return Failure(error.code, error.message)
        known = [share for device in devices if (share := needs[device.id]) is not None]
        self._fleet.needs[instance.id] = max(known) if len(known) == len(devices) else None
        room = self.now()
        self._given[instance.id] = min(room[device.id] for device in devices)
        return tuple(device.id for device in devices)

    def _measured(self, instance: Instance, spec: ModelSpec, kv: int | None) -> Mapping[str, int]:
        """What loads have shown that it needs, by device; worked out once for an instance that waits."""
        if instance.id not in self._known:
            self._known[instance.id] = measured_needs(self._fleet.profiles, spec, self._fleet.devices, kv)
        return self._known[instance.id]

    def short_of(self, instance: Instance) -> str | None:
        """What a sleeping instance lacks in order to wake, with the numbers; None if it fits."""
        needs, promised = instance.wake_share, self._promised()
        # Cached KV is asked back for one instance a device at a time.
        coming = (i for i in self._fleet.instances.values() if i.state in (S.STARTING, S.WAKING))
        busy = {name for other in coming for name in other.devices}
        devices = {device.id: device for device in self._fleet.devices}
        kept = beside(self._fleet)
        for name in instance.devices:
            device = devices.get(name)
            if device is None:
                return f"{name} is gone"
            spare = 0 if name in busy else self._fleet.ledger.spare(device)
            room = device.memory_free + spare - promised.get(name, 0) - kept[name]
            if needs > room:
                free = format_bytes(max(0, room))
                return f"it needs {format_bytes(needs)} on {name}, which has {free} free"
        return None

    def _is_new(self, instance: Instance) -> bool:
        """Whether it has its memory, and the last reading does not show that yet."""
        has = instance.state in (S.READY, S.DRAINING) or (instance.state is S.STOPPING and instance.rest.level is None)
        return has and self._unread(instance)

    def _unread(self, instance: Instance) -> bool:
        """Whether it came after the last reading began, whatever became of it since."""
        return self._came.get(instance.id, -1.0) >= self._read_at

    def _outstanding(self, instance: Instance) -> int:
        """Bytes of each of its devices that it will still take, or has taken since they were read."""
        needs, share = self._fleet.needs.get(instance.id) or 0, instance.wake_share
        if instance.state in (S.QUEUED, S.STARTING):
            return needs
        if instance.state is S.WAKING:
            return max(needs, share) if self._unread(instance) else share
        if instance.state.ended or not self._unread(instance):
            return 0
        asleep = instance.state is S.SLEEPING or (instance.state is S.STOPPING and instance.rest.level is not None)
        return max(0, needs - share) if asleep else needs

    def _promised(self) -> Mapping[str, int]:
        """Bytes by device that placed instances will still take, or have taken since the devices were read."""
        kinds = {device.id: device.kind for device in self._fleet.devices}
        # A floor can be claimed at any time. That of one that starts is part of what it needs.
        ready = {instance.id for instance in self._fleet.instances.values() if instance.state is S.READY}
        promised = {device.id: self._fleet.ledger.owed_to_floors(device, ready) for device in self._fleet.devices}
        for instance in self._fleet.instances.values():
            rest = self._outstanding(instance)
            shown = instance.state in (S.STARTING, S.WAKING) and instance.changed_at < self._read_at
            for device in instance.devices:
                kind = kinds.get(device)
                # What its processes hold of the host's memory beside a GPU, copies of weights too, is not of that GPU.
                has = instance.memory.get("host", 0) if kind == "host" and instance.state is not S.WAKING else 0
                if not (shown and kind == "simulated"):
                    promised[device] = promised.get(device, 0) + max(0, rest - has)
        return promised

    def _with_pretended(self, device: Device) -> Device:
        """A simulated device holds what its instances say that they need, from their start on."""
        if device.kind != "simulated":
            return device
        used = sum(
            self._fleet.needs.get(i.id) or 0
            for i in self._fleet.instances.values()
            if device.id in i.devices and i.state in (S.STARTING, S.READY, S.DRAINING, S.WAKING, S.STOPPING)
        )
        return dataclasses.replace(device, memory_used=used + self._fleet.ledger.backed(device))
