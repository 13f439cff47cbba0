"""What an engine does with its memory, in any situation that it can be in."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.engines.vllm.plugin.demand import (
    LEASE_STEP,
    READY_BUSY,
    READY_IDLE,
    Decision,
    View,
    Workload,
    decide,
    enough_of,
    target,
)

MIB = 2**20
BLOCKS = [4096, 12288, 368640, 2 * MIB, 2 * MIB + 4096, 40 * MIB]

works = st.builds(
    Workload,
    running=st.integers(0, 64),
    queued=st.integers(0, 64),
    waiting=st.integers(0, 5000),
    prefilling=st.integers(0, 5000),
    step=st.integers(1, 600),
    growth=st.integers(0, 600),
    alone=st.integers(0, 5000),
)


@st.composite
def views(draw: st.DrawFn) -> View:
    """Any engine; `backed` may be above the lease for a moment, and pages may be shared."""
    block = draw(st.sampled_from(BLOCKS))
    used, free, parked = draw(st.integers(1, 500)), draw(st.integers(0, 500)), draw(st.integers(0, 500))
    leaving, overhead = draw(st.integers(0, 50)) * block, draw(st.integers(0, 8)) * 4096
    backed = (used + free) * block + leaving + overhead
    lease = max(0, backed + draw(st.integers(-20, 600)) * block + draw(st.integers(-4096, 4096)))
    fresh = draw(st.integers(0, free))
    return View(
        block=block,
        lease=lease,
        excess=draw(st.one_of(st.just(0), st.integers(0, lease))),
        backed=backed,
        leaving=leaving,
        used=used,
        free=free,
        fresh=fresh,
        parked=parked,
        rate=draw(st.floats(0, 20000)),
        spare=draw(st.integers(0, 600)),
        work=draw(works),
        overhead=overhead,
    )


@settings(deadline=None)
@given(views())
def test_it_never_grows_beyond_the_lease_or_what_is_parked(view: View) -> None:
    grow = decide(view).grow
    assert 0 <= grow <= view.parked
    assert grow == 0 or grow * view.block <= view.lease - view.backed


@settings(deadline=None)
@given(views())
def test_it_never_takes_what_is_in_use_nor_grows_and_shrinks_at_once(view: View) -> None:
    decision = decide(view)
    assert 0 <= decision.shrink <= view.free
    assert not (decision.grow and decision.shrink)
    if not decision.cached:
        assert decision.shrink <= view.fresh


@settings(deadline=None)
@given(views())
def test_what_is_needed_is_a_part_of_what_is_wanted(view: View) -> None:
    decision = decide(view)
    assert view.used * view.block <= decision.need < decision.want


@settings(deadline=None)
@given(views())
def test_a_first_request_that_waits_alone_is_asked_for_with_block_0(view: View) -> None:
    alone = view.work.alone
    assert decide(view).least == ((1 + alone) * view.block + view.overhead if alone else 0)


@settings(deadline=None)
@given(views())
def test_with_excess_it_gives_unbacked_lease_first_and_then_just_enough_blocks(view: View) -> None:
    if view.excess == 0 and view.lease >= view.backed:
        return
    decision = decide(view)
    room = max(0, view.lease - view.backed)
    assert decision.grow == 0
    assert decision.drop == min(room, view.excess)
    over = max(view.excess, view.backed - view.lease) - decision.drop
    leaves = decision.shrink * view.block + view.leaving
    # As much as is asked for, unless all free blocks go; and no block too many.
    assert leaves >= over or decision.shrink == view.free
    assert decision.shrink == 0 or leaves - view.block < over
    assert decision.cached


@settings(deadline=None)
@given(views())
def test_an_idle_engine_that_nobody_presses_keeps_its_cached_blocks(view: View) -> None:
    idle = replace(view, excess=0, lease=max(view.lease, view.backed), work=Workload(), rate=0.0)
    decision = decide(idle)
    assert decision.shrink <= idle.fresh
    assert not decision.cached
    assert decision.drop == 0
    assert decision.want >= (idle.used + idle.free - idle.fresh) * idle.block


@settings(deadline=None)
@given(views())
def test_nothing_is_taken_that_was_needed_lately(view: View) -> None:
    calm = replace(view, excess=0, lease=max(view.lease, view.backed))
    assert decide(calm).shrink <= calm.spare


@settings(deadline=None)
@given(works, st.floats(0, 10000), st.sampled_from(BLOCKS))
def test_the_goal_has_room_for_a_first_request_and_grows_with_the_work(work: Workload, rate: float, block: int) -> None:
    idle, busy = target(Workload(), rate, block, 1 << 30), target(Workload(running=1), 0.0, block, 1 << 30)
    assert 2 <= idle <= busy
    assert (idle + 1) * block > READY_IDLE
    assert (busy + 1) * block > READY_BUSY
    goal = target(work, rate, block, 1 << 30)
    assert goal == idle if work.idle else busy <= goal <= busy + max(rate, 2 * work.step)


@settings(deadline=None)
@given(views())
def test_what_it_did_is_not_undone_by_the_next_look(view: View) -> None:
    view = replace(view, leaving=0, overhead=0, backed=(view.used + view.free) * view.block)
    first = decide(view)
    second = decide(_after(view, first))
    if first.shrink:
        assert second.grow == 0
    if first.grow:
        assert second.shrink == 0


def _after(view: View, decision: Decision) -> View:
    """The same engine once `decision` was carried out and nothing else happened."""
    fresh_gone = min(view.fresh, decision.shrink)
    change = (decision.grow - decision.shrink) * view.block
    given_back = decision.drop + decision.shrink * view.block
    return replace(
        view,
        lease=view.lease - given_back,
        excess=max(0, view.excess - given_back),
        backed=view.backed + change,
        free=view.free + decision.grow - decision.shrink,
        fresh=view.fresh + decision.grow - fresh_gone,
        parked=view.parked + decision.shrink - decision.grow,
        spare=max(0, view.spare - decision.shrink),
    )


@dataclass
class Market:
    """One engine and a broker that grants what is wanted up to `limit`, and asks back what is above."""

    view: View
    limit: int

    def turn(self) -> Decision:
        lease = self.view.lease
        self.view = replace(self.view, excess=max(0, lease - self.limit), spare=10**9)
        decision = decide(self.view)
        self.view = _after(self.view, decision)
        if self.view.lease < min(decision.want, self.limit):
            self.view = replace(self.view, lease=min(decision.want, self.limit))
        return decision


@settings(deadline=None)
@given(views(), st.lists(st.integers(0, 4000), min_size=1, max_size=4))
def test_it_settles_under_any_limit_and_stays(view: View, limits: list[int]) -> None:
    view = replace(view, leaving=0, overhead=0, backed=(view.used + view.free) * view.block)
    market = Market(replace(view, lease=max(view.lease, view.backed)), 0)
    for blocks in limits:
        market.limit = blocks * view.block
        for _ in range(20):
            decision = market.turn()
        assert (decision.grow, decision.shrink, decision.drop) == (0, 0, 0), "it still moves"
        settled = market.view
        assert settled.backed <= settled.lease
        assert settled.lease <= max(market.limit, settled.used * settled.block)
        goal = target(settled.work, settled.rate, settled.block, settled.most)
        # Two thirds of the goal are ready, unless there is no lease or no block for more.
        roomless = settled.lease - settled.backed < settled.block
        assert settled.fresh * 3 >= goal * 2 or roomless or settled.parked == 0


@settings(deadline=None)
@given(views())
def test_a_busy_engine_wants_in_steps_and_never_less_than_it_needs(view: View) -> None:
    found, idle = decide(view), decide(replace(view, work=Workload()))
    assert found.need <= found.want
    assert view.work.idle or found.want % LEASE_STEP == 0
    goal = target(Workload(), view.rate, view.block, view.most)
    assert idle.want == idle.need + (max(0, view.free - view.fresh) + goal) * view.block, "to the byte without requests"


def test_enough_is_two_thirds() -> None:
    assert [enough_of(goal) for goal in (0, 1, 2, 3, 64, 100)] == [0, 1, 2, 2, 43, 67]
