"""How much of its KV cache an engine should have backed, and what it asks of the broker. Pure."""

from __future__ import annotations

from dataclasses import dataclass

READY_IDLE, READY_BUSY = 24 << 20, 128 << 20
"""Backed free blocks that an engine keeps for the next request: when it has none, and when it has some."""

AHEAD = 0.15
"""Seconds of growth at the present rate that are backed ahead."""

LEASE_AHEAD = 0.5
"""Seconds of growth for which a lease is asked ahead."""

LEASE_STEP = 64 << 20
"""A lease that grows with requests grows by so much at once: not a word with the broker for each block."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What the scheduler has before it, in blocks: `waiting` and `prefilling` are what those requests still lack."""

    running: int = 0
    queued: int = 0
    waiting: int = 0
    prefilling: int = 0
    step: int = 1
    """What one step can use up at most."""
    growth: int = 0
    """What the running requests' answers take within `LEASE_AHEAD`."""
    alone: int = 0
    """While nothing runs: what the first waiting request needs to run at all."""

    @property
    def idle(self) -> bool:
        return not (self.running or self.queued)


@dataclass(frozen=True, slots=True)
class View:
    """One engine's memory. `block`, `lease`, `excess`, `backed`, `leaving` and `overhead` in bytes, all else in blocks.

    `backed` includes what is just being backed, and `leaving`: blocks taken from vLLM that are still to be unbacked.
    `fresh` is exact up to `target` and may be more. `spare` is what of it was never needed lately.
    """

    block: int
    lease: int
    excess: int
    backed: int
    leaving: int
    used: int
    free: int
    fresh: int
    parked: int
    rate: float
    spare: int
    work: Workload
    most: int = 1 << 40
    """Blocks that it could ever have, as far as is known."""
    overhead: int = 0
    """Bytes backed beyond what the backed blocks have: pages that they share with blocks that are not."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now. `grow` and `shrink` in blocks; `drop` are bytes of the lease that hold nothing."""

    grow: int = 0
    shrink: int = 0
    cached: bool = False
    """Whether shrinking may take blocks that hold a prefix."""
    drop: int = 0
    need: int = 0
    want: int = 0
    least: int = 0
    """The lease below which nothing can run; 0 while something does."""


def target(work: Workload, rate: float, block: int, most: int) -> int:
    """Fresh blocks to have ready: for the next steps, and for growth at `rate` blocks a second.

    Of a cache that can only ever have few blocks, `most`, not more than a quarter is kept ready.
    """
    idle = max(2, READY_IDLE // block)
    if work.idle:
        return idle
    ready = max(idle, min(READY_BUSY // block, most // 4))
    # What is about to be prefilled is what the rate will be.
    return ready + min(most, max(int(rate * AHEAD), min(work.waiting + work.prefilling, 2 * work.step)))


def enough_of(goal: int) -> int:
    """Blocks with which a busy engine that should have `goal` ready leaves it at that: until a third is missing."""
    return -(-2 * goal // 3)


def decide(view: View) -> Decision:
    """What to do in `view`. Never asks to park a block in use, nor to back more than the lease allows."""
    work = view.work
    goal = target(work, view.rate, view.block, view.most)
    cached = max(0, view.free - view.fresh)
    upcoming = 0 if work.idle else work.waiting + work.prefilling + work.growth
    need = (view.used + upcoming) * view.block + view.overhead
    want = need + (cached + goal) * view.block
    if not work.idle:
        want = -(-want // LEASE_STEP) * LEASE_STEP
    room = view.lease - view.backed
    least = (1 + work.alone) * view.block + view.overhead if work.alone else 0
    if view.excess > 0 or room < 0:
        over = max(view.excess, -room)
        drop = min(max(0, room), view.excess)
        left = max(0, over - drop - view.leaving)
        shrink = min(view.free, -(-left // view.block))
        return Decision(shrink=shrink, cached=True, drop=drop, need=need, want=want, least=least)
    if view.fresh < goal:
        # In one go up to the goal, and not block by block.
        due = view.fresh < enough_of(goal) or work.idle
        grow = min(goal - view.fresh, room // view.block, view.parked) if due else 0
        return Decision(grow=max(0, grow), need=need, want=want, least=least)
    shrink = min(view.spare, max(0, view.fresh - goal))
    return Decision(shrink=shrink, need=need, want=want, least=least)
