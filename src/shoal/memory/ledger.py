"""The books of every device: who may keep how many bytes backed. Pure: no clock, no I/O; times are given, in seconds.

A device's *budget* is what may be leased: its size less the headroom, less what is measured to be used by others and
less what is held back for what is about to come; or the limit set for it, if that is lower. Four things always hold,
and `Ledger.check` proves them:

- a grant never takes the sum of leases over the budget, nor any lease over its ceiling;
- a floor is never taken: bytes that a member needs to come back to its floor are granted to nobody else;
- bytes are conserved: a lease changes by a grant, a release, or the end of its member, and in no other way;
- when the budget falls below what is leased, the difference is *owed*: nothing is granted until it has come back.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Literal

from .ages import AGES

Reason = Literal["idle", "share", "floor", "budget", "limit", "trim"]
"""Why a member is to give back. `idle`: another needs what this one does not; `share`: it uses more than its share;
`floor`: another is below its floor; `budget`: others need the device itself; `limit`: it is above its ceiling;
`trim`: a person asked."""

HOLD = 0.1
"""Seconds for which a fall in what a member needs does not yet count, so that a need that wavers moves no memory."""


class LedgerError(ValueError):
    """What was asked for contradicts the books. `code` is a stable word for programs."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def mib(n: int) -> str:
    """Bytes for people, exact enough to add up: `2.5 MiB`."""
    return f"{n / 2**20:,.1f} MiB"


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
    held_back: int = 0
    """Bytes that nobody may lease because something is about to need them."""
    held_back_by: dict[Hashable, int] = field(default_factory=dict)
    _last_others: int | None = None

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


class Ledger:
    """All devices and their members. Every method leaves the books right or raises LedgerError and changes nothing."""

    def __init__(self) -> None:
        self.devices: dict[str, Device] = {}

    def add_device(self, key: str, size: int, *, limit: int | None = None, headroom: int = 0) -> Device:
        """A device of `size` bytes, or the known one of that key, whose measured size goes before what engines say.

        Raises LedgerError if engines contradict each other.
        """
        if size <= 0:
            raise LedgerError(f"device {key} must have a size above zero", "device_size")
        known = self.devices.get(key)
        if known is None:
            known = self.devices[key] = Device(key, size, limit=limit, headroom=min(headroom, size))
        elif known.free is None and known.size != size:
            if known.members:
                raise LedgerError(
                    f"device {key} has {mib(known.size)}, not {mib(size)}; all engines must give it the same size",
                    "device_size",
                )
            known.size = size
        return known

    def set_device(self, device: Device, *, limit: int | None, headroom: int) -> None:
        """Change what may be leased. May leave leases owed, or floors that the budget cannot hold for a while."""
        device.limit = limit
        device.headroom = min(headroom, device.size)

    def hold_back(self, device: Device, owner: Hashable, size: int) -> None:
        """Keep `size` bytes from being leased, in place of what `owner` had held back; 0 ends it.

        Like memory that others use it may leave leases owed. Raises LedgerError if the device is smaller.
        """
        if size > device.size:
            raise LedgerError(
                f"{mib(size)} cannot be held back on device {device.key}, which has {mib(device.size)}",
                "above_device",
            )
        if size:
            device.held_back_by[owner] = size
        else:
            device.held_back_by.pop(owner, None)
        device.held_back = sum(device.held_back_by.values())

    def observe(self, device: Device, total: int, free: int) -> bool:
        """A measurement of the device. Returns whether the budget changed.

        Engines report what they backed a moment after they did it, so one reading may mistake their growth for
        someone else's. A rise therefore counts once two readings in a row show it, or at once when less than half
        the headroom is left; a fall counts at once. Changes below the noise of drivers are passed over.
        """
        before = device.budget
        device.free = free
        if total != device.size:
            device.size = total
            for member in device.members.values():
                member.ceiling = _ceiling(device, member.terms)
        backed = sum(member.backed for member in device.members.values())
        now = max(0, total - free - backed)
        last = device._last_others if device._last_others is not None else now  # noqa: SLF001
        device._last_others = now  # noqa: SLF001
        seen = now if free < device.headroom // 2 else min(now, last)
        if abs(seen - device.others) >= min(32 << 20, total >> 10):
            device.others = seen
        return device.budget != before

    def join(
        self,
        device: Device,
        engine: str,
        rank: int,
        terms: Terms,
        *,
        held: int = 0,
        returning: bool = False,
        now: float = 0.0,
    ) -> Member:
        """A new member, with the `held` bytes that it already has from an earlier broker.

        One that is `returning`, from sleep or to another broker, was promised its floor before, and others may have
        been promised the same bytes since. It gets what of its floor fits, and the rest as soon as that fits
        (`restore`); a newcomer is refused.

        What it holds is a fact, so it is booked even where the budget has no room; then it is owed. A measurement may
        or may not have taken these bytes for someone else's, so where one is to be had, nothing should be decided
        before the next `observe`. Raises LedgerError if the rank is there already, or if a newcomer's terms cannot be
        kept.
        """
        if (engine, rank) in device.members:
            raise LedgerError(
                f"rank {rank} of {engine} is already connected; every engine needs its own name", "duplicate"
            )
        promised = terms.floor
        # One that brings memory along was promised its floor before; to turn it away would break that promise.
        if held == 0:
            if returning:
                terms = replace(terms, floor=min(promised, max(0, device.budget - device.floors)))
            self._check_terms(device, f"{engine} rank {rank}", terms, None)
        member = Member(engine, rank, device, terms, _ceiling(device, terms), promised, backed=held, cached_at=now)
        device.members[member.key] = member
        device.reserved += terms.floor
        device.floors += terms.floor
        device.promised += promised
        self._set_lease(member, held)
        return member

    def leave(self, member: Member) -> None:
        """Its process has ended: its lease is free."""
        device = member.device
        self._set_lease(member, 0)
        device.reserved -= member.terms.floor
        device.floors -= member.terms.floor
        device.promised -= member.promised
        del device.members[member.key]

    def set_terms(self, member: Member, terms: Terms, *, promised: int | None = None) -> None:
        """Change floor, ceiling or priority. A ceiling below the lease is accepted, and the rest asked back.

        `promised` is the floor that it was given once, if that is more than the one of the terms.
        """
        self._check_terms(member.device, f"{member.engine} rank {member.rank}", terms, member)
        promised = terms.floor if promised is None else promised
        member.device.promised += promised - member.promised
        member.promised = promised
        self._set_terms(member, terms)

    def restore(self, device: Device) -> None:
        """Put floors in force again that did not fit when their members came back, the first come first."""
        if device.promised <= device.floors:
            return
        for member in device.members.values():
            size = min(member.promised - member.terms.floor, device.budget - device.floors)
            if size > 0:
                self._set_terms(member, replace(member.terms, floor=member.terms.floor + size))

    def _set_terms(self, member: Member, terms: Terms) -> None:
        device, old = member.device, member.terms
        device.reserved += max(member.lease, terms.floor) - max(member.lease, old.floor)
        device.floors += terms.floor - old.floor
        member.terms, member.ceiling = terms, _ceiling(device, terms)

    def ask(self, member: Member, need: int, want: int, now: float, *, least: int = 0) -> None:
        """What the member needs and wants from now on, as whole leases; the last word counts.

        `least`: the lease with which it can run its first request, if it runs none.
        """
        if need < member.need and now >= member._held_until:  # noqa: SLF001
            member._held_need, member._held_until = member.need, now + HOLD  # noqa: SLF001
        member.need, member.want = need, max(need, want)
        least = min(least, need)
        if least and not member.least:
            member.waiting_since = now
        member.least = least

    def trim(self, member: Member, lease: int) -> None:
        """Have the member come down to `lease` once, or to what it needs if that is more.

        A need that fell a moment ago still counts (`HOLD`); the trim outlasts that.
        """
        if lease < member.lease:
            member.trim = lease

    def report(
        self, member: Member, *, used: int, cached: tuple[int, ...], backed: int, waiting: int, now: float
    ) -> None:
        """What the member says it holds."""
        member.used, member.cached, member.backed, member.waiting = used, cached, backed, waiting
        member.cached_at, member.cached_size = now, sum(cached)
        member.oldest = min((now - start for start, size in zip(AGES, cached, strict=False) if size), default=now)

    def grant(self, member: Member, size: int) -> None:
        """Lease `size` bytes more. Raises LedgerError where budget, floors or ceiling forbid it."""
        device, after = member.device, member.lease + size
        reserved = device.reserved + max(after, member.terms.floor) - max(member.lease, member.terms.floor)
        if size <= 0 or after > member.ceiling:
            raise LedgerError(f"{mib(after)} is more than the ceiling of {mib(member.ceiling)}", "ceiling")
        if device.leased + size > device.budget or (after > member.terms.floor and reserved > device.budget):
            raise LedgerError(f"a grant of {mib(size)} does not fit the budget of {mib(device.budget)}", "budget")
        self._set_lease(member, after)
        member.recalled = None

    def release(self, member: Member, size: int) -> None:
        """`size` bytes have been given back. Raises LedgerError if the lease is smaller.

        Where that meets a recall or a trim, what the member wanted before is void until it asks anew: it was told to
        do with less, and its old word would bring back at once what it has just given up.
        """
        if not 0 <= size <= member.lease:
            raise LedgerError(f"{mib(size)} given back of a lease of {mib(member.lease)}", "release")
        self._set_lease(member, member.lease - size)
        member.backed = min(member.backed, member.lease)
        recalled, trim = member.recalled, member.trim
        if recalled is not None and member.lease <= recalled:
            member.recalled = None
        if trim is not None and member.lease <= trim:
            member.trim = None
        if (member.recalled, member.trim) != (recalled, trim):
            member.want = max(member.need, member.lease)

    def check(self) -> None:
        """Raises AssertionError if the books contradict themselves."""
        for device in self.devices.values():
            members = device.members.values()
            assert device.leased == sum(m.lease for m in members)
            assert device.reserved == sum(max(m.lease, m.terms.floor) for m in members)
            assert device.floors == sum(m.terms.floor for m in members)
            assert device.promised == sum(m.promised for m in members)
            assert all(m.promised >= m.terms.floor for m in members)
            assert all(m.lease >= 0 and m.device is device for m in members)
            assert all(m.want >= m.need >= m.least for m in members)
            assert device.held_back == sum(device.held_back_by.values())

    def _set_lease(self, member: Member, lease: int) -> None:
        device, floor = member.device, member.terms.floor
        device.leased += lease - member.lease
        device.reserved += max(lease, floor) - max(member.lease, floor)
        member.lease = lease

    def _check_terms(self, device: Device, who: str, terms: Terms, member: Member | None) -> None:
        old = member.terms if member else Terms(floor=0)
        if terms.ceiling is not None and terms.ceiling < terms.floor:
            raise LedgerError(
                f"{who}: the ceiling of {mib(terms.ceiling)} is below the floor of {mib(terms.floor)}; "
                "raise the ceiling or lower the floor",
                "ceiling_below_floor",
            )
        if terms.floor <= old.floor:
            return
        if terms.floor > device.size:
            raise LedgerError(
                f"{who}: a floor of {mib(terms.floor)} is more than device {device.key} has, {mib(device.size)}; "
                "set a lower floor",
                "floor_above_device",
            )
        floors = device.floors - old.floor
        limit = "" if device.limit is None else f", and limited to {mib(device.limit)}"
        if floors + terms.floor > device.budget:
            raise LedgerError(
                f"{who}: a floor of {mib(terms.floor)} and the {mib(floors)} of floors already given come to "
                f"{mib(floors + terms.floor)}, more than the budget of {mib(device.budget)} of device {device.key} "
                f"({mib(device.size)}, less {mib(device.headroom)} of headroom, {mib(device.others)} of others and "
                f"{mib(device.held_back)} held back{limit}); "
                "lower a floor, or free memory on the device",
                "floors_above_budget",
            )


def _ceiling(device: Device, terms: Terms) -> int:
    return device.size if terms.ceiling is None else min(terms.ceiling, device.size)
