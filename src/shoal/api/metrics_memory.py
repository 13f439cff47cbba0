"""Metrics of elastic memory: what instances lease, and what devices have for it."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric

from shoal.fleet.snapshot import Fleet

_LEASE = {
    "lease": ("shoal_memory_lease_bytes", "KV cache that an instance may keep"),
    "backed": ("shoal_memory_backed_bytes", "KV cache that it holds"),
    "used": ("shoal_memory_used_bytes", "KV cache that requests use"),
    "cached": ("shoal_memory_cached_bytes", "KV cache that only holds prefixes"),
    "missing": ("shoal_memory_missing_bytes", "KV cache that live requests need beyond the lease"),
    "floor": ("shoal_memory_floor_bytes", "KV cache that it can always get back"),
    "ceiling": ("shoal_memory_ceiling_bytes", "KV cache that it may never exceed"),
    "waiting": ("shoal_memory_waiting_requests", "Requests that wait for memory"),
}
_POOL = {
    "budget": ("shoal_memory_device_budget_bytes", "What of a device may be leased now"),
    "limit": ("shoal_memory_device_limit_bytes", "What of it may ever be leased, where a limit is set"),
    "leased": ("shoal_memory_device_leased_bytes", "What of it is leased"),
    "owed": ("shoal_memory_device_owed_bytes", "What has to be given back of that"),
    "others": ("shoal_memory_device_others_bytes", "What others than KV caches use of it"),
    "held_back": ("shoal_memory_device_held_back_bytes", "What is held back for starting instances"),
}


def memory_families(fleet: Fleet) -> Iterator[Metric]:
    """The families of this moment."""
    connected = GaugeMetricFamily("shoal_memory_broker_connected", "Whether the memory broker answers")
    connected.add_metric([], float(fleet.ledger.books is not None))
    yield connected
    live = [(i, fleet.memory_view(i)) for i in fleet.instances.values() if not i.state.ended]

    elastic = GaugeMetricFamily("shoal_memory_elastic", "Whether an instance's KV cache is elastic", labels=_INSTANCE)
    priority = GaugeMetricFamily("shoal_memory_priority", "Its weight in competition", labels=_INSTANCE)
    for instance, view in live:
        if view.mode:
            elastic.add_metric([instance.model, instance.id], float(view.mode == "elastic"))
        if view.priority is not None:
            priority.add_metric([instance.model, instance.id], view.priority)
    yield elastic
    yield priority

    for field, (name, text) in _LEASE.items():
        family = GaugeMetricFamily(name, text, labels=[*_INSTANCE, "device", "rank"])
        for instance, view in live:
            for lease in view.leases:
                if (value := getattr(lease, field)) is not None:
                    family.add_metric([instance.model, instance.id, lease.device, str(lease.rank)], value)
        yield family

    pools = [(device, pool) for device in fleet.devices if (pool := fleet.ledger.pool(device)) is not None]
    for field, (name, text) in _POOL.items():
        family = GaugeMetricFamily(name, text, labels=["device", "kind"])
        for device, pool in pools:
            if (value := getattr(pool, field)) is not None:
                family.add_metric([device.id, device.kind], value)
        yield family


_INSTANCE = ["model", "instance"]
