"""What lies in a device's memory, by model, and how wide that is in a bar of characters. Pure; sizes in bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["other", "weights", "used", "cached", "others", "held", "free"]
"""`used` and `cached` are KV cache; `other` is what else a model's processes hold, `others` what other processes do;
`held` is free, and held back for a model that starts."""

ORDER: tuple[Kind, ...] = ("other", "weights", "used", "cached")
"""The parts of a model, from left to right: its KV cache comes last, because it grows."""

_PRESENT = ("ready", "draining", "waking", "stopping")

View = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Holding:
    """What a model has of a device. `floor` and `ceiling` count KV cache; None: none, or not known."""

    model: str
    parts: Mapping[Kind, int]
    floor: int | None = None
    ceiling: int | None = None

    @property
    def size(self) -> int:
        """All of it."""
        return sum(self.parts.values())

    @property
    def beside(self) -> int:
        """What lies before its KV cache."""
        return self.parts.get("other", 0) + self.parts.get("weights", 0)


@dataclass(frozen=True, slots=True)
class Tin:
    """A device's memory: `total` is the sum of all holdings, `others` and `free`. `held_back` is a part of `free`."""

    holdings: tuple[Holding, ...]
    others: int
    free: int
    held_back: int
    total: int

    @property
    def used(self) -> int:
        """What is not free."""
        return self.total - self.free


@dataclass(frozen=True, slots=True)
class Piece:
    """So many characters of a bar."""

    kind: Kind
    cells: int
    model: str = ""


def tin_of(device: View, models: Sequence[View]) -> Tin:
    """A DeviceView, and what ModelViews say that they hold of it."""
    held = [_holding(device["id"], model) for model in models]
    ours = sum(one.size for one in held)
    for index, model in enumerate(models):
        # One that starts, of whose processes nobody says what they hold: what is there and nobody's is its weights.
        if held[index].size:
            continue
        size = min(_coming(device["id"], model), max(0, device["memory_used"] - ours))
        if size:
            held[index] = Holding(model["name"], {"weights": size}, held[index].floor, held[index].ceiling)
            ours += size
    used = max(device["memory_used"], ours)
    total = max(device["memory_total"], used)
    back = (device.get("pool") or {}).get("held_back", 0)
    shown = tuple(one for one in held if one.size or one.floor)
    return Tin(shown, others=used - ours, free=total - used, held_back=min(back, total - used), total=total)


def _coming(device: str, model: View) -> int:
    """Weights that a model is bringing to a device."""
    return sum(
        one["memory"]["weights"] or 0
        for one in model["instances"]
        if one["state"] == "starting" and device in one["devices"]
    )


def _holding(device: str, model: View) -> Holding:
    sums: dict[Kind, int] = dict.fromkeys(ORDER, 0)
    floor = 0
    ceiling: int | None = None
    for one in model["instances"]:
        memory = one["memory"]
        held = memory["held"].get(device)
        here = device in one["devices"]
        if not here and not held:
            continue
        leases = [lease for lease in memory["leases"] if lease["device"] == device]
        used = sum(min(lease["used"], lease["backed"]) for lease in leases)
        backed = sum(lease["backed"] for lease in leases)
        # Of what sleeps or starts, only what its processes are seen to hold is there.
        weights = (memory["weights"] or 0) if here and one["state"] in _PRESENT else 0
        if held is not None:
            weights = min(weights, held)
            sums["other"] += max(0, held - weights - backed)
        sums["weights"] += weights
        sums["used"] += used
        sums["cached"] += backed - used
        floor += sum(lease["floor"] for lease in leases)
        limits = [lease["ceiling"] for lease in leases if lease["ceiling"] is not None]
        if limits:
            ceiling = (ceiling or 0) + sum(limits)
    parts = {kind: size for kind, size in sums.items() if size}
    return Holding(model["name"], parts, floor or None, ceiling)


def bar(tin: Tin, width: int) -> list[Piece]:
    """The tin in exactly `width` characters. Each border lies at the character that is nearest to it."""
    sizes: list[tuple[Kind, str, int]] = []
    for one in tin.holdings:
        sizes += [(kind, one.model, one.parts[kind]) for kind in ORDER if kind in one.parts]
    sizes += [("others", "", tin.others), ("held", "", tin.held_back), ("free", "", tin.free - tin.held_back)]
    pieces = []
    before = at = 0
    for kind, model, size in sizes:
        before += size
        end = _place(before, tin.total, width)
        if end > at:
            pieces.append(Piece(kind, end - at, model))
            at = end
    if at < width:
        pieces.append(Piece("free", width - at))
    return pieces


def marks(tin: Tin, width: int) -> list[tuple[int, Literal["floor", "ceiling"], str]]:
    """Where floors and ceilings lie below that bar: 0 to `width` - 1, whose they are. One beyond the end has none."""
    found: list[tuple[int, Literal["floor", "ceiling"], str]] = []
    before = 0
    limits: tuple[Literal["floor", "ceiling"], ...] = ("floor", "ceiling")
    for one in tin.holdings:
        for kind in limits:
            limit = one.floor if kind == "floor" else one.ceiling
            at = before + one.beside + (limit or 0)
            if limit and at <= tin.total and width > 0:
                found.append((max(0, _place(at, tin.total, width) - 1), kind, one.model))
        before += one.size
    return found


def spans(tin: Tin, width: int, model: str) -> tuple[int, int]:
    """From which character to which one a model's part of the bar goes; the same twice if it has none."""
    before = 0
    for one in tin.holdings:
        if one.model == model:
            return _place(before, tin.total, width), _place(before + one.size, tin.total, width)
        before += one.size
    return 0, 0


def _place(size: int, total: int, width: int) -> int:
    """`size` of `total` in characters, halves upwards; in whole numbers, so that rounding never adds up."""
    return (2 * width * size + total) // (2 * total) if total else 0
