"""The pretended KV cache: which blocks are in use, cached, free or parked. Pure; times are given, in seconds."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence


class Pool:
    """Blocks `0` to `total - 1`, all parked at first. A block may have several holders, if they share a prefix.

    Each block is in exactly one state: *parked* (not backed), *free* (backed, holds nothing), *cached* (backed, nobody
    holds it, but its prefix can still be found) or *in use*.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._fresh = 0
        """Blocks from here on have never been unparked; they need no entry anywhere."""
        self._parked: list[int] = []
        self._free: deque[int] = deque()
        self._cached: OrderedDict[int, float] = OrderedDict()
        self._holders: dict[int, int] = {}
        self._keys: dict[int, int] = {}
        self._named: dict[int, int] = {}

    @property
    def parked(self) -> int:
        """Blocks that are not backed."""
        return self.total - self._fresh + len(self._parked)

    @property
    def free(self) -> int:
        """Backed blocks that hold nothing."""
        return len(self._free)

    @property
    def cached(self) -> int:
        """Backed blocks that only hold a prefix."""
        return len(self._cached)

    @property
    def used(self) -> int:
        """Blocks that sequences hold."""
        return len(self._holders)

    @property
    def backed(self) -> int:
        """Blocks that are not parked."""
        return self.total - self.parked

    def unpark(self, count: int) -> list[int]:
        """Make up to `count` parked blocks free; answers which."""
        again = [self._parked.pop() for _ in range(min(count, len(self._parked)))]
        new = range(self._fresh, min(self.total, self._fresh + max(0, count - len(again))))
        self._fresh += len(new)
        blocks = [*again, *new]
        self._free.extend(blocks)
        return blocks

    def park(self, count: int) -> list[int]:
        """Park up to `count` blocks that nobody uses, free ones first, then the longest unused; answers which."""
        blocks: list[int] = []
        while len(blocks) < count and (self._free or self._cached):
            blocks.append(self._free.pop() if self._free else self._evict())
        self._parked += blocks
        return blocks

    def park_again(self, blocks: Iterable[int]) -> None:
        """Park free blocks that could not be backed."""
        for block in blocks:
            self._free.remove(block)
            self._parked.append(block)

    def found(self, keys: Sequence[int]) -> int:
        """How many of `keys`, from the first on, name a block that is in use or cached."""
        for count, key in enumerate(keys):
            if key not in self._named:
                return count
        return len(keys)

    def shortfall(self, keys: Sequence[int], count: int) -> int:
        """Blocks that would have to be unparked for `take` not to evict anything."""
        return max(0, count - self.found(keys) - len(self._free))

    def take(self, keys: Sequence[int], count: int) -> list[int] | None:
        """`count` blocks for a sequence, the first of them shared by `keys` as far as they are found.

        Free blocks go first, then the longest unused cached ones. None if there are not enough; then nothing changes.
        """
        shared = [self._named[key] for key in keys[: min(count, self.found(keys))]]
        own = count - len(shared)
        if own > len(self._free) + len(self._cached) - sum(block in self._cached for block in shared):
            return None
        for block in shared:
            self._cached.pop(block, None)
            self._holders[block] = self._holders.get(block, 0) + 1
        blocks = [self._free.popleft() if self._free else self._evict() for _ in range(own)]
        self._holders.update(dict.fromkeys(blocks, 1))
        return shared + blocks

    def name(self, block: int, key: int) -> None:
        """A block in use is full, and can be found by `key` unless another can."""
        if key not in self._named and block not in self._keys:
            self._named[key] = block
            self._keys[block] = key

    def give(self, blocks: Sequence[int], now: float) -> None:
        """A sequence holds these no more. Its last blocks count as unused the longest, as in vLLM."""
        for block in reversed(blocks):
            left = self._holders.pop(block) - 1
            if left:
                self._holders[block] = left
            elif block in self._keys:
                self._cached[block] = now
            else:
                self._free.append(block)

    def forget(self) -> None:
        """Nothing is cached any more, and what is in use cannot be found."""
        self._free.extend(self._cached)
        self._cached.clear()
        self._keys.clear()
        self._named.clear()

    def ages(self, bounds: Sequence[float], now: float) -> tuple[int, ...]:
        """Cached blocks by age: the n-th count is of those at least `bounds[n]` seconds unused, but not the next's."""
        counts = [0] * len(bounds)
        bucket = len(bounds) - 1
        for since in self._cached.values():
            while bucket and now - since < bounds[bucket]:
                bucket -= 1
            counts[bucket] += 1
        return tuple(counts)

    def check(self) -> None:
        """Raises AssertionError if a block is in two states or in none, or if a name leads astray."""
        states = [*self._parked, *self._free, *self._cached, *self._holders]
        assert len(states) == len(set(states)) == self._fresh
        assert self.used + self.cached + self.free + self.parked == self.total
        assert all(count > 0 for count in self._holders.values())
        assert set(self._keys) == set(self._named.values())
        assert all(self._named[key] == block for block, key in self._keys.items())
        assert set(self._cached) <= set(self._keys) <= set(self._cached) | set(self._holders)
        assert list(self._cached.values()) == sorted(self._cached.values())

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        del self._named[self._keys.pop(block)]
        return block
