"""Models that are asked for and not on a device: where each goes, and who gives way to it. Pure.

Claims come in order, the most urgent first. Hundreds may wait of which none can be served, and each is to be answered
in a few microseconds: what was looked for in vain holds for all that ask for the same, until something changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf

from shoal.fleet.residency import Action, Kind, Refusal, Residency, Resident
from shoal.fleet.residency_books import MostRoom, most_room
from shoal.fleet.residency_draft import Draft, ago
from shoal.fleet.residency_fit import Capacity
from shoal.fleet.residency_leaving import Leaving
from shoal.fleet.residency_options import Option
from shoal.fleet.residency_ways import Ways

CLOSINGS = 2
"""So many of the longest overdue claims have devices kept for them at once; the others come after them."""
FEW = 8
"""Of so many devices the one with the most room is found by looking at each."""
_HOST = Residency.HOST
_Place = tuple[tuple[str, ...], tuple[Option, ...]]
_Asked = tuple[bool, int, int, int, bool, bool]


class _Spot:
    """Where claims may go that are bound to the same devices, and what was found there."""

    __slots__ = (
        "bound_at", "bound_busy", "devices", "everywhere", "fits", "most", "ordered", "ordered_at", "tails", "vain",
        "vain_at", "words",
    )  # fmt: skip

    def __init__(self, devices: tuple[str, ...], fits: int, *, everywhere: bool) -> None:
        self.devices, self.everywhere = devices, everywhere
        self.fits = fits
        """What is not larger fits there in principle; of what is larger it is not known."""
        self.words = _words(devices)
        self.tails: dict[int, str] = {}
        """What is said of those that wait for so many bytes."""
        self.most, self.bound_at, self.bound_busy = 0, -1, True
        """The most bytes that one of `devices` could have, at that change, and whether with those in use. What follows
        makes it no more, only less. -1: only that of all devices is known."""
        self.vain: set[_Asked] | None = None
        """What was sought in vain: until there may be more to be had, if it was sought everywhere; else until
        anything changes, because with less to be had a way may be taken that was not before."""
        self.vain_at = 0
        self.ordered: tuple[MostRoom, MostRoom] | None = None
        """Free memory and that to come, by device; until there may be more of it."""
        self.ordered_at = 0


class Claims:
    """Serves claims in a draft, or says what they wait for."""

    def __init__(self, draft: Draft, leaving: Leaving) -> None:
        self._draft, self._leaving = draft, leaving
        self._books, self._sites = draft.books, draft.sites
        self._ways = Ways(draft.books, draft.sites)
        self._capacity = Capacity(draft.snapshot, draft.books.pinned)
        self._everywhere = self._capacity.everywhere
        self.closed: set[str] = set()
        """Devices that are kept for claims which have waited too long."""
        self.left = draft.rules.claims_at_once
        """For how many claims others may still give way."""
        self._closings = CLOSINGS
        self._known = frozenset(self._everywhere)
        self._spots: dict[tuple[str, ...], _Spot] = {}

    def serve(self, ordered: Iterable[tuple[float, str, Resident]], *, overdue: bool) -> None:
        """Have each model come that can, with others giving way if need be; `overdue`: those in use too. `ordered` has
        since when each waits, and its name."""
        draft, spots, gone, longest = self._draft, self._spots, self._sites.gone, inf
        waits = draft.waits
        for since, name, one in ordered:
            if self.left <= 0:
                draft.next_look = draft.now  # others begin to give way, so that the next look finds another state
                return
            if name in gone:
                continue
            # Most who wait ask for more than can be had by anybody there. Each costs as little as can be.
            awake = need = one.awake
            wanted = one.usable
            if one.place is _HOST:
                wanted = one.on
                need = awake - one.asleep if awake > one.asleep else 0
            spot = spots.get(wanted) or self._spot(wanted)
            known = need > spot.most and awake <= spot.fits and one.width == 1 and not (overdue and self._closings)
            if not known and not self._is_to_wait(one, need, wanted or self._everywhere, spot, overdue=overdue):
                continue
            if since < longest:
                longest = since
            tail = spot.tails.get(need)
            if tail is None:
                tail = spot.tails[need] = f" waits for {draft.sizes[need]} on {spot.words}"
            waits.append(Refusal(name, name + tail))
        if not overdue:
            draft.look(longest + draft.rules.patience)

    def _is_to_wait(self, one: Resident, need: int, wanted: tuple[str, ...], spot: _Spot, *, overdue: bool) -> bool:
        """Have it come, or refuse it; True if neither can be done."""
        if one.width > 1 or one.awake > spot.fits:
            why = self._capacity.why_never(one, wanted)
            if why is not None:
                self._refuse(one, why)
                return False
        if need <= spot.most and (spot.bound_at < 0 or (spot.bound_busy and not overdue)):
            self._bound(spot, busy=overdue)
        if need <= spot.most and (found := self._where(one, need, spot, busy=overdue)) is not None:
            self._come(one, need, *found)
            return False
        if overdue and self._closings > 0:
            self._close(one, need, wanted)
        return True

    def _spot(self, wanted: tuple[str, ...]) -> _Spot:
        """Where those go that are bound to `wanted`, or to nothing."""
        known, closed, devices = self._known, self.closed, wanted or self._everywhere
        if not (closed.isdisjoint(devices) and known.issuperset(devices)):
            devices = tuple([device for device in devices if device in known and device not in closed])
        fits = self._capacity.free.get(wanted[0], -1) if wanted else self._capacity.largest
        spot = self._spots[wanted] = _Spot(devices, fits, everywhere=not wanted)
        if len(wanted) > 1:  # the bound of all devices will do for the moment: most who wait ask for more than that
            spot.most = (self._spots.get(()) or self._spot(())).most
        else:
            self._bound(spot, busy=True)
        return spot

    def _bound(self, spot: _Spot, *, busy: bool) -> None:
        spot.most = max(self._sites.could_have(spot.devices, busy=busy), default=-1)
        spot.bound_at, spot.bound_busy = self._draft.changes, busy

    def _where(self, one: Resident, need: int, spot: _Spot, *, busy: bool) -> _Place | None:
        """Where it goes now and who gives way there, unless the same was looked for in vain: free memory first, then
        what comes free, then others'."""
        at = self._draft.freed if spot.everywhere else self._draft.changes
        if spot.vain is None or spot.vain_at != at:
            spot.vain, spot.vain_at = set(), at
        if spot.vain and _asked(one, need, busy=busy) in spot.vain:
            return None
        if devices := self._with_room(one.width, need, spot):
            return devices, ()
        way = self._ways.best(one, need, spot.devices, busy=busy)
        if way is not None:
            return way.devices, way.options
        spot.vain.add(_asked(one, need, busy=busy))
        if spot.bound_at != self._draft.changes:
            self._bound(spot, busy=busy)
        return None

    def _with_room(self, width: int, need: int, spot: _Spot) -> tuple[str, ...]:
        """Where `need` bytes are free, or else will come free; none if nowhere."""
        free, rooms, freed = self._books.free, self._books.rooms, self._draft.freed
        if width > 1 or len(spot.devices) <= FEW:
            return most_room(free, spot.devices, need, width) or most_room(rooms, spot.devices, need, width)
        if spot.ordered is None or spot.ordered_at != freed:
            spot.ordered = MostRoom(free, spot.devices), MostRoom(rooms, spot.devices)
            spot.ordered_at = freed
        return spot.ordered[0].find(need) or spot.ordered[1].find(need)

    def _refuse(self, one: Resident, why: str) -> None:
        """It can never be where it is asked to; one that sleeps may be loaded elsewhere."""
        draft = self._draft
        if one.place is _HOST and self._capacity.why_never(one, one.usable or self._everywhere) is None:
            draft.leaves(one, Kind.UNLOAD, f"{one.name} is unloaded and loads elsewhere: {why}", cause="elsewhere")
            self._spots.clear()  # it may have been pinned: there is more to be had than before
        else:
            draft.refusals.append(Refusal(one.name, why))

    def _come(self, one: Resident, need: int, devices: tuple[str, ...], options: tuple[Option, ...]) -> None:
        draft, place = self._draft, _words(devices)
        if options:
            self._leaving.spared, before = {option.resident.name for option in options}, len(draft.actions)
            for option in options:
                self._give_way(option, f"{one.name} needs {draft.sizes[need]} on {place}", one.name)
            if any(not action.after for action in draft.actions[before:]):
                self.left -= 1
        after = self._books.after(need, devices)
        assert after is not None
        self._books.take(need, devices)
        self._sites.goes(one)
        draft.changed(devices, less=not options)
        kind, verb = (Kind.WAKE, "wakes") if one.place is _HOST else (Kind.LOAD, "loads")
        count = f"{one.waiting} request{'s' if one.waiting != 1 else ''} wait{'s' if one.waiting == 1 else ''}"
        draft.actions.append(Action(kind, one.name, devices, f"{one.name} {verb} on {place}: {count}", after))

    def _give_way(self, option: Option, need: str, to: str) -> None:
        one, draft = option.resident, self._draft
        used = "has requests" if one.busy else f"was last used {ago(draft.now - one.last_use)} ago"
        patience = f"; {to} has waited {ago(draft.rules.patience)} or more" if option.in_use else ""
        reason = f"{one.name} gives way: {need}, {one.name} has priority {one.priority} and {used}{patience}"
        if option.kind is Kind.FLOOR:
            floor = one.floor_least or 0
            self._books.comes_at_once(one.floor - floor, one.on)
            lent = f"the floor of {one.name} is lent: {need}"
            draft.at_once(one, Action(Kind.FLOOR, one.name, one.on, lent, (), to, floor))
        elif option.kind is Kind.SLEEP:
            self._leaving.sleep(one, reason, reason, to)
        else:
            draft.leaves(one, Kind.UNLOAD, reason, to=to)

    def _close(self, one: Resident, need: int, wanted: Sequence[str]) -> None:
        """Keep later claims off the devices that this one can have first."""
        self._closings -= 1
        least = 0 if one.pinned else need
        when = sorted(
            (self._sites.ready(device, need), device)
            for device in wanted
            if device not in self.closed and self._capacity.free.get(device, -1) >= least
        )
        self.closed.update([device for _, device in when[: one.width]])
        for bound in [bound for bound in self._spots if not bound or not self.closed.isdisjoint(bound)]:
            del self._spots[bound]


def _asked(one: Resident, need: int, *, busy: bool) -> _Asked:
    """All that what is found for a claim depends on, besides where it may go."""
    return busy, one.width, need, one.asleep, one.place is _HOST, one.pinned


def _words(devices: Sequence[str]) -> str:
    return ", ".join(devices) if len(devices) <= 4 else f"one of {len(devices)} devices"
