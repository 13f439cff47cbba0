"""What may be done to a pool in any order, and what must hold after each step.

Needs nothing but the plugin, so that vLLM's interpreter can run it too: `python pool_walk.py STEPS SEED` walks at
random over vLLM's own classes.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

from shoal.engines.vllm.plugin.pool import ElasticPool
from shoal.memory.ages import AGES, bucket_of
from shoal.memory.pages import Geometry, Run

PAGE = 4096

GEOMETRIES: dict[str, Callable[[int], Geometry]] = {
    "a page a block": lambda blocks: Geometry.contiguous(blocks, PAGE, PAGE),
    "four blocks a page": lambda blocks: Geometry.contiguous(blocks, PAGE // 4, PAGE),
    "blocks that straddle pages": lambda blocks: Geometry.contiguous(blocks, PAGE * 3 // 4, PAGE),
    "two pages and a bit": lambda blocks: Geometry.contiguous(blocks, 2 * PAGE + 512, PAGE),
    "layers of whole pages": lambda blocks: Geometry.layered(blocks, 3, PAGE, PAGE),
    "layers of half pages": lambda blocks: Geometry.layered(blocks, 2, PAGE // 2, PAGE),
    "layers of which some are small": lambda blocks: Geometry(
        blocks, PAGE, (Run(0, 2 * PAGE, 2 * PAGE), Run(2 * PAGE * blocks, PAGE // 2, PAGE // 2))
    ),
}


class Walk:
    """An elastic pool over `pool`, and what is known of it from outside. `give_hash` marks a block as cached."""

    def __init__(self, pool: Any, geometry: Geometry, give_hash: Callable[[Any, Any, int], None]) -> None:
        self.pool, self.geometry = pool, geometry
        self.elastic = ElasticPool(pool, geometry)
        self._give_hash = give_hash
        self.used: list[Any] = []
        self.leaving: list[list[int]] = []
        self.parked: set[int] = set()
        self.taken: list[int] = []
        self.now = 0.0
        self._hashes = 0
        self._last_use: dict[int, float] = {}
        self._seen: dict[int, float] = {}

    # What vLLM does

    def allocate(self, count: int) -> None:
        got = self.pool.get_new_blocks(min(count, self.elastic.free))
        for block in got:
            self._last_use.pop(block.block_id, None)
        self.used += got

    def cache(self, index: int) -> None:
        if self.used and self.pool.enable_caching:
            block = self.used[index % len(self.used)]
            if block.block_hash is None:
                self._hashes += 1
                self._give_hash(self.pool, block, self._hashes)

    def free(self, index: int, count: int) -> None:
        gone, kept = self.used[index : index + count], self.used[:index] + self.used[index + count :]
        self.used = kept
        self.pool.free_blocks(list(reversed(gone)))
        for block in gone:
            if block.ref_cnt == 0 and block.block_hash is not None:
                self._last_use[block.block_id] = self.now

    def touch(self, index: int) -> None:
        """A prefix is hit: a free cached block is in use again, or one in use is shared."""
        cached = [block for block in self.pool.blocks if block.block_hash is not None]
        if cached:
            block = cached[index % len(cached)]
            self.pool.touch([block])
            self.used.append(block)
            self._last_use.pop(block.block_id, None)

    # What the pager does

    def park(self, count: int, cached: bool) -> None:
        queue = self.queue()
        hashed = {block.block_id for block in queue if block.block_hash is not None}
        ids = self.elastic.park(count, cached=cached)
        assert len(ids) == len(set(ids))
        assert 0 not in ids
        assert set(ids) <= {block.block_id for block in queue}, "what was not free was parked"
        if not cached:
            assert not hashed & set(ids), "a cached block was parked, though it should not be"
        if self._alone():
            order = [block.block_id for block in queue]
            assert ids == order[: len(ids)], "not the head of the queue"
            fresh = next((at for at, id in enumerate(order) if id in hashed), len(order))
            assert len(ids) == min(count, len(order) if cached else fresh)
        else:
            self._only_whole_pages(ids)
        assert all(self.pool.blocks[id].block_hash is None for id in ids), "a parked block can be found by its prefix"
        for id in ids:
            self._last_use.pop(id, None)
        if ids:
            self.leaving.append(ids)

    def park_all(self) -> None:
        free = {block.block_id for block in self.queue()}
        ids = self.elastic.park_all()
        assert set(ids) == free
        self._last_use.clear()
        if ids:
            self.leaving.append(ids)

    def put_back(self) -> None:
        if self.leaving:
            ids = self.leaving.pop(0)
            self.elastic.put_back(ids)
            self.parked.update(ids)

    def take(self, count: int) -> None:
        ids = self.elastic.take(count)
        assert ids == sorted(self.parked)[:count]
        self.parked.difference_update(ids)
        self.taken += ids

    def give_up(self, count: int) -> None:
        """They could not be backed."""
        ids, self.taken = self.taken[:count], self.taken[count:]
        self.elastic.put_back(ids)
        self.parked.update(ids)

    def unpark(self, count: int) -> None:
        ids, self.taken = self.taken[:count], self.taken[count:]
        self.elastic.unpark(ids)
        assert [block.block_id for block in self.queue()][: len(ids)] == ids, "they are not the first to be used"

    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    def look_at_ages(self) -> None:
        free = [block for block in self.queue() if block.block_hash is not None]
        buckets = self.elastic.cached_by_age(self.now)
        assert len(buckets) == len(AGES)
        assert sum(buckets) == len(free)
        # It sees a block late at worst, and takes it for younger than it is, not for older; but for one that was used
        # and freed again between two looks.
        self._seen = {block.block_id: self._seen.get(block.block_id, self._last_use[block.block_id]) for block in free}
        truth = [0] * len(AGES)
        for since in self._seen.values():
            truth[bucket_of(self.now - since)] += 1
        for first in range(len(AGES)):
            assert sum(buckets[first:]) <= sum(truth[first:]), "a block is taken for older than it is"

    # What must hold

    def check(self) -> None:
        elastic, queue = self.elastic, self.queue()
        free = {block.block_id for block in queue}
        used = {block.block_id for block in self.used} | {0}
        away = [id for ids in self.leaving for id in ids]
        assert len(free) == len(queue) == elastic.free
        assert elastic.used == len(used)
        assert elastic.parked == len(self.parked)
        assert len(free) + len(used) + len(away) + len(self.taken) + len(self.parked) == elastic.total
        assert free | used | set(away) | set(self.taken) | self.parked == set(range(elastic.total))
        assert self.pool.num_gpu_blocks == len(free) + len(used)
        assert all(self.pool.blocks[id].block_hash is None for id in (*away, *self.taken, *self.parked))
        fresh = elastic.fresh(10**9)
        if self.pool.enable_caching:
            hashed = [block.block_hash is not None for block in queue]
            assert fresh == (hashed.index(True) if True in hashed else len(queue))
            assert hashed == sorted(hashed), "a cached block goes before one that holds nothing"
        else:
            assert fresh == len(queue)
        assert elastic.fresh(2) == min(2, fresh)

    def queue(self) -> list[Any]:
        """The free blocks, from the head; the links back say the same."""
        queue = self.pool.free_block_queue
        found: list[Any] = []
        block = queue.fake_free_list_head.next_free_block
        while block is not queue.fake_free_list_tail:
            assert block.next_free_block.prev_free_block is block
            assert len(found) <= len(self.pool.blocks), "the list has a loop"
            found.append(block)
            block = block.next_free_block
        return found

    def _alone(self) -> bool:
        """Whether every run of a block has a page on which there is no other block."""
        block = self.geometry.blocks // 2
        for offset, stride, length in self.geometry.runs:
            start = offset + block * stride
            pages = range(start // PAGE, -(-(start + length) // PAGE))
            if not any(self.geometry.blocks_on(page) == [block] for page in pages):
                return False
        return True

    def _only_whole_pages(self, ids: list[int]) -> None:
        away = set(ids) | {id for some in self.leaving for id in some} | self.parked
        for id in ids:
            pages = [p for s in self.geometry.pages_of(id) for p in range(s.first, s.first + s.pages)]
            assert any(away.issuperset(self.geometry.blocks_on(page)) for page in pages), "no page is free for it"


def at_random(walk: Walk, steps: int, seed: int) -> None:
    """Do anything, and check everything."""
    chance = random.Random(seed)
    for _ in range(steps):
        chance.choice(
            [
                lambda: walk.allocate(chance.randint(1, 12)),
                lambda: walk.free(chance.randrange(len(walk.used) + 1), chance.randint(1, 12)),
                lambda: walk.cache(chance.randrange(100)),
                lambda: walk.cache(chance.randrange(100)),
                lambda: walk.touch(chance.randrange(100)),
                lambda: walk.park(chance.randint(1, 12), chance.random() < 0.5),
                walk.put_back,
                lambda: walk.take(chance.randint(1, 12)),
                lambda: walk.give_up(chance.randint(1, 3)),
                lambda: walk.unpark(chance.randint(1, 12)),
                lambda: walk.pass_time(chance.choice([0.1, 1, 30, 5000])),
                walk.look_at_ages,
                walk.park_all if chance.random() < 0.05 else walk.put_back,
            ]
        )()
        walk.check()


def main(steps: int, seed: int) -> None:
    """Walk over vLLM's own pool."""
    import inspect

    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_utils import BlockHash, make_block_hash_with_group_id

    def give_hash(pool: Any, block: Any, number: int) -> None:
        key = make_block_hash_with_group_id(BlockHash(number.to_bytes(8, "big")), 0)
        if hasattr(pool, "_insert_block_hash"):
            pool._insert_block_hash(key, block, num_tokens=16)
        else:
            block.block_hash = key
            pool.cached_block_hash_to_block.insert(key, block)

    more = {"hash_block_size": 16} if "hash_block_size" in inspect.signature(BlockPool).parameters else {}
    for caching in (True, False):
        for name, geometry in GEOMETRIES.items():
            pool = BlockPool(60, caching, **more)
            at_random(Walk(pool, geometry(60), give_hash), steps, seed)
            print("walked", name, caching)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
