"""Who sleeps, who wakes, who gives way: a pure function from a snapshot to a plan.

1. *Idle* models leave (`residency_leaving.py`): for their time limits they go to sleep, or are unloaded.
2. *Claims* (`residency_claims.py`), which are models with requests that are not on a device, are served in order: those
   that have waited longer than `patience` first, the longest first; then by priority, then by who waits longest. Each
   takes free memory if there is enough, else memory that is about to come free, else others give way to it
   (`residency_ways.py`).
3. *Floors* that were lent come back where there is room.

Who gives way: never one that is pinned; nobody before it has been awake for ``max(min_awake, payback * comeback)``, so
models do not thrash; one that is in use only to a claim past its patience, and it is drained first. Such a claim that
still finds no room has devices closed to all later claims, those that can be ready first, so that small models
cannot keep a large one out. So a claim that is the first in order begins to move within patience, plus the longest such
stay on its devices, plus the drains; the n-th that competes for the same devices within n times as much. Per device
no more than `switches` models give way in `switch_window` seconds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import NamedTuple

from shoal.fleet.residency import Action, Kind, Plan, Residency, Resident, Rules, Snapshot
from shoal.fleet.residency_claims import Claims
from shoal.fleet.residency_draft import Draft
from shoal.fleet.residency_leaving import Leaving, leaves_at
from shoal.units import format_bytes

Claim = tuple[float, str, Resident]
_GPU, _DISK = Residency.GPU, Residency.DISK


def decide(snapshot: Snapshot, rules: Rules | None = None) -> Plan:
    """What to do now. Equal snapshots and rules give equal plans."""
    draft = Draft(snapshot, rules or Rules())
    turns = _turns(draft)
    leaving = Leaving(draft)
    for one in turns.idle:
        leaving.idle(one)
    claims = Claims(draft, leaving)
    claims.serve(turns.overdue, overdue=True)
    claims.serve(turns.patient, overdue=False)
    if draft.waits:
        for at in (draft.sites.next_change, *draft.limited.values()):
            draft.look(at)
    for one in turns.lent:
        _give_back_floor(draft, one, claims.closed)
    return draft.plan()


class _Turns(NamedTuple):
    """Those with whom something may be done, each in the order of their turns; claims with since when, and the name."""

    idle: list[Resident]
    overdue: list[Claim]
    patient: list[Claim]
    lent: list[Resident]


def _turns(draft: Draft) -> _Turns:
    now, patience = draft.now, draft.rules.patience
    idle: list[Resident] = []
    lent: list[Resident] = []
    overdue: list[Claim] = []
    patient: defaultdict[int, list[Claim]] = defaultdict(list)
    next_look = draft.next_look
    for one in draft.snapshot.residents:
        if one.motion is not None:
            continue
        place = one.place
        if one.waiting:
            if place is not _GPU:
                since = one.waiting_since
                if since is not None and now >= since + patience:
                    overdue.append((since, one.name, one))
                else:
                    patient[-one.priority].append((now if since is None else since, one.name, one))
        elif place is _DISK:
            continue
        elif not one.running and not one.pinned:
            at = leaves_at(one)
            if at <= now:
                idle.append(one)
            elif at < next_look:
                next_look = at
        if place is _GPU and one.floor < one.floor_wanted:
            lent.append(one)
    draft.next_look = next_look
    overdue.sort()
    ordered = [claim for priority in sorted(patient) for claim in sorted(patient[priority])]
    idle.sort(key=lambda one: (one.last_use, one.name))
    lent.sort(key=lambda one: (-one.priority, one.name))
    return _Turns(idle, overdue, ordered, lent)


def _give_back_floor(draft: Draft, one: Resident, closed: Collection[str]) -> None:
    size, free = one.floor_wanted - one.floor, draft.books.free
    if one.name in draft.sites.gone or any(device in closed or free.get(device, -1) < size for device in one.on):
        return
    draft.books.take(size, one.on)
    reason = f"the floor of {one.name} is {format_bytes(one.floor_wanted)} again: there is room"
    draft.actions.append(Action(Kind.FLOOR, one.name, one.on, reason, floor=one.floor_wanted))
