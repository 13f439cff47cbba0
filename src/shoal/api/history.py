"""How devices and models were of late, in columns that a chart takes as they are."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel

from shoal.api.context import Context
from shoal.api.models import Name
from shoal.errors import NotFoundError
from shoal.fleet.history import STATES, Span
from shoal.fleet.hub import encode

router = APIRouter(prefix="/api/v1", tags=["requests"])
_MANY = 20
Values = list[float | None]


class DeviceHistory(BaseModel):
    """A device's values at each of `at`; null: not known. Memory in bytes, utilization of 1, degrees Celsius, watts."""

    memory_used: Values
    kv_backed: Values
    kv_used: Values
    kv_cached: Values
    utilization: Values
    temperature: Values
    power: Values


class ModelHistory(BaseModel):
    """A model's values at each of `at`, over all its instances. Requests that ended and tokens written, a second, and
    seconds to the first byte (null: no answer) are of the time since the moment before; memory in bytes."""

    requests: Values
    tokens: Values
    first_byte_p50: Values
    first_byte_p95: Values
    running: Values
    waiting: Values
    kv_used: Values
    kv_cached: Values
    state: list[float]
    """Which of `states` it was in."""


class History(BaseModel):
    """What was, from the start of the controller or the beginning of the span. `at` in Unix seconds, ascending, `every`
    so many; `now` is the time of the answer."""

    now: float
    every: float
    at: list[float]
    states: list[str]
    devices: dict[str, DeviceHistory]
    models: dict[str, ModelHistory]


@router.get("/history", response_model=History)
async def get_history(
    controller: Context,
    model: Annotated[list[Name] | None, Query(max_length=_MANY)] = None,
    device: Annotated[list[str] | None, Query(max_length=_MANY)] = None,
    span: Annotated[Span, Query(description="Every 5 s of ten minutes, or every minute of a day.")] = "10m",
) -> Response:
    """Memory, requests and states over the last ten minutes or the last day. `model` and `device` may be given several
    times; without either, all devices. It is kept in memory: it begins anew with the controller."""
    history, fleet = controller.history, controller.manager.fleet
    for name in model or ():
        if name not in fleet.models:
            raise NotFoundError(
                f"there is no model {name}; `shoal ps` lists them", code="model_not_found", param="model"
            )
    known = [one.id for one in fleet.devices]
    for name in device or ():
        if name not in known:
            raise NotFoundError(f"there is no device {name}; there are {', '.join(known)}", param="device")
    if not model and not device:
        device = known
    answer = {
        "now": time.time(),
        "every": history.every(span),
        "at": history.times(span),
        "states": STATES,
        "devices": {name: history.device(span, name) for name in device or ()},
        "models": {name: history.model(span, name) for name in model or ()},
    }
    # Not through the models above: they would look at every number.
    return Response(encode(answer), media_type="application/json", headers={"cache-control": "no-store"})
