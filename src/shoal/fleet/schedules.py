"""When presets are to be applied: cron expressions in a time zone, and which of the times that have come counts. Pure.

Expressions are those of Debian's cron, by the library cronsim, with its rules for days on which clocks are changed:
what is due at a time that is left out is due when clocks go on, and what is due at a time that comes twice is due once.
What is due each so many minutes or each hour is due by elapsed time.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import BaseModel, ConfigDict, Field, field_validator

FIELDS = 5
MOST_CRON = 200


class Schedule(BaseModel):
    """Times at which a preset is applied."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cron: str = Field(max_length=MOST_CRON, description="Minute, hour, day of month, month, day of week.")
    zone: str = Field("UTC", description="A time zone such as Europe/Berlin.")
    exclusive: bool = Field(True, description="False keeps models that the preset does not name.")

    @field_validator("cron")
    @classmethod
    def _cron(cls, cron: str) -> str:
        cron = " ".join(cron.split())
        if len(cron.split()) != FIELDS:
            raise ValueError(
                f"{cron!r} is no cron expression; it has {FIELDS} fields, such as `0 8 * * 1-5`: minute, hour, day of "
                "month, month, day of week"
            )
        try:
            times = CronSim(cron, datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC))
        except CronSimError as error:
            raise ValueError(f"{cron!r} is no cron expression: {str(error).lower()}") from None
        if next(times, None) is None:
            raise ValueError(f"{cron!r} never comes; look at its day and month")
        return cron

    @field_validator("zone")
    @classmethod
    def _zone(cls, zone: str) -> str:
        try:
            ZoneInfo(zone)
        except (KeyError, ValueError, OSError):  # the name of a folder is an OSError
            raise ValueError(f"there is no time zone {zone!r}; give one such as Europe/Berlin, or UTC") from None
        return zone

    def last(self, now: float) -> float | None:
        """The latest time at or before `now` at which it was due, in Unix seconds; None: not in the last 50 years."""
        after = datetime.datetime.fromtimestamp(int(now) + 1, ZoneInfo(self.zone))
        return _timestamp(next(CronSim(self.cron, after, reverse=True), None))

    def next(self, now: float) -> float | None:
        """The first time after `now` at which it is due, in Unix seconds; None: not in the next 50 years."""
        return _timestamp(next(CronSim(self.cron, datetime.datetime.fromtimestamp(now, ZoneInfo(self.zone))), None))

    @property
    def words(self) -> str:
        """The expression in English, and its zone."""
        text = CronSim(self.cron, datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)).explain()
        return f"{text[:1].lower()}{text[1:]} ({self.zone})"


@dataclass(frozen=True, slots=True)
class Due:
    """A preset that was to be applied at a time (Unix seconds) that has come."""

    at: float
    preset: str
    schedule: Schedule


@dataclass(frozen=True, slots=True)
class Planned:
    """The schedules of a preset; all that was due up to `done` (Unix seconds) is done with."""

    preset: str
    schedules: tuple[Schedule, ...]
    done: float


def due(planned: Iterable[Planned], now: float) -> list[Due]:
    """What is due and not done with, the latest last: only that one is to be applied, because each preset says what is
    to run from its time on, and the others' times are over. Of each schedule the latest time alone is told; of several
    presets at one time the last by name wins.
    """
    found = []
    for one in planned:
        for schedule in one.schedules:
            at = schedule.last(now)
            if at is not None and at > one.done:
                found.append(Due(at, one.preset, schedule))
    return sorted(found, key=lambda item: (item.at, item.preset, item.schedule.cron))


def next_time(planned: Iterable[Planned], now: float) -> float | None:
    """When something is due next after `now`; None: never."""
    times = [at for one in planned for schedule in one.schedules if (at := schedule.next(now)) is not None]
    return min(times, default=None)


def _timestamp(moment: datetime.datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
