"""What the simulated engine asks its broker for, and what it gives back. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.engines.simulated.pool import Pool


@dataclass(frozen=True, slots=True)
class Demand:
    """What live requests call for, in blocks, beside those they hold."""

    growing: int = 0
    """Blocks that running sequences will need next."""
    waiting: int = 0
    """Blocks with which those that wait could run."""
    requests: int = 0
    """Sequences that wait for memory."""


def wish(pool: Pool, demand: Demand, block_bytes: int) -> tuple[int, int]:
    """The lease that live requests need, and the one with which no cached block would have to go. In bytes."""
    need = pool.used + demand.growing + demand.waiting
    return min(need, pool.total) * block_bytes, min(need + pool.cached, pool.total) * block_bytes


def give_back(pool: Pool, block_bytes: int, lease: int, excess: int) -> tuple[int, list[int]]:
    """Obey a recall of `excess` bytes of `lease`: bytes to release, and the blocks parked for it.

    What is leased and not backed goes first, then free blocks, then cached ones, the longest unused first. Blocks in
    use stay, so this may be less than `excess`.
    """
    idle = min(excess, lease - pool.backed * block_bytes)
    parked = pool.park(-(-(excess - idle) // block_bytes))
    return idle + len(parked) * block_bytes, parked


def can_grow(pool: Pool, block_bytes: int, lease: int, excess: int) -> int:
    """Blocks that may be unparked now."""
    return max(0, min(pool.parked, (lease - excess) // block_bytes - pool.backed))
