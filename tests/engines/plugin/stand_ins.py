"""vLLM's block pool in small: the same links, counts, hashes and order, without vLLM.

`tests/engines/plugin/pool_walk.py` runs the same walk over this one and over vLLM's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(eq=False)
class Block:
    """One block's bookkeeping."""

    block_id: int
    ref_cnt: int = 0
    block_hash: str | None = None
    prev_free_block: Block | None = None
    next_free_block: Block | None = None
    is_null: bool = False


class Queue:
    """Free blocks, doubly linked between a fake head and a fake tail."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.fake_free_list_head, self.fake_free_list_tail = Block(-1), Block(-1)
        self.fake_free_list_head.next_free_block = self.fake_free_list_tail
        self.fake_free_list_tail.prev_free_block = self.fake_free_list_head
        self.num_free_blocks = 0
        self.append_n(blocks)

    def popleft(self) -> Block:
        first = self.fake_free_list_head.next_free_block
        assert first is not None
        if first is self.fake_free_list_tail:
            raise ValueError("No free blocks available")
        self.remove(first)
        return first

    def remove(self, block: Block) -> None:
        before, after = block.prev_free_block, block.next_free_block
        if before is None or after is None:
            raise RuntimeError(f"remove() called on an invalid block: {block.block_id}")
        before.next_free_block, after.prev_free_block = after, before
        block.prev_free_block = block.next_free_block = None
        self.num_free_blocks -= 1

    def append_n(self, blocks: Sequence[Block]) -> None:
        last = self.fake_free_list_tail.prev_free_block
        assert last is not None
        self._link(last, blocks, self.fake_free_list_tail)

    def prepend_n(self, blocks: Sequence[Block]) -> None:
        first = self.fake_free_list_head.next_free_block
        assert first is not None
        self._link(self.fake_free_list_head, blocks, first)

    def _link(self, before: Block, blocks: Sequence[Block], after: Block) -> None:
        # As in vLLM, a block that is in the list already would break it without a word.
        for block in blocks:
            before.next_free_block, block.prev_free_block = block, before
            before = block
        before.next_free_block, after.prev_free_block = after, before
        self.num_free_blocks += len(blocks)


class Pool:
    """Blocks, of which the first is never given out."""

    def __init__(self, num_gpu_blocks: int, enable_caching: bool = True) -> None:
        self.num_gpu_blocks = num_gpu_blocks
        self.enable_caching = enable_caching
        self.blocks = [Block(id) for id in range(num_gpu_blocks)]
        self.free_block_queue = Queue(self.blocks)
        self.null_block = self.free_block_queue.popleft()
        self.null_block.is_null = True

    def get_num_free_blocks(self) -> int:
        return self.free_block_queue.num_free_blocks

    def get_cached_block(self, block_hash: str, kv_cache_group_ids: Sequence[int]) -> list[Block] | None:
        assert list(kv_cache_group_ids) == [0]
        return [block for block in self.blocks if block.block_hash == block_hash] or None

    def get_new_blocks(self, count: int) -> list[Block]:
        if count > self.get_num_free_blocks():
            raise ValueError(f"Cannot get {count} free blocks from the pool")
        found = [self.free_block_queue.popleft() for _ in range(count)]
        for block in found:
            self._maybe_evict_cached_block(block)
            assert block.ref_cnt == 0
            block.ref_cnt = 1
        return found

    def touch(self, blocks: Sequence[Block]) -> None:
        for block in blocks:
            if block.ref_cnt == 0 and not block.is_null:
                self.free_block_queue.remove(block)
            block.ref_cnt += 1

    def free_blocks(self, blocks: Sequence[Block]) -> None:
        first: list[Block] = []
        last: list[Block] = []
        for block in blocks:
            block.ref_cnt -= 1
            if block.ref_cnt == 0 and not block.is_null:
                (first if block.block_hash is None or not self.enable_caching else last).append(block)
        self.free_block_queue.prepend_n(first)
        self.free_block_queue.append_n(last)

    def cache(self, block: Block, key: str) -> None:
        """Give a block a hash, as `cache_full_blocks` does."""
        assert block.block_hash is None
        block.block_hash = key

    def _maybe_evict_cached_block(self, block: Block) -> bool:
        had, block.block_hash = block.block_hash is not None, None
        return had
