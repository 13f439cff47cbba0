"""Presets that are applied at their times: with a clock that the tests move, and in a whole Shoal that was off."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.errors import ConflictError, ShoalError
from shoal.fleet.schedules import Planned, Schedule
from shoal.schedules import AGAIN, LONGEST, Scheduler
from tests.system.harness import Shoal, a_shoal, until
from tests.system.test_break_controller import kill_controller

HOUR = 3600.0


@dataclass
class Book:
    """Presets that only write down what is asked of them."""

    schedules: dict[str, Schedule]
    done: float = 0.0
    running: str | None = None
    refusal: ShoalError | None = None
    applied: list[tuple[str, bool]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def planned(self) -> list[Planned]:
        return [Planned(name, (schedule,), self.done) for name, schedule in self.schedules.items()]

    async def apply(self, name: str, *, exclusive: bool) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.applied.append((name, exclusive))

    async def done_with(self, now: float) -> None:
        self.done = now

    def say(self, level: str, kind: str, message: str) -> None:
        assert message
        assert level in ("info", "error")
        self.said.append(kind)


class Clock:
    """A clock, presets that look at it, and what applies them. Day begins at 08:00, night at 20:00, UTC."""

    def __init__(self) -> None:
        self.now = 6 * HOUR
        self.book = Book(
            {"day": Schedule(cron="0 8 * * *"), "night": Schedule(cron="0 20 * * *", exclusive=False)}, self.now
        )
        self.fleet = SimpleNamespace(closing=False)
        controller: Any = SimpleNamespace(presets=self.book, manager=SimpleNamespace(fleet=self.fleet))
        self.scheduler = Scheduler(controller, lambda: self.now)

    async def at(self, hour: float) -> float:
        self.now = hour * HOUR
        return await self.scheduler.look()


async def test_each_time_is_applied_once_as_it_comes() -> None:
    clock = Clock()
    assert await clock.at(7.99) == LONGEST
    assert await clock.at(8 - 10 / HOUR) == pytest.approx(10)
    assert clock.book.applied == []
    for hour in (8, 8.01, 12, 20.0001, 23, 32, 33):
        await clock.at(hour)
    assert clock.book.applied == [("day", True), ("night", False), ("day", True)]
    assert clock.book.said == ["preset_due"] * 3


async def test_of_what_was_missed_the_latest_is_applied_and_the_other_is_told() -> None:
    clock = Clock()
    await clock.at(6 + 24 * 7 + 15)  # a week later, in the evening
    assert clock.book.applied == [("night", False)]
    assert clock.book.said == ["preset_skipped", "preset_due"]


async def test_a_clock_that_is_set_back_applies_nothing_twice() -> None:
    clock = Clock()
    await clock.at(9)
    await clock.at(7)
    await clock.at(8.5)
    assert clock.book.applied == [("day", True)]
    await clock.at(20)
    assert len(clock.book.applied) == 2


async def test_while_a_preset_is_applied_the_next_waits_and_what_is_due_then_counts() -> None:
    clock = Clock()
    clock.book.running = "day"
    assert await clock.at(8) == AGAIN
    assert await clock.at(20) == AGAIN
    clock.book.running = None
    await clock.at(20.01)
    assert clock.book.applied == [("night", False)]


async def test_somebody_faster_is_waited_for_and_a_refusal_is_said_once() -> None:
    clock = Clock()
    clock.book.refusal = ConflictError("another one runs", code="preset_running")
    await clock.at(8)
    assert clock.book.done < clock.now, "it is still due"
    clock.book.refusal = ShoalError("no such device", status=409)
    await clock.at(8.01)
    await clock.at(8.02)
    assert clock.book.said == ["preset_failed"]


async def test_a_shoal_that_stops_begins_nothing() -> None:
    clock = Clock()
    clock.fleet.closing = True
    assert await clock.at(8) == AGAIN
    assert clock.book.applied == []


async def test_a_look_that_fails_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, looks = Clock(), asyncio.Event()

    async def look() -> float:
        if not looks.is_set():
            looks.set()
            raise RuntimeError("a fault of its own")
        raise asyncio.CancelledError

    monkeypatch.setattr("shoal.schedules.AGAIN", 0.0)
    monkeypatch.setattr(clock.scheduler, "look", look)
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.wait_for(clock.scheduler.run(), 10)
    assert looks.is_set()


# -- a whole Shoal ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def yearly() -> str:
    """An expression that does not come while the tests run: of the day half a year from now."""
    moment = time.gmtime(time.time() + 182 * 86400)
    return f"0 0 {min(28, moment.tm_mday)} {moment.tm_mon} *"


def long_ago(shoal: Shoal) -> None:
    """All that was due in the last two years was missed, as far as the database knows; only while Shoal is off."""
    with contextlib.closing(sqlite3.connect(shoal.state / "shoal.db")) as database:
        database.execute("UPDATE presets SET scheduled_at = ?", (time.time() - 2 * 365 * 86400,))
        database.commit()


def test_a_missed_time_is_made_up_for_once(yearly: str) -> None:
    with a_shoal() as shoal:
        shoal.start()
        shoal.add("m")
        shoal.load("m")
        with shoal.client as client:
            client.save_preset("p")
            view = client.schedule_preset("p", yearly, zone="Europe/Berlin")
            assert [one["cron"] for one in view["schedules"]] == [yearly]
            client.unload("m")
            until(lambda: client.model("m")["state"] == "unloaded", "the end")
            (listed,) = client.preset_schedules()
            assert time.time() < listed["next_at"] < time.time() + 366 * 86400
            assert "Europe/Berlin" in listed["words"]
        assert shoal.stop() == 0
        long_ago(shoal)
        shoal.start()
        shoal.wait("m", "ready")
        with shoal.client as client:
            until(lambda: client.preset("p")["last_run"]["state"] == "done", "the run's end")
            assert len(client.history(kinds=["preset_due"])) == 1
            client.unload("m")
        kill_controller(shoal)
        with shoal.client as client:
            client.preset_schedules()
            assert len(client.history(kinds=["preset_due"])) == 1, "it is done with"


def test_schedules_are_kept_replaced_exported_and_removed(yearly: str) -> None:
    with a_shoal() as shoal:
        shoal.start()
        shoal.add("m")
        shoal.load("m")
        with shoal.client as client:
            client.save_preset("p")
            client.schedule_preset("p", yearly)
            client.schedule_preset("p", yearly, exclusive=False)
            client.schedule_preset("p", "0 0 29 2 *")
            assert [one["exclusive"] for one in client.preset("p")["schedules"]] == [False, True]
            client.save_preset("p", replace=True)
            text = client.export_preset("p")
            client.import_preset(text, name="q")
            assert client.preset("q")["schedules"] == client.preset("p")["schedules"]
            assert client.history(kinds=["preset_due"]) == [], "what is imported has missed nothing"
            kill_controller(shoal)
        with shoal.client as client:
            assert len(client.preset_schedules()) == 4
            assert client.unschedule_preset("p", "0 0  29 2 *")["schedules"][0]["cron"] == yearly
            with pytest.raises(ShoalError) as caught:
                client.unschedule_preset("p", "0 0 29 2 *")
            assert (caught.value.status, caught.value.code) == (404, "schedule_not_found")
            assert client.unschedule_preset("p")["schedules"] == []
            assert "schedules" not in client.export_preset("p")
            client.remove_preset("q")
            assert client.preset_schedules() == []
            for cron, zone in (("nonsense", "UTC"), ("0 8 * * *", "Nowhere")):
                with pytest.raises(ShoalError) as caught:
                    client.schedule_preset("p", cron, zone=zone)
                assert caught.value.status == 400
            with pytest.raises(ShoalError) as caught:
                client.schedule_preset("nobody", "0 8 * * *")
            assert caught.value.code == "preset_not_found"
