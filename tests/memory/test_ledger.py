"""The books: what they refuse, and what always holds."""

from __future__ import annotations

import pytest

from shoal.memory.ages import AGES, bucket_of
from shoal.memory.ledger import HOLD, Device, Ledger, LedgerError, Member, Terms

GIB = 2**30


def _books(size: int = 80 * GIB, *, headroom: int = 0) -> tuple[Ledger, Device]:
    ledger = Ledger()
    return ledger, ledger.add_device("gpu", size, headroom=headroom)


def _member(ledger: Ledger, device: Device, name: str, *, held: int = 0, **terms: int | None) -> Member:
    return ledger.join(device, name, 0, Terms(**terms), held=held)  # type: ignore[arg-type]


def test_budget_is_size_less_headroom_and_others_or_the_limit() -> None:
    ledger, device = _books(80, headroom=10)
    assert device.budget == 70
    ledger.observe(device, 80, 60)
    assert (device.others, device.budget) == (20, 50)
    ledger.set_device(device, limit=30, headroom=10)
    assert device.budget == 30
    ledger.set_device(device, limit=None, headroom=1000)
    assert device.budget == 0


def test_grants_and_releases_are_conserved() -> None:
    ledger, device = _books(100)
    a, b = _member(ledger, device, "a"), _member(ledger, device, "b")
    ledger.grant(a, 60)
    ledger.grant(b, 40)
    assert (device.leased, device.owed) == (100, 0)
    with pytest.raises(LedgerError, match="does not fit"):
        ledger.grant(b, 1)
    ledger.release(a, 25)
    ledger.grant(b, 25)
    assert (a.lease, b.lease, device.leased) == (35, 65, 100)
    ledger.leave(b)
    assert device.leased == 35
    c = _member(ledger, device, "c", floor=20)
    assert device.reserved == 55
    ledger.leave(c)
    assert device.reserved == 35
    ledger.check()


def test_a_floor_is_kept_free_for_its_member() -> None:
    ledger, device = _books(100)
    a, b = _member(ledger, device, "a", floor=30), _member(ledger, device, "b")
    with pytest.raises(LedgerError):
        ledger.grant(b, 71)
    ledger.grant(b, 70)
    ledger.grant(a, 30)
    ledger.release(a, 30)
    with pytest.raises(LedgerError):
        ledger.grant(b, 1)
    ledger.check()


def test_a_grant_never_passes_the_ceiling() -> None:
    ledger, device = _books(100)
    a = _member(ledger, device, "a", ceiling=20)
    with pytest.raises(LedgerError, match="ceiling"):
        ledger.grant(a, 21)
    ledger.grant(a, 20)


@pytest.mark.parametrize("size", [0, -5])
def test_a_grant_of_nothing_is_refused(size: int) -> None:
    ledger, device = _books(100)
    with pytest.raises(LedgerError):
        ledger.grant(_member(ledger, device, "a"), size)


def test_more_than_the_lease_cannot_be_given_back() -> None:
    ledger, device = _books(100)
    a = _member(ledger, device, "a", held=10)
    for size in (11, -1):
        with pytest.raises(LedgerError):
            ledger.release(a, size)
    assert device.leased == 10


def test_floors_beyond_the_budget_are_refused_with_the_numbers() -> None:
    ledger, device = _books(10 * GIB, headroom=GIB)
    _member(ledger, device, "a", floor=6 * GIB)
    with pytest.raises(LedgerError) as caught:
        _member(ledger, device, "b", floor=4 * GIB)
    assert caught.value.code == "floors_above_budget"
    for number in ("4,096.0 MiB", "6,144.0 MiB", "10,240.0 MiB", "9,216.0 MiB", "1,024.0 MiB"):
        assert number in str(caught.value)
    assert list(device.members) == [("a", 0)]
    _member(ledger, device, "b", floor=3 * GIB)
    ledger.check()


def test_a_floor_above_the_device_is_refused() -> None:
    ledger, device = _books(GIB)
    with pytest.raises(LedgerError, match=r"2,048\.0 MiB is more than device gpu has, 1,024\.0 MiB") as caught:
        _member(ledger, device, "a", floor=2 * GIB)
    assert caught.value.code == "floor_above_device"


def test_a_ceiling_below_the_floor_is_refused_and_one_below_the_lease_is_not() -> None:
    ledger, device = _books(100)
    a = _member(ledger, device, "a", floor=10)
    ledger.grant(a, 50)
    with pytest.raises(LedgerError, match="below the floor"):
        ledger.set_terms(a, Terms(floor=10, ceiling=9))
    assert a.terms.ceiling is None
    ledger.set_terms(a, Terms(floor=10, ceiling=20))
    assert (a.lease, a.ceiling) == (50, 20)
    with pytest.raises(LedgerError):
        ledger.grant(a, 1)
    ledger.check()


def test_a_member_that_comes_back_is_booked_with_what_it_holds_though_it_is_too_much() -> None:
    ledger, device = _books(100)
    _member(ledger, device, "a", held=70, floor=60)
    b = _member(ledger, device, "b", held=60, floor=60)
    assert (device.leased, device.owed) == (130, 30)
    with pytest.raises(LedgerError):
        ledger.grant(b, 1)
    ledger.release(b, 30)
    assert device.owed == 0
    ledger.check()


def test_a_rank_joins_once_and_devices_do_not_change_size() -> None:
    ledger, device = _books(100)
    _member(ledger, device, "a")
    with pytest.raises(LedgerError, match="already connected"):
        _member(ledger, device, "a")
    with pytest.raises(LedgerError, match="same size"):
        ledger.add_device("gpu", 101)
    assert ledger.add_device("gpu", 100) is device
    ledger.leave(device.members["a", 0])
    assert ledger.add_device("gpu", 101).size == 101
    with pytest.raises(LedgerError):
        ledger.add_device("other", 0)


def test_the_budget_follows_others_but_not_noise_or_one_odd_reading() -> None:
    ledger, device = _books(80 * GIB, headroom=4 * GIB)
    a = _member(ledger, device, "a")
    ledger.observe(device, 80 * GIB, 60 * GIB)
    assert device.others == 20 * GIB
    # The engine has grown and has not reported it yet: one reading does not count.
    assert not ledger.observe(device, 80 * GIB, 50 * GIB)
    ledger.grant(a, 10 * GIB)
    ledger.report(a, used=10 * GIB, cached=(), backed=10 * GIB, waiting=0, now=0)
    assert not ledger.observe(device, 80 * GIB, 50 * GIB)
    # A neighbour that has really come: two readings.
    ledger.observe(device, 80 * GIB, 45 * GIB)
    assert ledger.observe(device, 80 * GIB, 45 * GIB)
    assert device.others == 25 * GIB
    # One that takes nearly everything counts at once.
    assert ledger.observe(device, 80 * GIB, 1 * GIB)
    assert device.others == 69 * GIB
    assert (device.budget, device.owed) == (7 * GIB, 3 * GIB)
    # Memory that comes back counts at once; noise does not count.
    assert ledger.observe(device, 80 * GIB, 50 * GIB)
    assert not ledger.observe(device, 80 * GIB, 50 * GIB + 2**20)


def test_what_is_held_back_shrinks_the_budget_and_adds_up_over_owners() -> None:
    ledger, device = _books(100, headroom=10)
    a = _member(ledger, device, "a")
    ledger.grant(a, 60)
    ledger.hold_back(device, "one", 20)
    ledger.hold_back(device, "two", 15)
    assert (device.held_back, device.budget, device.owed) == (35, 55, 5)
    ledger.hold_back(device, "one", 5)
    assert (device.held_back, device.owed) == (20, 0)
    ledger.set_device(device, limit=50, headroom=10)
    assert device.budget == 50  # what it holds back comes out of what the limit leaves
    ledger.set_device(device, limit=None, headroom=10)
    with pytest.raises(LedgerError, match="which has") as caught:
        ledger.hold_back(device, "one", 101)
    assert caught.value.code == "above_device"
    for owner in ("one", "two", "never was"):
        ledger.hold_back(device, owner, 0)
    assert (device.held_back, device.budget, device.reservations) == (0, 90, {})
    ledger.check()


def test_the_most_that_a_member_can_reach() -> None:
    ledger, device = _books(100, headroom=10)
    a, b = _member(ledger, device, "a", floor=20), _member(ledger, device, "b", floor=30, ceiling=50)
    ledger.grant(b, 50)  # what others hold above their floors does not count: it can come back
    assert (device.most(a), device.most(b)) == (60, 50)
    ledger.hold_back(device, "x", 40)
    assert (device.most(a), device.most(b)) == (20, 30)
    ledger.hold_back(device, "x", 90)
    assert (device.most(a), device.most(b)) == (0, 0)


def test_memory_that_a_returning_member_holds_is_not_counted_twice() -> None:
    ledger, device = _books(100 * GIB)
    ledger.observe(device, 100 * GIB, 30 * GIB)
    assert device.others == 70 * GIB
    _member(ledger, device, "a", held=50 * GIB)
    ledger.observe(device, 100 * GIB, 30 * GIB)
    assert (device.others, device.owed) == (20 * GIB, 0)


def test_a_member_that_comes_back_between_two_readings_makes_no_memory_up() -> None:
    ledger, device = _books(80 * GIB)
    a = _member(ledger, device, "a")
    ledger.observe(device, 80 * GIB, 30 * GIB)
    ledger.grant(a, 20 * GIB)
    ledger.report(a, used=0, cached=(), backed=20 * GIB, waiting=0, now=0)
    ledger.observe(device, 80 * GIB, 10 * GIB)
    for readings in (0, 1, 2):
        assert (device.others, device.budget) == (50 * GIB, 30 * GIB)
        ledger.leave(device.members["a", 0])
        for _ in range(readings):
            ledger.observe(device, 80 * GIB, 10 * GIB)
        _member(ledger, device, "a", held=20 * GIB)
        assert device.budget <= 30 * GIB
        ledger.observe(device, 80 * GIB, 10 * GIB)


def test_one_that_returns_gets_of_its_floor_what_fits_and_the_rest_when_it_fits() -> None:
    ledger, device = _books(100)
    a, b = _member(ledger, device, "a", floor=50), _member(ledger, device, "b", floor=30)
    with pytest.raises(LedgerError):
        _member(ledger, device, "c", floor=40)
    c = ledger.join(device, "c", 0, Terms(floor=40), returning=True)
    d = ledger.join(device, "d", 0, Terms(floor=10), returning=True)
    assert [(m.promised, m.terms.floor) for m in (a, b, c, d)] == [(50, 50), (30, 30), (40, 20), (10, 0)]
    ledger.check()
    with pytest.raises(LedgerError):  # what comes free is theirs before any newcomer's
        _member(ledger, device, "e", floor=1)
    ledger.set_terms(c, Terms(floor=20, priority=300), promised=40)
    assert c.promised == 40
    ledger.set_terms(b, Terms(floor=5))
    ledger.restore(device)
    assert (b.promised, c.terms.floor, c.terms.priority, d.terms.floor) == (5, 40, 300, 5)
    with pytest.raises(LedgerError):
        ledger.set_terms(d, Terms(floor=6))
    ledger.set_terms(d, Terms(floor=4))
    assert d.promised == 4
    ledger.leave(a)
    ledger.restore(device)
    assert (device.floors, device.promised, device.reserved) == (49, 49, 49)
    ledger.check()


def test_a_fall_in_need_counts_after_a_moment() -> None:
    ledger, device = _books(100)
    a = _member(ledger, device, "a")
    ledger.ask(a, 50, 60, now=1.0)
    ledger.ask(a, 20, 0, now=2.0)
    assert (a.need, a.want, a.needed(2.0)) == (20, 20, 50)
    assert a.held_until(2.0) == 2.0 + HOLD
    assert a.needed(2.0 + HOLD) == 20
    assert a.held_until(2.0 + HOLD) is None
    ledger.ask(a, 70, 0, now=2.01)
    assert a.needed(2.01) == 70


def test_layers_are_what_the_lease_holds_beyond_use_freshest_first() -> None:
    ledger, device = _books(100)
    a = _member(ledger, device, "a", held=40)
    ledger.report(a, used=10, cached=(5, 0, 7), backed=30, waiting=0, now=100.0)
    assert a.layers() == [(100.0, 5), (100.0 - AGES[2], 7), (float("-inf"), 18)]
    assert (a.oldest, a.cached_size) == (100.0 - AGES[2], 12)
    ledger.report(a, used=38, cached=(5,), backed=40, waiting=0, now=100.0)
    assert a.layers() == [(100.0, 2)]
    ledger.report(a, used=50, cached=(5,), backed=40, waiting=0, now=100.0)
    assert a.layers() == []


def test_ages_fall_into_their_buckets() -> None:
    assert [bucket_of(age) for age in (-1, 0, 0.99, 1, 3.9, 4, 4095, 4096, 1e9)] == [0, 0, 0, 1, 1, 2, 6, 7, 7]
