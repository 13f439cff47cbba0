"""Ways to make room: which models give way to one that is asked for, compared by the waiting that they cause. Pure.

On one device, or on just the devices that a model is bound to, a few sets of models are compared in full. Of many
devices that it could be on, it is guessed for some what each would cost, and the best of those are worked out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple

from shoal.fleet.residency import Kind, Residency, Resident
from shoal.fleet.residency_books import Books
from shoal.fleet.residency_options import Option, enough, least_missed, waiting
from shoal.fleet.residency_sites import Sites

LOOKED_AT = 3
"""Of many devices, for so many the ways are worked out in full: those whose first guess is best."""
GUESSED_AT = 12
"""And for so many a guess is made, while more come into question: those with the coldest models."""

Score = tuple[bool, int, float, float, tuple[str, ...]]
_HOST, _UNLOAD, _FLOOR = Residency.HOST, Kind.UNLOAD, Kind.FLOOR


class Way(NamedTuple):
    """Devices for a model, who gives way there, and how this compares: less is better."""

    devices: tuple[str, ...]
    options: tuple[Option, ...]
    score: Score


class Ways:
    """Looks for ways on devices of which `books` say what is free, and `sites` who is there."""

    def __init__(self, books: Books, sites: Sites) -> None:
        self._books, self._sites = books, sites

    def best(self, resident: Resident, need: int, devices: Sequence[str], *, busy: bool) -> Way | None:
        """The best way to have `need` bytes on each of `resident.width` of `devices`. None: there is none now."""
        width = resident.width
        if len(devices) < width:
            return None
        could_have = self._sites.could_have
        if len(devices) == width:
            # What it takes asleep counts there, and it does not give way to itself.
            mine = resident.asleep if busy and resident.place is _HOST and not resident.pinned else 0
            if min(could_have(devices, busy=busy)) - mine < need:
                return None
            return self._joint(resident, need, tuple(devices), busy=busy)
        able = [device for device, size in zip(devices, could_have(devices, busy=busy), strict=True) if size >= need]
        if len(able) < width:
            return None
        most = max(GUESSED_AT, 2 * width)
        if len(able) > most:
            able = self._sites.coldest_first(able, busy=busy)[:most]
        guesses = sorted((self._sites.guess(device, need, busy=busy), device) for device in able)
        names = [device for _, device in guesses]
        sets = [(name,) for name in names[:LOOKED_AT]] if width == 1 else [tuple(sorted(names[:width]))]
        found = [way for one in sets if (way := self._joint(resident, need, one, busy=busy)) is not None]
        return min(found, key=_score, default=None)

    def _joint(self, resident: Resident, need: int, devices: tuple[str, ...], *, busy: bool) -> Way | None:
        """The best way on just these devices: floors are lent, or else models sleep, or else they are unloaded."""
        shorts = {device: need - self._books.rooms[device] for device in devices}
        if all(short <= 0 for short in shorts.values()):
            return Way(devices, (), self._judge(resident, (), devices))
        sites = self._sites
        listed = {o.resident.name: o for device in devices for o in sites.listed(device, busy=busy)}.values()
        floors = [
            sites.option(o.resident, _FLOOR) for o in listed if not o.in_use and o.resident.floor_least is not None
        ]
        if floors and (chosen := enough(sorted(floors), shorts)) is not None:
            return Way(devices, chosen, self._judge(resident, chosen, devices))
        way = self._cheapest(resident, devices, list(listed), shorts)
        if way is not None or (not busy and any(sites.sleep_would_do(device, need) for device in devices)):
            return way
        return self._cheapest(resident, devices, self._all_unloaded(resident, devices, listed, busy=busy), shorts)

    def _cheapest(
        self, resident: Resident, devices: tuple[str, ...], offered: Sequence[Option], shorts: Mapping[str, int]
    ) -> Way | None:
        """The best of a few sets of `offered` that free what is short."""
        ways = [Way(devices, one, self._judge(resident, one, devices)) for one in least_missed(offered, shorts)]
        return min(ways, key=_score, default=None)

    def _all_unloaded(
        self, resident: Resident, devices: Iterable[str], listed: Iterable[Option], *, busy: bool
    ) -> list[Option]:
        """Options for when sleep leaves too much behind: those awake are unloaded, and those that sleep already."""
        asleep = {one.name: one for device in devices for one in self._sites.remains(device, busy=busy)}
        asleep.pop(resident.name, None)
        return [self._sites.option(one, _UNLOAD) for one in (*(o.resident for o in listed), *asleep.values())]

    def _judge(self, resident: Resident, options: tuple[Option, ...], devices: tuple[str, ...]) -> Score:
        return (
            any(one.in_use for one in options),
            max((one.resident.priority for one in options), default=0),
            waiting(resident, options) + sum(one.harm for one in options),
            max((one.resident.last_use for one in options), default=0.0),
            devices,
        )


_score = attrgetter("score")
