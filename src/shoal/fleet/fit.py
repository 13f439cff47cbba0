"""Does a model fit, where, and what would have to give way? Pure: from needs and what devices hold to sums.

`placement.py` decides where an instance goes; this answers the question beforehand, for models that nobody has loaded
yet, one after the other: a model counts as there for those named after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from shoal.fleet.needs import Needs
from shoal.fleet.peaks import Demand, Peaks, peaks
from shoal.units import format_bytes


class Verdict(StrEnum):
    """How it fits, the best first."""

    LOADED = "loaded"
    FITS = "fits"
    IF_OTHERS_GIVE_WAY = "fits_if_others_give_way"
    UNKNOWN = "unknown"
    DOES_NOT_FIT = "does_not_fit"


@dataclass(frozen=True, slots=True)
class Holder:
    """An instance on a device that could give way. Bytes: `gives` of them come back there when it does, `fixed` of
    which are no KV cache. `sleeps`: it can sleep; else it has to be unloaded. `used_at`: when it was used last."""

    instance: str
    model: str
    gives: int
    fixed: int = 0
    sleeps: bool = False
    priority: int = 100
    used_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Space:
    """A device as it is now, in bytes. `free`: what a new instance could have, KV cache that no request uses included,
    what is promised to others taken off. `kv`: what KV caches may have in all, beside all else that is there."""

    device: str
    kind: str
    size: int
    free: int
    kv: int
    kept: int = 0
    """Bytes that instances on it leave free, so that their KV caches find room: no part of `free`."""
    holders: tuple[Holder, ...] = ()
    demands: tuple[Demand, ...] = ()
    unknown: tuple[str, ...] = ()
    """Elastic models on it whose load is not known."""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model that is asked about. `needs` by device id, `kinds` of device that its engine can use, the favourite
    first, `on`: the devices that it may be on (None: any). `loaded`: the devices that it is on already."""

    model: str
    needs: Mapping[str, Needs]
    kinds: tuple[str, ...]
    width: int = 1
    on: tuple[str, ...] | None = None
    loaded: tuple[str, ...] = ()
    demand: Demand | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """A line of a sum."""

    what: str
    bytes: int


@dataclass(frozen=True, slots=True)
class DeviceAnswer:
    """A model on one device. Bytes; `needed` is None where it is not known. `sleep` and `unload`: the models that have
    to give way, and how."""

    device: str
    verdict: Verdict
    needed: int | None
    free: int
    size: int
    message: str
    parts: tuple[Part, ...] = ()
    sleep: tuple[str, ...] = ()
    unload: tuple[str, ...] = ()
    measured: bool = False


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """A model: the best of what its devices answer, those that it would be put on, and each device's answer."""

    model: str
    verdict: Verdict
    message: str
    on: tuple[str, ...]
    devices: tuple[DeviceAnswer, ...]


@dataclass(frozen=True, slots=True)
class Collision:
    """The KV caches on one device, once all is there that was asked for. None: no model on it has a known load."""

    device: str
    budget: int
    peaks: Peaks | None
    unknown: tuple[str, ...]
    message: str


@dataclass(slots=True)
class _Plan:
    spaces: dict[str, Space]
    gone: set[str] = field(default_factory=set)


def fit(wanted: Sequence[Wanted], spaces: Sequence[Space]) -> tuple[list[ModelAnswer], list[Collision]]:
    """An answer for each model, in order, and one for each device on which one of them is or would be.

    What gives way for a model is gone for those after it.
    """
    plan = _Plan({space.device: space for space in spaces})
    answers = [_answer(one, plan) for one in wanted]
    touched = {device for answer in answers for device in answer.on}
    return answers, [_collision(plan.spaces[space.device]) for space in spaces if space.device in touched]


def _answer(wanted: Wanted, plan: _Plan) -> ModelAnswer:
    usable = _usable(wanted, plan)
    if wanted.loaded:
        where = ", ".join(wanted.loaded)
        return ModelAnswer(wanted.model, Verdict.LOADED, f"{wanted.model} is loaded on {where}", wanted.loaded, ())
    found = sorted((on_device(wanted, plan.spaces[name]) for name in usable), key=_rank)
    if len(found) < wanted.width:
        kinds = " or ".join(wanted.kinds)
        message = f"{wanted.model} needs {wanted.width} {kinds} device(s), and {len(found)} can be used"
        return ModelAnswer(wanted.model, Verdict.DOES_NOT_FIT, message, (), tuple(_in_order(found, plan)))
    chosen = found[: wanted.width]
    verdict = chosen[-1].verdict
    on: tuple[str, ...] = ()
    if verdict is not Verdict.DOES_NOT_FIT:
        on = tuple(sorted(answer.device for answer in chosen))
        for answer in chosen:
            _take(wanted, answer, plan)
    return ModelAnswer(wanted.model, verdict, chosen[-1].message, on, tuple(_in_order(found, plan)))


def _usable(wanted: Wanted, plan: _Plan) -> list[str]:
    """As `place` has it: the devices named, or all of the first kind that there is any of."""
    ready = [space for space in plan.spaces.values() if space.error is None and space.device in wanted.needs]
    if wanted.on is not None:
        return [space.device for space in ready if space.device in wanted.on and space.kind in wanted.kinds]
    for kind in wanted.kinds:
        if found := [space.device for space in ready if space.kind == kind]:
            return found
    return []


def _in_order(answers: Sequence[DeviceAnswer], plan: _Plan) -> list[DeviceAnswer]:
    places = list(plan.spaces)
    return sorted(answers, key=lambda answer: places.index(answer.device))


_ORDER = list(Verdict)


def _rank(answer: DeviceAnswer) -> tuple[int, int, int, str]:
    moved = len(answer.sleep) + len(answer.unload)
    return _ORDER.index(answer.verdict), moved, -answer.free, answer.device


def on_device(wanted: Wanted, space: Space) -> DeviceAnswer:
    """Whether a model fits on a device as it is, with the sum and who would have to give way."""
    needs = wanted.needs[space.device]
    needed = needs.total
    known = (needs.weights or 0) + needs.overhead + needs.kv
    kv = "KV cache from the start" if needs.elastic else "KV cache"
    parts = (
        *([] if needs.weights is None else [Part("weights", needs.weights)]),
        Part("overhead", needs.overhead),
        Part(kv, needs.kv),
        Part("others hold", max(0, space.size - space.free - space.kept)),
        *([Part("stays free", space.kept)] if space.kept else []),
    )
    answer = DeviceAnswer(
        space.device, Verdict.FITS, needed, max(0, space.free), space.size, "", parts, measured=needs.measured
    )
    least = "" if needed is not None else "at least "
    has = f"{space.device} has {format_bytes(max(0, space.free))} free of {format_bytes(space.size)}"
    says = f"{wanted.model} needs {least}{format_bytes(known)}, {has}"
    others = [holder for holder in space.holders if holder.model != wanted.model]
    out = give_way(others, known - space.free)
    if out is None:
        most = space.free + sum(holder.gives for holder in others)
        if most > space.free:
            says += f", and {format_bytes(max(0, most))} with every other model out of the way"
        return replace(answer, verdict=Verdict.DOES_NOT_FIT, message=f"{says}: it does not fit")
    sleep = tuple(dict.fromkeys(holder.model for holder in out if holder.sleeps))
    unload = tuple(dict.fromkeys(holder.model for holder in out if not holder.sleeps))
    answer = replace(answer, sleep=sleep, unload=unload)
    if needed is None:
        return replace(answer, verdict=Verdict.UNKNOWN, message=f"{says}; its weights are not known yet")
    if not out:
        return replace(answer, message=f"{says}: it fits")
    ways = [_way(names, verbs) for names, verbs in ((sleep, ("sleeps", "sleep")), (unload, _UNLOADED)) if names]
    freed = format_bytes(sum(holder.gives for holder in out))
    message = f"{says}: it fits if {' and '.join(ways)}, which gives back {freed}"
    return replace(answer, verdict=Verdict.IF_OTHERS_GIVE_WAY, message=message)


_UNLOADED = ("is unloaded", "are unloaded")


def _way(names: Sequence[str], verbs: tuple[str, str]) -> str:
    return f"{', '.join(names)} {verbs[len(names) > 1]}"


def give_way(holders: Sequence[Holder], short: int) -> list[Holder] | None:
    """Those that have to give `short` bytes back: of lower priority first, then unused for longest, and nobody for
    nothing. None if all of them together do not have so much."""
    if short <= 0:
        return []
    chosen: list[Holder] = []
    gained = 0
    for holder in sorted(holders, key=lambda h: (h.priority, h.used_at, h.instance)):
        if gained >= short:
            break
        if holder.gives > 0:
            chosen.append(holder)
            gained += holder.gives
    if gained < short:
        return None
    for holder in reversed(chosen[:-1]):  # the last one was needed
        if gained - holder.gives >= short:
            chosen.remove(holder)
            gained -= holder.gives
    return chosen


def _take(wanted: Wanted, answer: DeviceAnswer, plan: _Plan) -> None:
    """Have the device hold the model, and no longer those that gave way: on all of their devices."""
    leaving = {*answer.sleep, *answer.unload}
    for name, space in plan.spaces.items():
        out = [holder for holder in space.holders if holder.model in leaving]
        plan.spaces[name] = replace(
            space,
            free=space.free + sum(holder.gives for holder in out),
            kv=space.kv + sum(holder.fixed for holder in out),
            holders=tuple(holder for holder in space.holders if holder.model not in leaving),
            demands=tuple(demand for demand in space.demands if demand.model not in leaving),
            unknown=tuple(model for model in space.unknown if model not in leaving),
        )
    needs, space = wanted.needs[answer.device], plan.spaces[answer.device]
    known = needs.fixed + needs.kv
    elastic = needs.elastic and wanted.demand is not None
    plan.spaces[answer.device] = replace(
        space,
        free=space.free - known,
        kv=space.kv - needs.fixed - (0 if needs.elastic else needs.kv),
        demands=(*space.demands, wanted.demand) if elastic and wanted.demand is not None else space.demands,
        unknown=(*space.unknown, wanted.model) if needs.elastic and wanted.demand is None else space.unknown,
    )


def _collision(space: Space) -> Collision:
    budget = max(0, space.kv)
    unknown = tuple(dict.fromkeys(space.unknown))
    without = f" (without {', '.join(unknown)}, whose load is not known)" if unknown else ""
    if not space.demands:
        message = f"{space.device}: {format_bytes(budget)} for KV caches; no load is known{without}"
        return Collision(space.device, budget, None, unknown, message)
    found = peaks(space.demands, budget)
    message = (
        f"{space.device}: {format_bytes(budget)} for KV caches, of which {format_bytes(found.expected)} are used on "
        f"average; the chance that they want more together is {chance(found.probability)}{without}"
    )
    return Collision(space.device, budget, found, unknown, message)


def chance(probability: float) -> str:
    """A probability for people, such as ``0.3 %``."""
    if probability < 1e-6:
        return "less than 0.0001 %"
    return f"{100 * probability:.2g} %" if probability < 0.995 else "nearly 100 %"
