"""Fit: what models need, where they fit, and the chance that their KV caches collide, before anything is loaded."""

from __future__ import annotations

import asyncio
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from shoal.api.context import Context
from shoal.config import parse_spec
from shoal.engines.base import Engine
from shoal.errors import NotFoundError, ShoalError
from shoal.fleet.fit import Collision, DeviceAnswer, ModelAnswer, Verdict, Wanted, fit
from shoal.fleet.needs import Needs
from shoal.fleet.occupancy import asleep_on, demand_of, loaded_on, spaces, to_wake
from shoal.fleet.peaks import Load
from shoal.fleet.profiles import Profile, corrected, find_profile
from shoal.fleet.snapshot import Fleet
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Device

router = APIRouter(prefix="/api/v1", tags=["models"])
MOST_MODELS = 64
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


class LoadGiven(BaseModel):
    """What a model is asked for at once: requests that run on average, their tokens (prompt and answer) on average, and
    the spread of that (standard deviation over mean)."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    concurrency: float = Field(ge=0, le=10**6)
    tokens: float = Field(gt=0, le=10**9)
    spread: float = Field(1.0, ge=0, le=10)


class FitRequest(BaseModel):
    """Models, one after the other: a name, a folder or hub id to be tried, or settings as for `POST /models`.

    `devices`: only these. `load`: what models are asked for, by name; `*` for all that are not named.
    """

    model_config = ConfigDict(extra="forbid")
    models: Annotated[list[str | dict[str, Any]], Field(min_length=1, max_length=MOST_MODELS)]
    devices: list[str] | None = Field(None, min_length=1)
    load: dict[str, LoadGiven] = {}


class NeedsView(BaseModel):
    """What a model needs on one device, in bytes; null is unknown. `longest` and `concurrency` bound its requests."""

    weights: int | None
    overhead: int
    kv: int
    total: int | None
    elastic: bool
    measured: bool
    kv_per_token: int | None
    kv_of_longest: int | None
    longest: int | None
    concurrency: int | None
    notes: tuple[str, ...]


class ModelFit(BaseModel):
    """A model's answer. `on`: the devices that it is on or would be put on; `load`: declared or observed."""

    name: str
    verdict: Verdict
    message: str
    on: tuple[str, ...]
    needs: NeedsView | None
    load: Load | None
    devices: tuple[DeviceAnswer, ...]


class FitAnswer(BaseModel):
    """An answer for each model in order, and for each device what KV caches may come to."""

    models: list[ModelFit]
    collisions: list[Collision]


@router.post("/fit")
async def ask_fit(controller: Context, request: FitRequest) -> FitAnswer:
    """Whether models fit, where, what would have to give way, and how likely their KV caches want too much together.

    Nothing is loaded or fetched. 404 for models and devices that are not known.
    """
    fleet = controller.manager.fleet
    devices = _devices(fleet, request.devices)
    specs = [_spec(fleet, given, controller.settings.engine) for given in request.models]
    if len({spec.name for spec in specs}) < len(specs):
        raise ShoalError("a model is named twice; give each once", param="models")
    others = [model.spec for model in fleet.models.values() if loaded_on(fleet, model.spec.name)]
    profiles = dict(fleet.profiles)
    needs = {
        spec.name: await asyncio.to_thread(_estimate, controller.engines[spec.engine], profiles, spec, devices, strict)
        for spec, strict in (*((spec, True) for spec in specs), *((spec, False) for spec in others))
    }
    declared = _loads({spec.name for spec in (*specs, *others)}, request.load)
    for spec in specs:
        if shares := asleep_on(fleet, spec.name):
            there = needs[spec.name]
            needs[spec.name] = {id: to_wake(there[id], share) for id, share in shares.items() if id in there}
    first = {name: next(iter(found.values()), None) for name, found in needs.items()}
    seen = {name: declared.get(name) or _observed(fleet, name, found) for name, found in first.items()}
    loads = {name: load for name, load in seen.items() if load is not None}
    wanted = [_wanted(fleet, controller.engines[spec.engine], spec, needs[spec.name], loads) for spec in specs]
    known = {name: found for name, found in first.items() if found is not None}
    here = {device.id for device in devices}
    room = [space for space in spaces(fleet, known, loads) if space.device in here]
    answers, collisions = await asyncio.to_thread(fit, wanted, room)
    return FitAnswer(
        models=[_view(answer, needs[answer.model], loads.get(answer.model)) for answer in answers],
        collisions=collisions,
    )


def _spec(fleet: Fleet, given: str | Mapping[str, Any], engine: str) -> ModelSpec:
    """The settings of a model that is declared, or of one to be tried."""
    if not isinstance(given, str):
        named = {"name": _name_of(str(given["source"]))} if isinstance(given.get("source"), str) else {}
        return parse_spec({"engine": engine, **named, **given})
    model = fleet.models.get(unicodedata.normalize("NFC", given))
    if model is not None:
        return model.spec
    if given.startswith(("/", ".", "~")) or _HUB_ID.fullmatch(given):
        return parse_spec({"engine": engine, "name": _name_of(given), "source": given})
    raise NotFoundError(
        f"there is no model {given}; `shoal models ls` lists them. To try one that is not declared, give its folder "
        "or its hub id (org/name)",
        code="model_not_found",
        param="models",
    )


def _name_of(source: str) -> str:
    """A hub id is its own name; a folder is called as its last part."""
    return source if _HUB_ID.fullmatch(source) else Path(source).expanduser().absolute().name or "model"


def _devices(fleet: Fleet, names: Sequence[str] | None) -> tuple[Device, ...]:
    known = {device.id: device for device in fleet.devices}
    for name in names or ():
        if name not in known:
            raise NotFoundError(
                f"there is no device {name}; this machine has {', '.join(known) or 'none'}",
                code="no_such_device",
                param="devices",
            )
    return tuple(device for device in fleet.devices if names is None or device.id in names)


def _loads(names: set[str], given: Mapping[str, LoadGiven]) -> dict[str, Load]:
    for name in given:
        if name != "*" and name not in names:
            raise NotFoundError(f"load: {name} is none of the models asked about or loaded", param="load")
    found = {}
    for name in names:
        load = given.get(name, given.get("*"))
        if load is not None:
            found[name] = Load(load.concurrency, load.tokens, load.spread)
    return found


def _observed(fleet: Fleet, model: str, needs: Needs | None) -> Load | None:
    return None if needs is None or needs.cost is None else fleet.observed.load(model, needs.cost.per_token)


def _estimate(
    engine: Engine, profiles: Mapping[str, Profile], spec: ModelSpec, devices: Sequence[Device], strict: bool
) -> dict[str, Needs]:
    """What a model needs on each device. Not `strict`, one that is there already: nothing if its files are gone."""
    try:
        if strict:
            engine.check(spec)
        return {
            device.id: corrected(engine.estimate(spec, [device]), find_profile(profiles, spec, device))
            for device in devices
        }
    except ShoalError:
        if strict:
            raise
        return {}


def _wanted(
    fleet: Fleet, engine: Engine, spec: ModelSpec, needs: Mapping[str, Needs], loads: Mapping[str, Load]
) -> Wanted:
    first = next(iter(needs.values()), None)
    return Wanted(
        model=spec.name,
        needs=needs,
        kinds=engine.device_kinds,
        width=spec.tensor_parallel,
        on=None if spec.devices == "auto" else spec.devices,
        loaded=loaded_on(fleet, spec.name),
        demand=None if first is None else demand_of(spec, first, loads.get(spec.name)),
    )


def _view(answer: ModelAnswer, needs: Mapping[str, Needs], load: Load | None) -> ModelFit:
    """With the needs on the first device that it would be on, else on the first there is."""
    found = needs.get(answer.on[0]) if answer.on else next(iter(needs.values()), None)
    return ModelFit(
        name=answer.model,
        verdict=answer.verdict,
        message=answer.message,
        on=answer.on,
        needs=None if found is None else _needs_view(found),
        load=load,
        devices=answer.devices,
    )


def _needs_view(needs: Needs) -> NeedsView:
    cost, longest = needs.cost, needs.longest
    return NeedsView(
        weights=needs.weights,
        overhead=needs.overhead,
        kv=needs.kv,
        total=needs.total,
        elastic=needs.elastic,
        measured=needs.measured,
        kv_per_token=None if cost is None else cost.per_token,
        kv_of_longest=None if cost is None or longest is None else cost.of_request(longest),
        longest=longest,
        concurrency=needs.concurrency,
        notes=needs.notes,
    )
