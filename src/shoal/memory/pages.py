"""Which pages back which blocks. Pure: it decides, and `Arena` carries out.

A block lies in one or many runs of bytes. A page is backed while any block on it is. Pages that a run covers whole
belong to that block alone, so only the two ends of a run are counted: work grows with the blocks that change, not
with their pages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple


class Run(NamedTuple):
    """A stretch of every block: block b's lies at ``offset + b * stride`` and is ``length`` long, all in bytes."""

    offset: int
    stride: int
    length: int


class PageRange(NamedTuple):
    """``pages`` consecutive pages from page ``first``."""

    first: int
    pages: int


class BlockError(ValueError):
    """These blocks cannot be backed or unbacked: out of range, named twice, or already so."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where ``blocks`` blocks lie in an address range cut into pages of ``page_size`` bytes.

    Raises ValueError if blocks would overlap, or if that cannot be told because runs of different stride interleave.
    """

    blocks: int
    page_size: int
    runs: tuple[Run, ...]

    def __post_init__(self) -> None:
        if self.blocks < 1 or self.page_size < 1 or not self.runs:
            raise ValueError("a geometry needs at least one block, one run and a page size of at least one byte")
        for run in self.runs:
            if run.offset < 0 or run.length < 1 or run.stride < 0:
                raise ValueError(f"{run} cannot be: lengths are at least 1, offsets and strides at least 0")
            if self.blocks > 1 and run.stride < run.length:
                raise ValueError(f"{run} overlaps itself: its stride is shorter than its length")
        self._refuse_overlap()

    def _refuse_overlap(self) -> None:
        runs = sorted(self.runs)
        for index, one in enumerate(runs):
            end = self._end(one)
            for other in runs[index + 1 :]:
                if other.offset >= end:
                    break
                if one.stride != other.stride:
                    raise ValueError(f"{one} and {other} interleave with different strides")
                # The two can only meet where one's block is the floor or the ceiling of the distance ahead.
                ahead = (other.offset - one.offset) // one.stride if one.stride else 0
                for blocks in {min(ahead, self.blocks - 1), min(ahead + 1, self.blocks - 1)}:
                    gap = other.offset - one.offset - blocks * one.stride
                    if -other.length < gap < one.length:
                        raise ValueError(f"{one} and {other} overlap")

    def _end(self, run: Run) -> int:
        return run.offset + (self.blocks - 1) * run.stride + run.length

    @classmethod
    def contiguous(cls, blocks: int, block_size: int, page_size: int) -> Geometry:
        """Blocks of ``block_size`` bytes, one after another from the first byte."""
        return cls(blocks, page_size, (Run(0, block_size, block_size),))

    @classmethod
    def layered(cls, blocks: int, layers: int, run_size: int, page_size: int) -> Geometry:
        """Layer after layer, each holding ``run_size`` bytes of every block."""
        return cls(blocks, page_size, tuple(Run(i * blocks * run_size, run_size, run_size) for i in range(layers)))

    @property
    def extent(self) -> int:
        """Bytes from the first address to the end of the last run."""
        return max(self._end(run) for run in self.runs)

    @property
    def pages(self) -> int:
        """Pages in the address range."""
        return -(-self.extent // self.page_size)

    @property
    def size(self) -> int:
        """Bytes of address space: ``extent`` in whole pages."""
        return self.pages * self.page_size

    @property
    def block_size(self) -> int:
        """Bytes of one block over all its runs."""
        return sum(run.length for run in self.runs)

    @property
    def blocks_a_page(self) -> int:
        """How many blocks lie on each page, if it is the same whole number for all and none is on two; else 0."""
        if len(self.runs) > 1 or self.runs[0].offset or self.runs[0].length > self.page_size:
            return 0
        each, rest = divmod(self.page_size, self.runs[0].stride or self.page_size)
        return 0 if rest else each

    def pages_of(self, block: int) -> tuple[PageRange, ...]:
        """The pages that hold some of ``block``, coalesced and in order."""
        self.check(block)
        return tuple(
            _coalesce((start // self.page_size, -(-end // self.page_size)) for start, end in self.spans(block))
        )

    def blocks_on(self, page: int) -> list[int]:
        """The blocks that lie on ``page``, in order: all must be unbacked before the page can go."""
        if not 0 <= page < self.pages:
            raise BlockError(f"there is no page {page}: the range has pages 0 to {self.pages - 1}")
        found: set[int] = set()
        start, end = page * self.page_size, (page + 1) * self.page_size
        for offset, stride, length in self.runs:
            if stride == 0:  # one block only
                found.update([0] if offset < end and offset + length > start else [])
                continue
            first = max(0, (start - offset - length) // stride + 1)
            last = min(self.blocks - 1, (end - 1 - offset) // stride)
            found.update(range(first, last + 1))
        return sorted(found)

    def spans(self, block: int) -> Iterator[tuple[int, int]]:
        """Start and end byte of each run of ``block``."""
        for offset, stride, length in self.runs:
            start = offset + block * stride
            yield start, start + length

    def check(self, block: int) -> None:
        """Raise BlockError unless there is such a block."""
        if not 0 <= block < self.blocks:
            raise BlockError(f"there is no block {block}: the arena has blocks 0 to {self.blocks - 1}")


@dataclass(frozen=True, slots=True)
class Plan:
    """What backing or unbacking ``blocks`` means: ``ranges`` of pages, coalesced, in order, none shared."""

    kind: Literal["back", "unback"]
    blocks: tuple[int, ...]
    ranges: tuple[PageRange, ...]
    page_size: int
    version: int
    edges: Counter[int] = field(repr=False)

    @property
    def pages(self) -> int:
        """How many pages have to be backed or may go."""
        return sum(span.pages for span in self.ranges)

    @property
    def size(self) -> int:
        """The same in bytes: what a lease must cover, or what comes back."""
        return self.pages * self.page_size


class PageMap:
    """The blocks that are backed, and so the pages. Nothing changes but by `commit`; not thread-safe.

    ``plan_…`` says which pages an operation concerns; if backing them fails, the plan is dropped and nothing happened.
    """

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self._aligned = _aligned(geometry)
        self._a_page = geometry.blocks_a_page
        self._backed = bytearray(geometry.blocks)
        self._edges: Counter[int] = Counter()  # page → ends of backed runs on it, or blocks
        self._blocks = 0
        self._pages = 0
        self._version = 0

    @property
    def backed_blocks(self) -> int:
        """How many blocks are backed."""
        return self._blocks

    @property
    def backed_pages(self) -> int:
        """How many pages are backed."""
        return self._pages

    @property
    def backed_bytes(self) -> int:
        """The same in bytes."""
        return self._pages * self.geometry.page_size

    def is_backed(self, block: int) -> bool:
        """Whether ``block`` may be used."""
        self.geometry.check(block)
        return bool(self._backed[block])

    def ids(self) -> list[int]:
        """The backed blocks, in order."""
        return [block for block, backed in enumerate(self._backed) if backed]

    def plan_back(self, blocks: Iterable[int]) -> Plan:
        """The pages that backing ``blocks`` needs beyond those backed now. Raises BlockError."""
        ids = self.check(blocks, backed=False)
        whole, edges = self._split(ids)
        whole.extend((page, page + 1) for page in edges if page not in self._edges)
        return self._plan("back", ids, whole, edges)

    def plan_unback(self, blocks: Iterable[int]) -> Plan:
        """The pages that nothing lies on once ``blocks`` are unbacked. Raises BlockError."""
        ids = self.check(blocks, backed=True)
        whole, edges = self._split(ids)
        whole.extend((page, page + 1) for page, ends in edges.items() if self._edges[page] == ends)
        return self._plan("unback", ids, whole, edges)

    def commit(self, plan: Plan) -> None:
        """Record that ``plan`` was carried out. Raises BlockError if something else was committed since it was made."""
        if plan.version != self._version:
            raise BlockError("the plan is out of date: other blocks were backed or unbacked since; make a new one")
        back = plan.kind == "back"
        for block in plan.blocks:
            self._backed[block] = back
        for page, ends in plan.edges.items():
            left = self._edges[page] + (ends if back else -ends)
            if left:
                self._edges[page] = left
            else:
                del self._edges[page]
        sign = 1 if back else -1
        self._blocks += sign * len(plan.blocks)
        self._pages += sign * plan.pages
        self._version += 1

    def check(self, blocks: Iterable[int], *, backed: bool) -> tuple[int, ...]:
        """``blocks`` as a tuple. Raises BlockError unless each exists, is named once and is ``backed`` as said."""
        ids = tuple(blocks)
        if len(set(ids)) != len(ids):
            twice = next(block for block, times in Counter(ids).items() if times > 1)
            raise BlockError(f"block {twice} is named more than once")
        if ids:
            self.geometry.check(min(ids))
            self.geometry.check(max(ids))
        state = bytes(map(self._backed.__getitem__, ids))
        if (wrong := state.find(not backed)) >= 0:
            raise BlockError(f"block {ids[wrong]} is {'not backed' if backed else 'backed already'}")
        return ids

    def _split(self, blocks: Sequence[int]) -> tuple[list[tuple[int, int]], Counter[int]]:
        """Page ranges (first, stop) that one run covers whole; for pages covered in part, how many ends of runs."""
        page_size = self.geometry.page_size
        edges: Counter[int] = Counter()
        if self._aligned is not None:
            first, step, pages = self._aligned
            return [(at := first + block * step, at + pages) for block in blocks], edges
        if each := self._a_page:
            # Whole blocks are counted, rather than their ends.
            return [], Counter([block // each for block in blocks])
        whole: list[tuple[int, int]] = []
        for block in blocks:
            for start, end in self.geometry.spans(block):
                first, head = divmod(start, page_size)
                stop, tail = divmod(end, page_size)
                if head:
                    edges[first] += 1
                    first += 1
                if tail:
                    edges[stop] += 1
                if first < stop:
                    whole.append((first, stop))
        return whole, edges

    def _plan(
        self,
        kind: Literal["back", "unback"],
        blocks: tuple[int, ...],
        pages: list[tuple[int, int]],
        edges: Counter[int],
    ) -> Plan:
        return Plan(kind, blocks, tuple(_coalesce(pages)), self.geometry.page_size, self._version, edges)


def _aligned(geometry: Geometry) -> tuple[int, int, int] | None:
    """First page, pages from block to block and pages a block, if blocks are whole pages of one run."""
    if len(geometry.runs) > 1 or any(size % geometry.page_size for size in geometry.runs[0]):
        return None
    offset, stride, length = (size // geometry.page_size for size in geometry.runs[0])
    return offset, stride, length


def _coalesce(ranges: Iterable[tuple[int, int]]) -> Iterator[PageRange]:
    """Ranges (first, stop), in any order, as few as possible; those that overlap are merged."""
    at = end = -1
    for first, stop in sorted(ranges):
        if first <= end:
            end = max(end, stop)
            continue
        if at >= 0:
            yield PageRange(at, end - at)
        at, end = first, stop
    if at >= 0:
        yield PageRange(at, end - at)
