"""Virtual models: names that stand for other models. Put, look at, remove."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Any

from fastapi import APIRouter, Body, Response
from pydantic import AfterValidator, BaseModel

from shoal.api.context import Context
from shoal.config import parse_virtual
from shoal.errors import ShoalError
from shoal.fleet.virtual import Virtual, VirtualSpec

router = APIRouter(prefix="/api/v1", tags=["models"])
_BODY = {
    "requestBody": {"content": {"application/json": {"schema": VirtualSpec.model_json_schema()}}, "required": True}
}
Name = Annotated[str, AfterValidator(lambda name: unicodedata.normalize("NFC", name))]


class VirtualView(BaseModel):
    """A virtual model, and whether it comes from the `file` or the `api`. `created_at` in Unix seconds."""

    name: str
    origin: str
    created_at: float
    spec: VirtualSpec


class VirtualModels(BaseModel):
    """Every virtual model."""

    virtual_models: list[VirtualView]


@router.get("/virtual-models")
async def list_virtual_models(controller: Context) -> VirtualModels:
    """Every virtual model, by name."""
    records = controller.access.virtual.records
    return VirtualModels(virtual_models=[_view(records[name]) for name in sorted(records)])


@router.get("/virtual-models/{name:path}")
async def get_virtual_model(controller: Context, name: Name) -> VirtualView:
    """One virtual model."""
    return _view(controller.access.virtual.find(name))


@router.put("/virtual-models/{name:path}", openapi_extra=_BODY)
async def put_virtual_model(
    controller: Context, name: Name, response: Response, data: dict[str, Any] = Body()
) -> VirtualView:
    """Add a virtual model (201), or replace the one of this name (200). 409 if a model has the name, or the file."""
    spec = parse_virtual({"name": name, **data})
    if spec.name != name:
        raise ShoalError(f"the body names {spec.name} and the path {name}; leave `name` out of the body", param="name")
    record, new = await controller.do(lambda: controller.access.put_virtual(spec))
    response.status_code = 201 if new else 200
    return _view(record)


@router.delete("/virtual-models/{name:path}", status_code=204)
async def remove_virtual_model(controller: Context, name: Name) -> None:
    """Forget a virtual model."""
    await controller.do(lambda: controller.access.remove_virtual(name))


def _view(record: Virtual) -> VirtualView:
    return VirtualView(name=record.spec.name, origin=record.origin, created_at=record.created_at, spec=record.spec)
