"""The pretended KV cache: blocks are in exactly one state, and those in use are never taken."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal.engines.simulated.growth import Demand, can_grow, give_back, wish
from shoal.engines.simulated.pool import Pool
from shoal.memory.ages import AGES

BLOCK = 4096
TOTAL = 12


class PoolMachine(RuleBasedStateMachine):
    """An engine with a lease: sequences come, grow and go, the broker grants and recalls."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(TOTAL)
        self.lease = 0
        self.now = 0.0
        self.held: list[list[int]] = []

    @rule(size=st.integers(1, 5 * BLOCK))
    def granted(self, size: int) -> None:
        self.lease += size

    @rule(count=st.integers(0, 8), excess=st.integers(0, 4 * BLOCK))
    def grow(self, count: int, excess: int) -> None:
        before = self.pool.backed
        room = can_grow(self.pool, BLOCK, self.lease, min(excess, self.lease))
        new = self.pool.unpark(min(count, room))
        assert self.pool.backed == before + len(new)
        assert len(set(new)) == len(new) == min(count, room)

    @rule(prefix=st.integers(0, 3), keys=st.integers(0, 4), more=st.integers(0, 4))
    def begin(self, prefix: int, keys: int, more: int) -> None:
        wanted = [100 * prefix + n for n in range(keys)]
        count = keys + more
        found = self.pool.found(wanted)
        free, cached, used = self.pool.free, self.pool.cached, self.pool.used
        blocks = self.pool.take(wanted, count)
        if blocks is None:
            assert count - found > 0
            assert (free, cached, used) == (self.pool.free, self.pool.cached, self.pool.used)
            return
        assert len(set(blocks)) == len(blocks) == count
        others = {block for other in self.held for block in other}
        assert others.isdisjoint(blocks[found:]), "what others use was taken"
        for block, key in zip(blocks, wanted, strict=False):
            self.pool.name(block, key)
        if blocks:
            self.held.append(blocks)

    @precondition(lambda self: self.held)
    @rule(index=st.integers(0, 99), passed=st.floats(0, 5000))
    def end(self, index: int, passed: float) -> None:
        self.now += passed
        self.pool.give(self.held.pop(index % len(self.held)), self.now)

    @rule(excess=st.integers(0, 8 * BLOCK))
    def recalled(self, excess: int) -> None:
        excess = min(excess, self.lease)
        used, backed, idle = self.pool.used, self.pool.backed, self.lease - self.pool.backed * BLOCK
        size, parked = give_back(self.pool, BLOCK, self.lease, excess)
        self.lease -= size
        assert self.pool.used == used
        assert self.pool.backed == backed - len(parked)
        assert not parked or excess > idle, "what is not backed goes first"
        assert size >= excess or not self.pool.free + self.pool.cached, "all that is not in use was to go"
        assert size < excess + BLOCK, "more than was asked for"

    @rule()
    def forget(self) -> None:
        self.pool.forget()
        assert self.pool.cached == 0

    @invariant()
    def conserved(self) -> None:
        self.pool.check()
        assert self.pool.backed * BLOCK <= self.lease
        assert self.pool.used == len({block for blocks in self.held for block in blocks})
        assert sum(self.pool.ages(AGES, self.now)) == self.pool.cached

    @invariant()
    def modest(self) -> None:
        need, want = wish(self.pool, Demand(2, 3, 1), BLOCK)
        assert self.pool.used * BLOCK <= need <= want <= TOTAL * BLOCK


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


@given(st.lists(st.tuples(st.integers(1, 3), st.floats(0, 100)), min_size=1, max_size=8), st.integers(0, 24))
def test_the_longest_unused_goes_first(freed: list[tuple[int, float]], count: int) -> None:
    pool = Pool(24)
    pool.unpark(24)
    since, now, key = {}, 0.0, 0
    for size, passed in freed:
        now += passed
        blocks = pool.take((), size)
        assert blocks is not None
        for block in blocks:
            key += 1
            pool.name(block, key)
            since[block] = now
        pool.give(blocks, now)
    free = pool.free
    parked = pool.park(count)
    assert len(parked) == count
    assert not set(parked[:free]) & since.keys(), "free blocks go before cached ones"
    gone = [since[block] for block in parked[free:]]
    left = [when for block, when in since.items() if block not in parked]
    assert gone == sorted(gone)
    assert max(gone, default=0.0) <= min(left, default=now)


def test_a_prefix_is_shared_and_outlives_its_holders() -> None:
    pool = Pool(4)
    pool.unpark(4)
    first = pool.take((), 2)
    assert first is not None
    pool.name(first[0], 7)
    second = pool.take((7, 8), 2)
    assert second is not None
    assert second[0] == first[0]
    assert (pool.used, pool.free) == (3, 1)
    pool.give(first, 1.0)
    assert (pool.used, pool.cached, pool.free) == (2, 0, 2)
    pool.give(second, 2.0)
    assert (pool.used, pool.cached, pool.free) == (0, 1, 3)
    assert pool.ages((0, 1, 4), 5.0) == (0, 1, 0)
    assert pool.take((7,), 5) is None, "there are four"
    assert pool.cached == 1
    assert pool.take((7,), 1) == [first[0]]


def test_blocks_that_could_not_be_backed_are_parked_again() -> None:
    pool = Pool(3)
    pool.park_again(pool.unpark(3)[1:])
    assert (pool.free, pool.parked) == (1, 2)
    pool.check()
    with pytest.raises(ValueError, match="not in"):
        pool.park_again([2])
