"""Engines that run and that no controller has: see them, take them back, end them."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from shoal.api.context import Context
from shoal.fleet.orphans import Orphan
from shoal.fleet.snapshot import InstanceView

router = APIRouter(prefix="/api/v1", tags=["orphans"])


class Orphans(BaseModel):
    """Every orphan of this user on this machine."""

    orphans: list[Orphan]


@router.get("/orphans")
async def list_orphans(controller: Context) -> Orphans:
    """Process groups of engines that run and that no controller has, the oldest first."""
    return Orphans(orphans=await controller.orphans.find())


@router.post("/orphans/{orphan}/adopt")
async def adopt_orphan(controller: Context, orphan: str) -> InstanceView:
    """Take one back, by its instance's id or its pid. 409 if it cannot be: what that needs is not there."""
    view: InstanceView = await controller.orphans.adopt(orphan)
    return view


@router.post("/orphans/{orphan}/end", status_code=202)
async def end_orphan(controller: Context, orphan: str, force: bool = False) -> Orphan:
    """Have one end, which frees its memory; its running requests are lost. `force` gives it no time."""
    ended: Orphan = await controller.orphans.end(orphan, force=force)
    return ended
