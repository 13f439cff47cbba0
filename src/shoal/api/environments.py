"""Engine environments: the interpreters with an engine that models may name."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from pydantic import BaseModel

from shoal.api.context import Context
from shoal.engines.environments import Environments

router = APIRouter(prefix="/api/v1", tags=["system"])


class EnvironmentView(BaseModel):
    """An environment: `variant` is the kind of device that it was built for, `managed` whether Shoal installed it."""

    name: str
    kind: str
    variant: str
    version: str
    managed: bool


class EnvironmentList(BaseModel):
    """The environments that are installed, by name."""

    environments: list[EnvironmentView]


@router.get("/environments")
async def list_environments(controller: Context) -> EnvironmentList:
    """The engine environments that are installed, as `shoal engines ls` has them."""
    found = await asyncio.to_thread(Environments(controller.settings.engines_dir).ls)
    return EnvironmentList(
        environments=[
            EnvironmentView(name=one.name, kind=one.kind, variant=one.variant, version=one.version, managed=one.managed)
            for one in found
        ]
    )
