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
from dataclasses import replace

from .accounts import HOLD, READINGS, Device, Member, Reason, Reservation, Terms
from .ages import AGES

__all__ = ["HOLD", "Device", "Ledger", "LedgerError", "Member", "Reason", "Terms", "mib"]


class LedgerError(ValueError):
    """What was asked for contradicts the books. `code` is a stable word for programs."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def mib(n: int) -> str:
    """Bytes for people, exact enough to add up: `2.5 MiB`."""
    return f"{n / 2**20:,.1f} MiB"


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

    def hold_back(self, device: Device, owner: Hashable, size: int, *, arriving: bool = False) -> None:
        """Keep `size` bytes from being leased, in place of what `owner` had held back; 0 ends it.

        `arriving`: they are being taken, so what others use more from now on is part of them. Like memory that others
        use it may leave leases owed. Raises LedgerError if the device is smaller.
        """
        if size > device.size:
            raise LedgerError(
                f"{mib(size)} cannot be held back on device {device.key}, which has {mib(device.size)}",
                "above_device",
            )
        device.reservations.pop(owner, None)
        if size:
            device.reservations[owner] = Reservation(size, arriving)

    def arrived(self, device: Device, owner: Hashable) -> None:
        """What `owner` held back has been taken: it ends once the measurements that are to show so were made."""
        reservation = device.reservations.get(owner)
        if reservation is None:
            return
        if device.free is not None and reservation.arriving:
            reservation.readings_left = READINGS + 1  # one may be under way
        else:
            del device.reservations[owner]

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
        confirmed = device.confirmed(now)
        seen = now if free < device.headroom // 2 else confirmed
        rise = seen - device.others
        if abs(rise) < min(32 << 20, total >> 10):
            rise = 0
        device.others += rise
        _arrive(device, rise)
        return device.budget != before

    def settle(self, device: Device) -> bool:
        """The devices were measured, this one too if it can be. Returns whether that ended a reservation."""
        ended = []
        for owner, one in device.reservations.items():
            if one.readings_left is not None:
                one.readings_left -= 1
                if one.readings_left == 0:
                    ended.append(owner)
        for owner in ended:
            del device.reservations[owner]
        return bool(ended)

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
        member.set_need(need, now)
        member.want = max(need, want)
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
            assert all(one.size >= 0 and one.readings_left != 0 for one in device.reservations.values())

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


def _arrive(device: Device, rise: int) -> None:
    """Others use so much more than before, or less: what that is of what was to arrive is held back no longer."""
    counted = 0
    for one in device.reservations.values():
        if one.fresh or not one.arriving:
            one.fresh = False
            continue
        # What comes and goes, such as the memory of an engine's trial run, must not count each time that it comes.
        repaid = min(one.fell, max(0, rise))
        one.fell += max(0, -rise) - repaid
        part = min(one.size, max(0, rise - repaid - counted))
        one.size -= part
        counted += part


def _ceiling(device: Device, terms: Terms) -> int:
    return device.size if terms.ceiling is None else min(terms.ceiling, device.size)
