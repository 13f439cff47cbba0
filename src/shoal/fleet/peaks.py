"""How likely the KV caches of models on one device want more than it has, all at the same moment. Pure.

The model, at a random moment of the steady state:

- **How many** of a model's requests run. Requests that come independently and are not held up are Poisson in number
  whatever their durations (the M/G/∞ queue; mean = rate · duration, Little's law). Where an engine runs `most` at once,
  the number is binomial with the same mean: it cannot pass that bound, and its variance is less, down to none for an
  engine that is always full.
- **How large** each is: its tokens, prompt and answer, are log-normal with a mean and a spread (standard deviation over
  mean), cut at the longest context. A request counts with all the tokens that it will have, its peak; in blocks, and
  with the windows of layers that have one (`KvCost.of_request`).
- A model's demand is the sum over its requests, which is a *compound* distribution; a device's is the sum over its
  models, taken as independent. Peaks that come together because of the time of day are in the means that are given.

Both sums are computed on a grid of `CELLS` cells of budget / CELLS bytes. A size between two grid points goes to both,
so that its mean stays (local moment matching, Klugman, Panjer and Willmot, *Loss Models*, 4th ed., 9.6.5); that adds at
most cell² / 4 to the variance of each request, which errs towards more collisions where they are rare, and nothing else
is approximated. The compound Poisson is Panjer's
recursion (1981), the compound binomial a power by repeated squaring. All terms are positive, so that no digits cancel;
what lies beyond the budget is never computed, only what is missing from 1. Probabilities below 1e-12 mean nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import mul
from statistics import NormalDist

from shoal.fleet.needs import KvCost

CELLS = 512
QUANTILES = 128
"""Points that stand for a distribution of lengths, each for as large a share of requests."""
PEAK = 0.999
"""A model's *peak* is what it stays within for this part of the time."""
BLOCK = 16
_SAME = 1e-6
"""A spread below this is none."""
_PANJER_MOST = 500.0
"""Beyond this mean the first term of Panjer's recursion comes near the smallest number that there is."""

Pmf = list[float]


@dataclass(frozen=True, slots=True)
class Load:
    """What a model is asked for at once. `concurrency`: requests that run on average; `tokens`: of such a request,
    prompt and answer, on average; `spread`: standard deviation of that over its mean. `observed` or declared."""

    concurrency: float
    tokens: float
    spread: float = 1.0
    observed: bool = False


@dataclass(frozen=True, slots=True)
class Demand:
    """One model's KV cache on a device. `most`: requests that run at once (None: any number); `longest`: tokens of the
    longest request; `ceiling`: bytes that it may not exceed."""

    model: str
    load: Load
    cost: KvCost
    most: int | None = None
    longest: int | None = None
    ceiling: int | None = None


@dataclass(frozen=True, slots=True)
class Peaks:
    """What comes of several demands on a device. Bytes; `probability` is the part of the time in which they want more
    than `budget` together. `peaks` by model and `peak` of all: None where that is beyond the budget."""

    budget: int
    probability: float
    expected: int
    peak: int | None
    peaks: Mapping[str, int | None]


def lengths(load: Load, longest: int | None = None) -> list[int]:
    """`QUANTILES` lengths in tokens, each of which stands for as many requests; their mean is that of `load`.

    Where `longest` cuts the distribution, the mean becomes smaller.
    """
    if load.spread < _SAME:
        found = [load.tokens]
    else:
        variance = math.log1p(load.spread**2)
        normal = NormalDist(-variance / 2, math.sqrt(variance))
        found = [math.exp(normal.inv_cdf((i + 0.5) / QUANTILES)) for i in range(QUANTILES)]
        scale = load.tokens * len(found) / sum(found)  # the last point stands for a long tail, and is too short for it
        found = [value * scale for value in found]
    most = math.inf if longest is None else longest
    return [max(1, math.ceil(min(value, most))) for value in found]


def peaks(demands: Sequence[Demand], budget: int, *, cells: int = CELLS) -> Peaks:
    """How likely `demands` together exceed `budget` bytes. Two demands of one name are added up in `peaks`' place."""
    expected = sum(_mean(demand) for demand in demands)
    if budget <= 0:
        wanted = 1 - math.prod(_nothing(demand) for demand in demands)
        return Peaks(0, wanted, round(expected), None if wanted else 0, {d.model: None for d in demands})
    cell = budget / cells
    total: Pmf = _one(cells)
    single: dict[str, Pmf] = {}
    for demand in demands:
        own = _compound(demand, cell, cells)
        single[demand.model] = _convolved(single[demand.model], own) if demand.model in single else own
        total = _convolved(total, own)
    return Peaks(
        budget=budget,
        probability=_beyond(total),
        expected=round(expected),
        peak=_quantile(total, cell),
        peaks={model: _quantile(pmf, cell) for model, pmf in single.items()},
    )


def _mean(demand: Demand) -> float:
    sizes = lengths(demand.load, demand.longest)
    return _running(demand) * sum(demand.cost.of_request(tokens, BLOCK) for tokens in sizes) / len(sizes)


def _running(demand: Demand) -> float:
    """Requests that run on average: never more than may."""
    return demand.load.concurrency if demand.most is None else min(demand.load.concurrency, demand.most)


def _nothing(demand: Demand) -> float:
    """The part of the time in which no request runs."""
    if not demand.cost.per_token:
        return 1.0
    mean = _running(demand)
    return math.exp(-mean) if demand.most is None else (1 - mean / demand.most) ** demand.most


def _compound(demand: Demand, cell: float, cells: int) -> Pmf:
    one = _sizes(demand, cell, cells)
    mean = _running(demand)
    found = _poisson(one, mean) if demand.most is None else _power(_mixed(one, mean / demand.most), demand.most)
    if demand.ceiling is not None and demand.ceiling < cell * cells:
        last = math.ceil(demand.ceiling / cell)
        found = [*found[:last], 1 - math.fsum(found[:last]), *[0.0] * (cells - last)]
    return found


def _sizes(demand: Demand, cell: float, cells: int) -> Pmf:
    """The size of one request, in cells; what is larger than the budget is missing."""
    found = [0.0] * (cells + 1)
    tokens = lengths(demand.load, demand.longest)
    for count in tokens:
        place = demand.cost.of_request(count, BLOCK) / cell
        low = int(place)
        above = place - low
        for at, share in ((low, 1 - above), (low + 1, above)):
            if at <= cells:
                found[at] += share / len(tokens)
    return found


def _poisson(one: Pmf, mean: float) -> Pmf:
    halvings = math.ceil(math.log2(mean / _PANJER_MOST)) if mean > _PANJER_MOST else 0
    part = mean / 2**halvings
    weighted = [part * index * share for index, share in enumerate(one)]
    backwards: Pmf = weighted[:0:-1]  # of sizes from 1 cell on, the largest first
    cells = len(one) - 1
    found = [math.exp(-part * (1 - one[0]))]
    for at in range(1, cells + 1):
        found.append(sum(map(mul, found, backwards[cells - at :])) / at)
    for _ in range(halvings):
        found = _convolved(found, found)
    return found


def _mixed(one: Pmf, share: float) -> Pmf:
    """A request's size if it is there, with probability `share`, else nothing."""
    return [1 - share + share * one[0], *(share * value for value in one[1:])]


def _power(base: Pmf, exponent: int) -> Pmf:
    found = _one(len(base) - 1)
    while exponent:
        if exponent & 1:
            found = _convolved(found, base)
        exponent >>= 1
        if exponent:
            base = _convolved(base, base)
    return found


def _convolved(one: Pmf, other: Pmf) -> Pmf:
    """The sum of two, as far as it is within the grid."""
    last = len(other) - 1
    backwards = other[::-1]
    return [sum(map(mul, one, backwards[last - at :])) for at in range(last + 1)]


def _one(cells: int) -> Pmf:
    return [1.0, *[0.0] * cells]


def _beyond(pmf: Pmf) -> float:
    return min(1.0, max(0.0, 1 - math.fsum(pmf)))


def _quantile(pmf: Pmf, cell: float) -> int | None:
    total = 0.0
    for at, share in enumerate(pmf):
        total += share
        if total >= PEAK:
            return round(at * cell)
    return None
