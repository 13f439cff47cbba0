"""What instances on their way to sleep will take of the host's memory although no reading shows it yet. Pure.

A model is promised its room from the moment when it is to sleep, which may be long before its weights are copied; the
host's free memory counts those bytes as free until then.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from shoal.fleet.snapshot import Fleet
from shoal.fleet.state import Instance
from shoal.fleet.state import InstanceState as S


def copy_size(fleet: Fleet, instance: Instance) -> int:
    """Bytes of the host's memory for a whole copy of an instance's weights; 0 if that is not known, or if it runs on
    the host itself."""
    apart = [device for device in fleet.devices if device.kind != "host" and device.id in instance.devices]
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
