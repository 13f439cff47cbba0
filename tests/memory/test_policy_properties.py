"""What always holds in random games of engines, people and neighbours."""

from __future__ import annotations

import itertools

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoal.memory.ages import AGES
from shoal.memory.ledger import HOLD, Ledger, LedgerError, Member, Terms
from shoal.memory.policy import decide, plan

from .policies import obey_all


class Game(RuleBasedStateMachine):
    """Engines that join, ask, report, give back what they please, and die; while people and neighbours interfere."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.now = 0.0
        self.names = itertools.count()

    @initialize(size=st.integers(50, 2000), headroom=st.integers(0, 50))
    def device_(self, size: int, headroom: int) -> None:
        self.device = self.ledger.add_device("gpu", size, headroom=headroom)

    def _pick(self, number: int) -> Member:
        members = list(self.device.members.values())
        return members[number % len(members)]

    def _someone(self) -> bool:
        return bool(self.device.members)

    @rule(
        floor=st.integers(0, 300),
        room=st.none() | st.integers(0, 1500),
        priority=st.integers(1, 1000),
        unit=st.integers(1, 9),
        held=st.just(0) | st.integers(0, 300),
        returning=st.booleans(),
    )
    @precondition(lambda self: len(self.device.members) < 8)
    def join(self, floor: int, room: int | None, priority: int, unit: int, held: int, returning: bool) -> None:
        terms = Terms(floor, None if room is None else floor + room, priority, unit)
        before = self.device.leased, self.device.floors
        try:
            self.ledger.join(
                self.device, f"e{next(self.names)}", 0, terms, held=held, returning=returning, now=self.now
            )
            assert held or self.device.floors <= max(before[1], self.device.budget)
        except LedgerError:
            assert not returning
            assert floor > self.device.size or before[1] + floor > self.device.budget
            assert (self.device.leased, self.device.floors) == before

    @rule(
        who=st.integers(0, 7),
        need=st.integers(0, 2500),
        more=st.integers(0, 1000),
        least=st.just(0) | st.integers(0, 1500),
    )
    @precondition(_someone)
    def ask(self, who: int, need: int, more: int, least: int) -> None:
        self.ledger.ask(self._pick(who), need, need + more, self.now, least=least)
        self._decide()

    @rule(who=st.integers(0, 7), used=st.floats(0, 1), cached=st.lists(st.integers(0, 99), max_size=len(AGES)))
    @precondition(_someone)
    def report(self, who: int, used: float, cached: list[int]) -> None:
        member = self._pick(who)
        self.ledger.report(
            member, used=int(member.lease * used), cached=tuple(cached), backed=member.lease, waiting=0, now=self.now
        )
        self._decide()

    @rule(who=st.integers(0, 7), part=st.floats(0, 1))
    @precondition(_someone)
    def release(self, who: int, part: float) -> None:
        member = self._pick(who)
        self.ledger.release(member, int(member.lease * part))
        self._decide()

    @rule(who=st.integers(0, 7), size=st.integers(0, 500))
    @precondition(_someone)
    def trim(self, who: int, size: int) -> None:
        self.ledger.trim(self._pick(who), size)
        self._decide()

    @rule(who=st.integers(0, 7), floor=st.integers(0, 500), ceiling=st.none() | st.integers(0, 2000))
    @precondition(_someone)
    def terms(self, who: int, floor: int, ceiling: int | None) -> None:
        member = self._pick(who)
        old = member.terms
        try:
            self.ledger.set_terms(member, Terms(floor, ceiling, old.priority, old.unit))
        except LedgerError:
            assert member.terms is old
        self._decide()

    @rule(who=st.integers(0, 7))
    @precondition(_someone)
    def die(self, who: int) -> None:
        self.ledger.leave(self._pick(who))
        self._decide()

    @rule(free=st.floats(0, 1), times=st.integers(1, 3))
    def neighbour(self, free: float, times: int) -> None:
        for _ in range(times):
            self.ledger.observe(self.device, self.device.size, int(self.device.size * free))
            self.ledger.settle(self.device)
        self._decide()

    @rule(owner=st.integers(0, 2))
    def arrived(self, owner: int) -> None:
        self.ledger.arrived(self.device, owner)
        self._decide()

    @rule(owner=st.integers(0, 2), part=st.floats(0, 1.2), arriving=st.booleans())
    def hold_back(self, owner: int, part: float, arriving: bool) -> None:
        size = int(self.device.size * part)
        before = self.device.held_back
        try:
            self.ledger.hold_back(self.device, owner, size, arriving=arriving)
        except LedgerError:
            assert size > self.device.size
            assert self.device.held_back == before
        self._decide()

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self._decide()

    def _decide(self) -> None:
        before = {member: member.lease for member in self.device.members.values()}
        news = decide(self.ledger, self.device, self.now)
        for member, lease in before.items():
            assert member.lease == lease + news.grants.get(member, 0)
            assert member.lease == lease or member.lease <= min(member.ceiling, member.want)
        if news.grants:
            assert self.device.leased <= self.device.budget
        for member, recall in news.recalls.items():
            assert recall.lease >= min(member.terms.floor, member.lease) or self.device.floors > self.device.budget
        assert plan(self.device, self.now) == plan(self.device, self.now)

    @rule()
    def all_obey(self) -> None:
        """If everyone gives back what is asked, the game comes to rest, nothing is owed, and nobody starves."""
        self.now += 2 * HOLD
        obey_all(self.ledger, self.device, self.now)
        members = list(self.device.members.values())
        assert self.device.leased <= self.device.budget
        unit = max((m.terms.unit for m in members), default=1)
        dust = unit * len(members) + 1
        lone = [m for m in members if m.least]
        if lone and self.device.floors <= self.device.budget:
            # Who has waited longest of those that can be served at all has enough to run something.
            able = [m for m in lone if m.least <= self.device.most(m)]
            if able:
                first = min(able, key=lambda m: m.waiting_since)
                assert first.lease >= first.least or any(
                    m.lease >= m.least and m.waiting_since == first.waiting_since for m in able
                )
        for member in members:
            assert member.lease <= member.ceiling
            if lone:
                break
            short = min(member.need, member.ceiling) - member.lease
            if short <= 0:
                continue
            # What it waits for is not to be had: everything is leased or kept for floors.
            assert self.device.reserved >= self.device.budget - dust
            for other in members:
                # Nobody else holds what its own requests do not need.
                needed = max(other.terms.floor, other.needed(self.now), min(other.used, other.lease))
                assert other.lease <= needed + unit
                if self.device.floors <= self.device.budget and other.lease > other.terms.floor:
                    mine = (member.lease + dust - member.terms.floor) / member.terms.priority
                    theirs = (other.lease - dust - other.terms.floor) / other.terms.priority
                    assert theirs <= mine + 1e-9
            if self.device.floors <= self.device.budget:
                assert member.lease >= min(member.terms.floor, member.need)
        for member in members:
            # Who is alone in needing memory gets all that it can ever reach, and no one gets more than that.
            if self.device.floors <= self.device.budget:
                assert member.lease <= self.device.most(member)
                if all(
                    other.needed(self.now) <= 0 and not min(other.used, other.lease)
                    for other in members
                    if other is not member
                ):
                    assert member.lease >= min(member.need, self.device.most(member) - unit + 1)

    @invariant()
    def books_are_right(self) -> None:
        self.ledger.check()


TestGame = Game.TestCase

TestGame.settings = settings(stateful_step_count=40)
