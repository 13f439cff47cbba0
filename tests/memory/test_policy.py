"""Who gets what: fairness against brute force, invariants in random games, and that nobody waits for ever."""

from __future__ import annotations

import itertools
import os
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoal.memory.ages import AGES
from shoal.memory.ledger import HOLD, Device, Ledger, LedgerError, Member, Terms
from shoal.memory.policy import Claim, decide, fill, plan

EXAMPLES = int(os.environ.get("SHOAL_TEST_EXAMPLES", "100"))
"""How many examples the properties are tried on; a nightly run sets 10,000."""

pytestmark = pytest.mark.timeout(max(120, EXAMPLES // 10))

_thorough = settings(max_examples=EXAMPLES, deadline=None)


def _device(budget: int) -> tuple[Ledger, Device]:
    ledger = Ledger()
    return ledger, ledger.add_device("gpu", budget)


def _join(ledger: Ledger, device: Device, name: str, **terms: int | None) -> Member:
    return ledger.join(device, name, 0, Terms(**terms))  # type: ignore[arg-type]


def _obey(ledger: Ledger, device: Device, now: float) -> int:
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


claims = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, 3), st.integers(1, 5)).map(
        lambda t: (t[0] + t[2], t[0] + t[2] + t[1], t[2], t[3], 1)
    ),
    min_size=1,
    max_size=4,
)


@_thorough
@given(st.integers(0, 24), claims)
def test_fill_is_the_fairest_of_all_ways_for_equal_weights(amount: int, given_claims: list[Claim]) -> None:
    equal: list[Claim] = [(low, high, base, 1, 1) for low, high, base, _, _ in given_claims]
    found = fill(amount, equal)
    total = min(amount, sum(high - low for low, high, *_ in equal))
    ways = itertools.product(*(range(low, high + 1) for low, high, *_ in equal))
    spare = sum(low for low, *_ in equal) + total

    def fairness(way: tuple[int, ...]) -> list[int]:
        return sorted(size - base for size, (_, _, base, _, _) in zip(way, equal, strict=True))

    best = max(fairness(way) for way in ways if sum(way) == spare)
    assert sum(found) == spare
    assert fairness(tuple(found)) == best


@_thorough
@given(st.integers(0, 10**12), st.lists(st.tuples(*[st.integers(0, 10**12)] * 3, st.integers(1, 1000)), max_size=20))
def test_fill_is_weighted_max_min(amount: int, parts: list[tuple[int, int, int, int]]) -> None:
    """Nobody who could use more has, for its weight, over one byte less than another who was given something."""
    given_claims: list[Claim] = [(low + base, low + base + more, base, w, 1) for low, more, base, w in parts]
    found = fill(amount, given_claims)
    given_bytes = [size - low for size, (low, *_) in zip(found, given_claims, strict=True)]
    assert all(low <= size <= high for size, (low, high, *_) in zip(found, given_claims, strict=True))
    assert sum(given_bytes) == min(amount, sum(high - low for low, high, *_ in given_claims))
    for size, (_, high, base, weight, _) in zip(found, given_claims, strict=True):
        for size2, got2, (_, _, base2, weight2, _) in zip(found, given_bytes, given_claims, strict=True):
            if size < high and got2 > 0:
                assert (size + 2 - base) / weight >= (size2 - 2 - base2) / weight2 - 1e-3


@_thorough
@given(
    st.integers(0, 200),
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100), st.integers(1, 9), st.integers(1, 16)), max_size=8),
)
def test_fill_gives_whole_units_and_leaves_less_than_one(amount: int, parts: list[tuple[int, int, int, int]]) -> None:
    given_claims: list[Claim] = [(low, low + more, 0, w, unit) for low, more, w, unit in parts]
    found = fill(amount, given_claims)
    rest = amount - sum(size - low for size, (low, *_) in zip(found, given_claims, strict=True))
    assert rest >= 0
    for size, (low, high, _, _, unit) in zip(found, given_claims, strict=True):
        assert size == high or (size - low) % unit == 0
        assert size == high or rest < unit


def test_shares_above_the_floors_follow_the_priorities() -> None:
    ledger, device = _device(1000)
    a = _join(ledger, device, "a", floor=100, priority=100)
    b = _join(ledger, device, "b", priority=200)
    ledger.ask(a, 1000, 0, 0)
    ledger.ask(b, 1000, 0, 0)
    _obey(ledger, device, 0)
    assert (a.lease, b.lease) == (400, 600)


def test_a_small_need_is_met_whole_and_the_rest_is_shared() -> None:
    ledger, device = _device(1000)
    members = [_join(ledger, device, name) for name in "abc"]
    for member, need in zip(members, (100, 900, 900), strict=True):
        ledger.ask(member, need, 0, 0)
        _obey(ledger, device, 0)
    assert [m.lease for m in members] == [100, 450, 450]


def test_idle_leases_go_first_then_the_oldest_cached_blocks_of_all_engines() -> None:
    ledger, device = _device(1000)
    a, b, c, d = (_join(ledger, device, name) for name in "abcd")
    for member, size in ((a, 300), (b, 400), (c, 300)):
        ledger.ask(member, size, 0, 0)
        decide(ledger, device, 0)
    for member in (a, b, c):
        ledger.ask(member, 0, 0, 1)
    ledger.report(a, used=0, cached=(0, 0, 200), backed=200, waiting=0, now=10)
    ledger.report(b, used=0, cached=(0, 0, 0, 0, 400), backed=400, waiting=0, now=10)
    ledger.report(c, used=200, cached=(100,), backed=300, waiting=0, now=10)

    def recalled_for(need: int) -> list[int]:
        ledger.ask(d, need, 0, 10)
        wish = plan(device, 10)
        assert all(r.reason == "idle" for r in wish.recalls.values())
        return [m.lease - wish.recalls[m].lease if m in wish.recalls else 0 for m in (a, b, c)]

    assert recalled_for(60) == [60, 0, 0]  # what a leases and does not hold
    assert recalled_for(150) == [100, 50, 0]  # then b's, the oldest
    assert recalled_for(550) == [150, 400, 0]  # then a's
    assert recalled_for(800) == [300, 400, 100]  # then c's; what it uses stays
    assert recalled_for(1000) == [300, 400, 100]


def test_blocks_age_without_new_reports() -> None:
    ledger, device = _device(200)
    a, b, c = (_join(ledger, device, name) for name in "abc")
    for member in (a, b):
        ledger.ask(member, 100, 0, 0)
        decide(ledger, device, 0)
        ledger.ask(member, 0, 0, 0)
    ledger.report(a, used=0, cached=(100,), backed=100, waiting=0, now=0)
    ledger.report(b, used=0, cached=(0, 0, 100), backed=100, waiting=0, now=1000)
    ledger.ask(c, 50, 0, 1000)
    assert set(plan(device, 1000).recalls) == {a}


def test_engines_do_not_trade_blocks_of_like_age_but_old_ones_make_room() -> None:
    ledger, device = _device(200)
    a, b = _join(ledger, device, "a"), _join(ledger, device, "b")
    for member in (a, b):
        ledger.ask(member, 100, 0, 0)
        decide(ledger, device, 0)
        ledger.ask(member, 0, 150, 0)
        ledger.report(member, used=0, cached=(0, 100), backed=100, waiting=0, now=50)
    assert not plan(device, 50).recalls
    ledger.report(b, used=0, cached=(0, 100), backed=100, waiting=0, now=49.5)
    assert not plan(device, 50).recalls
    ledger.report(b, used=0, cached=(0, 0, 0, 100), backed=100, waiting=0, now=50)
    assert plan(device, 50).recalls[b].lease == 50
    assert _obey(ledger, device, 50) == 100
    assert (a.lease, b.lease) == (150, 50)


def test_memory_in_use_beyond_the_share_is_asked_for_only_under_contention() -> None:
    ledger, device = _device(1000)
    a, b = _join(ledger, device, "a"), _join(ledger, device, "b")
    ledger.ask(a, 1000, 0, 0)
    decide(ledger, device, 0)
    ledger.report(a, used=1000, cached=(), backed=1000, waiting=0, now=0)
    assert not plan(device, 0).recalls
    ledger.ask(b, 300, 0, 1)
    recall = plan(device, 1).recalls[a]
    assert (recall.lease, recall.reason) == (700, "share")


def test_what_is_in_use_counts_as_needed_though_nobody_said_so() -> None:
    ledger, device = _device(1000)
    a, b = ledger.join(device, "a", 0, Terms(), held=900), _join(ledger, device, "b")
    ledger.report(a, used=600, cached=(300,), backed=900, waiting=0, now=0)
    ledger.ask(b, 400, 0, 0)
    assert plan(device, 0).recalls[a].lease == 600
    ledger.ask(b, 1000, 0, 0)
    assert plan(device, 0).recalls[a].lease == 500


def test_a_floor_that_is_not_in_use_is_lent_to_nobody() -> None:
    ledger, device = _device(1000)
    a, idle = _join(ledger, device, "a"), ledger.join(device, "idle", 0, Terms(), held=200)
    ledger.report(idle, used=0, cached=(200,), backed=200, waiting=0, now=0)
    keeper = _join(ledger, device, "keeper", floor=300)
    ledger.ask(a, 1000, 0, 0)
    news = decide(ledger, device, 0)
    assert news.grants == {a: 500}
    assert news.recalls[idle].lease == 0
    ledger.ask(keeper, 300, 0, 0)
    assert decide(ledger, device, 0).grants == {keeper: 300}


def test_a_trim_of_what_is_needed_is_over_at_once() -> None:
    ledger, device = _device(1000)
    a = _join(ledger, device, "a")
    ledger.ask(a, 500, 0, 0)
    decide(ledger, device, 0)
    ledger.trim(a, 100)
    assert not decide(ledger, device, 0).recalls
    ledger.ask(a, 500, 800, 1)
    assert decide(ledger, device, 1).grants == {a: 300}


def test_reasons_say_why() -> None:
    ledger, device = _device(1000)
    a = _join(ledger, device, "a")
    ledger.ask(a, 900, 0, 0)
    decide(ledger, device, 0)
    ledger.report(a, used=900, cached=(), backed=900, waiting=0, now=0)
    ledger.set_terms(a, Terms(ceiling=500))
    assert (plan(device, 1).recalls[a].lease, plan(device, 1).recalls[a].reason) == (500, "limit")
    ledger.set_terms(a, Terms())
    b = _join(ledger, device, "b", floor=400)
    ledger.ask(b, 400, 0, 0)
    assert (plan(device, 1).recalls[a].lease, plan(device, 1).recalls[a].reason) == (600, "floor")
    ledger.set_device(device, limit=500, headroom=0)
    assert (plan(device, 1).recalls[a].lease, plan(device, 1).recalls[a].reason) == (100, "budget")


def test_trim_takes_once_what_is_not_needed() -> None:
    ledger, device = _device(1000)
    a = _join(ledger, device, "a")
    ledger.ask(a, 800, 0, 0)
    decide(ledger, device, 0)
    ledger.ask(a, 100, 800, 1)
    ledger.report(a, used=100, cached=(700,), backed=800, waiting=0, now=1)
    ledger.trim(a, 0)
    later = 1 + HOLD
    assert plan(device, later).recalls[a].reason == "trim"
    decide(ledger, device, later)
    assert a.recalled == 100
    ledger.release(a, 700)
    decide(ledger, device, later)
    assert a.trim is None
    assert a.lease == 100  # what it wanted before the trim counts no more
    ledger.ask(a, 100, 800, later)
    decide(ledger, device, later)
    assert a.lease == 800  # it wants the room back, and nobody else does


def test_a_trim_outlasts_a_need_that_fell_a_moment_ago() -> None:
    ledger, device = _device(1000)
    a = _join(ledger, device, "a")
    ledger.ask(a, 800, 0, 0)
    decide(ledger, device, 0)
    ledger.ask(a, 100, 0, 1)
    ledger.trim(a, 200)
    assert not decide(ledger, device, 1).recalls
    assert a.held_until(1) == 1 + HOLD  # when to look again
    news = decide(ledger, device, 1 + HOLD)
    assert (news.recalls[a].lease, news.recalls[a].reason) == (200, "trim")
    # A little more need does not call it off, and more than there is to give does.
    ledger.ask(a, 300, 0, 2)
    assert decide(ledger, device, 2).recalls[a].lease == 300
    ledger.ask(a, 900, 0, 3)
    assert decide(ledger, device, 3).grants == {a: 100}
    ledger.ask(a, 0, 900, 4)
    assert not decide(ledger, device, 5).recalls


def test_a_recall_is_not_undone_by_the_release_that_obeys_it() -> None:
    ledger, device = _device(20)
    a, b = _join(ledger, device, "a"), _join(ledger, device, "b")
    ledger.ask(a, 0, 16, 0)
    decide(ledger, device, 0)
    ledger.trim(a, 2)
    assert decide(ledger, device, 0).recalls[a].lease == 2
    ledger.release(a, 10)  # in part
    assert not decide(ledger, device, 0).grants
    ledger.release(a, 4)
    assert not decide(ledger, device, 0).grants
    assert (a.lease, a.recalled, a.trim) == (2, None, None)
    # The same where another asked, and is gone before the one that gave way has spoken.
    ledger.ask(a, 0, 16, 1)
    decide(ledger, device, 1)
    ledger.ask(b, 14, 0, 1)
    assert decide(ledger, device, 1).recalls[a].lease == 6
    ledger.release(a, 10)
    ledger.leave(b)
    assert not decide(ledger, device, 1).grants
    ledger.ask(a, 0, 16, 2)
    assert decide(ledger, device, 2).grants == {a: 10}


def test_a_release_that_meets_a_trim_before_it_was_told_ends_it() -> None:
    ledger, device = _device(20)
    a = _join(ledger, device, "a")
    ledger.ask(a, 0, 16, 0)
    decide(ledger, device, 0)
    ledger.trim(a, 6)
    ledger.release(a, 11)
    assert not decide(ledger, device, 0).grants
    assert (a.lease, a.trim) == (5, None)


def test_an_engine_that_gave_up_its_floor_is_not_handed_it_again_unasked() -> None:
    ledger, device = _device(1000)
    a = _join(ledger, device, "a", floor=200)
    assert not decide(ledger, device, 0).grants
    ledger.ask(a, 200, 0, 0)
    assert decide(ledger, device, 0).grants == {a: 200}


def test_floors_that_the_budget_can_no_longer_hold_share_it() -> None:
    ledger, device = _device(1000)
    a, b = _join(ledger, device, "a", floor=600), _join(ledger, device, "b", floor=400)
    for member in (a, b):
        ledger.ask(member, 1000, 0, 0)
    _obey(ledger, device, 0)
    assert (a.lease, b.lease) == (600, 400)
    ledger.set_device(device, limit=500, headroom=0)
    _obey(ledger, device, 1)
    assert (a.lease, b.lease) == (250, 250)


def test_a_need_that_wavers_moves_nothing() -> None:
    ledger, device = _device(1000)
    a, b = _join(ledger, device, "a"), _join(ledger, device, "b")
    ledger.ask(a, 400, 0, 0)
    ledger.ask(b, 2000, 0, 0)
    _obey(ledger, device, 0)
    for i in range(100):
        now = 1 + i * HOLD / 4
        ledger.ask(a, 400 if i % 2 else 380, 0, now)
        assert _obey(ledger, device, now) == 0
    ledger.ask(a, 300, 0, 100)
    assert _obey(ledger, device, 100 + HOLD) == 200
    assert b.lease == 700


def test_two_lone_requests_that_do_not_fit_together_take_turns() -> None:
    ledger, device = _device(10)
    a, b = _join(ledger, device, "a"), _join(ledger, device, "b")
    ledger.ask(b, 6, 0, 0, least=6)
    ledger.ask(a, 6, 0, 1, least=6)
    _obey(ledger, device, 1)
    assert (a.lease, b.lease) == (0, 6)
    for turn in range(6):
        now = 2.0 + turn
        runs, waits = (a, b) if turn % 2 else (b, a)
        ledger.ask(runs, 12, 0, now)  # it starts, and has another one waiting
        ledger.report(runs, used=6, cached=(), backed=6, waiting=1, now=now)
        news = decide(ledger, device, now)
        assert (runs.lease, runs.recalled, waits.lease) == (6, 4, 4)
        assert (news.grants == {waits: 4}) == (turn == 0)
        ledger.report(runs, used=0, cached=(6,), backed=6, waiting=1, now=now)
        ledger.ask(runs, 6, 12, now, least=6)
        ledger.release(runs, 2)
        _obey(ledger, device, now)
        assert (runs.lease, waits.lease) == (4, 6)


def test_those_whose_turn_it_is_not_keep_floor_and_cache_and_get_no_more() -> None:
    ledger, device = _device(100)
    a, b, c = _join(ledger, device, "a"), _join(ledger, device, "b", floor=10), _join(ledger, device, "c")
    ledger.ask(b, 50, 50, 0)
    decide(ledger, device, 0)
    ledger.report(b, used=0, cached=(30,), backed=50, waiting=0, now=0)
    ledger.ask(a, 60, 60, 1, least=60)
    ledger.ask(b, 70, 100, 2, least=70)
    ledger.ask(c, 80, 80, 3, least=80)
    news = decide(ledger, device, 3)
    assert (news.recalls[b].lease, news.recalls[b].reason) == (40, "idle")
    assert news.grants == {a: 50}
    ledger.release(b, 10)
    assert decide(ledger, device, 3).grants == {a: 10}
    assert (a.lease, b.lease, c.lease) == (60, 40, 0)
    ledger.leave(a)
    ledger.ask(b, 70, 90, 4, least=70)
    _obey(ledger, device, 4)
    assert (b.lease, c.lease) == (90, 0)


def test_what_can_never_run_takes_no_turn() -> None:
    ledger, device = _device(100)
    a, b, c = _join(ledger, device, "a"), _join(ledger, device, "b"), _join(ledger, device, "c", floor=30)
    ledger.ask(a, 71, 0, 0, least=71)
    ledger.ask(b, 70, 0, 1, least=70)
    assert (device.most(a), device.most(b)) == (70, 70)
    _obey(ledger, device, 1)
    assert (a.lease, b.lease, c.lease) == (0, 70, 0)


@dataclass
class Lone:
    """An engine that runs its requests one after the other as memory allows, preempts none, and gives back first."""

    member: Member
    waiting: list[int] = field(default_factory=list)
    running: list[int] = field(default_factory=list)

    def speak(self, ledger: Ledger, now: float) -> None:
        may = self.member.lease if self.member.recalled is None else self.member.recalled
        while self.waiting and sum(self.running) + self.waiting[0] <= may:
            self.running.append(self.waiting.pop(0))
        used = sum(self.running)
        ledger.report(self.member, used=used, cached=(), backed=used, waiting=len(self.waiting), now=now)
        least = self.waiting[0] if self.waiting and not self.running else 0
        need = used + sum(self.waiting)
        ledger.ask(self.member, need, need, now, least=least)

    def obey(self, ledger: Ledger) -> bool:
        lease = self.member.lease
        over = 0 if self.member.recalled is None else min(lease - self.member.recalled, lease - sum(self.running))
        if over > 0:
            ledger.release(self.member, over)
        return over > 0


def _rest(ledger: Ledger, device: Device, engines: list[Lone], now: float) -> None:
    """All speak, are granted and obey, until nothing moves."""
    for _ in range(200):
        for lone in engines:
            lone.speak(ledger, now)
        news = decide(ledger, device, now)
        ledger.check()
        assert device.leased <= device.budget
        obeyed = [lone.obey(ledger) for lone in engines]
        if not any(obeyed) and not news.grants and not news.recalls:
            return
    raise AssertionError("memory goes round in circles")


lone_engines = st.lists(
    st.tuples(
        st.integers(0, 20),
        st.integers(1, 9),
        st.sampled_from([1, 1, 3, 8]),
        st.lists(st.floats(0.01, 1), min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=6,
)


def _lone_engines(
    budget: int, parts: list[tuple[int, int, int, list[float]]]
) -> tuple[Ledger, Device, list[Lone], list[list[int]]]:
    """Engines, and for each requests of which every one can run if it is alone."""
    ledger, device = _device(budget)
    engines = [
        Lone(ledger.join(device, f"e{i}", 0, Terms(min(floor, budget // len(parts)), None, priority, unit)))
        for i, (floor, priority, unit, _) in enumerate(parts)
    ]
    sizes = [[max(1, int(s * device.most(e.member))) for s in part[3]] for e, part in zip(engines, parts, strict=True)]
    return ledger, device, engines, sizes


@_thorough
@given(st.integers(20, 200), lone_engines, st.randoms(use_true_random=False))
def test_every_request_that_can_run_alone_runs_at_last(
    budget: int, parts: list[tuple[int, int, int, list[float]]], chance: random.Random
) -> None:
    ledger, device, engines, requests = _lone_engines(budget, parts)
    for lone, sizes in zip(engines, requests, strict=True):
        lone.waiting = sizes
    now = 0.0
    for _ in range(sum(map(len, requests))):
        now += 1.0
        chance.shuffle(engines)
        _rest(ledger, device, engines, now)
        running = [lone for lone in engines if lone.running]
        assert running, "nobody can go on"
        lone = chance.choice(running)
        lone.running.pop(chance.randrange(len(lone.running)))
    assert not any(lone.waiting or lone.running for lone in engines)


@_thorough
@given(st.integers(20, 200), lone_engines)
def test_each_gets_its_turn_though_the_others_always_have_more_to_do(
    budget: int, parts: list[tuple[int, int, int, list[float]]]
) -> None:
    ledger, device, engines, requests = _lone_engines(budget, parts)
    supplies = [itertools.cycle(sizes) for sizes in requests]
    order: list[Lone] = []  # of what runs, by its start
    waits, worst, crowd = dict.fromkeys(range(len(engines)), 0), 0, 0
    for end in range(15 * len(engines)):
        for lone, supply in zip(engines, supplies, strict=True):
            lone.waiting += itertools.islice(supply, 3 - len(lone.waiting))
        _rest(ledger, device, engines, float(end))
        for lone in engines:
            order += [lone] * (len(lone.running) - order.count(lone))
        for i, lone in enumerate(engines):
            waits[i] = 0 if lone.running else waits[i] + 1
        crowd, worst = max(crowd, len(order)), max(worst, *waits.values())
        order.pop(0).running.pop(0)
    # At most all others come first, each after all that ran when its turn came.
    assert worst <= len(engines) * (crowd + 1)


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

    @rule(free=st.floats(0, 1))
    def neighbour(self, free: float) -> None:
        for _ in range(2):
            self.ledger.observe(self.device, self.device.size, int(self.device.size * free))
        self._decide()

    @rule(owner=st.integers(0, 2), part=st.floats(0, 1.2))
    def hold_back(self, owner: int, part: float) -> None:
        size = int(self.device.size * part)
        before = self.device.held_back
        try:
            self.ledger.hold_back(self.device, owner, size)
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
        _obey(self.ledger, self.device, self.now)
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
TestGame.settings = settings(max_examples=EXAMPLES, stateful_step_count=40, deadline=None)
