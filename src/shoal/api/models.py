"""Models: declare, look at, change, remove, load, unload, put to sleep, wake."""

from __future__ import annotations

import asyncio
import unicodedata
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from shoal.api.context import Context
from shoal.config import parse_spec
from shoal.errors import ConflictError, NotFoundError
from shoal.fleet.manager import Outcome
from shoal.fleet.snapshot import ModelView
from shoal.fleet.spec import ModelSpec

router = APIRouter(prefix="/api/v1", tags=["models"])
REMOVAL = 60.0
# The body is checked by `parse_spec`, whose errors name the nearest setting; the schema is for the documentation.
_BODY = {"requestBody": {"content": {"application/json": {"schema": ModelSpec.model_json_schema()}}, "required": True}}


# Names are kept in one Unicode form; some systems type another.
Name = Annotated[str, AfterValidator(lambda name: unicodedata.normalize("NFC", name))]


class Models(BaseModel):
    """Every model."""

    models: list[ModelView]


class LoadRequest(BaseModel):
    """How many instances to have; the model's own number if left out."""

    model_config = ConfigDict(extra="forbid")
    instances: int | None = Field(None, ge=1, le=64)


class UnloadRequest(BaseModel):
    """Whether running requests are ended at once."""

    model_config = ConfigDict(extra="forbid")
    force: bool = False


class SleepRequest(BaseModel):
    """How deeply to sleep, and whether running requests are ended at once."""

    model_config = ConfigDict(extra="forbid")
    level: Literal[1, 2] = Field(1, description="1 keeps the weights in host memory, 2 drops them.")
    force: bool = False


@router.get("/models")
async def list_models(controller: Context) -> Models:
    """Every model, by name."""
    fleet = controller.manager.fleet
    return Models(models=[fleet.model_view(name) for name in sorted(fleet.models)])


@router.post("/models", status_code=201, openapi_extra=_BODY)
async def add_model(controller: Context, response: Response, data: dict[str, Any] = Body()) -> ModelView:
    """Declare a model. The same one again answers 200, another one under its name 409."""
    spec = parse_spec({"engine": controller.settings.engine, **data})

    def add() -> Outcome:
        controller.access.refuse_model(spec.name)
        return controller.manager.add_model(spec)

    outcome = await controller.do(add)
    if not outcome.changed:
        response.status_code = 200
    return outcome.model


@router.post("/models/{name:path}/load", status_code=202)
async def load_model(
    controller: Context, name: Name, response: Response, request: LoadRequest | None = None
) -> ModelView:
    """Start what is missing of the wanted instances; 200 if nothing is."""
    wanted = request.instances if request is not None else None
    outcome = await controller.do(lambda: controller.manager.load(name, wanted))
    if not outcome.changed:
        response.status_code = 200
    return outcome.model


@router.post("/models/{name:path}/unload", status_code=202)
async def unload_model(
    controller: Context, name: Name, response: Response, request: UnloadRequest | None = None
) -> ModelView:
    """End every instance, after their running requests unless forced; 200 if none runs."""
    force = request is not None and request.force
    outcome = await controller.do(lambda: controller.manager.unload(name, force=force))
    if not outcome.changed:
        response.status_code = 200
    return outcome.model


@router.post("/models/{name:path}/sleep", status_code=202)
async def sleep_model(
    controller: Context, name: Name, response: Response, request: SleepRequest | None = None
) -> ModelView:
    """Put every instance to sleep, after their running requests unless forced; 200 if they sleep or will.

    409 with what to do instead where the engine cannot, or while an instance starts or wakes.
    """
    how = request or SleepRequest(level=1)
    outcome = await controller.do(lambda: controller.manager.sleep(name, how.level, force=how.force))
    if not outcome.changed:
        response.status_code = 200
    return outcome.model


@router.post("/models/{name:path}/wake", status_code=202)
async def wake_model(controller: Context, name: Name, response: Response) -> ModelView:
    """Wake every instance that sleeps; 200 if none does. Others give way to it where there is no room for it; 409 with
    the numbers if that can never be enough."""
    outcome = await controller.do(lambda: controller.manager.wake(name))
    if not outcome.changed:
        response.status_code = 200
    return outcome.model


@router.get("/models/{name:path}")
async def get_model(controller: Context, name: Name) -> ModelView:
    """One model with its instances."""
    fleet = controller.manager.fleet
    if name not in fleet.models:
        raise NotFoundError(f"there is no model {name}", code="model_not_found", param="model")
    return fleet.model_view(name)


@router.patch("/models/{name:path}")
async def change_model(controller: Context, name: Name, data: dict[str, Any] = Body()) -> ModelView:
    """Change some settings.

    Running instances take `floor`, `ceiling` and `priority` over at once: 409 with the broker's numbers if they cannot
    be. `pin`, `sleep_after`, `unload_after` and what else is no matter of the engine counts at once too. The other
    settings they keep as they are (`outdated`) until the model is loaded anew.
    """

    def make(spec: ModelSpec) -> ModelSpec:
        return parse_spec({**spec.model_dump(), **data})

    return (await controller.change_model(name, make)).model


@router.delete("/models/{name:path}", status_code=204)
async def remove_model(controller: Context, name: Name, unload: bool = False, force: bool = False) -> None:
    """Forget a model; 409 while it runs, unless it is to be unloaded first."""
    try:
        async with asyncio.timeout(REMOVAL + controller.settings.drain_timeout):
            while not await controller.do(lambda: controller.manager.remove_model(name, unload=unload, force=force)):
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise ConflictError(
            f"{name} was unloaded but its engine has not ended yet; look at `shoal ps`, then remove it again",
            code="model_in_use",
        ) from None
