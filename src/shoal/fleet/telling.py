"""What others are told of the fleet: relays where requests go; whoever watches, what has changed."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from shoal.fleet.effects import Effects
from shoal.fleet.life import Life
from shoal.fleet.measures import Measures
from shoal.fleet.memory import MemoryView
from shoal.fleet.snapshot import Fleet
from shoal.messages import RoutingTable


class Telling:
    """Tells of a fleet through its effects. The routing table has a number of its own, by which drains know that every
    relay has it."""

    def __init__(self, fleet: Fleet, effects: Effects, life: Life, measures: Measures) -> None:
        self._fleet, self._effects, self._life, self._measures = fleet, effects, life, measures
        self._epoch = secrets.token_hex(8)
        self._version = 0
        self._table = RoutingTable("", 0)

    def all(self) -> None:
        """Everything that has changed since the last call."""
        dirty, self._life.dirty = self._life.dirty, set()
        self._measures.look(dirty, self._effects.now())
        for name in sorted(dirty):
            if name in self._fleet.models:
                self._effects.publish("model", self._fleet.model_view(name))
        self.relays()

    def relays(self) -> None:
        """Where requests go, if that has changed."""
        if self._life.routes_changed:
            self._life.routes_changed = False
            table = RoutingTable(
                self._epoch,
                self._version,
                tuple(self._fleet.route(name) for name in sorted(self._fleet.models)),
                self._fleet.access.keys,
                self._fleet.access.virtual,
                self._fleet.access.keys_required,
            )
            if table != self._table or not self._version:
                self._version += 1
                self._table = msgspec.structs.replace(table, version=self._version)
                self._life.drains.table_id = (self._epoch, self._version)
                self._effects.route(self._table)

    @contextmanager
    def of_devices(self) -> Iterator[None]:
        """Tell of the devices if the block changes them."""
        before = self._fleet.device_views()
        yield
        after = self._fleet.device_views()
        if before != after:
            self._effects.publish("devices", {"devices": after})

    @contextmanager
    def of_memory(self) -> Iterator[None]:
        """Tell who holds what, of the instances and devices for which the block changes that."""
        before, devices_before = self._memory_views(), self._fleet.device_views()
        yield
        after, devices = self._memory_views(), self._fleet.device_views()
        changed = {id: view for id, view in after.items() if before.get(id) != view}
        if changed or devices_before != devices:
            self._effects.publish("memory", {"instances": changed, "devices": devices})

    def _memory_views(self) -> dict[str, MemoryView]:
        return {i.id: self._fleet.memory_view(i) for i in self._fleet.instances.values() if not i.state.ended}
