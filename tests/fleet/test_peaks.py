"""The probability that KV peaks collide: exact small cases, simulation with a fixed seed, and what always holds."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.fleet.needs import KvCost, KvLayers
from shoal.fleet.peaks import PEAK, Demand, Load, Peaks, lengths, peaks

MIB, GIB = 2**20, 2**30
LLAMA = KvCost((KvLayers(32, 4096),))  # 128 KiB a token
ONE = KvCost((KvLayers(1, MIB // 16),))  # 16 tokens, a block, are 1 MiB


def demand(
    concurrency: float, tokens: float, *, spread: float = 0.0, most: int | None = None, name: str = "m",
    longest: int | None = None, ceiling: int | None = None, cost: KvCost = ONE,
) -> Demand:  # fmt: skip
    return Demand(name, Load(concurrency, tokens, spread), cost, most, longest, ceiling)


def poisson_beyond(mean: float, count: int) -> float:
    return 1 - sum(math.exp(-mean) * mean**k / math.factorial(k) for k in range(count + 1))


def binomial_beyond(n: int, p: float, count: int) -> float:
    return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(count + 1, n + 1))


@pytest.mark.parametrize("mean", [0.0, 0.1, 3.0, 8.0, 20.0])
def test_requests_of_one_size_are_poisson(mean: float) -> None:
    """With sizes of 32 cells nothing is rounded: 16 requests fit, 17 do not."""
    found = peaks([demand(mean, 32 * 16)], 512 * MIB)
    assert found.probability == pytest.approx(poisson_beyond(mean, 16), abs=1e-12)
    assert found.expected == round(mean * 32 * MIB)


@pytest.mark.parametrize(("mean", "most"), [(1.0, 1), (4.0, 20), (19.0, 20), (20.0, 20), (50.0, 20), (3.0, 1000)])
def test_requests_of_one_size_are_binomial_where_their_number_is_bounded(mean: float, most: int) -> None:
    found = peaks([demand(mean, 32 * 16, most=most)], 512 * MIB)
    assert found.probability == pytest.approx(binomial_beyond(most, min(1.0, mean / most), 16), abs=1e-11)


def test_two_models_of_which_each_alone_fits() -> None:
    """Each has one request half of the time, of the whole budget: both do a quarter of the time."""
    both = [demand(0.5, 512 * 16, most=1, name=name) for name in "ab"]
    assert peaks(both[:1], 512 * MIB).probability == pytest.approx(0)
    found = peaks(both, 512 * MIB)
    assert found.probability == pytest.approx(0.25)
    assert found.peaks == {"a": 512 * MIB, "b": 512 * MIB}
    assert found.peak is None, "it is beyond the budget"


def test_poisson_streams_of_the_same_sizes_add_up_to_one() -> None:
    apart = peaks([demand(3, 900, spread=1, name="a"), demand(5, 900, spread=1, name="b")], GIB)
    assert apart.probability == pytest.approx(peaks([demand(8, 900, spread=1)], GIB).probability, abs=1e-12)
    same = peaks([demand(3, 900, spread=1), demand(5, 900, spread=1)], GIB)
    assert same.peaks == {"m": same.peak}


def test_a_large_mean_does_not_underflow() -> None:
    found = peaks([demand(2000, 16)], 2048 * MIB, cells=2048)
    normal = 1 - statistics.NormalDist(2000, math.sqrt(2000)).cdf(2048.5)
    assert found.probability == pytest.approx(normal, rel=0.05)
    coarse = peaks([demand(2000, 16)], 2048 * MIB).probability
    assert normal < coarse < 0.35, "with requests below a cell it errs towards more collisions"


def simulated(demands: list[Demand], budget: int, rounds: int, draw: Callable[[random.Random, Demand], int]) -> float:
    rng = random.Random(20)
    exceeded = 0
    for _ in range(rounds):
        total = 0
        for one in demands:
            for _ in range(draw(rng, one)):
                variance = math.log1p(one.load.spread**2)
                tokens = rng.lognormvariate(math.log(one.load.tokens) - variance / 2, math.sqrt(variance))
                total += one.cost.of_request(math.ceil(min(tokens, one.longest or math.inf)), 16)
        exceeded += total > budget
    return exceeded / rounds


def _poisson(rng: random.Random, one: Demand) -> int:
    limit, count, product = math.exp(-one.load.concurrency), 0, rng.random()
    while product > limit:
        count, product = count + 1, product * rng.random()
    return count


def _binomial(rng: random.Random, one: Demand) -> int:
    assert one.most is not None
    return sum(rng.random() < one.load.concurrency / one.most for _ in range(one.most))


@pytest.mark.parametrize("budget", [8 * GIB, 10 * GIB, 13 * GIB])
@pytest.mark.parametrize("bounded", [False, True])
def test_against_a_simulation(bounded: bool, budget: int) -> None:
    """Three models of different shapes and lengths, log-normal, cut at the longest context."""
    shapes = [(12.0, 2000.0, 1.0, 32), (4.0, 6000.0, 0.7, 8), (1.5, 9000.0, 1.5, 4)]
    demands = [
        demand(mean, tokens, spread=spread, most=most if bounded else None, name=str(i), longest=32768, cost=LLAMA)
        for i, (mean, tokens, spread, most) in enumerate(shapes)
    ]
    rounds = 10_000
    seen = simulated(demands, budget, rounds, _binomial if bounded else _poisson)
    found = peaks(demands, budget).probability
    assert 0.001 < seen < 0.9, "the case says something"
    noise = 4 * math.sqrt(seen * (1 - seen) / rounds)
    assert abs(found - seen) < noise + 0.04 * seen


def test_a_finer_grid_changes_little() -> None:
    demands = [demand(12, 2000, spread=1, name="a", cost=LLAMA), demand(4, 6000, spread=1, name="b", cost=LLAMA)]
    coarse, fine = (peaks(demands, 10 * GIB, cells=cells).probability for cells in (256, 1024))
    assert coarse == pytest.approx(fine, rel=0.02)


def test_windows_and_ceilings_bound_the_demand() -> None:
    windowed = KvCost((KvLayers(1, MIB // 16, 160),))
    assert peaks([demand(1, 16000, most=1, cost=windowed)], 512 * MIB).peak == 10 * MIB
    capped = [demand(50, 1600, most=50, ceiling=100 * MIB)]
    assert peaks(capped, 512 * MIB).probability == pytest.approx(0, abs=1e-12)
    assert peaks(capped, 512 * MIB).peak == 100 * MIB
    assert peaks(capped, 64 * MIB).probability == pytest.approx(1)


def test_no_budget_and_no_demand() -> None:
    assert peaks([], GIB) == Peaks(GIB, 0.0, 0, 0, {})
    assert peaks([], 0) == Peaks(0, 0.0, 0, 0, {})
    assert peaks([demand(1, 100)], 0).probability == pytest.approx(1 - math.exp(-1))
    assert peaks([demand(1, 100, most=2)], -5).probability == pytest.approx(0.75)
    assert peaks([demand(1, 100, cost=KvCost(()))], 0).probability == 0


@given(st.floats(1, 1e5), st.floats(0, 3))
def test_lengths_have_the_mean_that_was_asked_for(tokens: float, spread: float) -> None:
    found = lengths(Load(1, tokens, spread))
    assert tokens <= statistics.fmean(found) * (1 + 1e-9) <= tokens + 1.001, "each is rounded up to a token"
    assert max(lengths(Load(1, tokens, spread), longest=50)) <= 50


_demands = st.lists(
    st.builds(
        demand, st.floats(0, 40), st.floats(1, 4000), spread=st.floats(0, 2), most=st.none() | st.integers(1, 64),
        name=st.sampled_from("abc"),
    ), max_size=3,
)  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(_demands, st.integers(1, 4 * GIB))
def test_what_always_holds(demands: list[Demand], budget: int) -> None:
    found = peaks(demands, budget, cells=64)
    assert 0 <= found.probability <= 1
    assert found.peak is None or 0 <= found.peak <= budget
    if found.peak is None:
        assert found.probability >= 1 - PEAK - 1e-9
    more = peaks([*demands, demand(1, 100)], budget, cells=64)
    assert more.probability >= found.probability - 1e-9
    assert set(found.peaks) == {one.model for one in demands}
