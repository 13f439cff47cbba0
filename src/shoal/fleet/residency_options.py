"""One model that gives way: how, what that frees, and the waiting that it causes. Pure.

A set of models that give way and make enough room is a way (`residency_ways.py`). The best is the least by, in this
order: whether a model that is in use gives way, the highest priority that gives way, the waiting caused, and how lately
the most recently used one was used. The waiting caused, in request seconds weighed by priority, is

    J = p_c (n_c + r_c T / 2) T  +  sum over v of  p_v (n_v + (1 - exp(-r_v H)) (1 + r_v W_v / 2)) W_v

for the model c that comes and those v that give way, where p is priority / 100, n the requests that wait, r requests a
second, T the seconds until c serves (the longest drain and sleep among v, then its own wake or load), W_v those that v
takes to come back if it is asked for, and H the horizon of the rules. Requests are taken to come at random (Poisson):
one comes within H with 1 - exp(-r H), and r W more while the first waits, which on average wait half of W. A model that
has been silent for a seconds is not believed to have a rate above 1 / a; so, what comes back equally fast goes in
the order of last use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import exp
from operator import attrgetter
from typing import NamedTuple

from shoal.fleet.residency import Kind, Residency, Resident

_HOST, _SLEEP, _FLOOR = Residency.HOST, Kind.SLEEP, Kind.FLOOR


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


def rate(resident: Resident, now: float) -> float:
    """Requests a second that may be expected of it."""
    idle = now - resident.last_use
    return resident.rate if resident.busy or resident.rate * idle <= 1.0 else 1.0 / idle


def harm(resident: Resident, kind: Kind, now: float, horizon: float) -> float:
    """The waiting that is caused if `resident` gives way so; its term of J."""
    if kind is _SLEEP:
        back = resident.wake_cost
    elif resident.place is _HOST:
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
        if one.kind is not _FLOOR
    )
    seconds = max(leaving, default=0.0)
    seconds += resident.wake_cost if resident.place is _HOST else resident.load_cost
    return resident.priority / 100 * (resident.waiting + resident.rate * seconds / 2) * seconds


def least_missed(options: Sequence[Option], shorts: Mapping[str, int]) -> list[tuple[Option, ...]]:
    """A few sets of `options` that free what is short on each device: each the first that do, in another order. None if
    all together do not."""
    sets = []
    for order in _ORDERS:
        chosen = enough(sorted(options, key=order), shorts)
        if chosen is None:
            return []
        sets.append(chosen)
    return sets


def enough(ordered: Iterable[Option], shorts: Mapping[str, int]) -> tuple[Option, ...] | None:
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


def _latest(option: Option) -> tuple[bool, int, float, str]:
    one = option.resident
    return option.in_use, one.priority, one.last_use, one.name


def _largest(option: Option) -> tuple[bool, int, int, float, str]:
    one = option.resident
    return option.in_use, one.priority, -option.size, option.harm, one.name


_ORDERS = attrgetter("order"), _latest, _largest
