"""Times at which presets are applied, by the calendar, over changes of the clock, and after times that were missed."""

from __future__ import annotations

import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shoal.fleet.schedules import Planned, Schedule, due, next_time

BERLIN = ZoneInfo("Europe/Berlin")
DAY, NIGHT = Schedule(cron="0 8 * * *"), Schedule(cron="0 20 * * *")


def at(text: str, zone: str = "UTC") -> float:
    return datetime.datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def local(moment: float | None) -> str:
    assert moment is not None
    return datetime.datetime.fromtimestamp(moment, BERLIN).isoformat()


@pytest.mark.parametrize(
    ("cron", "why"),
    [
        ("0 8 * *", "5 fields"),
        ("0 0 8 * * *", "5 fields"),
        ("@daily", "5 fields"),
        ("60 8 * * *", "bad minute"),
        ("0 24 * * *", "bad hour"),
        ("0 8 * * MOO", "bad day-of-week"),
        ("0 0 31 2 *", "bad day-of-month"),
        ("0 0 30 2 *", "bad day-of-month"),
        ("a b c d e", "bad minute"),
        ("", "5 fields"),
        ("*/0 * * * *", "bad minute"),
        ("*" * 300, "at most 200"),
    ],
)
def test_what_is_no_expression_is_refused_with_the_field(cron: str, why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Schedule(cron=cron)


@pytest.mark.parametrize("zone", ["Nowhere/At_All", "", "../etc/passwd", "Europe", "/etc/localtime", "\0"])
def test_what_is_no_time_zone_is_refused(zone: str) -> None:
    with pytest.raises(ValidationError, match="no time zone"):
        Schedule(cron="0 8 * * *", zone=zone)


def test_blanks_do_not_count_and_words_say_what_was_meant() -> None:
    schedule = Schedule(cron="  0  8 * *   mon-fri ", zone="Europe/Berlin")
    assert schedule.cron == "0 8 * * mon-fri"
    assert "08:00" in schedule.words
    assert "Monday through Friday" in schedule.words
    assert "(Europe/Berlin)" in schedule.words


def test_a_time_that_is_left_out_in_spring_is_due_when_clocks_go_on() -> None:
    schedule = Schedule(cron="30 2 * * *", zone="Europe/Berlin")
    assert local(schedule.next(at("2026-03-28T12:00", "Europe/Berlin"))) == "2026-03-29T03:00:00+02:00"
    assert local(schedule.last(at("2026-03-29T12:00", "Europe/Berlin"))) == "2026-03-29T03:00:00+02:00"
    assert local(schedule.next(at("2026-03-29T03:00", "Europe/Berlin"))) == "2026-03-30T02:30:00+02:00"
    eight = Schedule(cron="0 8 * * *", zone="Europe/Berlin")
    assert local(eight.next(at("2026-03-29T00:00", "Europe/Berlin"))) == "2026-03-29T08:00:00+02:00"


def test_a_time_that_comes_twice_in_autumn_is_due_once() -> None:
    schedule = Schedule(cron="30 2 * * *", zone="Europe/Berlin")
    first = schedule.next(at("2026-10-24T12:00", "Europe/Berlin"))
    assert local(first) == "2026-10-25T02:30:00+02:00"
    assert first is not None
    assert local(schedule.next(first)) == "2026-10-26T02:30:00+01:00"
    assert schedule.last(first + 3600) == first, "the second half past two is no new time"
    assert due([Planned("p", (schedule,), first)], first + 3600) == []


def test_what_is_due_each_hour_is_due_by_elapsed_time() -> None:
    schedule = Schedule(cron="0 * * * *", zone="Europe/Berlin")
    now, times = at("2026-10-25T00:30", "Europe/Berlin"), []
    for _ in range(4):
        following = schedule.next(now)
        assert following is not None
        times.append(local(following))
        now = following
    assert times == [f"2026-10-25T0{hour}:00:00+0{shift}:00" for hour, shift in ((1, 2), (2, 2), (2, 1), (3, 1))]


def test_only_the_latest_of_what_was_missed_counts() -> None:
    planned = [Planned("day", (DAY,), at("2026-01-01T09:00")), Planned("night", (NIGHT,), at("2026-01-01T09:00"))]
    assert due(planned, at("2026-01-01T19:59")) == []
    assert [d.preset for d in due(planned, at("2026-01-01T20:00"))] == ["night"]
    # Off for three days and a bit: it is day, and of the nights one is told, as what is not applied.
    found = due(planned, at("2026-01-04T12:00"))
    assert [d.preset for d in found] == ["night", "day"]
    assert found[-1].at == at("2026-01-04T08:00")
    assert due([Planned("day", (DAY,), at("2026-01-04T08:00"))], at("2026-01-04T12:00")) == [], "it is done with"
    assert next_time(planned, at("2026-01-04T12:00")) == at("2026-01-04T20:00")
    assert next_time([], 0.0) is None


def test_at_one_time_the_last_by_name_wins() -> None:
    both = [Planned(name, (DAY,), 0.0) for name in ("b", "a")]
    assert [d.preset for d in due(both, at("2026-01-01T08:00"))] == ["a", "b"]


CRONS = st.sampled_from(
    [
        "*/15 * * * *",
        "0 * * * *",
        "30 2 * * *",
        "0 3 * * *",
        "5 0,12 * * 1-5",
        "59 23 L * *",
        "0 2 29 2 *",
        "0 1 * 3,10 0",
    ]
)
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"])
MOMENTS = st.floats(at("2025-01-01"), at("2028-12-31")).map(lambda x: round(x, 3))


@given(CRONS, ZONES, MOMENTS)
def test_the_last_time_is_the_one_before_which_no_other_comes(cron: str, zone: str, now: float) -> None:
    schedule = Schedule(cron=cron, zone=zone)
    last, following = schedule.last(now), schedule.next(now)
    assert last is not None
    assert following is not None
    assert last <= now < following
    between = schedule.next(last)
    assert between is not None
    assert between > now, "nothing is due between the last time and now"


@given(CRONS, ZONES, MOMENTS, st.lists(st.floats(1, 40_000), max_size=20))
def test_whoever_looks_now_and_then_sees_each_time_at_most_once(
    cron: str, zone: str, start: float, steps: list[float]
) -> None:
    schedule = Schedule(cron=cron, zone=zone)
    now, done, seen = start, start, []
    for step in steps:
        now += step
        if found := due([Planned("p", (schedule,), done)], now):
            seen.append(found[-1].at)
            done = now
    assert seen == sorted(set(seen))
    assert all(start < moment <= now for moment in seen)
