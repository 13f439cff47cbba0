"""Who gets how much of a device, and who is asked to give back. Pure and deterministic.

The bytes of a device are handed out in order of worth:

1. *Entitlements.* Each member demands what its live requests need, at least its floor, at most its ceiling. If the
   demands fit, each is met. Otherwise members share by weighted max-min fairness above the floors: member i is entitled
   to ``floor_i + min(demand_i - floor_i, priority_i * level)`` with the one level that uses the budget up (progressive
   filling: Bertsekas and Gallager, Data Networks, 6.5.2). Nobody can get more without taking it from someone who has
   less for its weight, so no member starves, whatever the others demand.
   A member that runs nothing and could not run its first request with such a share (`least`) has no use for it. If
   there is one, all who run nothing take turns: the longest waiting is entitled to enough for that request, so are
   those after it for whom there is enough beside what runs, and the others to their floor; the rest is shared as above
   by those who can use it.
2. *Cached blocks* that somebody already holds, the most recently used first over all engines. Room that a member wants
   for more of them counts as twice the age of its own oldest block, so two engines do not trade blocks of like age.
3. *Leases that hold nothing* and that their holders do not want.

What does not fit is asked back; so idle leases go first, then cached blocks from the oldest on, and what live
requests use only where a member holds more than its share while another is short of its own, or more than its ceiling.
Memory in use is asked for, never taken. Free bytes go first to those below their floor, then up to the entitlements,
the least served for its weight first, and what is then left to those who want room for cached blocks.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from .ledger import Device, Ledger, Member, Reason

Claim = tuple[int, int, int, int, int]
"""(low, high, base, weight, unit): has `low` bytes, could use `high`; fairness counts from `base`."""


@dataclass(frozen=True, slots=True)
class Recall:
    """A request to come down to `lease` bytes."""

    lease: int
    reason: Reason


@dataclass(slots=True)
class Plan:
    """What to do now: bytes to grant, and leases to come down to. A recall holds until a later plan lacks it."""

    grants: dict[Member, int] = field(default_factory=dict)
    recalls: dict[Member, Recall] = field(default_factory=dict)


@dataclass(slots=True)
class Shares:
    """Step 1: the lease that each member is entitled to, in their order."""

    sizes: list[int]
    met: bool = True
    """Every demand is met, so that something may be left for caches."""
    turn: Member | None = None
    """The first that is still short of enough to run anything; it gets what is free first."""
    passed: frozenset[int] = frozenset()
    """The numbers of the members whose turn it is not. More than they hold is of no use to them."""


def fill(amount: int, claims: Sequence[Claim]) -> list[int]:
    """Raise the claims from `low` towards `high` by `amount` bytes in all, always the one least served for its weight.

    Returns the bytes of each. A claim grows in whole units, or to `high`; what is left over is smaller than any unit
    still of use.
    """
    result = [low for low, *_ in claims]
    if amount <= 0:
        return result
    events: list[tuple[float, int]] = []
    total = 0
    for low, high, base, weight, _ in claims:
        if high > low:
            total += high - low
            events.append(((low - base) / weight, weight))
            events.append(((high - base) / weight, -weight))
    if total <= amount:
        return [max(low, high) for low, high, *_ in claims]
    events.sort()
    level, slope, used = events[0][0], 0, 0.0
    for at, change in events:
        gain = slope * (at - level)
        if used + gain >= amount:
            level += (amount - used) / slope
            break
        used, level, slope = used + gain, at, slope + change
    left = amount
    short: list[tuple[float, int]] = []
    for i, (low, high, base, weight, unit) in enumerate(claims):
        if high <= low:
            continue
        ideal = base + weight * level
        size = high - low if ideal >= high else max(0, int(ideal - low) // unit * unit)
        size = min(size, left if left >= high - low else left // unit * unit)
        result[i] += size
        left -= size
        if result[i] < high:
            short.append(((result[i] - base) / weight, i))
    heapq.heapify(short)
    while short and left > 0:
        _, i = heapq.heappop(short)
        _, high, base, weight, unit = claims[i]
        # With units of one size this is one unit; a tiny unit beside a large one must not take a million rounds.
        size = min(max(unit, left // (len(short) + 1) // unit * unit), high - result[i])
        if size <= left:
            result[i] += size
            left -= size
            if result[i] < high:
                heapq.heappush(short, ((result[i] - base) / weight, i))
    return result


def plan(device: Device, now: float) -> Plan:
    """What to grant and what to ask back on `device` at `now` (seconds)."""
    members = list(device.members.values())
    shares = _entitlements(members, device.budget, now)
    # Where not every demand is met, nothing is left for caches, unless what is left is too little for whoever waits.
    targets = _targets(members, shares, device.budget, now) if shares.met or shares.passed else shares.sizes
    result = Plan()
    recalled = [(m, target) for m, target in zip(members, targets, strict=True) if target < m.lease]
    if recalled:
        short_of_floor = any(m.lease < m.need and m.lease < m.terms.floor for m in members)
        for member, target in recalled:
            result.recalls[member] = Recall(target, _reason(member, target, short_of_floor=short_of_floor))
    result.grants = _grants(members, shares, targets, device)
    return result


def decide(ledger: Ledger, device: Device, now: float) -> Plan:
    """Plan, and book it. The plan returned has what members must be told: grants, and recalls that are new or changed.

    A recall that is over shows as one whose lease is the lease that the member has.
    """
    ledger.restore(device)
    wish = _easy(device) or plan(device, now)
    news = Plan(grants=wish.grants)
    for member, size in wish.grants.items():
        ledger.grant(member, size)
    for member in device.members.values():
        recall = wish.recalls.get(member)
        if recall is None:
            if member.trim is not None and member.held_until(now) is None:
                member.trim = None
            if member.recalled is not None:
                member.recalled = None
                news.recalls[member] = Recall(member.lease, "idle")
        elif recall.lease != member.recalled:
            member.recalled = recall.lease
            news.recalls[member] = recall
    return news


def _easy(device: Device) -> Plan | None:
    """The plan where there is enough for everyone, which is most of the time: grant what is wanted, disturb nobody."""
    if device.leased > device.budget:
        return None
    restless = [m for m in device.members.values() if not m.content()]
    if any(m.lease > m.ceiling or m.trim is not None for m in restless):
        return None
    grants = {m: size for m in restless if (size := min(m.want, m.ceiling) - m.lease) > 0}
    reserved = device.reserved
    for m, size in grants.items():
        reserved += max(m.lease + size, m.terms.floor) - max(m.lease, m.terms.floor)
    return Plan(grants) if reserved <= device.budget else None


def _entitlements(members: list[Member], budget: int, now: float) -> Shares:
    # What is in use is needed, even by an engine that has not said so yet.
    demands = []
    for m in members:
        demand = m.needed(now)
        used = min(m.lease, m.used)
        floor = m.terms.floor
        if demand < used:
            demand = used
        if demand < floor:
            demand = floor
        demands.append(min(m.ceiling, demand))
    if sum(demands) <= budget:
        return Shares(demands)
    floors = [min(m.terms.floor, m.ceiling) for m in members]
    rest = budget - sum(floors)
    if rest < 0:
        # Others have taken so much of the device that the floors do not fit: they share what is left.
        claims = [(0, f, 0, m.terms.priority, m.terms.unit) for m, f in zip(members, floors, strict=True)]
        return Shares(fill(budget, claims), met=False)
    claims = [(f, d, f, m.terms.priority, m.terms.unit) for m, f, d in zip(members, floors, demands, strict=True)]
    sizes = fill(rest, claims)
    if any(
        size < m.least <= f + rest and m.least <= m.ceiling for m, size, f in zip(members, sizes, floors, strict=True)
    ):
        return _turns(members, claims, rest)
    return Shares(sizes, met=False)


def _turns(members: list[Member], claims: list[Claim], rest: int) -> Shares:
    """Shares of `rest` where some would get too little to run anything: whoever runs nothing waits for its turn."""
    waiting = [
        i
        for i, (m, (floor, *_)) in enumerate(zip(members, claims, strict=True))
        if 0 < m.least <= min(m.ceiling, floor + rest)
    ]
    waiting.sort(key=lambda i: members[i].waiting_since)
    # What runs gives way only as it ends, and may be entitled to all that it holds. The first waits for that; nobody
    # after it may, or with idle memory kept for them, or in use by them, it would have to wait for ever.
    runs = [i for i, m in enumerate(members) if m.used and not m.least]
    at_once = rest - sum(max(0, min(members[i].lease, claims[i][1]) - claims[i][0]) for i in runs)
    turn: Member | None = None
    passed: list[int] = []
    for i in waiting:
        floor, demand, base, weight, unit = claims[i]
        more = max(0, members[i].least - floor)
        if i == waiting[0] or more <= min(rest, at_once):
            rest -= more
            at_once -= more
            claims[i] = (floor + more, demand, base, weight, unit)
            if turn is None and members[i].lease < members[i].least:
                turn = members[i]
        else:
            passed.append(i)
            claims[i] = (floor, floor, base, weight, unit)
    return Shares(fill(rest, claims), False, turn, frozenset(passed))


def _targets(members: list[Member], entitled: Shares, budget: int, now: float) -> list[int]:
    """Steps 2 and 3: the lease that each member should end with, at least its share."""
    shares = entitled.sizes
    tops, wants = [], []
    for i, (m, share) in enumerate(zip(members, shares, strict=True)):
        limit = m.ceiling if m.trim is None or m.trim > m.ceiling else m.trim
        over = min(m.used, m.lease) - share
        if over > 0 and not entitled.met:
            # Its requests hold what another's turn needs; until they end it is there for nobody.
            limit = share
            budget -= over
        top = min(limit, m.lease)
        want = min(limit, top if i in entitled.passed else m.want)
        tops.append(max(share, top))
        wants.append(max(share, want))
    targets = list(map(max, tops, wants))
    excess = sum(targets) - budget
    if excess <= 0:
        return targets
    # The least worth goes first: the longest unused over all members, and of like age what nobody holds yet.
    heap: list[tuple[float, bool, int]] = []
    for i, m in enumerate(members):
        if wants[i] > tops[i]:
            heap.append((_room_since(m, now), False, i))
        if tops[i] > shares[i]:
            heap.append((-inf if m.lease > m.used + m.cached_size else m.oldest, True, i))
    heapq.heapify(heap)
    opened: dict[int, list[tuple[float, int]]] = {}
    while excess > 0 and heap:
        since, held, i = heap[0]
        if not held:
            size = wants[i] - tops[i]
        else:
            # A member's layers are looked at only when its turn comes; what it was queued under was a lower bound.
            layers = opened.get(i)
            if layers is None:
                layers = opened[i] = _layers(members[i], tops[i], now)
            if not layers or targets[i] <= shares[i]:
                heapq.heappop(heap)
                continue
            if layers[-1][0] > since:
                heapq.heapreplace(heap, (layers[-1][0], True, i))
                continue
            size = layers.pop()[1]
        size = min(size, targets[i] - shares[i], excess)
        targets[i] -= size
        excess -= size
        if not held:
            heapq.heappop(heap)
    return targets


def _room_since(member: Member, now: float) -> float:
    """What room for more cached blocks is worth, as a time of last use.

    As if twice as old as the oldest block that it would let live, so that two engines do not trade blocks of like age.
    """
    return 2 * member.oldest - now - 1 if member.cached_size else -1e18


def _layers(member: Member, top: int, now: float) -> list[tuple[float, int]]:
    """The member's layers up to a lease of `top`, the one of least worth last."""
    layers = member.layers()
    if layers and layers[-1][0] == -inf:
        # Room that it has and wants is worth what room that it only wants is.
        empty = layers.pop()[1]
        wanted = min(empty, max(0, member.want - member.lease + empty))
        layers += [layer for layer in ((_room_since(member, now), wanted), (-inf, empty - wanted)) if layer[1]]
    over = member.lease - top
    while layers and over > 0:
        since, size = layers.pop()
        if size > over:
            layers.append((since, size - over))
        over -= size
    return layers


def _grants(members: list[Member], entitled: Shares, targets: list[int], device: Device) -> dict[Member, int]:
    """The bytes that each member can be given now."""
    granted: dict[Member, int] = {}
    if device.leased >= device.budget:
        return granted
    # Nothing is granted that was not asked for: a sleeping engine stays below its floor as long as it likes.
    hungry = [
        (m, s, t) for m, s, t in zip(members, entitled.sizes, targets, strict=True) if m.lease < m.want and m.lease < t
    ]
    if not hungry:
        return granted
    leased, reserved = device.leased, device.reserved

    def raise_to(goals: list[int], free: int) -> None:
        nonlocal leased, reserved
        claims = []
        for (m, _, _), goal in zip(hungry, goals, strict=True):
            lease, floor = m.lease + granted.get(m, 0), m.terms.floor
            claims.append((lease, goal, floor, m.terms.priority, m.terms.unit))
        for (m, _, _), (lease, _, floor, _, _), after in zip(hungry, claims, fill(free, claims), strict=True):
            if after > lease:
                granted[m] = granted.get(m, 0) + after - lease
                leased += after - lease
                reserved += max(after, floor) - max(lease, floor)

    if any(m.lease < m.terms.floor for m, _, _ in hungry):
        raise_to([min(s, m.need, m.terms.floor) for m, s, _ in hungry], device.budget - leased)
    if reserved < device.budget and entitled.turn is not None:
        raise_to([m.least if m is entitled.turn else 0 for m, _, _ in hungry], device.budget - reserved)
    if reserved < device.budget:
        raise_to([min(s, m.need) for m, s, _ in hungry], device.budget - reserved)
    if reserved < device.budget:
        raise_to([min(t, m.want) for m, _, t in hungry], device.budget - reserved)
    return granted


def _reason(member: Member, target: int, *, short_of_floor: bool) -> Reason:
    if member.lease > member.ceiling:
        return "limit"
    if member.device.owed:
        return "budget"
    if short_of_floor:
        return "floor"
    if target < min(member.used, member.lease):
        return "share"
    return "trim" if member.trim is not None else "idle"
