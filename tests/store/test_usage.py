"""What was used is counted once, whatever comes twice, and added up by whatever is asked."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.messages import Usage
from shoal.store import StoreError, codec
from shoal.store.connect import find_target
from shoal.store.database import Database
from shoal.store.usage import RELAYS_KEPT, By, Query, UsageSum

from . import records
from .conftest import MakeStore

_items = st.builds(
    Usage,
    key=st.sampled_from(["", "a", "b"]),
    model=st.sampled_from(["m", "org/n"]),
    day=st.sampled_from(["2026-01-30", "2026-01-31", "2026-02-01"]),
    requests=st.integers(0, 100),
    prompt_tokens=st.integers(0, 10**6),
    completion_tokens=st.integers(0, 10**6),
    last_used=st.floats(0, 2e9),
)


async def test_a_report_counts_once_however_often_it_comes(make_store: MakeStore, url: str | None) -> None:
    store = make_store(url)
    await store.open()
    first = records.usage_report(1, records.used("a"), records.used("a"), records.used("b", last_used=9.0))
    second = records.usage_report(2, records.used("a", prompt_tokens=100, last_used=0.5))
    for report in (first, first, second, first, second):
        await store.add_usage(report, 1000.0)
    await store.add_usage(records.usage_report(1, records.used("b"), relay="other"), 1000.0)
    await store.close()
    again = make_store(url)
    await again.open()
    await again.add_usage(second, 1000.0)
    assert await again.usage(Query(("key",))) == [
        UsageSum(None, "a", None, 3, 120, 15, 1.0),
        UsageSum(None, "b", None, 2, 20, 10, 9.0),
    ]
    assert await again.usage(Query()) == [UsageSum(None, None, None, 5, 140, 25, 9.0)]
    await again.close()


async def test_usage_is_kept_for_so_many_days(make_store: MakeStore, url: str | None) -> None:
    store = make_store(url, usage_kept=2)
    await store.open()
    days = ("2026-02-26", "2026-02-27", "2026-02-28", "2026-03-01")
    await store.add_usage(records.usage_report(1, *(records.used(day=day) for day in days[:3])), _at("2026-02-28"))
    assert [one.day for one in await store.usage(Query(("day",)))] == list(days[:3])
    midnight = _at("2026-03-01")
    await store.add_usage(records.usage_report(2, records.used(day=days[2])), midnight - 0.001)
    assert [one.day for one in await store.usage(Query(("day",)))] == list(days[:3])
    await store.add_usage(records.usage_report(3, records.used(day=days[3])), midnight)
    await store.add_usage(records.usage_report(3, records.used(day=days[3])), midnight)
    assert [(one.day, one.requests) for one in await store.usage(Query(("day",)))] == [
        ("2026-02-27", 1), ("2026-02-28", 2), ("2026-03-01", 1),
    ]  # fmt: skip
    # What comes late of a day that is forgotten stays forgotten, and counts as stored for its relay.
    await store.add_usage(records.usage_report(4, records.used(day=days[0])), midnight)
    assert [one.day for one in await store.usage(Query(("day",)))] == list(days[1:])
    await store.close()


def _at(day: str) -> float:
    """The first second of a day, as Unix time."""
    return datetime.fromisoformat(f"{day}T00:00:00+00:00").timestamp()


async def test_reports_that_come_together_are_all_counted(make_store: MakeStore, url: str | None) -> None:
    store = make_store(url)
    await store.open()
    reports = [records.usage_report(1, records.used(), relay=f"r{n}") for n in range(20)]
    await asyncio.gather(*(store.add_usage(report, 0.0) for report in reports * 2))
    assert [one.requests for one in await store.usage(Query())] == [20]
    await store.close()


async def test_nothing_used_adds_up_to_nothing(make_store: MakeStore, url: str | None) -> None:
    store = make_store(url)
    await store.open()
    await store.add_usage(records.usage_report(1), 0.0)
    assert await store.usage(Query()) == []
    assert await store.usage(Query(("day", "key", "model"))) == []
    await store.close()


async def test_what_no_database_takes_is_made_fit_rather_than_sent_for_ever(
    make_store: MakeStore, url: str | None
) -> None:
    store = make_store(url)
    await store.open()
    odd = records.used("k\0\ud800", "m\0", prompt_tokens=-5, completion_tokens=2**80)
    await store.add_usage(records.usage_report(1, odd, odd, relay="r\0"), 0.0)
    (found,) = await store.usage(Query(("key", "model")))
    assert (found.key, found.model) == ("k\N{REPLACEMENT CHARACTER}?", "m\N{REPLACEMENT CHARACTER}")
    assert (found.prompt_tokens, found.completion_tokens) == (0, 2 * 2**40)
    await store.close()


async def test_a_store_that_cannot_write_says_so_and_has_counted_nothing(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store()
    with pytest.raises(StoreError, match="not open"):
        await store.add_usage(records.usage_report(1, records.used()), 0.0)
    (tmp_path / "state").write_text("no folder")
    await store.open()
    assert store.problem is not None
    with pytest.raises(StoreError, match="nothing can be saved"):
        await store.add_usage(records.usage_report(1, records.used()), 0.0)
    (tmp_path / "state").unlink()
    store.add_event(records.event())  # what waits is tried again, and opens the way
    assert await store.flush(30)
    await store.add_usage(records.usage_report(1, records.used()), 0.0)
    with monkeypatch.context() as patch:
        row = codec.usage_row(records.used())
        patch.setattr(codec, "usage_row", lambda _: {**row, "last_used": None})
        with pytest.raises(StoreError, match="cannot be written"):
            await store.add_usage(records.usage_report(2, records.used()), 0.0)
    await store.add_usage(records.usage_report(2, records.used()), 0.0)  # the failed one left no mark
    assert [one.requests for one in await store.usage(Query())] == [2]
    await store.close()


async def test_relays_that_are_long_gone_are_forgotten(make_store: MakeStore) -> None:
    store = make_store()
    await store.open()
    report = records.usage_report(5, records.used(), relay="gone")
    await store.add_usage(report, 0.0)
    await store.add_usage(records.usage_report(1, relay="new"), RELAYS_KEPT - 1)
    await store.add_usage(report, RELAYS_KEPT - 1)
    assert [one.requests for one in await store.usage(Query())] == [1]
    await store.add_usage(records.usage_report(2, relay="new"), RELAYS_KEPT + 1)
    await store.add_usage(report, RELAYS_KEPT + 1)
    assert [one.requests for one in await store.usage(Query())] == [2]
    await store.close()


def _check_sums(database: Database, items: list[Usage], query: Query, relay: str) -> None:
    database.add_usage(records.usage_report(1, *items, relay=relay), 0.0)
    wanted: Counter[tuple[str | None, ...]] = Counter()
    for item in items:
        if (
            (query.since or "") <= item.day <= (query.until or "9")
            and query.key in (None, item.key)
            and query.model in (None, item.model)
        ):
            wanted[tuple(getattr(item, name) if name in query.by else None for name in ("day", "key", "model"))] += (
                item.requests + item.prompt_tokens + item.completion_tokens
            )
    found = database.usage(query)
    sums = {(s.day, s.key, s.model): s.requests + s.prompt_tokens + s.completion_tokens for s in found}
    assert sums == dict(wanted)
    assert len(sums) == len(found)
    assert found == sorted(found, key=lambda s: [getattr(s, name) for name in query.by])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(_items, max_size=8),
    st.lists(st.sampled_from(["day", "key", "model"]), unique=True),
    st.none() | st.sampled_from(["2026-01-31", "2026-02-02"]),
    st.none() | st.sampled_from(["2026-01-30", "2026-01-31"]),
    st.none() | st.sampled_from(["", "a"]),
    st.none() | st.sampled_from(["m", "x"]),
)
def test_sums_are_those_of_the_reports(
    items: list[Usage], by: list[By], since: str | None, until: str | None, key: str | None, model: str | None
) -> None:
    database = Database(find_target("sqlite://", Path("unused")), history=1, events_kept=100, usage_kept=400)
    assert database.open() is None
    _check_sums(database, items, Query(tuple(by), since, until, key, model), "r")
    database.close()
