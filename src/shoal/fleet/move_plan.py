"""What a move that somebody asks for comes to, or why it cannot be. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.config import parse_spec
from shoal.errors import ConflictError, NotFoundError, ShoalError
from shoal.fleet.moves import Leg, Move
from shoal.fleet.snapshot import Fleet
from shoal.fleet.spec import LIVE, ModelSpec
from shoal.fleet.state import Instance, Model
from shoal.fleet.state import InstanceState as S

_ANSWERS = frozenset({"source", "engine", "environment", "dtype", "args", "env", "tensor_parallel"})
"""Settings with which the same prompt may rightly be answered otherwise."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What somebody asks for. `to`: device ids, as many for each instance as it is split over; empty: where each is.
    `changes`: settings by name. `instance`: this one alone. `stop_first`: end the old one before the new one loads.
    `drain`: seconds that requests of the old one may take to end."""

    model: str
    to: tuple[str, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)
    instance: str | None = None
    stop_first: bool = False
    drain: float | None = None


def plan(fleet: Fleet, moves: Iterable[Move], wanted: Wanted, id: str, now: float) -> Move:
    """The move that was asked for, still waiting. Raises ShoalError if it cannot be, before anything is changed."""
    model = _model(fleet, moves, wanted.model)
    changes = dict(wanted.changes)
    fixed = model.spec.devices != "auto"
    if model.origin == "file" and (changes or (wanted.to and fixed)):
        what = ", ".join(sorted(changes) or ["devices"])
        raise ConflictError(
            f"{wanted.model} is declared in the configuration file with its {what}; change it there, then "
            "`shoal reload`, and have it with `shoal change`",
            code="declared_in_file",
        )
    sources = _sources(fleet, wanted)
    anywhere = changed(model.spec, {**changes, **({"devices": "auto"} if wanted.to else {})})
    places = _places(fleet, anywhere, wanted.to, len(sources))
    if wanted.to and fixed:
        _refuse_several_choices(fleet, model, places, sources)
        changes["devices"] = list(places[0])
    spec = changed(model.spec, changes)
    legs = []
    for n, source in enumerate(sources):
        devices = places[n % len(places)] if places else _where(source, spec)
        other = differing(source.spec or model.spec, spec)
        if other or set(devices) != set(source.devices):
            legs.append(Leg(source.id, source.devices, devices, compare=not other & _ANSWERS))
    if not legs:
        where = f" on {', '.join(wanted.to)}" if wanted.to else " with these settings"
        raise ConflictError(
            f"{wanted.model} runs{where} already, or takes what changes without a new start (`shoal models set`)",
            code="nothing_to_move",
        )
    _refuse_one_port(sources, spec, stop_first=wanted.stop_first)
    return Move(id, wanted.model, now, tuple(legs), changes, wanted.stop_first, wanted.drain)


def changed(spec: ModelSpec, changes: Mapping[str, Any]) -> ModelSpec:
    """Settings with some of them changed. Raises ShoalError that names each fault."""
    if changes.get("name", spec.name) != spec.name:
        raise ShoalError("a model cannot be renamed; add it under its new name", code="immutable", param="name")
    return parse_spec({**spec.model_dump(), **changes}) if changes else spec


def differing(one: ModelSpec, other: ModelSpec) -> frozenset[str]:
    """The settings that need a new start and in which two differ; where the other may run anywhere, devices do not."""
    names = ModelSpec.model_fields.keys() - set(LIVE) - ({"devices"} if other.devices == "auto" else set())
    return frozenset(name for name in names if getattr(one, name) != getattr(other, name))


def pinned(spec: ModelSpec, leg: Leg) -> ModelSpec:
    """The settings that a new instance is placed with."""
    return spec.model_copy(update={"devices": leg.devices}) if leg.devices else spec


def _model(fleet: Fleet, moves: Iterable[Move], name: str) -> Model:
    model = fleet.models.get(name)
    if model is None:
        raise NotFoundError(
            f"there is no model {name}; `shoal models ls` lists them", code="model_not_found", param="model"
        )
    if fleet.closing:
        raise ConflictError("Shoal stops; nothing is moved any more", code="stopping")
    if name in fleet.leaving:
        raise ConflictError(f"{name} is being removed", code="model_in_use")
    for move in moves:
        if move.model == name and not move.ended:
            raise ConflictError(
                f"{name} is being moved already (move {move.id}); wait until that has ended, or cancel it with "
                f"`shoal moves cancel {move.id}`",
                code="model_moving",
            )
    return model


def _sources(fleet: Fleet, wanted: Wanted) -> list[Instance]:
    """The instances to be replaced, all of which serve."""
    leaving = (S.DRAINING, S.STOPPING)
    there = [i for i in fleet.of_model(wanted.model) if not i.state.ended]
    if wanted.instance is not None:
        there = [i for i in there if i.id == wanted.instance]
        if not there:
            raise NotFoundError(
                f"{wanted.model} has no instance {wanted.instance} that runs; `shoal ps` lists them",
                code="instance_not_found",
                param="instance",
            )
    else:
        there = [i for i in there if i.state not in leaving or i.sleeps or fleet.comes_back(i)]
    if not there:
        raise ConflictError(
            f"{wanted.model} is not loaded: there is nothing to move; load it with `shoal load {wanted.model}`",
            code="not_loaded",
        )
    for one in there:
        if one.state is not S.READY:
            hint = f"wake it with `shoal wake {wanted.model}`" if one.sleeps else "wait until it serves (`shoal ps`)"
            raise ConflictError(f"{one.id} is {one.state.value}; {hint}", code="wrong_state")
    return there


def _places(fleet: Fleet, spec: ModelSpec, to: Sequence[str], instances: int) -> list[tuple[str, ...]]:
    """The devices that are named, as many together as an instance is split over."""
    if not to:
        return []
    known = {device.id: device for device in fleet.devices}
    for name in to:
        if name not in known:
            there = ", ".join(known) or "none"
            raise ShoalError(f"there is no device {name}; this machine has {there}", code="no_such_device", param="to")
        kinds = fleet.engines[spec.engine].device_kinds
        if known[name].kind not in kinds:
            raise ShoalError(
                f"{name} is a {known[name].kind} device; the {spec.engine} engine needs {' or '.join(kinds)}",
                code="wrong_device",
                param="to",
            )
    if len(set(to)) < len(to):
        raise ShoalError("a device stands twice", code="invalid_request", param="to")
    n = spec.tensor_parallel
    if len(to) % n or len(to) // n > instances:
        raise ShoalError(
            f"{len(to)} device(s) are named; {spec.name} has {instances} instance(s) to move, each on {n}: name {n} "
            f"for all, or up to {n * instances}",
            code="invalid_request",
            param="to",
        )
    return [tuple(sorted(to[k : k + n])) for k in range(0, len(to), n)]


def _where(source: Instance, spec: ModelSpec) -> tuple[str, ...]:
    """Where an instance with these settings goes that nobody names devices for: in the old one's place, if it can."""
    if spec.devices != "auto":
        return spec.devices
    return source.devices if len(source.devices) == spec.tensor_parallel else ()


def _refuse_several_choices(
    fleet: Fleet, model: Model, places: Sequence[tuple[str, ...]], sources: Sequence[Instance]
) -> None:
    """Settings that name devices name them for every instance."""
    there = [i for i in fleet.of_model(model.spec.name) if not i.state.ended]
    if len(places) > 1 or len(sources) < len(there):
        raise ConflictError(
            f"the settings of {model.spec.name} name its devices, and can name one choice only; move all of its "
            "instances to the same ones, or have its `devices` be `auto` first",
            code="devices_differ",
        )


def _refuse_one_port(sources: Iterable[Instance], spec: ModelSpec, *, stop_first: bool) -> None:
    same = spec.port is not None and any(i.spec is not None and i.spec.port == spec.port for i in sources)
    if same and not stop_first:
        raise ConflictError(
            f"{spec.name} has the fixed port {spec.port}, on which two cannot listen; say `--stop-first`, and requests "
            "are held meanwhile, or change the port with it",
            code="fixed_port",
        )
