"""What is kept of each start: when it began, what ran and what came of it, and what it has shown the model to need.

No I/O and no clock of its own, as in `life.py`, of which it is a part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shoal.fleet.effects import Effects
from shoal.fleet.memory import LEASE_PATIENCE
from shoal.fleet.profiles import Profile, device_word, merged, profile_id, settings_hash
from shoal.fleet.records import LoadRecord
from shoal.fleet.snapshot import Fleet
from shoal.fleet.state import Device, Instance
from shoal.fleet.state import InstanceState as S

HOST_READING = 12.0
"""Seconds after which the processes' memory has been read again, once at least."""
PATIENCE = 15.0
"""Seconds that an engine has to say what a token takes; the profile is kept without, then."""


@dataclass(slots=True)
class _Due:
    """A start whose profile is still to be made. `overhead` once the devices were read; None: it cannot be told."""

    phases: Mapping[str, float]
    seconds: float
    read: bool = False
    overhead: int | None = None


class Starts:
    """The last start of each instance."""

    def __init__(self, fleet: Fleet, effects: Effects) -> None:
        self._fleet = fleet
        self._effects = effects
        self._began: dict[str, float] = {}
        self._versions: dict[str, str] = {}
        self._before: dict[str, dict[str, int]] = {}  # bytes on its devices beside elastic KV caches
        self._due: dict[str, _Due] = {}

    def began(self, instance_id: str, at: float) -> None:
        """It was started (Unix seconds), or found running."""
        self._began[instance_id] = at
        self._due.pop(instance_id, None)
        instance = self._fleet.instances.get(instance_id)
        if instance is not None and instance.state is S.QUEUED:
            self._before[instance_id] = {device.id: self._beside(device) for device in self._on(instance)}

    def runs(self, instance_id: str, version: str) -> None:
        """Its engine has this version."""
        self._versions[instance_id] = version

    def seconds(self, instance: Instance) -> float:
        """How long ago it was started."""
        return self._effects.now() - self._began.get(instance.id, instance.created_at)

    def record(self, instance: Instance, phases: Mapping[str, float], outcome: str) -> None:
        """Keep how its start ended."""
        seconds = self.seconds(instance)
        if outcome == "ready" and instance.id in self._before:
            self._due[instance.id] = _Due(dict(phases), seconds)
        self._effects.add_load(
            LoadRecord(
                model=instance.model,
                instance=instance.id,
                engine=instance.engine,
                environment=instance.environment,
                version=self._versions.get(instance.id, ""),
                devices=tuple(sorted({d.kind for d in self._fleet.devices if d.id in instance.devices})),
                started_at=self._began.get(instance.id, instance.created_at),
                seconds=seconds,
                outcome=outcome,
                phases=dict(phases),
                memory=dict(instance.memory),
            )
        )

    def measure(self, now: float) -> None:
        """The devices were read: see what instances hold that have just become ready, before others change that."""
        for instance_id, due in list(self._due.items()):
            instance = self._fleet.instances.get(instance_id)
            if instance is None or instance.state is not S.READY or instance.ready_at is None or instance.spec is None:
                self._done(instance_id)
                continue
            age = now - instance.ready_at
            if not due.read and self._can_read(instance, age):
                due.read, due.overhead = True, self._overhead(instance)
            metrics = self._fleet.metrics.get(instance_id)
            token = metrics.kv_token_bytes if metrics is not None else None
            if due.read and (token is not None or age >= PATIENCE):
                self._keep(instance, due, token, now)
                self._done(instance_id)

    def forget(self, instance_id: str) -> None:
        """Know nothing of an instance any more."""
        self._began.pop(instance_id, None)
        self._versions.pop(instance_id, None)
        self._done(instance_id)

    def _done(self, instance_id: str) -> None:
        self._due.pop(instance_id, None)
        self._before.pop(instance_id, None)

    def _can_read(self, instance: Instance, age: float) -> bool:
        if any(device.kind == "host" for device in self._on(instance)) and age < HOST_READING:
            return False
        return not instance.elastic or self._fleet.ledger.leases(instance.id) or age >= LEASE_PATIENCE

    def _overhead(self, instance: Instance) -> int | None:
        """Bytes beside weights and KV cache on its fullest device; None if they cannot be told apart.

        An elastic KV cache is in the broker's books; one of fixed size is known where the settings give it. Where
        another instance came or went on its devices since its start, what the devices show is not its own.
        """
        spec, weights = instance.spec, self._fleet.weights.get(instance.id)
        devices = self._on(instance)
        assert spec is not None
        began, before = self._began.get(instance.id, 0.0), self._before.get(instance.id, {})
        if weights is None or len(devices) != len(instance.devices):
            return None
        kv = 0
        if not self._fleet.ledger.leases(instance.id):
            if spec.kv_cache_memory is None:
                return None
            kv = spec.kv_cache_memory
        if any(device.kind == "host" for device in devices):
            held = instance.memory.get("host", 0) - self._fleet.ledger.backed_by(instance.id, devices[0])
            # A fixed KV cache is resident only as far as it was used.
            return max(0, held - weights) if held > 0 and not kv and len(devices) == 1 else None
        for other in self._fleet.instances.values():
            shared = other.id != instance.id and set(other.devices) & set(instance.devices)
            if shared and other.changed_at >= began and other.state is not S.QUEUED:
                return None
        taken = [self._beside(device) - before.get(device.id, 0) for device in devices if device.kind == "cuda"]
        return max(0, max(taken) - weights - kv) if taken and min(taken) > 0 else None

    def _keep(self, instance: Instance, due: _Due, token: float | None, now: float) -> None:
        spec = instance.spec
        assert spec is not None
        word = next((device_word(device) for device in self._on(instance)), None)
        if word is None:
            return
        found = Profile(
            model=spec.name,
            settings=settings_hash(spec),
            device=word,
            weights=self._fleet.weights.get(instance.id),
            measured_at=now,
            overheads=() if due.overhead is None else (due.overhead,),
            kv_token=token,
            load_seconds=due.seconds,
            phases=due.phases,
            version=self._versions.get(instance.id, ""),
        )
        known = self._fleet.profiles.get(profile_id(found.model, found.settings, found.device))
        profile = merged(known, found)
        self._fleet.profiles[profile.id] = profile
        self._effects.save_profile(profile)

    def _on(self, instance: Instance) -> list[Device]:
        return [device for device in self._fleet.devices if device.id in instance.devices]

    def _beside(self, device: Device) -> int:
        """Bytes in use on a device that are no elastic KV cache."""
        return device.memory_used - self._fleet.ledger.backed(device)
