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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import exp

from shoal.fleet.residency import Kind, Residency, Resident, Rules
from shoal.fleet.residency_books import Books, frees

LOOKED_AT = 4
"""Of many devices, for so many the ways are worked out in full: those whose first guess is best."""

Score = tuple[bool, int, float, float, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Option:
    """One model that could give way, how, what that frees on each of its devices, and the waiting that it causes."""

    resident: Resident
    kind: Kind
    size: int
    in_use: bool
    harm: float


@dataclass(frozen=True, slots=True)
class Way:
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
        self._now, self._rules, self._books, self._limited = now, rules, books, limited
        self._on: dict[str, list[Resident]] = {}
        self._options: dict[tuple[str, bool], list[Option]] = {}
        self._sums: dict[tuple[str, bool], tuple[list[int], list[float]]] = {}
        self._harms: dict[tuple[str, Kind], float] = {}
        self._most: dict[bool, int] = {}
        self.gone: set[str] = set()

    def add(self, resident: Resident) -> None:
        """One that is on its devices, at rest, and not pinned."""
        for device in resident.on:
            self._on.setdefault(device, []).append(resident)

    def on(self, device: str) -> Iterable[Resident]:
        """Those that were added and have not gone, on a device."""
        return (one for one in self._on.get(device, ()) if one.name not in self.gone)

    def changed(self, devices: Iterable[str]) -> None:
        """What is on `devices` or promised of them has changed."""
        for device in devices:
            for busy in (False, True):
                self._options.pop((device, busy), None)
                self._sums.pop((device, busy), None)
        self._most.clear()

    def could_have(self, device: str, *, busy: bool) -> int:
        """The most bytes that could be had on a device, if all gave way that may now; `busy`: those in use too."""
        return self._books.room(device) + sum(self._everything(option) for option in self._listed(device, busy=busy))

    def most(self, devices: Sequence[str], *, busy: bool) -> int:
        """The most that could be had on any device; an upper bound, kept until something changes."""
        if busy not in self._most:
            self._most[busy] = max((self.could_have(device, busy=busy) for device in devices), default=0)
        return self._most[busy]

    def best(self, resident: Resident, need: int, devices: Sequence[str], *, busy: bool) -> Way | None:
        """The best way to have `need` bytes on each of `resident.width` of `devices`. None: there is none now."""
        width = resident.width
        if len(devices) < width:
            return None
        if len(devices) == width:
            return self._joint(resident, need, tuple(devices), busy=busy)
        guesses = [(guess, d) for d in devices if (guess := self._guess(d, need, busy=busy)) is not None]
        if len(guesses) < width:
            return None
        guesses.sort()
        names = [device for _, device in guesses]
        sets = [(name,) for name in names[:LOOKED_AT]] if width == 1 else [tuple(sorted(names[:width]))]
        found = [way for one in sets if (way := self._joint(resident, need, one, busy=busy)) is not None]
        return min(found, key=lambda way: way.score, default=None)

    def _guess(self, device: str, need: int, *, busy: bool) -> tuple[bool, int, float] | None:
        """What the first models in order would cost that make enough room on one device, from sums kept for all."""
        short = need - self._books.room(device)
        if short <= 0:
            return (False, 0, 0.0)
        options = self._listed(device, busy=busy)
        if (device, busy) not in self._sums:
            sizes = list(accumulate(option.size for option in options))
            self._sums[device, busy] = sizes, list(accumulate(option.harm for option in options))
        sizes, harms = self._sums[device, busy]
        last = bisect_left(sizes, short)
        if last < len(sizes):
            return options[last].in_use, options[last].resident.priority, harms[last]
        if self.could_have(device, busy=busy) < need:
            return None
        return options[-1].in_use, options[-1].resident.priority, harms[-1] * 2

    def _joint(self, resident: Resident, need: int, devices: tuple[str, ...], *, busy: bool) -> Way | None:
        shorts = {device: need - self._books.room(device) for device in devices}
        if all(short <= 0 for short in shorts.values()):
            return Way(devices, (), self._score(resident, (), devices))
        found = {o.resident.name: o for device in devices for o in self._listed(device, busy=busy)}
        found.pop(resident.name, None)
        options = sorted(found.values(), key=_order)
        for kinds in (_lend, _as_they_are, _unload):
            offered = [option for one in options for option in kinds(self, one)]
            ways = []
            for order in (_order, _latest, _largest):
                chosen = _enough(sorted(offered, key=order), shorts)
                if chosen is None:
                    break
                ways.append(Way(devices, chosen, self._score(resident, chosen, devices)))
            if ways:
                return min(ways, key=lambda way: way.score)
        return None

    def _score(self, resident: Resident, options: tuple[Option, ...], devices: tuple[str, ...]) -> Score:
        return (
            any(one.in_use for one in options),
            max((one.resident.priority for one in options), default=0),
            waiting(resident, options) + sum(one.harm for one in options),
            max((one.resident.last_use for one in options), default=0.0),
            devices,
        )

    def _listed(self, device: str, *, busy: bool) -> list[Option]:
        """Who may give way on a device now, those that are missed least first."""
        if (device, busy) not in self._options:
            self._options[device, busy] = sorted(self._may_give_way(device, busy=busy), key=_order)
        return self._options[device, busy]

    def _may_give_way(self, device: str, *, busy: bool) -> Iterable[Option]:
        if device in self._limited:
            return
        now, rules = self._now, self._rules
        for one in self.on(device):
            if one.place is Residency.HOST:
                # What sleeping models leave on a device must not keep all of them from waking.
                if one.asleep and (busy or not one.waiting):
                    yield Option(one, Kind.UNLOAD, one.asleep, one.waiting > 0, self._harm(one, Kind.UNLOAD))
                continue
            in_use = rules.in_use(one, now)
            if now < rules.stays(one) or (in_use and not busy):
                continue
            kind = Kind.SLEEP if one.can_sleep else Kind.UNLOAD
            yield Option(one, kind, frees(one, kind), in_use, self._harm(one, kind))

    def as_unload(self, option: Option) -> Option:
        """The same model, unloaded instead of asleep."""
        one = option.resident
        return Option(one, Kind.UNLOAD, one.taken, option.in_use, self._harm(one, Kind.UNLOAD))

    def _harm(self, resident: Resident, kind: Kind) -> float:
        if (resident.name, kind) not in self._harms:
            self._harms[resident.name, kind] = harm(resident, kind, self._now, self._rules.horizon)
        return self._harms[resident.name, kind]

    @staticmethod
    def _everything(option: Option) -> int:
        return option.resident.taken


def _lend(_: Ways, option: Option) -> Iterable[Option]:
    one = option.resident
    if one.place is Residency.GPU and not option.in_use and (size := frees(one, Kind.FLOOR)):
        yield Option(one, Kind.FLOOR, size, in_use=False, harm=0.0)


def _as_they_are(_: Ways, option: Option) -> Iterable[Option]:
    yield option


def _unload(ways: Ways, option: Option) -> Iterable[Option]:
    yield ways.as_unload(option)


def _order(option: Option) -> tuple[bool, int, float, float, str]:
    one = option.resident
    return option.in_use, one.priority, option.harm / max(1, option.size), one.last_use, one.name


def _latest(option: Option) -> tuple[bool, int, float, str]:
    one = option.resident
    return option.in_use, one.priority, one.last_use, one.name


def _largest(option: Option) -> tuple[bool, int, int, float, str]:
    one = option.resident
    return option.in_use, one.priority, -option.size, option.harm, one.name


def _enough(ordered: Sequence[Option], shorts: dict[str, int]) -> tuple[Option, ...] | None:
    """The first of `ordered` that together free what is short, without those that turn out not to be needed."""
    left = dict(shorts)
    chosen: list[Option] = []
    for option in ordered:
        if all(short <= 0 for short in left.values()):
            break
        if any(left.get(device, 0) > 0 for device in option.resident.on):
            chosen.append(option)
            _add(left, option, -1)
    if any(short > 0 for short in left.values()):
        return None
    kept = []
    for option in reversed(chosen):
        _add(left, option, 1)
        if any(left[device] > 0 for device in option.resident.on if device in left):
            _add(left, option, -1)
            kept.append(option)
    return tuple(reversed(kept))


def _add(left: dict[str, int], option: Option, sign: int) -> None:
    for device in option.resident.on:
        if device in left:
            left[device] += sign * option.size
