"""What the devices hold now, as `fit.py` wants it, out of the fleet's state. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from shoal.fleet.fit import Holder, Space
from shoal.fleet.needs import Needs
from shoal.fleet.observed import Seen
from shoal.fleet.peaks import Demand, Load
from shoal.fleet.room import beside
from shoal.fleet.snapshot import Fleet
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Device, Instance
from shoal.fleet.state import InstanceState as S

_COMING = (S.QUEUED, S.STARTING)


def spaces(fleet: Fleet, estimates: Mapping[str, Needs], loads: Mapping[str, Load]) -> list[Space]:
    """Every device. `estimates`: what models that are loaded need, by name; `loads`: what models are asked for."""
    kept = beside(fleet)
    return [_space(fleet, device, kept[device.id], estimates, loads) for device in fleet.devices]


def loaded_on(fleet: Fleet, model: str) -> tuple[str, ...]:
    """The devices of a model's instances that serve or are about to."""
    found = [i.devices for i in fleet.of_model(model) if i.state is S.READY or i.state in _COMING]
    return tuple(sorted({device for devices in found for device in devices}))


def asleep_on(fleet: Fleet, model: str) -> dict[str, int]:
    """The devices on which a model sleeps, and the bytes that it takes of each when it wakes."""
    found: dict[str, int] = {}
    for instance in fleet.of_model(model):
        if instance.sleeps and instance.rest.freed:
            share = -(-instance.rest.freed // max(1, len(instance.devices)))
            found |= dict.fromkeys(instance.devices, share)
    return found


def to_wake(needs: Needs, share: int) -> Needs:
    """What a model that sleeps needs on a device in order to wake: what its sleep gave back, and KV cache to begin."""
    kv = needs.kv if needs.elastic else 0
    notes = ("it sleeps; waking takes what its sleep gave back",)
    return dataclasses.replace(needs, weights=share, overhead=0, kv=kv, measured=True, notes=notes)


def demand_of(spec: ModelSpec, needs: Needs, load: Load | None) -> Demand | None:
    """A model's demand on one device; None if it has none there that is known."""
    if load is None or needs.cost is None or not needs.elastic:
        return None
    most = needs.concurrency if spec.max_concurrency is None else spec.max_concurrency
    return Demand(spec.name, load, needs.cost, most, needs.longest, spec.ceiling)


def _space(fleet: Fleet, device: Device, kept: int, estimates: Mapping[str, Needs], loads: Mapping[str, Load]) -> Space:
    here = [i for i in fleet.instances.values() if device.id in i.devices and i.spec is not None]
    ready = [i for i in here if i.state is S.READY]
    ledger = fleet.ledger
    owed = ledger.owed_to_floors(device, {i.id for i in ready})
    # A simulated device shows what an instance needs from its start on.
    coming = [i for i in here if i.state is S.QUEUED or (i.state is S.STARTING and device.kind != "simulated")]
    promised = sum(fleet.needs.get(i.id) or 0 for i in coming)
    pool = ledger.pool(device)
    demands, unknown = [], []
    for instance in [*ready, *(i for i in here if i.state in _COMING)]:
        needs = estimates.get(instance.model)
        if instance.spec is None or needs is None or not needs.elastic:
            continue
        found = demand_of(instance.spec, needs, _share(fleet, instance, loads.get(instance.model)))
        if found is None:
            unknown.append(instance.model)
        else:
            demands.append(found)
    first = sum(_first(i, estimates) for i in coming)
    if device.kind == "simulated":  # what its instances pretend to hold has their first KV cache in it
        first += sum(_first(i, estimates) for i in ready)
    fixed = device.memory_used - ledger.backed(device) + promised - first
    return Space(
        device=device.id,
        kind=device.kind,
        size=device.memory_total,
        free=device.memory_free + ledger.spare(device) - owed - promised - kept,
        kept=kept,
        kv=device.memory_total - max(0, fixed) - (pool.headroom if pool is not None else 0),
        holders=tuple(_holder(fleet, device, instance, estimates) for instance in ready),
        demands=tuple(demands),
        unknown=tuple(unknown),
        error=device.error,
    )


def _share(fleet: Fleet, instance: Instance, load: Load | None) -> Load | None:
    """What one of a model's instances has of its load."""
    if load is None:
        return None
    living = [i for i in fleet.of_model(instance.model) if i.state is S.READY or i.state in _COMING]
    return dataclasses.replace(load, concurrency=load.concurrency / max(1, len(living)))


def _holder(fleet: Fleet, device: Device, instance: Instance, estimates: Mapping[str, Needs]) -> Holder:
    needs = estimates.get(instance.model)
    spec = instance.spec
    assert spec is not None
    sleeps = instance.can_sleep
    all_ = fleet.needs.get(instance.id) or 0
    # CUDA's context and graphs stay while it sleeps.
    stays = needs.overhead if sleeps and needs is not None else 0
    fixed = max(0, all_ - _first(instance, estimates) - stays)
    return Holder(
        instance=instance.id,
        model=instance.model,
        gives=fixed + _kv(fleet, device, instance),
        fixed=fixed,
        sleeps=sleeps,
        priority=spec.priority,
        used_at=max(instance.changed_at, _now(fleet) if fleet.outstanding(instance.id) else 0.0),
    )


def _first(instance: Instance, estimates: Mapping[str, Needs]) -> int:
    """What of an instance's needs is the beginning of an elastic KV cache."""
    needs = estimates.get(instance.model)
    return needs.kv if needs is not None and needs.elastic and instance.elastic is not False else 0


def _now(fleet: Fleet) -> float:
    """The newest time that the fleet's records know: no clock is needed to tell who works now."""
    return max((i.changed_at for i in fleet.instances.values()), default=0.0) + 1.0


def _kv(fleet: Fleet, device: Device, instance: Instance) -> int:
    """KV cache that comes back when an instance gives way: what requests use, and what its floor keeps from others."""
    book = (fleet.ledger.books or {}).get(device.key)
    members = [] if book is None else [m for m in book.members if m.engine == instance.id]
    return sum(max(m.used, m.floor) for m in members)


def seen_now(fleet: Fleet) -> dict[str, Seen]:
    """What runs now of every model whose instances lease their KV cache."""
    used: dict[str, int] = {}
    for book in (fleet.ledger.books or {}).values():
        for member in book.members:
            used[member.engine] = max(used.get(member.engine, 0), member.used)
    found: dict[str, Seen] = {}
    for instance in fleet.instances.values():
        if instance.state is not S.READY or instance.id not in used:
            continue
        before = found.get(instance.model, Seen(0, 0))
        requests = before.requests + fleet.outstanding(instance.id)
        found[instance.model] = Seen(requests, before.kv + used[instance.id])
    return found
