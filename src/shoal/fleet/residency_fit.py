"""What can never fit as things are: models that are too large for any device beside what is pinned there. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

from shoal.fleet.residency import Motion, Resident, Snapshot
from shoal.units import format_bytes

_Answers = dict[tuple[int, int], str | None]
"""By width and bytes: why that can never be had."""


class Capacity:
    """The bytes of each device that are not pinned."""

    def __init__(self, snapshot: Snapshot, pinned: Iterable[Resident]) -> None:
        self.budgets = {device.id: device.budget for device in snapshot.devices}
        self.everywhere = tuple(self.budgets)
        self.free = dict(self.budgets)
        self._kept = {device.id: device.kept for device in snapshot.devices}
        self._sizes = {device.id: max(device.size, device.budget) for device in snapshot.devices}
        for one in pinned:
            self._hold(one)
        self.largest = max(self.free.values(), default=-1)
        self._said: dict[str, str] = {}
        self._everywhere: _Answers = {}
        self._elsewhere: dict[tuple[str, ...], _Answers] = {}

    def _hold(self, one: Resident) -> None:
        """Count a pinned model as there for good, as large as it will be when its motion is over."""
        size = one.asleep if one.motion is Motion.SLEEPING else 0 if one.motion is Motion.UNLOADING else one.taken
        for device in one.on:
            if device in self.free:
                self.free[device] -= size

    def why_never(self, one: Resident, devices: tuple[str, ...]) -> str | None:
        """Why it can never have its memory on `one.width` of `devices` as things are, with the numbers."""
        if one.pinned:
            why = self._why_never(one, devices)
        else:  # what is asked of many of one size is worked out once; the names of all devices are long to look up
            everywhere = devices is self.everywhere
            answers = self._everywhere if everywhere else self._elsewhere.setdefault(devices, {})
            key = one.width, one.awake
            if key not in answers:
                answers[key] = self._why_never(one, devices)
            why = answers[key]
        return None if why is None else f"{one.name} {why}"

    def _why_never(self, one: Resident, devices: tuple[str, ...]) -> str | None:
        mine = one.taken if one.pinned else 0
        if one.awake > self.largest + mine:
            return self._why(one, devices)
        fit = 0
        for device in devices:
            if self.free.get(device, -1) + (mine if device in one.on else 0) >= one.awake:
                fit += 1
                if fit >= one.width:
                    return None
        return self._why(one, devices)

    def _why(self, one: Resident, devices: Sequence[str]) -> str:
        known = devices if devices is self.everywhere else [device for device in devices if device in self.budgets]
        missing = [device for device in devices if device not in self.budgets] if len(known) < len(devices) else []
        if missing and len(known) < one.width:
            return f"needs {', '.join(missing)}, which this machine does not have"
        if len(devices) < one.width:
            return f"needs {one.width} devices, and this machine has {len(devices)}"
        best = self._roomiest if devices is self.everywhere else max(known, key=self.free.__getitem__)
        on = f"each of {one.width} devices" if one.width > 1 else "a device" if len(known) > 1 else best
        fits = one.awake <= self.budgets[best]
        do = "unpin a model, or give it less memory" if fits else "give it less memory or more devices"
        return f"needs {format_bytes(one.awake)} on {on}; {self._numbers(best)}; {do}"

    @cached_property
    def _roomiest(self) -> str:
        """Of all devices the one with the most bytes that are not pinned."""
        return max(self.everywhere, key=self.free.__getitem__)

    def _numbers(self, device: str) -> str:
        """How large a device is, and what of that is taken for good."""
        if device not in self._said:
            budget, size = self.budgets[device], self._sizes[device]
            kept, pinned = self._kept[device], budget - self.free[device]
            parts = [(size - budget - kept, "are in other use"), (pinned, "are pinned")]
            if pinned:  # a model that has it to itself may come into them
                parts.append((kept, "stay free for KV caches"))
            taken = " and ".join(f"{format_bytes(part)} {how}" for part, how in parts if part)
            self._said[device] = f"{device} has {format_bytes(size)}" + (f", of which {taken}" if taken else "")
        return self._said[device]


class Never:
    """Which residents of a snapshot can never be awake as things are; worked out once for all of them."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._capacity = Capacity(snapshot, (one for one in snapshot.residents if one.pinned))
        self._residents = {one.name: one for one in snapshot.residents}

    def why(self, name: str) -> str | None:
        """Why it cannot, with the numbers. None if it can, once others give way, or if there is no such resident.

        One that sleeps where it cannot wake may still be loaded elsewhere.
        """
        one = self._residents.get(name)
        return None if one is None else self._capacity.why_never(one, one.usable or self._capacity.everywhere)

    def why_not_yet(self, one: Resident, devices: tuple[str, ...]) -> str | None:
        """The same of a resident that is not in the snapshot, on `devices`."""
        return self._capacity.why_never(one, devices)
