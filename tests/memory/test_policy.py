"""Who gets what: fairness against brute force, what is asked back, and from whom."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from shoal.memory.ledger import HOLD, Terms
from shoal.memory.policy import Claim, decide, fill, plan

from .policies import a_device, join, obey_all

claims = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, 3), st.integers(1, 5)).map(
        lambda t: (t[0] + t[2], t[0] + t[2] + t[1], t[2], t[3], 1)
    ),
    min_size=1,
    max_size=4,
)


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
    ledger, device = a_device(1000)
    a = join(ledger, device, "a", floor=100, priority=100)
    b = join(ledger, device, "b", priority=200)
    ledger.ask(a, 1000, 0, 0)
    ledger.ask(b, 1000, 0, 0)
    obey_all(ledger, device, 0)
    assert (a.lease, b.lease) == (400, 600)


def test_a_small_need_is_met_whole_and_the_rest_is_shared() -> None:
    ledger, device = a_device(1000)
    members = [join(ledger, device, name) for name in "abc"]
    for member, need in zip(members, (100, 900, 900), strict=True):
        ledger.ask(member, need, 0, 0)
        obey_all(ledger, device, 0)
    assert [m.lease for m in members] == [100, 450, 450]


def test_idle_leases_go_first_then_the_oldest_cached_blocks_of_all_engines() -> None:
    ledger, device = a_device(1000)
    a, b, c, d = (join(ledger, device, name) for name in "abcd")
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
    ledger, device = a_device(200)
    a, b, c = (join(ledger, device, name) for name in "abc")
    for member in (a, b):
        ledger.ask(member, 100, 0, 0)
        decide(ledger, device, 0)
        ledger.ask(member, 0, 0, 0)
    ledger.report(a, used=0, cached=(100,), backed=100, waiting=0, now=0)
    ledger.report(b, used=0, cached=(0, 0, 100), backed=100, waiting=0, now=1000)
    ledger.ask(c, 50, 0, 1000)
    assert set(plan(device, 1000).recalls) == {a}


def test_engines_do_not_trade_blocks_of_like_age_but_old_ones_make_room() -> None:
    ledger, device = a_device(200)
    a, b = join(ledger, device, "a"), join(ledger, device, "b")
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
    assert obey_all(ledger, device, 50) == 100
    assert (a.lease, b.lease) == (150, 50)


def test_memory_in_use_beyond_the_share_is_asked_for_only_under_contention() -> None:
    ledger, device = a_device(1000)
    a, b = join(ledger, device, "a"), join(ledger, device, "b")
    ledger.ask(a, 1000, 0, 0)
    decide(ledger, device, 0)
    ledger.report(a, used=1000, cached=(), backed=1000, waiting=0, now=0)
    assert not plan(device, 0).recalls
    ledger.ask(b, 300, 0, 1)
    recall = plan(device, 1).recalls[a]
    assert (recall.lease, recall.reason) == (700, "share")


def test_what_is_in_use_counts_as_needed_though_nobody_said_so() -> None:
    ledger, device = a_device(1000)
    a, b = ledger.join(device, "a", 0, Terms(), held=900), join(ledger, device, "b")
    ledger.report(a, used=600, cached=(300,), backed=900, waiting=0, now=0)
    ledger.ask(b, 400, 0, 0)
    assert plan(device, 0).recalls[a].lease == 600
    ledger.ask(b, 1000, 0, 0)
    assert plan(device, 0).recalls[a].lease == 500


def test_a_floor_that_is_not_in_use_is_lent_to_nobody() -> None:
    ledger, device = a_device(1000)
    a, idle = join(ledger, device, "a"), ledger.join(device, "idle", 0, Terms(), held=200)
    ledger.report(idle, used=0, cached=(200,), backed=200, waiting=0, now=0)
    keeper = join(ledger, device, "keeper", floor=300)
    ledger.ask(a, 1000, 0, 0)
    news = decide(ledger, device, 0)
    assert news.grants == {a: 500}
    assert news.recalls[idle].lease == 0
    ledger.ask(keeper, 300, 0, 0)
    assert decide(ledger, device, 0).grants == {keeper: 300}


def test_a_trim_of_what_is_needed_is_over_at_once() -> None:
    ledger, device = a_device(1000)
    a = join(ledger, device, "a")
    ledger.ask(a, 500, 0, 0)
    decide(ledger, device, 0)
    ledger.trim(a, 100)
    assert not decide(ledger, device, 0).recalls
    ledger.ask(a, 500, 800, 1)
    assert decide(ledger, device, 1).grants == {a: 300}


def test_reasons_say_why() -> None:
    ledger, device = a_device(1000)
    a = join(ledger, device, "a")
    ledger.ask(a, 900, 0, 0)
    decide(ledger, device, 0)
    ledger.report(a, used=900, cached=(), backed=900, waiting=0, now=0)
    ledger.set_terms(a, Terms(ceiling=500))
    assert (plan(device, 1).recalls[a].lease, plan(device, 1).recalls[a].reason) == (500, "limit")
    ledger.set_terms(a, Terms())
    b = join(ledger, device, "b", floor=400)
    ledger.ask(b, 400, 0, 0)
    assert (plan(device, 1).recalls[a].lease, plan(device, 1).recalls[a].reason) == (600, "floor")
    ledger.set_device(device, limit=500, headroom=0)
    assert (plan(device, 1).recalls[a].lease, plan(device, 1).recalls[a].reason) == (100, "budget")


def test_trim_takes_once_what_is_not_needed() -> None:
    ledger, device = a_device(1000)
    a = join(ledger, device, "a")
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
    ledger, device = a_device(1000)
    a = join(ledger, device, "a")
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
    ledger, device = a_device(20)
    a, b = join(ledger, device, "a"), join(ledger, device, "b")
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
    ledger, device = a_device(20)
    a = join(ledger, device, "a")
    ledger.ask(a, 0, 16, 0)
    decide(ledger, device, 0)
    ledger.trim(a, 6)
    ledger.release(a, 11)
    assert not decide(ledger, device, 0).grants
    assert (a.lease, a.trim) == (5, None)


def test_an_engine_that_gave_up_its_floor_is_not_handed_it_again_unasked() -> None:
    ledger, device = a_device(1000)
    a = join(ledger, device, "a", floor=200)
    assert not decide(ledger, device, 0).grants
    ledger.ask(a, 200, 0, 0)
    assert decide(ledger, device, 0).grants == {a: 200}


def test_floors_that_the_budget_can_no_longer_hold_share_it() -> None:
    ledger, device = a_device(1000)
    a, b = join(ledger, device, "a", floor=600), join(ledger, device, "b", floor=400)
    for member in (a, b):
        ledger.ask(member, 1000, 0, 0)
    obey_all(ledger, device, 0)
    assert (a.lease, b.lease) == (600, 400)
    ledger.set_device(device, limit=500, headroom=0)
    obey_all(ledger, device, 1)
    assert (a.lease, b.lease) == (250, 250)


def test_a_need_that_wavers_moves_nothing() -> None:
    ledger, device = a_device(1000)
    a, b = join(ledger, device, "a"), join(ledger, device, "b")
    ledger.ask(a, 400, 0, 0)
    ledger.ask(b, 2000, 0, 0)
    obey_all(ledger, device, 0)
    for i in range(100):
        now = 1 + i * HOLD / 4
        ledger.ask(a, 400 if i % 2 else 380, 0, now)
        assert obey_all(ledger, device, now) == 0
    ledger.ask(a, 300, 0, 100)
    assert obey_all(ledger, device, 100 + HOLD) == 200
    assert b.lease == 700
