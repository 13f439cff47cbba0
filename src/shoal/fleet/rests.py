"""What sleeps and wakes have shown of a model, kept in its profile: the next controller knows what a wake costs. Pure.

Only level 1 counts, at which the residency policy has models sleep: from level 2 a wake reads the weights anew.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from shoal.fleet.profiles import Profile, device_word, find_profile, settings_hash
from shoal.fleet.snapshot import Fleet
from shoal.fleet.state import Device, Instance


def recall(fleet: Fleet, instance: Instance) -> None:
    """Know of an instance, which was prepared just now, what was measured of its model where it is or may be."""
    found = None
    if instance.spec is not None and fleet.profiles:
        known = (find_profile(fleet.profiles, instance.spec, device) for device in _first(fleet, instance))
        found = next((one for one in known if one is not None), None)
    if found is not None:
        fleet.measured[instance.id] = found


def slept(fleet: Fleet, instance: Instance, seconds: float, held: int | None, freed: int, now: float) -> Profile | None:
    """The profile after a sleep that took so many seconds, of one that held so many bytes on all its devices and gave
    `freed` back. None: nothing is to be kept."""
    if instance.rest.level != 1:
        return None
    stays = None if held is None else max(0, held - freed) // max(1, len(instance.devices))
    return _kept(fleet, instance, now, sleep_seconds=seconds, asleep=stays)


def woke(fleet: Fleet, instance: Instance, seconds: float, copy: int, now: float) -> Profile | None:
    """The profile after a wake that took so many seconds. `copy`: bytes of the host that its weights have; 0: unknown.
    None: nothing is to be kept."""
    if instance.rest.level != 1:
        return None
    return _kept(fleet, instance, now, wake_seconds=seconds, host_copy=copy or None)


def _kept(fleet: Fleet, instance: Instance, now: float, **seen: Any) -> Profile | None:
    spec, device = instance.spec, next((d for d in fleet.devices if d.id in instance.devices), None)
    if spec is None or device is None:
        return None
    known = find_profile(fleet.profiles, spec, device)
    if known is None:  # it slept before its load was measured
        weights = fleet.weights.get(instance.id)
        known = Profile(spec.name, settings_hash(spec), device_word(device), weights, now, loads=0)
    seen = {name: value for name, value in seen.items() if value is not None}
    profile = dataclasses.replace(known, measured_at=now, **seen)
    fleet.profiles[profile.id] = fleet.measured[instance.id] = profile
    return profile


def _first(fleet: Fleet, instance: Instance) -> list[Device]:
    """Every device, those that an instance is on first."""
    return sorted(fleet.devices, key=lambda device: device.id not in instance.devices)
