"""Shoal itself: status, settings, devices, probes and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from sqlalchemy.engine import make_url

from shoal.api.context import Context
from shoal.api.metrics import CONTENT_TYPE, render
from shoal.fleet.snapshot import DeviceView

if TYPE_CHECKING:
    from shoal.api.guard import Caller

router = APIRouter()


class Devices(BaseModel):
    """The devices of this machine."""

    devices: list[DeviceView]


class Reloaded(BaseModel):
    """What reading the configuration file again changed; `restart_needed` names models and settings."""

    added: list[str]
    changed: list[str]
    removed: list[str]
    restart_needed: list[str]


@router.get("/api/v1/status", tags=["system"])
async def status(controller: Context) -> dict[str, Any]:
    """How Shoal itself is, and what could not be saved."""
    import dataclasses

    return dataclasses.asdict(controller.status())


@router.get("/api/v1/devices", tags=["system"])
async def devices(controller: Context) -> Devices:
    """The devices, what they hold and which instances are on them."""
    return Devices(devices=list(controller.manager.fleet.device_views()))


@router.get("/api/v1/settings", tags=["system"])
async def settings(controller: Context) -> dict[str, Any]:
    """The settings in force. A password in the database's URL is not shown."""
    shown = controller.settings.model_dump(mode="json", exclude={"models"})
    if shown["database_url"]:
        shown["database_url"] = make_url(shown["database_url"]).render_as_string(hide_password=True)
    return {"settings": shown, "file": str(controller.config_file) if controller.config_file else None}


@router.post("/api/v1/settings/reload", tags=["system"])
async def reload(controller: Context) -> Reloaded:
    """Read the configuration file again: its models follow at once."""
    return Reloaded(**await controller.reload())


@router.get("/health/live", tags=["probes"])
async def live(controller: Context) -> dict[str, str]:
    """200 while the controller's loop turns: the answer comes from inside it."""
    await controller.manager.do(lambda: None)
    return {"status": "live"}


@router.get("/health/ready", tags=["probes"])
async def ready(controller: Context, request: Request) -> Response:
    """200 if requests can be served, 503 if not; what is not as it should be is listed for those who may look at the
    admin side, as it names models and paths, and counted for others."""
    caller: Caller = request.scope["shoal.caller"]
    warnings = controller.status().warnings
    if warnings and not caller.may_look:
        warnings = [f"{len(warnings)} warning{'s' * (len(warnings) > 1)}, told to who may look at this Shoal"]
    state = "ready" if controller.relays.connected else "not ready"
    return JSONResponse({"status": state, "degraded": warnings}, 200 if controller.relays.connected else 503)


@router.get("/metrics", tags=["probes"], response_class=Response)
async def metrics(controller: Context) -> Response:
    """Prometheus text: Shoal's own numbers and the engines', under one set of names."""
    return Response(render(controller), media_type=CONTENT_TYPE)
