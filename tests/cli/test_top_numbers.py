"""What `shoal top` makes numbers of: what lies in a device, bars of characters, rates of the last minute."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from shoal.cli import top_words
from shoal.cli.top_looks import ASCII, SHAPES, drawn, marked
from shoal.cli.top_rates import Rates, keep, rates
from shoal.cli.top_tins import Holding, Kind, Tin, bar, marks, spans, tin_of
from tests.cli.scripted import GIB, device, instance, memory, pool
from tests.cli.top_parts import View, elastic, model

# -- tins --------------------------------------------------------------------------------------------------------------


def test_a_tin_tells_weights_kv_and_the_rest_apart() -> None:
    one = model("a", instance("a-1", "a", "ready", memory=elastic(16 * GIB, 4 * GIB, 2 * GIB, held=25 * GIB)))
    tin = tin_of(device("cuda:0", memory_used=30 * GIB, pool=pool(held_back=9 * GIB)), [one])
    assert tin.holdings == (Holding("a", {"weights": 16 * GIB, "used": 4 * GIB, "cached": 2 * GIB, "other": 3 * GIB}),)
    assert (tin.others, tin.free, tin.held_back, tin.total) == (5 * GIB, 110 * GIB, 9 * GIB, 140 * GIB)


def test_of_a_model_that_starts_what_is_nobodys_is_its_weights() -> None:
    one = model("a", instance("a-1", "a", "starting", memory=memory(weights=16 * GIB)))
    assert tin_of(device("cuda:0", memory_used=6 * GIB), [one]).holdings[0].parts == {"weights": 6 * GIB}
    assert tin_of(device("cuda:0", memory_used=60 * GIB), [one]).holdings[0].parts == {"weights": 16 * GIB}
    assert tin_of(device("cuda:1", memory_used=60 * GIB), [one]).holdings == ()


def test_one_that_sleeps_lies_where_its_processes_hold_something() -> None:
    asleep = memory(weights=16 * GIB, held={"host": 17 * GIB})
    one = model("a", instance("a-1", "a", "sleeping", memory=asleep))
    assert tin_of(device("cuda:0"), [one]).holdings == ()
    assert tin_of(device("host", kind="host"), [one]).holdings[0].parts == {"other": 17 * GIB}


def test_floors_and_ceilings_are_marked_where_the_kv_cache_would_end() -> None:
    one = elastic(40 * GIB, 10 * GIB, 0, floor=20 * GIB, ceiling=60 * GIB)
    tin = tin_of(device("cuda:0", memory_total=100 * GIB), [model("a", instance("a-1", "a", "ready", memory=one))])
    assert marks(tin, 100) == [(59, "floor", "a"), (99, "ceiling", "a")]
    assert marked(tin, 10, ASCII, {}, "a").plain == "_____^   v"
    beyond = Tin((Holding("a", {"weights": 60}, floor=10, ceiling=50),), 0, 40, 0, 100)
    assert [kind for _, kind, _ in marks(beyond, 10)] == ["floor"]


SIZES = st.integers(0, 2**45)


@st.composite
def tins(draw: st.DrawFn) -> Tin:
    holdings = tuple(
        Holding(f"m{index}", dict(zip(("other", "weights", "used", "cached"), parts, strict=True)), floor, ceiling)
        for index, (parts, floor, ceiling) in enumerate(
            draw(
                st.lists(
                    st.tuples(st.tuples(*[SIZES] * 4), st.none() | SIZES, st.none() | SIZES), max_size=8
                )
            )
        )
    )  # fmt: skip
    others, free = draw(SIZES), draw(SIZES)
    held_back = draw(st.integers(0, free))
    return Tin(holdings, others, free, held_back, sum(one.size for one in holdings) + others + free)


@given(tin=tins(), width=st.integers(0, 300))
def test_a_bar_fills_its_width_and_each_part_is_true_to_a_character(tin: Tin, width: int) -> None:
    pieces = bar(tin, width)
    assert sum(piece.cells for piece in pieces) == width
    assert all(piece.cells > 0 for piece in pieces)
    assert drawn(tin, width, SHAPES, {}).cell_len == width
    assert marked(tin, width, SHAPES, {}, "m0").cell_len == width
    assert all(0 <= at < width for at, _, _ in marks(tin, width))
    if tin.total and width:
        sizes: dict[tuple[Kind, str], float] = {("free", ""): tin.free - tin.held_back, ("held", ""): tin.held_back}
        sizes |= {("others", ""): tin.others}
        sizes |= {(kind, one.model): size for one in tin.holdings for kind, size in one.parts.items()}
        cells = {(piece.kind, piece.model): piece.cells for piece in pieces}
        for key, size in sizes.items():
            assert abs(cells.get(key, 0) - width * size / tin.total) <= 1 + 1e-6, key
        for one in tin.holdings:
            start, end = spans(tin, width, one.model)
            assert end - start == sum(piece.cells for piece in pieces if piece.model == one.model)


PARTS = st.integers(0, 200 * GIB)
MEMORIES = st.builds(
    lambda weights, used, cached, held, floor: elastic(weights, used, cached, held=held, floor=floor),
    PARTS, PARTS, PARTS, st.none() | PARTS, PARTS,
)  # fmt: skip
INSTANCES = st.builds(
    lambda state, memory: instance("i-1", "m", state, memory=memory),
    st.sampled_from(["queued", "starting", "ready", "draining", "sleeping", "waking", "stopping", "failed", "stopped"]),
    MEMORIES | st.just(memory()) | st.builds(lambda weights: memory(weights=weights), PARTS),
)


@given(
    instances=st.lists(st.lists(INSTANCES, max_size=3), max_size=4),
    total=PARTS, used=PARTS, back=PARTS | st.none(), width=st.integers(8, 120),
)  # fmt: skip
def test_whatever_is_said_of_memory_the_sums_agree(
    instances: list[list[View]], total: int, used: int, back: int | None, width: int
) -> None:
    """Readings of different moments contradict each other: a bar is drawn all the same."""
    models = [model(f"m{index}", *some) for index, some in enumerate(instances)]
    one = device("cuda:0", memory_total=total, memory_used=used, pool=None if back is None else pool(held_back=back))
    tin = tin_of(one, models)
    assert sum(holding.size for holding in tin.holdings) + tin.others + tin.free == tin.total
    assert min(tin.others, tin.free, tin.held_back) >= 0
    assert tin.held_back <= tin.free
    assert tin.total >= max(total, used)
    assert sum(piece.cells for piece in bar(tin, width)) == width


# -- rates -------------------------------------------------------------------------------------------------------------


def traffic(at: float, requests: int, tokens: int = 0, first: tuple[int, ...] = (0, 0, 0), **fields: int) -> View:
    one = {"model": "a", "running": 0, "queued": 0, "held": 0, "requests": requests, "prompt_tokens": 0,
           "completion_tokens": tokens, "first_byte": list(first)} | fields  # fmt: skip
    return {"at": at, "bounds": [0.1, 1.0], "models": [one]}


def test_rates_are_those_between_two_readings() -> None:
    kept = keep(keep([], traffic(100, 10, 100, (5, 5, 0))), traffic(110, 30, 400, (5, 25, 0), queued=2, held=1))
    (found,) = rates(kept).values()
    assert (found.requests, found.tokens, found.running, found.waiting) == (2.0, 30.0, 0, 3)
    assert found.p50 == pytest.approx(0.55)
    assert found.p95 == pytest.approx(0.955)


def test_a_first_reading_and_relays_that_start_anew_have_no_rate() -> None:
    assert rates([]) == {}
    first = keep([], traffic(100, 50, 10, (2, 0, 0), running=1))
    assert rates(first)["a"] == Rates(running=1)
    assert rates(keep(first, traffic(103, 4, 3)))["a"] == Rates()


def test_only_the_last_minute_counts() -> None:
    kept: list[Any] = []
    for at in range(0, 300, 3):
        kept = keep(kept, traffic(float(at), at * (1 if at < 200 else 2)))
    assert len(kept) == 21
    assert rates(kept)["a"].requests == pytest.approx(2.0)
    assert keep(kept, traffic(10.0, 0)) == [traffic(10.0, 0)]  # a clock that was set back


# -- words -------------------------------------------------------------------------------------------------------------


@given(st.text(), st.integers(0, 40))
def test_fit_is_exact(text: str, width: int) -> None:
    one = top_words.label(text)
    assert cell_len(top_words.fit(one, width)) == width
    assert cell_len(top_words.right(one, width)) == width
    lines = top_words.wrapped(one, max(1, width), 3)
    assert len(lines) <= 3
    assert all(cell_len(line) <= max(1, width) for line in lines)


@given(st.floats(0, 1e15))
def test_numbers_are_short(number: float) -> None:
    assert cell_len(top_words.size(number)) <= 5
    assert cell_len(top_words.ago(number)) <= 4
    assert cell_len(top_words.rate(min(number, 1e7))) <= 6
    assert cell_len(top_words.brief(min(number, 3600))) <= 5


def test_numbers_read_well() -> None:
    assert [top_words.size(n) for n in (0, 12, 2**20, 1023 * 2**20, 12.34 * GIB, 140 * GIB)] == [
        "0", "12B", "1.0M", "1.0G", "12.3G", "140G",
    ]  # fmt: skip
    assert top_words.of(1.5 * GIB, 80 * GIB) == "1.5 of 80.0 GiB"
    assert top_words.of(0, 0) == "0 of 0 B"
    assert [top_words.brief(n) for n in (0.088, 0.9996, 1.24, 12, 300)] == ["88ms", "1.0s", "1.2s", "12s", "5m"]
    assert [top_words.ago(n) for n in (3, 45, 130, 7300, 200000)] == ["now", "45s", "2m", "2h", "2d"]
    assert top_words.label(" a\x1b[31m\u202eb\n\tc ") == "ab c"
