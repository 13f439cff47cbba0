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


class Site:
    """What is on one device, at rest and not pinned. Of pairs the second counts those in use too."""

    __slots__ = (
        "asleep", "awake", "by_stay", "may_go", "offered", "offered_asleep", "offered_busy", "options", "sums",
        "untouched",
    )  # fmt: skip

    def __init__(self) -> None:
        self.awake: list[tuple[Resident, float]] = []
        """With the time from which it may give way."""
        self.may_go: list[tuple[Resident, bool]] = []
        """Those of them that may now, with whether they are in use."""
        self.asleep: list[Resident] = []
        self.offered = self.offered_busy = self.offered_asleep = 0
        """Bytes of those that may give way and are not gone; with those in use; those asleep of that alone."""
        self.by_stay: list[tuple[float, int, str]] | None = None
        """When each that is awake may give way, with its bytes and name, the earliest first."""
        self.forget()

    def forget(self) -> None:
        """What was worked out does not hold any more."""
        self.untouched = True
        self.options: list[list[Option] | None] = [None, None]
        self.sums: list[tuple[list[int], list[float]] | None] = [None, None]


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
        self._cold: tuple[dict[str, Coldness], dict[str, Coldness]] = {}, {}
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
            if one.pinned:
                continue
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
                    site.awake.append((one, stays))
                    if may:
                        site.may_go.append((one, used))
                        site.offered_busy += size
                        if not used:
                            site.offered += size
        self.next_change = next_change

    def goes(self, one: Resident) -> None:
        """Something is done with a model: nothing else is."""
        self.gone.add(one.name)
        self._keep(one)

    def limit(self, devices: Iterable[str]) -> None:
        """Nobody gives way on `devices` any more, nor a model of theirs elsewhere."""
        for device in devices:
            self.limited.add(device)
            site = self._sites.get(device)
            if site is None:
                continue  # those on it are seen to when they are entered
            for one in [*site.asleep, *(one for one, _ in site.awake)]:
                if len(one.on) > 1 and one.name not in self._barred:
                    self._keep(one)
                    self.changed(one.on)

    def _keep(self, one: Resident) -> None:
        """It is not offered any more."""
        if not self._sites or one.name in self._barred:
            return
        self._barred.add(one.name)
        if one.place is _DISK or one.motion is not None or one.pinned:
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
            if site is not None and not site.untouched:
                site.forget()
            for cold in self._cold:
                cold.pop(device, None)
        self._ranks = [None, None]

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
        site, at = self._all()[device], self._now
        have = self._books.rooms[device] + (0 if device in self.limited else site.offered_asleep)
        if have >= need:
            return at
        if site.by_stay is None:
            site.by_stay = sorted([(stays, one.awake, one.name) for one, stays in site.awake])
        for then, size, name in site.by_stay:
            if name not in self.gone:
                have += size
                if have >= need:
                    return max(at, then)
        return inf

    def coldest_first(self, devices: Iterable[str], *, busy: bool) -> list[str]:
        """Devices by the model on them that is missed least, as far as that can be told at a glance."""
        ranks = self._ranks[busy]
        if ranks is None:
            cold = self._cold[busy]
            sites = self._all()
            for device in sites:
                if device not in cold:
                    cold[device] = self._coldest(device, busy=busy)
            order = sorted(sites, key=cold.__getitem__)
            ranks = self._ranks[busy] = {device: rank for rank, device in enumerate(order)}
        return sorted(devices, key=ranks.__getitem__)

    def _coldest(self, device: str, *, busy: bool) -> Coldness:
        best: Coldness = (True, inf, inf, device)
        for one, used in self._all()[device].may_go:
            if (busy or not used) and one.name not in self._barred:
                best = min(best, (used, one.priority, one.last_use, device))
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
        site = self._sites[device]
        found = site.sums[busy]
        if found is None:
            site.untouched = False
            options = self.listed(device, busy=busy)
            found = [*accumulate(one.size for one in options)], [*accumulate(one.harm for one in options)]
            site.sums[busy] = found
        return found

    def listed(self, device: str, *, busy: bool) -> list[Option]:
        """Who is awake on a device and may give way now, those that are missed least first."""
        if device in self.limited:
            return []
        site = self._all()[device]
        options = site.options[busy]
        if options is None:
            site.untouched = False
            kinds = (_UNLOAD, _SLEEP)
            options = site.options[busy] = sorted(
                self.option(one, kinds[one.sleep_level > 0])
                for one, used in site.may_go
                if (busy or not used) and one.name not in self._barred
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
        awake = (frees(one, kinds[one.sleep_level > 0]) for one, _ in self._all()[device].awake)
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
