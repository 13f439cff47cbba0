"""Presets: save what runs, see what having it again would change, and have it again."""

from __future__ import annotations

import time
import unicodedata
from math import inf
from typing import Annotated

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from shoal.api.context import Context
from shoal.fleet.preset_plan import Problem, Step
from shoal.fleet.preset_runs import RunView
from shoal.fleet.presets import LastRun, PresetEntry, PresetRecord, from_yaml, to_yaml
from shoal.fleet.schedules import Schedule

router = APIRouter(prefix="/api/v1", tags=["presets"])
Name = Annotated[str, AfterValidator(lambda name: unicodedata.normalize("NFC", name))]


class PresetView(BaseModel):
    """A preset, and how it was applied last. Times in Unix seconds."""

    name: str
    description: str
    created_at: float
    changed_at: float
    models: tuple[PresetEntry, ...]
    schedules: tuple[Schedule, ...]
    last_run: LastRun | None


class ScheduleView(BaseModel):
    """Times at which a preset is applied. `words` say them in English, `next_at` in Unix seconds; None: never again."""

    preset: str
    cron: str
    zone: str
    exclusive: bool
    words: str
    next_at: float | None


class Schedules(BaseModel):
    """Every schedule, the next to come first."""

    schedules: list[ScheduleView]


class Presets(BaseModel):
    """Every preset."""

    presets: list[PresetView]


class PlanView(BaseModel):
    """What applying a preset would do. `groups` run side by side, the steps of each one after the other."""

    preset: str
    exclusive: bool
    in_place: bool
    groups: tuple[tuple[Step, ...], ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    left: tuple[str, ...]


class SaveRequest(BaseModel):
    """A name for what runs now. `fix_devices` writes the devices that models are on into their settings."""

    model_config = ConfigDict(extra="forbid")
    name: str
    description: str | None = None
    replace: bool = False
    fix_devices: bool = False


class ImportRequest(BaseModel):
    """A preset as YAML, as an export gives it; `name` instead of the one that it has."""

    model_config = ConfigDict(extra="forbid")
    yaml: str
    name: str | None = None
    replace: bool = False


class ApplyRequest(BaseModel):
    """Whether what the preset does not name is stopped."""

    model_config = ConfigDict(extra="forbid")
    exclusive: bool = Field(True, description="False keeps models that the preset does not name.")


@router.get("/presets")
async def list_presets(controller: Context) -> Presets:
    """Every preset, by name."""
    records = controller.presets.book.records
    return Presets(presets=[_view(records[name]) for name in sorted(records)])


@router.post("/presets", status_code=201)
async def save_preset(controller: Context, request: SaveRequest, response: Response) -> PresetView:
    """Save what runs and sleeps now (201), or replace the preset of this name (200) if `replace` says so."""
    record, new = await controller.do(
        lambda: controller.presets.save(
            request.name, request.description, replace=request.replace, fix_devices=request.fix_devices
        )
    )
    response.status_code = 201 if new else 200
    return _view(record)


@router.post("/presets/import", status_code=201)
async def import_preset(controller: Context, request: ImportRequest, response: Response) -> PresetView:
    """Keep a preset that is given as YAML. 400 names each fault and its place."""
    preset = from_yaml(request.yaml, name=request.name)
    record, new = await controller.do(lambda: controller.presets.put(preset, replace=request.replace))
    response.status_code = 201 if new else 200
    return _view(record)


@router.get("/presets/runs/current")
async def get_run(controller: Context) -> RunView:
    """The run under way, step by step, or the last one since the controller started."""
    return controller.presets.current()


@router.post("/presets/runs/current/cancel", status_code=202)
async def cancel_run(controller: Context) -> RunView:
    """Have the run begin no further step; a second time, have it not wait for those under way."""
    return controller.presets.cancel()


@router.get("/presets/{name}")
async def get_preset(controller: Context, name: Name) -> PresetView:
    """One preset, with all settings of its models."""
    return _view(controller.presets.book.find(name))


@router.delete("/presets/{name}", status_code=204)
async def remove_preset(controller: Context, name: Name) -> None:
    """Forget a preset. What runs goes on."""
    await controller.do(lambda: controller.presets.remove(name))


@router.get("/presets/{name}/export", response_class=PlainTextResponse)
async def export_preset(controller: Context, name: Name) -> PlainTextResponse:
    """A preset as YAML. It holds the models' `env` too: look for secrets before you pass it on."""
    text = to_yaml(controller.presets.book.find(name).preset)
    return PlainTextResponse(text, media_type="application/yaml")


@router.get("/presets/{name}/plan")
async def plan_preset(controller: Context, name: Name, exclusive: bool = True) -> PlanView:
    """What applying it now would do, and what cannot be done. Nothing is changed."""
    plan = await controller.presets.plan(name, exclusive=exclusive)
    return PlanView(
        preset=plan.preset,
        exclusive=plan.exclusive,
        in_place=plan.in_place,
        groups=plan.groups,
        problems=plan.problems,
        notes=plan.notes,
        left=plan.left,
    )


@router.get("/preset-schedules")
async def list_schedules(controller: Context) -> Schedules:
    """When presets are applied, the next to come first."""
    now = time.time()
    views = [
        ScheduleView(
            preset=record.preset.name,
            cron=one.cron,
            zone=one.zone,
            exclusive=one.exclusive,
            words=one.words,
            next_at=one.next(now),
        )
        for record in controller.presets.book.records.values()
        for one in record.preset.schedules
    ]
    return Schedules(schedules=sorted(views, key=lambda view: (view.next_at or inf, view.preset, view.cron)))


@router.post("/presets/{name}/schedules")
async def schedule_preset(controller: Context, name: Name, request: Schedule) -> PresetView:
    """Have a preset applied at these times too. 400 says what is wrong with an expression or a time zone."""
    return _view(await controller.do(lambda: controller.presets.schedule(name, request)))


@router.delete("/presets/{name}/schedules")
async def unschedule_preset(controller: Context, name: Name, cron: str | None = None) -> PresetView:
    """Have a preset not applied at these times any more; without `cron`, at none."""
    return _view(await controller.do(lambda: controller.presets.unschedule(name, cron)))


@router.post("/presets/{name}/apply", status_code=202)
async def apply_preset(controller: Context, name: Name, request: ApplyRequest | None = None) -> RunView:
    """Begin to have what the preset has, by changing the difference only. 409 while another preset is applied."""
    return await controller.presets.apply(name, exclusive=request is None or request.exclusive)


def _view(record: PresetRecord) -> PresetView:
    preset = record.preset
    return PresetView(
        name=preset.name,
        description=preset.description,
        created_at=record.created_at,
        changed_at=record.changed_at,
        models=preset.models,
        schedules=preset.schedules,
        last_run=record.last_run,
    )
