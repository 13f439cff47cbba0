"""What was used: requests and tokens by day, key and model."""

from __future__ import annotations

import datetime
import time
import unicodedata
from typing import Annotated

from fastapi import APIRouter
from fastapi import Query as Parameter
from pydantic import BaseModel

from shoal.api.context import Context
from shoal.store.usage import By, Query, UsageSum

router = APIRouter(prefix="/api/v1", tags=["keys"])


class UsageRow(BaseModel):
    """What was used in all by what was asked for: a day (UTC), a key, a model, or their combinations. What was added
    up over is null; a `key` of "" is requests without one. `last_used` in Unix seconds."""

    day: str | None
    key: str | None
    key_name: str | None
    model: str | None
    requests: int
    prompt_tokens: int
    completion_tokens: int
    last_used: float


class UsageTable(BaseModel):
    """Usage in the order of what it is by, and all of it together; null if there was none."""

    usage: list[UsageRow]
    total: UsageRow | None


@router.get("/usage")
async def get_usage(
    controller: Context,
    since: Annotated[datetime.date | None, Parameter(alias="from", description="First day, in UTC.")] = None,
    until: Annotated[datetime.date | None, Parameter(alias="to", description="Last day, in UTC.")] = None,
    key: Annotated[str | None, Parameter(description="Id or name of a key; empty: requests without one.")] = None,
    model: str | None = None,
    by: Annotated[list[By], Parameter(description="One or more of day, key, model.")] = ["day"],  # noqa: B006
) -> UsageTable:
    """What was used. Relays report within seconds; a request counts on the day on which it ended."""
    names = {record.id: record.settings.name for record in controller.access.keys.records.values()}
    query = Query(
        by=tuple(dict.fromkeys(by)),
        since=None if since is None else since.isoformat(),
        until=None if until is None else until.isoformat(),
        key=controller.access.keys.find(key, time.time()).id if key else key,
        model=None if model is None else unicodedata.normalize("NFC", model),
    )
    rows = [_row(one, names) for one in await controller.store.usage(query)]
    total = await controller.store.usage(Query((), query.since, query.until, query.key, query.model))
    return UsageTable(usage=rows, total=_row(total[0], names) if total else None)


def _row(one: UsageSum, names: dict[str, str]) -> UsageRow:
    return UsageRow(
        day=one.day,
        key=one.key,
        key_name=None if one.key is None else names.get(one.key),
        model=one.model,
        requests=one.requests,
        prompt_tokens=one.prompt_tokens,
        completion_tokens=one.completion_tokens,
        last_used=one.last_used,
    )
