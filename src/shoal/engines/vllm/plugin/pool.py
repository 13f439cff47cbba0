"""vLLM's block pool, with some of its blocks parked. Not thread-safe: the pager's lock is held for every call.

A parked block is simply not in vLLM's free queue, so vLLM's admission, preemption, prefix caching and eviction work as
they do with a smaller cache. Blocks are taken out of the queue from its head: first those that hold nothing, then
cached ones, the longest unused first.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from shoal.memory.ages import AGES, bucket_of
from shoal.memory.pages import Geometry

FAR = 4
"""Blocks of the queue that are looked at for each that is to leave it, where pages are shared: what is looked at is
looked at again the next time, with the pager's lock held."""

FAR_ENOUGH = 256
"""Blocks that are looked at if need be, however few are to leave: a quarter of a millisecond."""


class ElasticPool:
    """A view of `pool`, vLLM's BlockPool. Counts are in blocks."""

    def __init__(self, pool: Any, geometry: Geometry) -> None:
        self._pool = pool
        self._queue = pool.free_block_queue
        self._geometry = geometry
        self._caching = bool(getattr(pool, "enable_caching", True))
        self._parked: list[int] = []  # a heap: low ids first, which keeps neighbours together
        self._is_parked = bytearray(len(pool.blocks))
        self._since = [0.0] * len(pool.blocks)
        self._seen = bytearray(len(pool.blocks))
        self._alone = _stands_alone(geometry)
        self._a_page = geometry.blocks_a_page
        self._near: list[Collection[int] | None] = [None] * len(pool.blocks)

    @property
    def total(self) -> int:
        """Blocks that the cache could have at most."""
        return len(self._pool.blocks)

    @property
    def parked(self) -> int:
        """Blocks that vLLM does not see and that can be backed."""
        return len(self._parked)

    @property
    def free(self) -> int:
        """Blocks in vLLM's free queue."""
        return int(self._queue.num_free_blocks)

    @property
    def used(self) -> int:
        """Blocks that requests hold, and block 0."""
        return int(self._pool.num_gpu_blocks) - self.free

    def fresh(self, limit: int) -> int:
        """Free blocks that hold no prefix, counted up to `limit`."""
        if not self._caching:
            return min(limit, self.free)
        count = 0
        block = self._queue.fake_free_list_head.next_free_block
        while count < limit and block is not None and block.block_id >= 0 and block.block_hash is None:
            count += 1
            block = block.next_free_block
        return count

    def cached_prefix(self, hashes: Sequence[Any], most: int) -> int:
        """How many of the first `most` blocks of a prompt, given by their `hashes`, are cached.

        As if a prefix were cached whole up to some block: vLLM evicts the ends of prompts before their beginnings.
        """
        if not self._caching:
            return 0
        low, high = 0, min(len(hashes), most)
        while low < high:
            middle = (low + high + 1) // 2
            if self._pool.get_cached_block(hashes[middle - 1], [0]):
                low = middle
            else:
                high = middle - 1
        return low

    def park_all(self) -> list[int]:
        """Take every free block out of the queue."""
        return self._remove(list(self._walk()))

    def park(self, count: int, *, cached: bool) -> list[int]:
        """Take about `count` free blocks out of the queue, with `cached` also those that hold a prefix.

        They are neither vLLM's nor parked until `put_back`, which is for when they are unbacked.
        """
        chosen: list[Any] = []
        if self._alone:
            for block in self._walk():
                if len(chosen) >= count or not (cached or block.block_hash is None):
                    break
                chosen.append(block)
            return self._remove(chosen)
        return self._remove([self._pool.blocks[id] for id in sorted(self._whole_pages(count, cached=cached))])

    def put_back(self, ids: list[int]) -> None:
        """`ids` are unbacked: they can be taken again."""
        for id in ids:
            self._is_parked[id] = 1
            heapq.heappush(self._parked, id)

    def take(self, count: int) -> list[int]:
        """At most `count` parked blocks, to be backed; the lowest, in order."""
        ids = [heapq.heappop(self._parked) for _ in range(min(count, len(self._parked)))]
        for id in ids:
            self._is_parked[id] = 0
        return ids

    def unpark(self, ids: list[int]) -> None:
        """`ids` are backed: vLLM may use them, before it evicts a cached block."""
        self._queue.prepend_n([self._pool.blocks[id] for id in ids])
        self._pool.num_gpu_blocks += len(ids)

    def cached_by_age(self, now: float) -> list[int]:
        """Free blocks that hold a prefix, by the buckets of `shoal.memory.ages`.

        vLLM keeps no times, but its queue is ordered by last use. So a block that is seen here for the first time was
        freed since the last call, and none can be older than one before it.
        """
        buckets = [0] * len(AGES)
        if not self._caching:
            return buckets
        seen = bytearray(len(self._seen))
        oldest = float("-inf")
        for block in self._walk():
            id = block.block_id
            if block.block_hash is None:
                continue
            since = self._since[id] if self._seen[id] else now
            if since < oldest:
                since = oldest
            oldest = since
            self._since[id] = since
            seen[id] = 1
            buckets[bucket_of(now - since)] += 1
        self._seen = seen
        return buckets

    def _walk(self) -> Iterator[Any]:
        block = self._queue.fake_free_list_head.next_free_block
        while block is not None and block.block_id >= 0:
            following = block.next_free_block
            yield block
            block = following

    def _remove(self, blocks: list[Any]) -> list[int]:
        for block in blocks:
            self._pool._maybe_evict_cached_block(block)  # noqa: SLF001 - the pool's own way to forget a prefix
            self._queue.remove(block)
        self._pool.num_gpu_blocks -= len(blocks)
        return [block.block_id for block in blocks]

    def _whole_pages(self, count: int, *, cached: bool) -> set[int]:
        """About `count` blocks that may leave the queue together with all that is on their pages.

        A page goes when its youngest block's turn comes: the end of an old prompt must not take the beginning of a
        young one along. But where ages on pages are mixed, that turn may be far away, and the queue is not walked for
        ever: then pages go by their oldest.
        """
        ids: set[int] = set()
        ready = bytearray(self._is_parked)
        passed: list[int] = []
        for block in self._walk():
            if len(ids) >= count or not (cached or block.block_hash is None):
                return ids
            id = block.block_id
            ready[id] = 1
            passed.append(id)
            for other in (id,) if self._a_page else self._neighbours(id):
                if self._all_set(ready, other):
                    ids.update(one for one in self._neighbours(other) if not self._is_parked[one])
            if len(passed) >= max(FAR * count, FAR_ENOUGH):
                break
        else:
            return ids
        for id in passed:
            if len(ids) >= count:
                break
            if id not in ids and all(self._may_go(other, cached=cached) for other in self._neighbours(id)):
                ids.update(other for other in self._neighbours(id) if not self._is_parked[other])
        return ids

    def _all_set(self, flags: bytearray, id: int) -> bool:
        """Whether the flags of all that shares a page with `id` are set."""
        if every := self._a_page:
            first = id - id % every
            return flags.find(0, first, first + every) < 0
        return all(map(flags.__getitem__, self._neighbours(id)))

    def _neighbours(self, id: int) -> Collection[int]:
        """`id`, and what shares a page with it."""
        if every := self._a_page:
            first = id - id % every
            return range(first, min(first + every, self.total))
        if (found := self._near[id]) is None:
            spans = self._geometry.pages_of(id)
            found = tuple({other for span in spans for other in self._blocks_on(span.first, span.pages)})
            self._near[id] = found
        return found

    def _blocks_on(self, first: int, pages: int) -> Iterator[int]:
        # Inner pages of a span hold nothing but what its ends hold.
        yield from self._geometry.blocks_on(first)
        if pages > 1:
            yield from self._geometry.blocks_on(first + pages - 1)

    def _may_go(self, id: int, *, cached: bool) -> bool:
        if self._is_parked[id]:
            return True
        block = self._pool.blocks[id]
        return (
            block.ref_cnt == 0
            and block.next_free_block is not None
            and (cached or block.block_hash is None)
            and id != 0
        )


def _stands_alone(geometry: Geometry) -> bool:
    """Whether unbacking one block alone always frees a page."""
    page = geometry.page_size
    return all(run.length >= 2 * page or not (run.offset % page or run.stride % page) for run in geometry.runs)
