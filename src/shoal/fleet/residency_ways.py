"""Ways to make room: which models give way to one that is asked for, compared by the waiting that they cause. Pure.

A way is a set of models that give way. Of those that make enough room the best is the least by, in this order: whether
a model that is in use gives way, the highest priority that gives way, the waiting caused, and how lately the most
recently used one was used. The waiting caused, in request seconds weighed by priority, is

    J = p_c (n_c + r_c T / 2) T  +  sum over v of  p_v (n_v + (1 - exp(-r_v H)) (1 + r_v W_v / 2)) W_v

for the model c that comes and those v that give way, where p is priority / 100, n the requests that wait, r requests a
second, T the seconds until c serves (the longest drain and sleep among v, then its own wake or load), W_v those that v
takes to come back if it is asked for, and H the horizon of the rules. Requests are taken to come at random (Poisson):
one comes within H with 1 - exp(-r H), and r W more while the first waits, which on average wait half of W. A model that
has been silent for a seconds is not believed to have a rate above 1 / a; so, what comes back equally fast goes in
the order of last use.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from math import exp, inf
from operator import attrgetter
from typing import NamedTuple

from shoal.fleet.residency import Kind, Residency, Resident, Rules
from shoal.fleet.residency_books import Books, frees

LOOKED_AT = 3
"""Of many devices, for so many the ways are worked out in full: those whose first guess is best."""
GUESSED_AT = 12
"""And for so many a guess is made, while more come into question: those with the coldest models."""

Score = tuple[bool, int, float, float, tuple[str, ...]]
_HOST, _SLEEP, _UNLOAD, _FLOOR = Residency.HOST, Kind.SLEEP, Kind.UNLOAD, Kind.FLOOR


class Option(NamedTuple):
    """One model that could give way, how, what that frees on each of its devices, and the waiting that it causes.

    `order` sorts those that are missed least for what they free first.
    """

    order: tuple[bool, int, float, float, str]
    resident: Resident
    kind: Kind
    size: int
    in_use: bool
    harm: float


class Way(NamedTuple):
    """Devices for a model, who gives way there, and how this compares: less is better."""

    devices: tuple[str, ...]
    options: tuple[Option, ...]
    score: Score


def rate(resident: Resident, now: float) -> float:
    """Requests a second that may be expected of it."""
    idle = now - resident.last_use
    return resident.rate if resident.busy or resident.rate * idle <= 1.0 else 1.0 / idle


def harm(resident: Resident, kind: Kind, now: float, horizon: float) -> float:
    """The waiting that is caused if `resident` gives way so; its term of J."""
    if kind is Kind.SLEEP:
        back = resident.wake_cost
    elif resident.place is Residency.HOST:
        back = max(0.0, resident.load_cost - resident.wake_cost)  # it would have had to be woken anyway
    else:
        back = resident.load_cost
    r = rate(resident, now)
    expected = resident.waiting + (1.0 - exp(-r * horizon)) * (1.0 + r * back / 2)
    return resident.priority / 100 * expected * back


def waiting(resident: Resident, options: Iterable[Option]) -> float:
    """The waiting of the model that comes; its term of J."""
    leaving = (
        (one.resident.drain_cost if one.resident.running else 0.0) + one.resident.sleep_cost
        for one in options
        if one.kind is not Kind.FLOOR
    )
    seconds = max(leaving, default=0.0)
    seconds += resident.wake_cost if resident.place is Residency.HOST else resident.load_cost
    return resident.priority / 100 * (resident.waiting + resident.rate * seconds / 2) * seconds


class Ways:
    """Looks for ways on devices whose models may give way at `now`. On `limited` devices nobody does."""

    def __init__(self, now: float, rules: Rules, books: Books, limited: set[str]) -> None:
        self._now, self._rules, self._books, self.limited = now, rules, books, limited
        self._residents: list[Resident] = []
        self._awake: dict[str, list[tuple[Resident, float, float]]] | None = None
        self._asleep: dict[str, list[Resident]] = {}
        self._options: dict[tuple[str, bool], list[Option]] = {}
        self._sums: dict[tuple[str, bool], tuple[list[int], list[float]]] = {}
        self._bounds: dict[tuple[str, bool], int] = {}
        self._cold: dict[tuple[str, bool], tuple[bool, float, float, str]] = {}
        self._stays: dict[str, list[tuple[float, int]]] = {}
        self._made: dict[tuple[str, Kind], Option] = {}
        self.gone: set[str] = set()
        self.next_change = inf
        """When the next of those that may not give way yet may; known once somebody was looked for."""

    def add(self, resident: Resident) -> None:
        """One that is on its devices, at rest, and not pinned."""
        self._residents.append(resident)

    def changed(self, devices: Iterable[str]) -> None:
        """What is on `devices` or promised of them has changed."""
        for device in devices:
            self._stays.pop(device, None)
            for key in ((device, False), (device, True)):
                self._options.pop(key, None)
                self._sums.pop(key, None)
                self._bounds.pop(key, None)
                self._cold.pop(key, None)

    def could_have(self, device: str, *, busy: bool) -> int:
        """The most bytes that could be had on a device, if all gave way that may now; `busy`: those in use too."""
        key = device, busy
        size = self._bounds.get(key)
        if size is None:
            size = self._books.room(device)
            if device not in self.limited:
                now, gone = self._now, self.gone
                for one, stays, quiet in self._grouped().get(device, ()):
                    if stays <= now and (busy or (quiet <= now and not one.busy)) and one.name not in gone:
                        size += one.awake
                for one in self._asleep.get(device, ()):
                    if (busy or not one.waiting) and one.name not in gone:
                        size += one.asleep
            self._bounds[key] = size
        return size

    def most(self, devices: Sequence[str], *, busy: bool) -> int:
        """The most that could be had on any of `devices`."""
        return max((self.could_have(device, busy=busy) for device in devices), default=0)

    def ready(self, device: str, need: int) -> float:
        """When enough of those on a device have stayed long enough to give way for `need` bytes."""
        have = self._books.room(device)
        at = self._now
        for then, size in self._by_stay(device):
            if have >= need:
                break
            have, at = have + size, max(at, then)
        return at if have >= need else inf

    def _by_stay(self, device: str) -> list[tuple[float, int]]:
        """What comes back of a device, with the times from which it may, the earliest first."""
        if device not in self._stays:
            stays = [(stays, r.awake) for r, stays, _ in self._grouped().get(device, ()) if r.name not in self.gone]
            stays += [(self._now, one.asleep) for one in self._remains(device, busy=True)]
            self._stays[device] = sorted(stays)
        return self._stays[device]

    def best(self, resident: Resident, need: int, devices: Sequence[str], *, busy: bool) -> Way | None:
        """The best way to have `need` bytes on each of `resident.width` of `devices`. None: there is none now."""
        width = resident.width
        if len(devices) < width:
            return None
        if len(devices) == width:
            # What it takes asleep counts there, and it does not give way to itself.
            mine = resident.asleep if busy and resident.place is _HOST and not resident.pinned else 0
            if any(self.could_have(device, busy=busy) - mine < need for device in devices):
                return None
            return self._joint(resident, need, tuple(devices), busy=busy)
        guesses = []
        enough = max(GUESSED_AT, 2 * width)
        for device in devices if len(devices) <= enough else sorted(devices, key=lambda d: self._coldest(d, busy=busy)):
            if (guess := self._guess(device, need, busy=busy)) is not None:
                guesses.append((guess, device))
                if len(guesses) == enough:
                    break
        if len(guesses) < width:
            return None
        guesses.sort()
        names = [device for _, device in guesses]
        sets = [(name,) for name in names[:LOOKED_AT]] if width == 1 else [tuple(sorted(names[:width]))]
        found = [way for one in sets if (way := self._joint(resident, need, one, busy=busy)) is not None]
        return min(found, key=_score, default=None)

    def _coldest(self, device: str, *, busy: bool) -> tuple[bool, float, float, str]:
        """Sorts devices by the model on them that is missed least, as far as that can be told at a glance."""
        key = device, busy
        if key not in self._cold:
            now, best = self._now, (True, inf, inf, device)
            for one, stays, quiet in self._grouped().get(device, ()):
                if stays <= now and one.name not in self.gone:
                    used = one.running > 0 or one.waiting > 0 or quiet > now
                    if busy or not used:
                        best = min(best, (used, one.priority, one.last_use, device))
            self._cold[key] = best
        return self._cold[key]

    def _guess(self, device: str, need: int, *, busy: bool) -> tuple[bool, int, float] | None:
        """What the first models in order would cost that make enough room on one device, from sums kept for all."""
        short = need - self._books.room(device)
        if short <= 0:
            return (False, 0, 0.0)
        key = device, busy
        options = self._listed(device, busy=busy)
        if key not in self._sums:
            sizes = list(accumulate(option.size for option in options))
            self._sums[key] = sizes, list(accumulate(option.harm for option in options))
        sizes, harms = self._sums[key]
        last = bisect_left(sizes, short)
        if last < len(sizes):
            return options[last].in_use, options[last].resident.priority, harms[last]
        if self.could_have(device, busy=busy) < need:
            return None
        return (options[-1].in_use, options[-1].resident.priority, inf) if options else (False, 0, inf)

    def _joint(self, resident: Resident, need: int, devices: tuple[str, ...], *, busy: bool) -> Way | None:
        """The best way on just these devices: floors are lent, or else models sleep, or else they are unloaded."""
        shorts = {device: need - self._books.room(device) for device in devices}
        if all(short <= 0 for short in shorts.values()):
            return Way(devices, (), self._judge(resident, (), devices))
        listed = {o.resident.name: o for device in devices for o in self._listed(device, busy=busy)}.values()
        floors = [
            self._option(o.resident, _FLOOR) for o in listed if not o.in_use and o.resident.floor_least is not None
        ]
        if floors and (chosen := _enough(sorted(floors), shorts)) is not None:
            return Way(devices, chosen, self._judge(resident, chosen, devices))
        way = self._cheapest(resident, devices, listed, shorts)
        if way is not None or (not busy and any(self._would_do(device, need) for device in devices)):
            return way
        return self._cheapest(resident, devices, self._all_unloaded(resident, devices, listed, busy=busy), shorts)

    def _cheapest(
        self, resident: Resident, devices: tuple[str, ...], offered: Iterable[Option], shorts: Mapping[str, int]
    ) -> Way | None:
        """The best of a few sets of `offered` that free what is short: each the first that do, in another order."""
        ways = []
        for order in (_order, _latest, _largest):
            chosen = _enough(sorted(offered, key=order), shorts)
            if chosen is None:
                return None
            ways.append(Way(devices, chosen, self._judge(resident, chosen, devices)))
        return min(ways, key=_score)

    def _would_do(self, device: str, need: int) -> bool:
        """Whether sleep will be enough once all that are awake there may go: sooner than a load that is caused now."""
        awake = self._grouped().get(device, ())
        kinds = (_UNLOAD, _SLEEP)
        return self._books.room(device) + sum(frees(one, kinds[one.sleep_level > 0]) for one, *_ in awake) >= need

    def _all_unloaded(
        self, resident: Resident, devices: Iterable[str], listed: Iterable[Option], *, busy: bool
    ) -> list[Option]:
        """Options for when sleep leaves too much behind: those awake are unloaded, and those that sleep already."""
        asleep = {one.name: one for device in devices for one in self._remains(device, busy=busy)}
        asleep.pop(resident.name, None)
        return [self._option(one, _UNLOAD) for one in (*(o.resident for o in listed), *asleep.values())]

    def _judge(self, resident: Resident, options: tuple[Option, ...], devices: tuple[str, ...]) -> Score:
        return (
            any(one.in_use for one in options),
            max((one.resident.priority for one in options), default=0),
            waiting(resident, options) + sum(one.harm for one in options),
            max((one.resident.last_use for one in options), default=0.0),
            devices,
        )

    def _listed(self, device: str, *, busy: bool) -> list[Option]:
        """Who is awake on a device and may give way now, those that are missed least first."""
        key = device, busy
        if key not in self._options:
            now, gone, kinds = self._now, self.gone, (_UNLOAD, _SLEEP)
            self._options[key] = [] if device in self.limited else sorted(
                self._option(one, kinds[one.sleep_level > 0])
                for one, stays, quiet in self._grouped().get(device, ())
                if stays <= now and (busy or (quiet <= now and not one.busy)) and one.name not in gone
            )  # fmt: skip
        return self._options[key]

    def _remains(self, device: str, *, busy: bool) -> Iterable[Resident]:
        """Who sleeps on a device and may be unloaded for what it takes there; those that are asked for only if `busy`,
        because what sleeping models leave on a device must not keep all of them from waking."""
        self._grouped()
        if device in self.limited:
            return ()
        return (
            one
            for one in self._asleep.get(device, ())
            if one.asleep and (busy or not one.waiting) and one.name not in self.gone
        )

    def _option(self, one: Resident, kind: Kind) -> Option:
        key = one.name, kind
        if key not in self._made:
            in_use = one.waiting > 0 if one.place is _HOST else self._rules.in_use(one, self._now)
            size = frees(one, kind)
            cost = 0.0 if kind is _FLOOR else harm(one, kind, self._now, self._rules.horizon)
            order = in_use, one.priority, cost / max(1, size), one.last_use, one.name
            self._made[key] = Option(order, one, kind, size, in_use, cost)
        return self._made[key]

    def _grouped(self) -> dict[str, list[tuple[Resident, float, float]]]:
        """Those awake by device, with the times from which they may give way and count as idle."""
        if self._awake is None:
            self._awake = {}
            now, rules = self._now, self._rules
            for one in self._residents:
                if one.place is _HOST:
                    for device in one.on:
                        self._asleep.setdefault(device, []).append(one)
                    continue
                stays, quiet = rules.times(one)
                if now < stays < self.next_change:
                    self.next_change = stays
                if now < quiet < self.next_change:
                    self.next_change = quiet
                entry = one, stays, quiet
                for device in one.on:
                    self._awake.setdefault(device, []).append(entry)
        return self._awake


_score = attrgetter("score")
_order = attrgetter("order")


def _latest(option: Option) -> tuple[bool, int, float, str]:
    one = option.resident
    return option.in_use, one.priority, one.last_use, one.name


def _largest(option: Option) -> tuple[bool, int, int, float, str]:
    one = option.resident
    return option.in_use, one.priority, -option.size, option.harm, one.name


def _enough(ordered: Sequence[Option], shorts: Mapping[str, int]) -> tuple[Option, ...] | None:
    """The first of `ordered` that together free what is short, without those that turn out not to be needed."""
    left = dict(shorts)
    chosen: list[Option] = []
    for option in ordered:
        for device in option.resident.on:
            if left.get(device, 0) > 0:
                chosen.append(option)
                _add(left, option, -1)
                break
        if max(left.values()) <= 0:
            break
    else:
        return None
    kept = []
    for option in reversed(chosen):
        _add(left, option, 1)
        if max(left.values()) > 0:
            _add(left, option, -1)
            kept.append(option)
    return tuple(reversed(kept))


def _add(left: dict[str, int], option: Option, sign: int) -> None:
    for device in option.resident.on:
        if device in left:
            left[device] += sign * option.size
