"""Who is on each device while a plan is made, what could be had of it, and what of that was worked out already. Pure.

Hundreds of claims may ask the same of the same devices in one decision. Each answer is worked out once, and again only
for devices on which something has changed since.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate
from math import inf

from shoal.fleet.residency import Kind, Residency, Resident, Rules, Snapshot
from shoal.fleet.residency_books import Books, frees
from shoal.fleet.residency_options import Option, harm

Coldness = tuple[bool, float, float, str]
_DISK, _HOST = Residency.DISK, Residency.HOST
_SLEEP, _UNLOAD, _FLOOR = Kind.SLEEP, Kind.UNLOAD, Kind.FLOOR


class _Found:
    """What was worked out of a device. Of pairs the second counts those in use too."""

    __slots__ = ("cold", "options", "sums")

    def __init__(self) -> None:
        self.cold: list[Coldness | None] = [None, None]
        self.options: list[list[Option] | None] = [None, None]
        self.sums: list[tuple[list[int], list[float]] | None] = [None, None]


class Site:
    """What is on one device, at rest and not pinned."""

    __slots__ = ("asleep", "found", "idle", "in_use", "offered", "offered_asleep", "offered_busy", "staying")

    def __init__(self) -> None:
        self.idle: list[Resident] = []
        """Those awake that may give way now, and are not in use."""
        self.in_use: list[Resident] = []
        """Those that may, and are."""
        self.staying: list[tuple[float, str, Resident]] = []
        """Those that may not yet, after the time from which they may."""
        self.asleep: list[Resident] = []
        self.offered = self.offered_busy = self.offered_asleep = 0
        """Bytes of those that may give way and are not gone; with those in use; those asleep of that alone."""
        self.found: _Found | None = None
        """None until something is worked out, and again once something changes here."""

    @property
    def awake(self) -> list[Resident]:
        """All that are awake."""
        return [*self.idle, *self.in_use, *(one for _, _, one in self.staying)]

    def may_go(self, *, busy: bool) -> list[Resident]:
        """Those awake that may give way now; `busy`: those in use too."""
        return [*self.idle, *self.in_use] if busy else self.idle

    def known(self) -> _Found:
        """What was worked out."""
        if self.found is None:
            self.found = _Found()
        return self.found


class Sites:
    """The devices of a snapshot. Something is done already with those that are `gone`; on `limited` devices nobody
    gives way, nor on others a model that is also on one of those."""

    def __init__(self, snapshot: Snapshot, rules: Rules, books: Books, limited: Iterable[str]) -> None:
        self._now, self._rules, self._books = snapshot.now, rules, books
        self.limited = set(limited)
        self.gone: set[str] = set()
        self._barred: set[str] = set()
        """Those that give way no more: gone, or also on a limited device."""
        self.next_change = inf
        """When the next of those that may not give way yet may; known once somebody was looked for."""
        self._made: dict[tuple[str, Kind], Option] = {}
        self._devices = snapshot.devices
        self._sites: dict[str, Site] = {}
        """Empty until somebody is looked for: few decisions need any."""
        self._ranks: list[dict[str, int] | None] = [None, None]

    def _all(self) -> dict[str, Site]:
        """The devices, each with those on it."""
        if not self._sites:
            self._sites = {device.id: Site() for device in self._devices}
            self._enter()
        return self._sites

    def _enter(self) -> None:
        now, times, sites, next_change = self._now, self._rules.times, self._sites, self.next_change
        self._barred |= self.gone
        barred, limited = self._barred, self.limited
        for one in self._books.resting:
            if limited and len(one.on) > 1 and not limited.isdisjoint(one.on):
                barred.add(one.name)
            size = 0
            if one.place is _HOST:
                used = one.waiting > 0
                if one.name not in barred:
                    size = one.asleep
                for device in one.on:
                    if (site := sites.get(device)) is not None:
                        site.asleep.append(one)
                        site.offered_asleep += size
                        site.offered_busy += size
                        if not used:
                            site.offered += size
                continue
            stays, quiet = times(one)
            may = stays <= now
            if now < stays < next_change:
                next_change = stays
            if now < quiet < next_change:
                next_change = quiet
            used = quiet > now or one.running > 0 or one.waiting > 0
            if may and one.name not in barred:
                size = one.awake
            for device in one.on:
                if (site := sites.get(device)) is not None:
                    if not may:
                        site.staying.append((stays, one.name, one))
                        continue
                    site.offered_busy += size
                    if used:
                        site.in_use.append(one)
                    else:
                        site.idle.append(one)
                        site.offered += size
        self.next_change = next_change

    def goes(self, one: Resident) -> None:
        """Something is done with a model: nothing else is."""
        self.gone.add(one.name)
        if self._sites and one.place is not _DISK:
            self._keep(one)

    def limit(self, devices: Iterable[str]) -> None:
        """Nobody gives way on `devices` any more, nor a model of theirs elsewhere."""
        for device in devices:
            self.limited.add(device)
            site = self._sites.get(device)
            if site is None:
                continue  # those on it are seen to when they are entered
            for one in [*site.asleep, *site.awake]:
                if len(one.on) > 1 and one.name not in self._barred:
                    self._keep(one)
                    self.changed(one.on)

    def _keep(self, one: Resident) -> None:
        """It is not offered any more."""
        if one.name in self._barred:
            return
        self._barred.add(one.name)
        if one.motion is not None or one.pinned:
            return
        asleep = one.place is _HOST
        if asleep:
            size, used = one.asleep, one.waiting > 0
        else:
            size = one.awake if self._rules.stays(one) <= self._now else 0
            used = self._rules.in_use(one, self._now)
        for device in one.on:
            if (site := self._sites.get(device)) is not None:
                site.offered_asleep -= size if asleep else 0
                site.offered_busy -= size
                if not used:
                    site.offered -= size

    def changed(self, devices: Iterable[str]) -> None:
        """What is on `devices` or promised of them has changed."""
        for device in devices:
            site = self._sites.get(device)
            if site is not None and site.found is not None:
                site.found, self._ranks = None, [None, None]

    def could_have(self, devices: Iterable[str], *, busy: bool) -> list[int]:
        """The most bytes that could be had on each of `devices`, if all gave way that may now; `busy`: those in use
        too."""
        sites, rooms, limited, found = self._sites, self._books.rooms, self.limited, []
        for device in devices:
            room = rooms[device]
            if device not in limited:
                sites = sites or self._all()
                site = sites[device]
                room += site.offered_busy if busy else site.offered
            found.append(room)
        return found

    def ready(self, device: str, need: int) -> float:
        """When enough of those on a device have stayed long enough to give way for `need` bytes."""
        site, gone = self._all()[device], self.gone
        have = self._books.rooms[device] + (0 if device in self.limited else site.offered_asleep)
        have += sum([one.awake for one in site.may_go(busy=True) if one.name not in gone])
        if have >= need:
            return self._now
        site.staying.sort()
        for then, name, one in site.staying:
            if name not in gone:
                have += one.awake
                if have >= need:
                    return then
        return inf

    def coldest_first(self, devices: Iterable[str], *, busy: bool) -> list[str]:
        """Devices by the model on them that is missed least, as far as that can be told at a glance."""
        ranks = self._ranks[busy]
        if ranks is None:
            order = sorted([self._coldest(device, site, busy=busy) for device, site in self._all().items()])
            ranks = self._ranks[busy] = {device: rank for rank, (_, _, _, device) in enumerate(order)}
        return sorted(devices, key=ranks.__getitem__)

    def _coldest(self, device: str, site: Site, *, busy: bool) -> Coldness:
        known = site.known().cold
        best = known[busy]
        if best is None:
            best = (True, inf, inf, device)
            for used, some in ((False, site.idle), (True, site.in_use if busy else ())):
                for one in some:
                    if one.name not in self._barred:
                        best = min(best, (used, one.priority, one.last_use, device))
            known[busy] = best
        return best

    def guess(self, device: str, need: int, *, busy: bool) -> tuple[bool, int, float]:
        """What the first models in order would cost that make room for `need`, where that can be had, from sums kept
        for all; infinite where those asleep would have to be unloaded too."""
        short = need - self._books.rooms[device]
        if short <= 0:
            return False, 0, 0.0
        options, (sizes, harms) = self.listed(device, busy=busy), self._summed(device, busy=busy)
        last = bisect_left(sizes, short)
        if last < len(sizes):
            return options[last].in_use, options[last].resident.priority, harms[last]
        return (options[-1].in_use, options[-1].resident.priority, inf) if options else (False, 0, inf)

    def _summed(self, device: str, *, busy: bool) -> tuple[list[int], list[float]]:
        """What the first models in order free together, and their harm."""
        known = self._sites[device].known().sums
        sums = known[busy]
        if sums is None:
            options = self.listed(device, busy=busy)
            sums = [*accumulate(one.size for one in options)], [*accumulate(one.harm for one in options)]
            known[busy] = sums
        return sums

    def listed(self, device: str, *, busy: bool) -> list[Option]:
        """Who is awake on a device and may give way now, those that are missed least first."""
        if device in self.limited:
            return []
        site = self._all()[device]
        known = site.known().options
        options = known[busy]
        if options is None:
            kinds = (_UNLOAD, _SLEEP)
            options = known[busy] = sorted(
                self.option(one, kinds[one.sleep_level > 0])
                for one in site.may_go(busy=busy)
                if one.name not in self._barred
            )
        return options

    def remains(self, device: str, *, busy: bool) -> list[Resident]:
        """Who sleeps on a device and may be unloaded for what it takes there; those that are asked for only if `busy`,
        because what sleeping models leave on a device must not keep all of them from waking."""
        if device in self.limited:
            return []
        return [
            one
            for one in self._all()[device].asleep
            if one.asleep and (busy or not one.waiting) and one.name not in self._barred
        ]

    def sleep_would_do(self, device: str, need: int) -> bool:
        """Whether sleep will be enough once all that are awake there may go: sooner than a load that is caused now."""
        kinds = (_UNLOAD, _SLEEP)
        awake = (frees(one, kinds[one.sleep_level > 0]) for one in self._all()[device].awake)
        return self._books.rooms[device] + sum(awake) >= need

    def option(self, one: Resident, kind: Kind) -> Option:
        """How a model gives way; worked out once."""
        key = one.name, kind
        if key not in self._made:
            in_use = one.waiting > 0 if one.place is _HOST else self._rules.in_use(one, self._now)
            size = frees(one, kind)
            cost = 0.0 if kind is _FLOOR else harm(one, kind, self._now, self._rules.horizon)
            order = in_use, one.priority, cost / max(1, size), one.last_use, one.name
            self._made[key] = Option(order, one, kind, size, in_use, cost)
        return self._made[key]
