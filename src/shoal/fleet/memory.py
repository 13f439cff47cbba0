"""What the memory broker's books mean for the fleet: who holds what, what could be had, and what people see. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Device
from shoal.memory.messages import DeviceState, MemberState
from shoal.memory.tools import Books, DeviceBook

LEASE_PATIENCE = 5.0
"""Seconds after which an engine that is ready and has never leased anything counts as one of fixed size."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What can be changed of an instance's share while it runs. Bytes on each device; `priority` is a weight."""

    floor: int = 0
    ceiling: int | None = None
    priority: int = 100

    @classmethod
    def of(cls, spec: ModelSpec) -> Terms:
        """The terms that a model's settings give."""
        return cls(spec.floor, spec.ceiling, spec.priority)

    def put_into(self, spec: ModelSpec) -> ModelSpec:
        """`spec` with these terms."""
        return spec.model_copy(update=dataclasses.asdict(self))


@dataclass(frozen=True, slots=True)
class LeaseView:
    """What one rank of an instance leases on a device, in bytes; `waiting` counts requests that wait for memory."""

    device: str
    rank: int
    lease: int
    backed: int
    used: int
    cached: int
    floor: int
    ceiling: int | None
    missing: int
    """What live requests need beyond the lease."""
    waiting: int
    recalled: int | None
    """The lease that it was asked to come down to."""


@dataclass(frozen=True, slots=True)
class MemoryView:
    """An instance's memory as people see it, in bytes. KV numbers are sums over its devices, None if it leases none."""

    mode: str
    """`elastic`, `fixed`, or empty before it is known."""
    reason: str
    """Why it is fixed."""
    held: Mapping[str, int]
    """What its processes hold, by kind."""
    weights: int | None
    """Of the model, on each device."""
    floor: int | None = None
    ceiling: int | None = None
    priority: int | None = None
    lease: int | None = None
    backed: int | None = None
    used: int | None = None
    cached: int | None = None
    missing: int | None = None
    waiting: int | None = None
    leases: tuple[LeaseView, ...] = ()


@dataclass(frozen=True, slots=True)
class PoolView:
    """What elastic KV caches may take of a device, and take, in bytes."""

    budget: int
    limit: int | None
    headroom: int
    others: int
    leased: int
    owed: int
    held_back: int
    backed: int
    used: int
    cached: int


class Ledger:
    """The broker's books, by instance and by device id. `books` None: no broker can be reached."""

    def __init__(self) -> None:
        self.books: Books | None = None
        self._leases: dict[str, list[tuple[DeviceState, MemberState]]] = {}

    def read(self, books: Books | None) -> set[str]:
        """Take in new books; the instances that lease something now and did not before."""
        before = set(self._leases)
        self.books = books
        self._leases = {}
        for book in (books or {}).values():
            for member in book.members:
                self._leases.setdefault(member.engine, []).append((book.device, member))
        return set(self._leases) - before

    def leases(self, instance: str) -> bool:
        """Whether an instance is known to the broker."""
        return instance in self._leases

    def terms(self, instance: str) -> Terms | None:
        """The terms in force, those of its first rank."""
        ranks = self._leases.get(instance)
        if not ranks:
            return None
        member = ranks[0][1]
        return Terms(member.floor, member.ceiling, member.priority)

    def view(
        self, instance: str, devices: tuple[Device, ...], mode: str, reason: str, held: Mapping[str, int],
        weights: int | None,
    ) -> MemoryView:  # fmt: skip
        """What people see of an instance's memory."""
        names = {device.key: device.id for device in devices}
        ranks = sorted(self._leases.get(instance, ()), key=lambda rank: rank[1].rank)
        terms = self.terms(instance)
        if terms is None:
            return MemoryView(mode, reason, held, weights)
        leases = tuple(
            LeaseView(
                device=names.get(device.key, device.key),
                rank=member.rank,
                lease=member.lease,
                backed=member.backed,
                used=member.used,
                cached=member.cached,
                floor=member.floor,
                ceiling=member.ceiling,
                missing=max(0, member.need - member.lease),
                waiting=member.waiting,
                recalled=member.recalled,
            )
            for device, member in ranks
        )
        return MemoryView(
            mode=mode,
            reason=reason,
            held=held,
            weights=weights,
            floor=terms.floor,
            ceiling=terms.ceiling,
            priority=terms.priority,
            lease=sum(lease.lease for lease in leases),
            backed=sum(lease.backed for lease in leases),
            used=sum(lease.used for lease in leases),
            cached=sum(lease.cached for lease in leases),
            missing=sum(lease.missing for lease in leases),
            waiting=max(lease.waiting for lease in leases),
            leases=leases,
        )

    def pool(self, device: Device) -> PoolView | None:
        """What people see of a device's KV caches; None if the broker does not know it."""
        book = self._book(device)
        if book is None:
            return None
        state = book.device
        return PoolView(
            budget=state.budget,
            limit=state.limit,
            headroom=state.headroom,
            others=state.others,
            leased=state.leased,
            owed=state.owed,
            held_back=state.held_back,
            backed=sum(member.backed for member in book.members),
            used=sum(member.used for member in book.members),
            cached=sum(member.cached for member in book.members),
        )

    def spare(self, device: Device) -> int:
        """Bytes in use on a device that come back when somebody needs them: backed, and neither used nor a floor's."""
        return sum(max(0, member.backed - max(member.used, member.floor)) for member in self._members(device))

    def headroom(self, device: Device) -> int:
        """Bytes of a device that are leased to nobody, so that KV caches cannot be where only these are free."""
        book = self._book(device)
        return 0 if book is None else book.device.headroom

    def backed(self, device: Device) -> int:
        """Bytes that KV caches hold on a device."""
        return sum(member.backed for member in self._members(device))

    def backed_by(self, instance: str, device: Device) -> int:
        """Bytes that an instance's KV cache holds on a device."""
        return sum(member.backed for member in self._members(device) if member.engine == instance)

    def kept(self, instance: str, device: Device) -> int:
        """Bytes that an instance's KV cache keeps from others on a device: in use, or its floor's."""
        mine = (member for member in self._members(device) if member.engine == instance)
        return sum(max(member.used, member.floor) for member in mine)

    def owed_to_floors(self, device: Device, instances: set[str]) -> int:
        """Bytes not in use on a device that floors of `instances` can claim at any time."""
        mine = (member for member in self._members(device) if member.engine in instances)
        return sum(max(0, member.floor - member.backed) for member in mine)

    def _book(self, device: Device) -> DeviceBook | None:
        return (self.books or {}).get(device.key)

    def _members(self, device: Device) -> Iterator[MemberState]:
        book = self._book(device)
        yield from book.members if book is not None else ()


@dataclass(frozen=True, slots=True)
class Hold:
    """Whether a device has room for what is held back of it, the bytes that it has free, and those to be held back
    while what has the room arrives."""

    ready: bool
    free: int
    arriving: int

    @classmethod
    def of(cls, device: Device, book: DeviceBook | None, needs: int, kv: int = 0, behind: int = 0) -> Hold:
        """`needs` bytes are held back, and in the `book` already; None: no broker, nothing to wait for. So are the
        `behind` bytes of those who came later and wait too: who came first must not wait for them.

        `kv` bytes of them will be leased. Where an estimate of the rest is all that there is, so that only the headroom
        would be left for these, less is held back: or the start would wait for what it holds back itself.
        """
        owed, arriving = 0, max(0, needs - kv)
        if book is not None:
            state = book.device
            room = state.size - state.headroom - state.others - max(0, state.held_back - behind)
            owed = max(0, state.leased - max(0, room if state.limit is None else min(room, state.limit)))
            arriving = max(0, min(arriving, room + needs - state.leased - kv))
        if device.kind == "simulated":
            return cls(owed == 0, max(0, device.memory_total - owed), arriving)
        return cls(owed == 0 and device.memory_free >= needs, device.memory_free, arriving)
