"""API keys: make, look at, change, give another secret, revoke. No answer holds a digest, and a key only its making."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Body, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from shoal.api.context import Context
from shoal.fleet.keys import MAX_GRACE, KeyRecord, KeySettings, NewKey, State, parse_key
from shoal.messages import Priority
from shoal.store import StoreError
from shoal.store.usage import Query as UsageQuery
from shoal.store.usage import UsageSum

router = APIRouter(prefix="/api/v1", tags=["keys"])
_BODY = {
    "requestBody": {"content": {"application/json": {"schema": KeySettings.model_json_schema()}}, "required": True}
}


class Used(BaseModel):
    """What was used with a key since it was made."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class KeyView(BaseModel):
    """A key as people see it. Times are Unix seconds."""

    id: str
    prefix: str
    name: str
    state: State
    models: tuple[str, ...]
    priority: Priority
    weight: float
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent: int | None
    expires_at: float | None
    created_at: float
    rotated_at: float | None
    former_until: float | None
    """Until when the secret from before the last rotation works; None if it does not."""
    revoked_at: float | None
    last_used_at: float | None
    used: Used | None
    """None: the store cannot be read now."""


class NewKeyView(KeyView):
    """A key that was just made or given another secret."""

    key: str
    """The key itself, which is shown this once and kept nowhere."""


class Keys(BaseModel):
    """Keys, the newest last."""

    keys: list[KeyView]


class RotateRequest(BaseModel):
    """For how many seconds the secret that the key has is to work beside the new one."""

    model_config = ConfigDict(extra="forbid")
    grace: float = Field(0, ge=0, le=MAX_GRACE)


@router.get("/keys")
async def list_keys(controller: Context, revoked: bool = Query(False, alias="all")) -> Keys:
    """The keys, those that have expired among them; with `all` also those that were revoked."""
    used = await _used(controller)
    records = sorted(controller.access.keys.records.values(), key=lambda record: (record.created_at, record.id))
    return Keys(keys=[shown(record, used) for record in records if revoked or record.revoked_at is None])


@router.post("/keys", status_code=201, openapi_extra=_BODY)
async def create_key(controller: Context, response: Response, data: dict[str, Any] = Body()) -> NewKeyView:
    """Make a key. The answer holds it, and nothing else ever will. 409 if a living one has its name."""
    settings = parse_key(data)
    new = await controller.do(lambda: controller.access.create_key(settings))
    return _new(new, {}, response)


@router.post("/keys/{key:path}/rotate")
async def rotate_key(
    controller: Context, key: str, response: Response, request: RotateRequest | None = None
) -> NewKeyView:
    """Give a key, by id or name, another secret, with its id and settings as they are."""
    grace = request.grace if request is not None else 0.0
    new = await controller.do(lambda: controller.access.rotate_key(key, grace))
    return _new(new, await _used(controller), response)


@router.get("/keys/{key:path}")
async def get_key(controller: Context, key: str) -> KeyView:
    """One key, by id or name."""
    record = controller.access.keys.find(key, time.time())
    return shown(record, await _used(controller))


@router.patch("/keys/{key:path}")
async def edit_key(controller: Context, key: str, data: dict[str, Any] = Body()) -> KeyView:
    """Change some settings of a key, by id or name; relays follow at once. 409 if it was revoked."""
    record = await controller.do(lambda: controller.access.edit_key(key, data))
    return shown(record, await _used(controller))


@router.delete("/keys/{key:path}")
async def revoke_key(controller: Context, key: str) -> KeyView:
    """End a key, by id or name, for good. What it used stays known."""
    record = await controller.do(lambda: controller.access.revoke_key(key))
    return shown(record, await _used(controller))


def _new(new: NewKey, used: dict[str, UsageSum] | None, response: Response) -> NewKeyView:
    response.headers["cache-control"] = "no-store"
    return NewKeyView(**shown(new.record, used).model_dump(), key=new.key)


async def _used(controller: Context) -> dict[str, UsageSum] | None:
    """What each key used; None if that cannot be read: a key can be seen, ended and made nevertheless."""
    try:
        return {one.key or "": one for one in await controller.store.usage(UsageQuery(by=("key",)))}
    except StoreError:
        return None


def shown(record: KeyRecord, used: dict[str, UsageSum] | None) -> KeyView:
    """A key as people see it; `used` has what each key used, None if that is not known."""
    now = time.time()
    former = record.former
    sums = None if used is None else used.get(record.id)
    return KeyView(
        **record.settings.model_dump(),
        id=record.id,
        prefix=record.prefix,
        state=record.state(now),
        created_at=record.created_at,
        rotated_at=record.rotated_at,
        former_until=former.until if former is not None and former.until > now else None,
        revoked_at=record.revoked_at,
        last_used_at=None if sums is None else sums.last_used,
        used=None if used is None else Used() if sums is None else Used.model_validate(sums, from_attributes=True),
    )
