"""What the instances that a move would make ask for, so that one which can never fit is refused before it begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shoal.engines.base import Engine
from shoal.errors import ShoalError
from shoal.fleet.move_plan import pinned
from shoal.fleet.moves import Move
from shoal.fleet.placement import usable
from shoal.fleet.profiles import Profile, measured_needs
from shoal.fleet.room import Wants
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Device

Asked = Mapping[tuple[str, ...], Wants]
"""What new instances ask for, by the devices that they are to be on (none: wherever it fits)."""


def asked_by(
    move: Move, spec: ModelSpec, engine: Engine, devices: Sequence[Device], profiles: Mapping[str, Profile]
) -> Asked:
    """What the new instances of a move ask for, as far as that is known; `spec` is what they run with.

    Reads the model's files. What is wrong with those says the move itself, once it is under way.
    """
    found = {}
    for leg in move.legs:
        if leg.devices not in found and (wants := _wants(pinned(spec, leg), engine, devices, profiles)) is not None:
            found[leg.devices] = wants
    return found


def room_after(
    move: Move, asked: Asked, room: Mapping[str, int], holds: Mapping[str, int | None]
) -> dict[str, int] | None:
    """Bytes free by device once a move is over, if each of the new ones fits into `room` beside its old one; None if
    one does not, or if that is not known.

    `holds`: bytes that instances have on each device. What an old one leaves counts only where the new one comes, and
    as far as that needs it: this is for the next move, which is to fit for certain.
    """
    left = dict(room)
    for leg in move.legs:
        wants = asked.get(leg.devices)
        if wants is None:
            return None
        devices = sorted(wants.usable, key=lambda device: (-left.get(device, -1), device))[: wants.width]
        if len(devices) < wants.width or any(left.get(device, -1) < wants.needs for device in devices):
            return None
        for device in devices:
            back = (holds.get(leg.source) or 0) if device in leg.was_on else 0
            left[device] -= max(0, wants.needs - back)
    return left


def _wants(spec: ModelSpec, engine: Engine, devices: Sequence[Device], profiles: Mapping[str, Profile]) -> Wants | None:
    try:
        engine.check(spec)
        estimate, kv = engine.needs(spec, devices), engine.estimate(spec, devices).kv
        places = tuple(device.id for device in usable(spec, devices, engine.device_kinds))
    except ShoalError:
        return None
    measured = measured_needs(profiles, spec, devices, kv)
    needs = [measured.get(place, estimate) for place in places]
    known = [size for size in needs if size is not None]
    return Wants(places, spec.tensor_parallel, max(known)) if known and len(known) == len(needs) else None
