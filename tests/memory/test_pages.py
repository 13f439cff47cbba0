"""Blocks to pages, against an oracle that looks at every byte."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoal.memory.pages import BlockError, Geometry, PageMap, PageRange, Plan, Run

MIB = 1 << 20


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Small geometries of every kind: one run or many, interleaved or layer after layer, with gaps or without."""
    blocks = draw(st.integers(1, 12))
    page_size = draw(st.integers(1, 16))
    runs: list[Run] = []
    at = draw(st.integers(0, 20))
    for _ in range(draw(st.integers(1, 3))):
        # A group of runs of one stride, side by side within it.
        inside = [(draw(st.integers(0, 4)), draw(st.integers(1, 40))) for _ in range(draw(st.integers(1, 3)))]
        stride = sum(gap + length for gap, length in inside) + draw(st.integers(0, 5))
        place = at
        for gap, length in inside:
            place += gap
            runs.append(Run(place, stride, length))
            place += length
        at += blocks * stride + draw(st.integers(0, 20))
    return Geometry(blocks, page_size, tuple(draw(st.permutations(runs))))


def bytes_of(geometry: Geometry, block: int) -> set[int]:
    return {
        byte
        for run in geometry.runs
        for byte in range(run.offset + block * run.stride, run.offset + block * run.stride + run.length)
    }


def pages_under(geometry: Geometry, blocks: set[int]) -> set[int]:
    """The oracle."""
    return {byte // geometry.page_size for block in blocks for byte in bytes_of(geometry, block)}


def pages_in(ranges: tuple[PageRange, ...]) -> set[int]:
    """The pages of ranges, which have to be in order, apart and not adjacent."""
    for one, other in pairwise(ranges):
        assert one.first + one.pages < other.first
    assert all(span.pages > 0 for span in ranges)
    return {page for span in ranges for page in range(span.first, span.first + span.pages)}


@settings(deadline=None)
@given(geometries())
def test_a_geometry_knows_its_pages(geometry: Geometry) -> None:
    everything = [bytes_of(geometry, block) for block in range(geometry.blocks)]
    assert geometry.extent == max(map(max, everything)) + 1
    assert geometry.size % geometry.page_size == 0
    assert geometry.extent <= geometry.size < geometry.extent + geometry.page_size
    under = [pages_under(geometry, {block}) for block in range(geometry.blocks)]
    for block, held in enumerate(everything):
        assert len(held) == geometry.block_size
        assert pages_in(geometry.pages_of(block)) == under[block]
    for page in range(geometry.pages):
        assert geometry.blocks_on(page) == [block for block, pages in enumerate(under) if page in pages]


@settings(deadline=None)
@given(
    st.integers(1, 6), st.lists(st.builds(Run, *[st.integers(0, 30)] * 2, st.integers(1, 12)), min_size=1, max_size=4)
)
def test_overlapping_blocks_are_refused(blocks: int, runs: list[Run]) -> None:
    seen: set[int] = set()
    overlap = False
    for run in runs:
        for block in range(blocks):
            held = set(range(run.offset + block * run.stride, run.offset + block * run.stride + run.length))
            overlap |= bool(seen & held)
            seen |= held
    problem = ""
    try:
        Geometry(blocks, 4, tuple(runs))
    except ValueError as error:
        problem = str(error)
    assert bool(problem) == overlap or "interleave" in problem


class Pages(RuleBasedStateMachine):
    """Any sequence of plans, committed or dropped."""

    @initialize(geometry=geometries())
    def start(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.map = PageMap(geometry)
        self.blocks: set[int] = set()
        self.backed: set[int] = set()

    def some(self, data: st.DataObject, of: set[int]) -> list[int]:
        return data.draw(st.lists(st.sampled_from(sorted(of)), unique=True, max_size=len(of)))

    def carry_out(self, plan: Plan, commit: bool) -> None:
        assert plan.size == plan.pages * self.geometry.page_size
        pages = pages_in(plan.ranges)
        assert len(pages) == plan.pages
        after = self.blocks | set(plan.blocks) if plan.kind == "back" else self.blocks - set(plan.blocks)
        assert pages == self.backed ^ pages_under(self.geometry, after)
        if commit:
            self.map.commit(plan)
            self.blocks = after
            self.backed ^= pages

    @precondition(lambda self: len(self.blocks) < self.geometry.blocks)
    @rule(data=st.data(), commit=st.booleans())
    def back(self, data: st.DataObject, commit: bool) -> None:
        self.carry_out(self.map.plan_back(self.some(data, set(range(self.geometry.blocks)) - self.blocks)), commit)

    @precondition(lambda self: self.blocks)
    @rule(data=st.data(), commit=st.booleans())
    def unback(self, data: st.DataObject, commit: bool) -> None:
        self.carry_out(self.map.plan_unback(self.some(data, self.blocks)), commit)

    @precondition(lambda self: self.blocks)
    @rule(data=st.data())
    def back_again(self, data: st.DataObject) -> None:
        with pytest.raises(BlockError, match="backed already"):
            self.map.plan_back([data.draw(st.sampled_from(sorted(self.blocks)))])

    @precondition(lambda self: len(self.blocks) < self.geometry.blocks)
    @rule(data=st.data())
    def unback_again(self, data: st.DataObject) -> None:
        free = set(range(self.geometry.blocks)) - self.blocks
        with pytest.raises(BlockError, match="is not backed"):
            self.map.plan_unback([data.draw(st.sampled_from(sorted(free)))])

    @invariant()
    def the_oracle_agrees(self) -> None:
        assert self.backed == pages_under(self.geometry, self.blocks)
        assert self.map.backed_pages == len(self.backed)
        assert self.map.backed_bytes == len(self.backed) * self.geometry.page_size
        assert self.map.backed_blocks == len(self.blocks)
        assert self.map.ids() == sorted(self.blocks)
        assert all(self.map.is_backed(block) == (block in self.blocks) for block in range(self.geometry.blocks))


TestPages = Pages.TestCase
TestPages.settings = settings(deadline=None)


def test_a_block_that_is_a_page() -> None:
    pages = PageMap(Geometry.contiguous(16384, 2 * MIB, 2 * MIB))
    plan = pages.plan_back(range(16383, -1, -1))
    assert plan.ranges == (PageRange(0, 16384),)
    assert plan.size == 32 << 30
    pages.commit(plan)
    assert pages.plan_unback([7, 5, 6]).ranges == (PageRange(5, 3),)


def test_blocks_that_share_a_page() -> None:
    pages = PageMap(Geometry.contiguous(8, MIB // 2, 2 * MIB))
    assert pages.geometry.blocks_on(1) == [4, 5, 6, 7]
    pages.commit(pages.plan_back([1]))
    assert pages.plan_back([0, 2, 3]).ranges == ()
    assert pages.plan_back([0, 4]).ranges == (PageRange(1, 1),)
    pages.commit(pages.plan_back([0]))
    assert pages.plan_unback([1]).size == 0
    assert pages.plan_unback([0, 1]).ranges == (PageRange(0, 1),)


@pytest.mark.parametrize(("block_size", "alone"), [(2_359_296, 2), (4_497_408, 3)], ids=["Qwen3-8B", "DeepSeek-V3"])
def test_blocks_that_straddle_pages(block_size: int, alone: int) -> None:
    geometry = Geometry.contiguous(100, block_size, 2 * MIB)
    pages = PageMap(geometry)
    assert pages.plan_back([0]).pages == alone
    pages.commit(pages.plan_back(range(100)))
    assert pages.backed_bytes == geometry.size == -(-100 * block_size // (2 * MIB)) * 2 * MIB
    lone = pages.plan_unback([50])
    first, last = 50 * block_size // (2 * MIB), (51 * block_size - 1) // (2 * MIB)
    assert pages_in(lone.ranges) == set(range(first + 1, last))


def test_layer_after_layer() -> None:
    geometry = Geometry.layered(64, 32, 64 << 10, 2 * MIB)
    pages = PageMap(geometry)
    assert geometry.block_size == 2 * MIB
    assert pages.plan_back([0]).size == 64 * MIB
    assert pages.plan_back(range(32)).size == 64 * MIB
    assert pages.plan_back(range(64)).ranges == (PageRange(0, 64),)


def test_what_cannot_be_is_refused() -> None:
    pages = PageMap(Geometry.contiguous(4, 10, 8))
    with pytest.raises(BlockError, match=r"no block 4: the arena has blocks 0 to 3"):
        pages.plan_back([4])
    with pytest.raises(BlockError, match="no block -1"):
        pages.is_backed(-1)
    with pytest.raises(BlockError, match="no page 5"):
        pages.geometry.blocks_on(5)
    with pytest.raises(BlockError, match="block 2 is named more than once"):
        pages.plan_back([1, 2, 2])
    old = pages.plan_back([0])
    pages.commit(pages.plan_back([1]))
    with pytest.raises(BlockError, match="out of date"):
        pages.commit(old)
    assert pages.ids() == [1]


@pytest.mark.parametrize(
    ("blocks", "page_size", "runs"),
    [
        (0, 4, [Run(0, 4, 4)]),
        (1, 0, [Run(0, 4, 4)]),
        (1, 4, []),
        (1, 4, [Run(-1, 4, 4)]),
        (1, 4, [Run(0, 4, 0)]),
        (2, 4, [Run(0, 3, 4)]),
        (2, 4, [Run(0, 10, 4), Run(3, 10, 4)]),
        (2, 4, [Run(0, 10, 4), Run(8, 10, 4)]),
        (9, 4, [Run(0, 10, 5), Run(43, 10, 8)]),
    ],
)
def test_a_geometry_that_cannot_be(blocks: int, page_size: int, runs: list[Run]) -> None:
    with pytest.raises(ValueError):
        Geometry(blocks, page_size, tuple(runs))
