"""What keys used of models: adding reports, once each, and sums over days, keys and models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from shoal.messages import UsageReport

By = Literal["day", "key", "model"]
RELAYS_KEPT = 30 * 86_400.0
"""Seconds after which a relay that reported nothing is forgotten: it has ended, and sends no report again."""


@dataclass(frozen=True, slots=True)
class Query:
    """Which usage to add up, and by what. Days are inclusive, UTC, such as `2026-01-31`; None is no limit."""

    by: tuple[By, ...] = ()
    since: str | None = None
    until: str | None = None
    key: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class UsageSum:
    """What was used in all by one day, key or model, or their combinations. None: it was added up over all of them."""

    day: str | None
    key: str | None
    model: str | None
    requests: int
    prompt_tokens: int
    completion_tokens: int
    last_used: float


def add(connection: Connection, report: UsageReport, now: float) -> bool:
    """Count a report, unless it or a later one of its relay was counted before. Needs an open transaction."""
    from sqlalchemy import delete, func, select
    from sqlalchemy.dialects import postgresql, sqlite

    from shoal.store import codec
    from shoal.store.tables import usage, usage_reports

    relay = codec.text(report.relay)
    last = connection.scalar(select(usage_reports.c.seq).where(usage_reports.c.relay == relay))
    if last is not None and report.seq <= last:
        return False
    on_postgresql = connection.dialect.name == "postgresql"
    insert = postgresql.insert if on_postgresql else sqlite.insert
    mark = insert(usage_reports).values(relay=relay, seq=report.seq, at=now)
    changed: dict[Any, Any] = {"seq": mark.excluded.seq, "at": mark.excluded.at}
    connection.execute(mark.on_conflict_do_update(index_elements=[usage_reports.c.relay], set_=changed))
    connection.execute(delete(usage_reports).where(usage_reports.c.at < now - RELAYS_KEPT))
    if report.items:
        row = insert(usage)
        latest = func.greatest if on_postgresql else func.max  # of two values, which each names in its own way
        sums: dict[Any, Any] = {
            name: usage.c[name] + row.excluded[name] for name in ("requests", "prompt_tokens", "completion_tokens")
        }
        sums["last_used"] = latest(usage.c.last_used, row.excluded.last_used)
        statement = row.on_conflict_do_update(index_elements=[usage.c.day, usage.c.key, usage.c.model], set_=sums)
        connection.execute(statement, [codec.usage_row(item) for item in report.items])
    return True


def prune(connection: Connection, days: int, now: float) -> None:
    """Forget what was used more than so many days before the day of `now` (Unix seconds, UTC)."""
    from sqlalchemy import delete

    from shoal.store.tables import usage

    oldest = datetime.fromtimestamp(now, UTC).date() - timedelta(days)
    connection.execute(delete(usage).where(usage.c.day < oldest.isoformat()))


def read(connection: Connection, query: Query) -> list[UsageSum]:
    """The sums that `query` asks for, in the order of what they are by."""
    return list(_sums(connection, query))


def _sums(connection: Connection, query: Query) -> Iterator[UsageSum]:
    from sqlalchemy import func, select

    from shoal.store.tables import usage

    names = ("requests", "prompt_tokens", "completion_tokens")
    by: Sequence[Any] = [usage.c[name] for name in query.by]
    wanted = select(*by, *(func.sum(usage.c[name]).label(name) for name in names), func.max(usage.c.last_used))
    if query.since is not None:
        wanted = wanted.where(usage.c.day >= query.since)
    if query.until is not None:
        wanted = wanted.where(usage.c.day <= query.until)
    if query.key is not None:
        wanted = wanted.where(usage.c.key == query.key)
    if query.model is not None:
        wanted = wanted.where(usage.c.model == query.model)
    for row in connection.execute(wanted.group_by(*by).order_by(*by) if by else wanted):
        *parts, requests, prompt, completion, last_used = row
        if requests is None:  # the sum over nothing
            continue
        part = dict(zip(query.by, parts, strict=True))
        yield UsageSum(
            day=part.get("day"),
            key=part.get("key"),
            model=part.get("model"),
            requests=int(requests),
            prompt_tokens=int(prompt),
            completion_tokens=int(completion),
            last_used=float(last_used),
        )
