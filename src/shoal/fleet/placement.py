"""Where an instance goes, and whose turn it is. Pure functions from a snapshot to an answer with its reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from shoal.errors import ShoalError
from shoal.fleet.lifecycle import WITH_PROCESS
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Device, Instance, InstanceState
from shoal.units import format_bytes

_BUSY = {InstanceState.STARTING: "start", InstanceState.WAKING: "wake", InstanceState.STOPPING: "stop"}


@dataclass(frozen=True, slots=True)
class Waiting:
    """What an instance that is queued waits for."""

    instance: str
    reason: str


def place(
    spec: ModelSpec,
    needs: int | Mapping[str, int | None] | None,
    devices: Sequence[Device],
    kinds: Sequence[str],
    promised: Mapping[str, int],
    spare: Mapping[str, int] | None = None,
) -> tuple[Device, ...]:
    """The devices for one instance of `spec`: those that it names, or the ones with the most room.

    `needs` is bytes per device, or by device id (None: unknown, always taken to fit), `kinds` the device kinds that the
    engine can use, `promised` bytes by device that instances still starting have not taken yet, `spare` those that are
    in use and come back when somebody needs them. Raises ShoalError with the numbers if it does not fit.
    """
    room = {device.id: device.memory_free + (spare or {}).get(device.id, 0) - promised.get(device.id, 0)
            for device in devices}  # fmt: skip
    found = usable(spec, devices, kinds)
    if spec.devices == "auto":
        found = sorted(found, key=lambda device: (-room[device.id], device.id))[: spec.tensor_parallel]
    for device in found:
        _refuse_if_full(spec, _on(needs, device), device, room[device.id], promised)
    return tuple(found) if spec.devices != "auto" else tuple(sorted(found, key=lambda device: device.id))


def usable(spec: ModelSpec, devices: Sequence[Device], kinds: Sequence[str]) -> list[Device]:
    """The devices that an instance of `spec` may be on, any `tensor_parallel` of them: those that it names, in that
    order, or all of the first of `kinds` that there is any of. Raises ShoalError if they are too few."""
    by_id = {device.id: device for device in devices}
    if spec.devices != "auto":
        chosen = []
        for name in spec.devices:
            device = by_id.get(name)
            if device is None:
                known = ", ".join(by_id) or "none"
                raise ShoalError(
                    f"there is no device {name}; this machine has {known}", code="no_such_device", param="devices"
                )
            if device.kind not in kinds:
                raise ShoalError(
                    f"{name} is a {device.kind} device; the {spec.engine} engine needs {' or '.join(kinds)}",
                    code="wrong_device",
                    param="devices",
                )
            chosen.append(device)
        return chosen

    # The first kind with any device is the engine's favourite: a GPU engine does not fall back to the host's memory
    # because its GPUs are full.
    found: list[Device] = []
    for kind in kinds:
        found = [device for device in devices if device.kind == kind and device.error is None]
        if found:
            break
    if len(found) < spec.tensor_parallel:
        raise ShoalError(
            f"{spec.name} needs {spec.tensor_parallel} {' or '.join(kinds)} device(s); "
            f"this machine has {len(found)} ready",
            code="no_device",
            param="tensor_parallel" if found else "engine",
        )
    return found


def _on(needs: int | Mapping[str, int | None] | None, device: Device) -> int | None:
    return needs.get(device.id) if isinstance(needs, Mapping) else needs


def _refuse_if_full(spec: ModelSpec, needs: int | None, device: Device, room: int, promised: Mapping[str, int]) -> None:
    if needs is None or needs <= room:
        return
    waiting = promised.get(device.id, 0)
    beside = f" beside {format_bytes(waiting)} promised to other models" if waiting else ""
    raise ShoalError(
        f"{spec.name} needs {format_bytes(needs)} on {device.id}, which has {format_bytes(max(0, room))} free "
        f"of {format_bytes(device.memory_total)}{beside}; unload another model, or give it less KV cache",
        status=409,
        code="too_little_memory",
    )


def next_starts(instances: Iterable[Instance], now: float) -> tuple[list[str], list[Waiting]]:
    """Which queued instances may start now, and what the others wait for.

    On one device one start at a time, in the order in which they were asked for, because engines measure free memory
    while they start; on different devices side by side. A device on which an instance is still ending, or wakes, counts
    as taken. So does a fixed port as long as another instance with the same one has a process: that would answer in the
    new one's place. Who waits for a port alone holds up nobody on its devices.
    """
    ordered = sorted(instances, key=lambda instance: (instance.created_at, instance.id))
    taken: dict[str, str] = {}
    for instance in ordered:
        verb = _BUSY.get(instance.state)
        if verb is not None:
            for device in instance.devices:
                taken.setdefault(device, f"waits for {instance.model} to {verb} on {device}")
    ports = {port: i for i in ordered if (port := _port(i)) is not None and i.state in WITH_PROCESS}
    starts: list[str] = []
    waits: list[Waiting] = []
    for instance in ordered:
        if instance.state is not InstanceState.QUEUED:
            continue
        if instance.restart_at is not None and instance.restart_at > now:
            waits.append(Waiting(instance.id, instance.reason))
            continue
        port = _port(instance)
        if port is not None and (there := ports.setdefault(port, instance)) is not instance:
            waits.append(Waiting(instance.id, f"waits for {there.id} to leave the port {port}"))
            continue
        blocked = next((taken[device] for device in instance.devices if device in taken), None)
        if blocked is None:
            starts.append(instance.id)
            reason = f"waits for {instance.model} to start"
        else:
            waits.append(Waiting(instance.id, blocked))
            reason = f"waits for {instance.model}, which is queued before it"
        for device in instance.devices:
            taken.setdefault(device, f"{reason} on {device}")
    return starts, waits


def _port(instance: Instance) -> int | None:
    return None if instance.spec is None else instance.spec.port
