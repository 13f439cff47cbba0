"""What copies of weights take of the host's memory, and what instances on their way to sleep will. Pure.

A model is promised its room from the moment when it is to sleep, which may be long before its weights are copied; the
host's free memory counts those bytes as free until then.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Protocol

from shoal.fleet.snapshot import Fleet
from shoal.fleet.state import Instance
from shoal.fleet.state import InstanceState as S


class HostCopies(Protocol):
    """Copies of weights in the host's memory, of instances that are awake."""

    def held(self, instance: str) -> int:
        """Bytes that the copy of an instance's weights takes; 0 if there is none."""
        ...

    def forget(self, instance: str) -> None:
        """Drop the copy of an instance's weights."""
        ...

    def unsettled(self) -> bool:
        """Whether what was forgotten may not have come back yet, by the last reading of the host."""
        ...


class NoCopies:
    """Where engines keep no copies."""

    def held(self, instance: str) -> int:  # noqa: ARG002
        """Nothing."""
        return 0

    def forget(self, instance: str) -> None:
        """There is nothing to drop."""

    def unsettled(self) -> bool:
        """Nothing is to come back."""
        return False


def copy_size(fleet: Fleet, instance: Instance) -> int:
    """Bytes of the host's memory for a whole copy of an instance's weights, as measured, else by its files; 0 if that
    is not known, or if it runs on the host itself."""
    apart = [device for device in fleet.devices if device.kind != "host" and device.id in instance.devices]
    found = fleet.measured.get(instance.id)
    if apart and found is not None and found.host_copy is not None:
        return found.host_copy
    return (fleet.weights.get(instance.id) or 0) * len(apart)


def promised(fleet: Fleet, held: Callable[[str], int], *, read_at: float = inf, but: str = "") -> int:
    """Bytes that instances will take, or have taken since the devices were read, for sleeps that have begun.

    `held`: what the host holds already of an instance's weights. `read_at`: when the devices were last read; one that
    fell asleep later counts in full. `but`: an instance that does not count.
    """
    size = 0
    for instance in fleet.instances.values():
        if instance.id == but or instance.rest.level != 1:
            continue
        if instance.retires:
            size += max(0, copy_size(fleet, instance) - held(instance.id))
        elif instance.state is S.SLEEPING and instance.changed_at >= read_at:
            size += copy_size(fleet, instance)
    return size
