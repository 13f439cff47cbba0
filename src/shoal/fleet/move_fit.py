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
