"""The books of the broker, told to tools: once, or after every change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from .ledger import Device, Ledger, Member
from .messages import MEMBERS_A_FRAME, DeviceState, Listing, MemberState


def listing(ledger: Ledger, pid: Callable[[Member], int]) -> Iterator[Listing]:
    """The books in as many messages as they need; the last one has `more` False. `pid` knows a member's process."""
    pages: list[tuple[Device, list[Member]]] = []
    for device in ledger.devices.values():
        members = list(device.members.values())
        pages += [(device, members[i : i + MEMBERS_A_FRAME]) for i in range(0, len(members) or 1, MEMBERS_A_FRAME)]
    if not pages:
        yield Listing(device=None)
    for number, (device, members) in enumerate(pages, 1):
        states = tuple(_member(member, pid(member)) for member in members)
        yield Listing(device=_device(device), members=states, more=number < len(pages))


def _device(device: Device) -> DeviceState:
    return DeviceState(
        key=device.key,
        size=device.size,
        budget=device.budget,
        headroom=device.headroom,
        others=device.others,
        leased=device.leased,
        owed=device.owed,
        limit=device.limit,
        free=device.free,
        held_back=device.held_back,
    )


def _member(member: Member, pid: int) -> MemberState:
    return MemberState(
        engine=member.engine,
        rank=member.rank,
        pid=pid,
        lease=member.lease,
        floor=member.terms.floor,
        ceiling=member.terms.ceiling,
        priority=member.terms.priority,
        used=member.used,
        cached=sum(member.cached),
        backed=member.backed,
        need=member.need,
        waiting=member.waiting,
        recalled=member.recalled,
        want=member.want,
        cached_by_age=member.cached,
        promised=member.promised,
    )


class Watcher:
    """Tells one tool about changes, at most once an interval."""

    def __init__(self, interval: float, tell: Callable[[], None]) -> None:
        self._interval = interval
        self._tell = tell
        self._told = -interval
        self._timer: asyncio.TimerHandle | None = None

    def changed(self) -> None:
        if self._timer is not None:
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(0.0, self._told + self._interval - loop.time()), self._fire)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _fire(self) -> None:
        self._timer = None
        self._told = asyncio.get_running_loop().time()
        self._tell()
