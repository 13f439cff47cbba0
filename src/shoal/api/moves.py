"""Moves: have another instance take one's place, elsewhere or with other settings, and see how far that is."""

from __future__ import annotations

import asyncio
import unicodedata
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from shoal.api.context import Context
from shoal.fleet.move_fit import asked_by
from shoal.fleet.move_plan import Wanted
from shoal.fleet.moves import Leg, Move, MoveState

router = APIRouter(prefix="/api/v1", tags=["moves"])


class MoveView(BaseModel):
    """A move. Its `legs` are the instances that are replaced, one after the other. Times in Unix seconds."""

    id: str
    model: str
    state: MoveState
    message: str
    changes: dict[str, Any]
    stop_first: bool
    drain: float | None
    cancelling: bool
    created_at: float
    ended_at: float | None
    legs: tuple[Leg, ...]


class MoveList(BaseModel):
    """Moves, the oldest first."""

    moves: list[MoveView]


class MoveRequest(BaseModel):
    """What is to be had otherwise: devices, settings, or both. Neither: instances that run with settings other than
    the model's present ones are replaced."""

    model_config = ConfigDict(extra="forbid")
    model: Annotated[str, AfterValidator(lambda name: unicodedata.normalize("NFC", name))]
    to: tuple[str, ...] = Field((), max_length=4096, description="Device ids; as many for each instance as it needs.")
    set: dict[str, Any] = Field(default_factory=dict, description="Settings by name, as for `PATCH` of a model.")
    instance: str | None = Field(None, description="This instance alone; default: all of the model.")
    stop_first: bool = Field(False, description="End the old one first; requests are held until the new one serves.")
    drain: float | None = Field(
        None,
        ge=0,
        le=86400,
        description="Seconds that requests of the old one may take to end. Default: an hour; `drain_timeout` with "
        "`stop_first`.",
    )


@router.get("/moves")
async def list_moves(controller: Context) -> MoveList:
    """Moves that wait or are under way, and the last hundred that have ended."""
    found = sorted(controller.manager.moves.records.values(), key=lambda move: (move.created_at, move.id))
    return MoveList(moves=[_view(move) for move in found])


@router.post("/moves", status_code=202)
async def begin_move(controller: Context, request: MoveRequest) -> MoveView:
    """Begin a move. It waits for those before it that touch one of its devices; 409 while its model is moved, and if
    it could never fit, with the numbers."""
    wanted = Wanted(request.model, request.to, request.set, request.instance, request.stop_first, request.drain)
    moves, fleet = controller.manager.moves, controller.manager.fleet
    draft, spec = await controller.do(lambda: moves.draft(wanted))
    engine, profiles = controller.engines[spec.engine], dict(fleet.profiles)
    asked = await asyncio.to_thread(asked_by, draft, spec, engine, fleet.devices, profiles)
    move = await controller.do(lambda: moves.begin(wanted, asked))
    return _view(controller.manager.moves.find(move.id))


@router.get("/moves/{id}")
async def get_move(controller: Context, id: str) -> MoveView:
    """One move, with the step that each of its instances is at."""
    return _view(controller.manager.moves.find(id))


@router.delete("/moves/{id}", status_code=202)
async def cancel_move(controller: Context, id: str) -> MoveView:
    """Undo a move: the new instance ends, the old one serves on. 409 once the new one serves, or if it has ended."""
    await controller.do(lambda: controller.manager.moves.cancel(id))
    return _view(controller.manager.moves.find(id))


def _view(move: Move) -> MoveView:
    return MoveView(
        id=move.id,
        model=move.model,
        state=move.state,
        message=move.message,
        changes=dict(move.changes),
        stop_first=move.stop_first,
        drain=move.drain,
        cancelling=move.cancelling,
        created_at=move.created_at,
        ended_at=move.ended_at,
        legs=move.legs,
    )
