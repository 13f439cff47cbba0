"""What changes, as it changes; and what has happened."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from shoal.api.context import Context
from shoal.fleet.records import Event, LoadRecord

router = APIRouter(prefix="/api/v1", tags=["events"])


class Events(BaseModel):
    """Events, the newest last."""

    events: list[Event]


class Loads(BaseModel):
    """Starts of instances, the newest first."""

    loads: list[LoadRecord]


@router.get("/events", response_class=StreamingResponse)
async def stream_events(
    controller: Context, last_event_id: Annotated[str | None, Header()] = None
) -> StreamingResponse:
    """Server-sent events: `snapshot` first, then `model`, `model_removed`, `devices`, `memory`, `message`, `move`
    and `preset_run`. Told at most four times a second: of a model, the devices or the memory that changed twice
    meanwhile, only the last. Who comes back with `Last-Event-ID` gets what they missed, or a new snapshot; so does who
    falls behind."""
    return StreamingResponse(
        controller.hub.stream(last_event_id),
        media_type="text/event-stream",
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
    )


@router.get("/events/history")
async def list_events(
    controller: Context,
    limit: int = Query(100, ge=1, le=10_000),
    before: int | None = Query(None, ge=0, le=2**63 - 1),
    model: str | None = None,
    kind: Annotated[list[str] | None, Query(max_length=50)] = None,
    since: float | None = Query(None, ge=0, allow_inf_nan=False, description="Unix seconds."),
) -> Events:
    """What has happened, the newest last; `before` is the id of an event, for the page before it. `kind` may be given
    several times."""
    return Events(events=await controller.store.events(limit, before, model, kinds=kind or (), since=since))


@router.get("/loads")
async def list_loads(controller: Context, model: str | None = None, limit: int = Query(100, ge=1, le=1000)) -> Loads:
    """How long starts took, phase by phase, and how they ended."""
    return Loads(loads=await controller.store.loads(model, limit))
