"""Requests that wait or run: look at them, end them."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from shoal.api.context import Context
from shoal.errors import NotFoundError
from shoal.messages import Phase, Priority

router = APIRouter(prefix="/api/v1", tags=["requests"])


class RequestInfo(BaseModel):
    """A request in a relay."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    """What its answer has as `x-request-id`."""
    model: str
    tenant: str
    """Whose share of the model it counts for."""
    key: str | None
    """The name of the API key that it came with."""
    priority: Priority
    phase: Phase
    age: float
    """Seconds since it came."""
    tokens: int
    """Tokens of its answer so far."""
    instance: str | None
    position: int | None
    """Its place in the queue, from 1; null once it runs."""
    path: str


class Requests(BaseModel):
    """Requests that wait or run, the oldest first. `silent`: relays that did not say in time what they have."""

    requests: list[RequestInfo]
    silent: list[str]


@router.get("/requests")
async def list_requests(controller: Context, model: str | None = None, phase: Phase | None = None) -> Requests:
    """The requests that wait or run, of one model or in one phase if asked so; at most 10,000 a relay."""
    found = await controller.relays.requests()
    chosen = [r for r in found.requests if model in (None, r.model) and phase in (None, r.phase)]
    return Requests(requests=[RequestInfo.model_validate(request) for request in chosen], silent=found.silent)


@router.delete("/requests/{id:path}", status_code=204)
async def cancel_request(controller: Context, id: str) -> None:
    """End a request, wherever it is; 404 if there is none of that id, or no longer."""
    if not await controller.relays.cancel(id):
        raise NotFoundError(
            f"there is no request {id}, or it has ended; `shoal requests` lists them", code="request_not_found"
        )
