"""What loads of a model have shown: memory, KV cache and times, for its settings on one kind of device. Pure.

A profile replaces the estimate of `Engine.estimate` from a model's second load on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from shoal.fleet.needs import KvCost, KvLayers, Needs
from shoal.fleet.spec import LIVE, ModelSpec
from shoal.fleet.state import Device

KEPT = 5
"""Loads of which the overhead is kept. The largest counts: a reading is too small where a neighbour went meanwhile."""
_WITHOUT_MEANING = frozenset({*LIVE, "name", "devices", "port", "start_timeout"})
"""Settings that change nothing of what a model needs."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What was measured of `model` with the settings of that hash on `device` (its name, else its kind).

    Bytes are on one device. `overheads`: beside weights and KV cache, of the last loads, oldest first; empty where it
    could not be told apart. `kv_token`: of a token of the KV cache. `phases`: seconds of the last load. Seconds of
    sleep and wake, bytes that stay on a device asleep, and the bytes of the host's memory that the weights of an
    instance have then, are those of the last time (level 1); None: not seen yet.
    """

    model: str
    settings: str
    device: str
    weights: int | None
    measured_at: float
    loads: int = 1
    overheads: tuple[int, ...] = ()
    kv_token: float | None = None
    load_seconds: float | None = None
    phases: Mapping[str, float] = field(default_factory=dict)
    version: str = ""
    sleep_seconds: float | None = None
    wake_seconds: float | None = None
    asleep: int | None = None
    host_copy: int | None = None

    @property
    def id(self) -> str:
        """What it is stored by."""
        return profile_id(self.model, self.settings, self.device)

    @property
    def overhead(self) -> int | None:
        """Bytes beside weights and KV cache; None: not known."""
        return max(self.overheads, default=None)

    @property
    def fixed(self) -> int | None:
        """Weights and overhead; None: not known."""
        return None if self.weights is None or self.overhead is None else self.weights + self.overhead


Profiles = dict[str, Profile]
"""Profiles by id."""


def profile_id(model: str, settings: str, device: str) -> str:
    """32 hex digits for three texts."""
    return hashlib.sha256(json.dumps([model, settings, device]).encode()).hexdigest()[:32]


def settings_hash(spec: ModelSpec) -> str:
    """16 hex digits that change with every setting which may change what a model needs.

    A hash and not the settings: a model's variables may hold tokens.
    """
    kept = {key: value for key, value in spec.model_dump(mode="json").items() if key not in _WITHOUT_MEANING}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def device_word(device: Device) -> str:
    """What a profile calls a device: all of one name are alike. The host's memory is one kind, whatever its CPU."""
    return device.name if device.kind == "cuda" else device.kind


def find_profile(profiles: Mapping[str, Profile], spec: ModelSpec, device: Device) -> Profile | None:
    """What is known of a model with its present settings on a device."""
    return profiles.get(profile_id(spec.name, settings_hash(spec), device_word(device))) if profiles else None


def measured_needs(
    profiles: Mapping[str, Profile], spec: ModelSpec, devices: Iterable[Device], kv: int | None
) -> dict[str, int]:
    """Bytes that a start needs free, by device id, as earlier loads have shown, with `kv` of KV cache from the start.

    Devices on which no load has shown it are left out.
    """
    if not profiles or kv is None:
        return {}
    settings = settings_hash(spec)
    known = {device.id: profiles.get(profile_id(spec.name, settings, device_word(device))) for device in devices}
    return {name: found.fixed + kv for name, found in known.items() if found is not None and found.fixed is not None}


def corrected(needs: Needs, profile: Profile | None) -> Needs:
    """An estimate with what was measured in its place."""
    if profile is None:
        return needs
    found = needs
    if profile.fixed is not None and profile.overhead is not None:
        times = "a load" if profile.loads == 1 else f"{profile.loads} loads"
        notes = (f"weights and overhead were measured at {times} on {profile.device}",)
        found = dataclasses.replace(
            needs, weights=profile.weights, overhead=profile.overhead, measured=True, notes=notes
        )
    return dataclasses.replace(found, cost=_corrected_cost(needs.cost, profile.kv_token))


def _corrected_cost(cost: KvCost | None, token: float | None) -> KvCost | None:
    """The shape that was read with the bytes that were measured, which count paddings of the engine's own."""
    if token is None or token <= 0:
        return cost
    if cost is None or not cost.per_token:
        return KvCost((KvLayers(1, round(token)),), "layers with a window of their own are not known")
    scale = token / cost.per_token
    groups = tuple(dataclasses.replace(group, token_bytes=round(group.token_bytes * scale)) for group in cost.groups)
    return dataclasses.replace(cost, groups=groups)


def merged(before: Profile | None, now: Profile) -> Profile:
    """A profile after one more load. What this load did not show stays as it was."""
    if before is None:
        return now
    return dataclasses.replace(
        now,
        weights=before.weights if now.weights is None else now.weights,
        loads=before.loads + 1,
        overheads=(*before.overheads, *now.overheads)[-KEPT:],
        kv_token=before.kv_token if now.kv_token is None else now.kv_token,
        phases=now.phases or before.phases,
        load_seconds=before.load_seconds if now.load_seconds is None else now.load_seconds,
        sleep_seconds=before.sleep_seconds if now.sleep_seconds is None else now.sleep_seconds,
        wake_seconds=before.wake_seconds if now.wake_seconds is None else now.wake_seconds,
        asleep=before.asleep if now.asleep is None else now.asleep,
        host_copy=before.host_copy if now.host_copy is None else now.host_copy,
    )
