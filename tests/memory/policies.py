"""A ledger whose members do as they are told, for tests of the policy."""

from __future__ import annotations

from typing import Any

from shoal.memory.ledger import Device, Ledger, Member, Terms
from shoal.memory.policy import decide


def a_device(budget: int) -> tuple[Ledger, Device]:
    ledger = Ledger()
    return ledger, ledger.add_device("gpu", budget)


def join(ledger: Ledger, device: Device, name: str, **terms: Any) -> Member:
    return ledger.join(device, name, 0, Terms(**terms))


def obey_all(ledger: Ledger, device: Device, now: float) -> int:
    """Give back all that is recalled, and decide, until nothing changes. Returns the bytes moved."""
    moved = 0
    for _ in range(100):
        news = decide(ledger, device, now)
        moved += sum(news.grants.values())
        recalled = [m for m in device.members.values() if m.recalled is not None]
        if not recalled and not news.grants:
            return moved
        for member in recalled:
            assert member.recalled is not None
            moved += member.lease - member.recalled
            ledger.release(member, member.lease - member.recalled)
    raise AssertionError("grants and recalls go on for ever")
