"""One page of the books each: what is known of a device and of its members. Sizes in bytes, times in seconds."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Literal

from .ages import AGES

Reason = Literal["idle", "share", "floor", "budget", "limit", "trim"]
"""Why a member is to give back. `idle`: another needs what this one does not; `share`: it uses more than its share;
`floor`: another is below its floor; `budget`: others need the device itself; `limit`: it is above its ceiling;
`trim`: a person asked."""

HOLD = 0.1
"""Seconds for which a fall in what a member needs does not yet count, so that a need that wavers moves no memory."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What is fixed or set for a member: all in bytes but `priority`, its weight (1 to 1000) when engines compete.

    `ceiling` None means the device; `unit` is the smallest amount that is of use to the engine.
    """

    floor: int = 0
    ceiling: int | None = None
    priority: int = 100
    unit: int = 1


@dataclass(eq=False, slots=True)
class Member:
    """One rank of an engine on one device."""

    engine: str
    rank: int
    device: Device
    terms: Terms
    ceiling: int
    """Bytes that the lease may reach: the ceiling of its terms, or the device."""
    promised: int
    """The floor it was given once. `terms.floor` is what of it is in force: less, if it came back and not all fits."""
    lease: int = 0
    used: int = 0
    """Bytes of blocks that live requests hold."""
    cached: tuple[int, ...] = ()
    """Bytes of free blocks that still hold a prefix, by age (`ages.AGES`) when reported."""
    cached_at: float = 0.0
    """When that was reported."""
    cached_size: int = 0
    """Bytes of cached blocks in all."""
    oldest: float = 0.0
    """Since when the oldest cached block is unused, if there is one."""
    backed: int = 0
    """Bytes of the device that the engine really holds, at most the lease."""
    waiting: int = 0
    """Requests that wait for memory."""
    need: int = 0
    """The lease that its live requests call for; its own cached blocks count as usable for them."""
    want: int = 0
    """The lease it could use if memory were plentiful: `need` and room to keep cached blocks; at least `need`."""
    least: int = 0
    """The lease with which its first request can run, while nothing of it does; at most `need`. Less is of no use."""
    waiting_since: float = 0.0
    """When it last began to give a `least`."""
    recalled: int | None = None
    """The lease it has been asked to come down to."""
    trim: int | None = None
    """A lease to come down to once, as far as it does not need it: stands until it is there, or needs all it has."""
    _held_need: int = 0
    _held_until: float = 0.0

    @property
    def key(self) -> tuple[str, int]:
        return (self.engine, self.rank)

    def set_need(self, need: int, now: float) -> None:
        """What it needs from now on; of a fall, the level before it is remembered for `HOLD`."""
        if need < self.need and now >= self._held_until:
            self._held_need, self._held_until = self.need, now + HOLD
        self.need = need

    def needed(self, now: float) -> int:
        """What it needs, where a fall counts only after `HOLD`."""
        return self._held_need if now < self._held_until and self._held_need > self.need else self.need

    def held_until(self, now: float) -> float | None:
        """When `needed` falls by itself, or None."""
        return self._held_until if now < self._held_until and self._held_need > self.need else None

    def layers(self) -> list[tuple[float, int]]:
        """What the lease holds beyond `used`, freshest first, as (time since when it is unused, bytes).

        Bytes that hold nothing come last, as unused since for ever. Times are on the clock of the reports, so the
        order stays right as time passes, without new reports.
        """
        left = self.lease - self.used
        found: list[tuple[float, int]] = []
        for start, size in zip(AGES, self.cached, strict=False):
            if size and left > 0:
                found.append((self.cached_at - start, min(size, left)))
                left -= size
        if left > 0:
            found.append((float("-inf"), left))
        return found

    def content(self) -> bool:
        """Whether nothing has to be done for this member, so long as nobody else is short."""
        if self.recalled is not None or self.trim is not None:
            return False
        return self.lease <= self.ceiling and (self.lease >= self.want or self.lease == self.ceiling)


READINGS = 2
"""Measurements of a device in a row that have to show a rise before it counts."""


@dataclass(slots=True)
class Reservation:
    """Bytes that nobody may lease because something is about to take them, or `arriving`: is taking them."""

    size: int
    arriving: bool = False
    readings_left: int | None = None
    """Measurements after which it ends; None: nobody has ended it."""
    fell: int = 0
    """Bytes by which others came down while it arrived: as much has to rise again first."""
    fresh: bool = True
    """Nothing was measured since it was made: what the first measurement shows came or went before."""


@dataclass(eq=False, slots=True)
class Device:
    """One GPU, or the memory of the host."""

    key: str
    size: int
    limit: int | None = None
    """Bytes that may be leased at most, as set by a person."""
    headroom: int = 0
    """Bytes never leased: what engines need beside KV."""
    others: int = 0
    """Bytes measured in use by anything but leased memory: weights, activations, other programs."""
    free: int | None = None
    """Bytes the driver called free when last measured."""
    members: dict[tuple[str, int], Member] = field(default_factory=dict)
    leased: int = 0
    reserved: int = 0
    """Leases, and for members below their floor the floor."""
    floors: int = 0
    """The floors in force."""
    promised: int = 0
    """The floors that were given, whether or not all of each is in force."""
    reservations: dict[Hashable, Reservation] = field(default_factory=dict)
    _last_others: int | None = None

    def confirmed(self, others: int) -> int:
        """What of a reading of `others` the reading before it bears out; the first one stands for itself."""
        last = others if self._last_others is None else self._last_others
        self._last_others = others
        return min(others, last)

    @property
    def watched(self) -> bool:
        """Whether somebody depends on what it is measured to have."""
        return bool(self.members or self.reservations)

    def rest(self) -> None:
        """It is not measured any more: the next reading stands for itself again."""
        self._last_others = None

    @property
    def held_back(self) -> int:
        """Bytes that nobody may lease because something is about to need them."""
        return sum(reservation.size for reservation in self.reservations.values())

    @property
    def budget(self) -> int:
        room = self.size - self.headroom - self.others - self.held_back
        return max(0, room if self.limit is None else min(room, self.limit))

    @property
    def owed(self) -> int:
        """Bytes leased beyond the budget, to be given back."""
        return max(0, self.leased - self.budget)

    def most(self, member: Member) -> int:
        """The largest lease that `member` can reach as things stand, if all others come down to their floors."""
        return max(0, min(member.ceiling, self.budget - self.floors + member.terms.floor))
