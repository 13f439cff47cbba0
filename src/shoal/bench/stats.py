"""Numbers about numbers: percentiles, and what a group of served requests was like. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .load import Served


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which `part` (0 to 1) of `values` lie, linear between neighbours. Raises ValueError if none."""
    if not values:
        raise ValueError("no values to take a percentile of")
    if not 0 <= part <= 1:
        raise ValueError(f"a percentile of {part}: give a part from 0 to 1")
    ordered = sorted(values)
    at = part * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean. Raises ValueError if there are no values."""
    if not values:
        raise ValueError("no values to take a mean of")
    return math.fsum(values) / len(values)


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return percentile(values, 0.5)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Each of ours over its partner in `theirs`, as they were measured one after the other; what has none is left."""
    return [mine / other for mine, other in zip(ours, theirs, strict=False) if other > 0]


def summary(served: Sequence[Served], tokens: int) -> dict[str, Any]:
    """What `served` requests were like. Times in milliseconds; TTFT counts from when a request was due.

    `tokens` is how many each had to have: fewer is a failure.
    """
    good = [one for one in served if one.complete(tokens)]
    row: dict[str, Any] = {"requests": len(served), "failed": len(served) - len(good)}
    if good:
        first = [1e3 * (one.first - one.due) for one in good]
        between = [1e3 * (one.last - one.first) / max(1, one.tokens - 1) for one in good]
        whole = [1e3 * (one.end - one.due) for one in good]
        row |= {
            "ttft_mean": mean(first),
            "ttft_p50": percentile(first, 0.5),
            "ttft_p99": percentile(first, 0.99),
            "ttft_max": max(first),
            "itl_mean": mean(between),
            "itl_p99": percentile(between, 0.99),
            "e2e_mean": mean(whole),
            "e2e_p99": percentile(whole, 0.99),
        }
    sent = [1e3 * (one.sent - one.due) for one in served if one.sent]
    if sent:
        # What the load generator itself was late by: if this is not far below the rest, the rest means nothing.
        row |= {"lag_p99": percentile(sent, 0.99), "lag_max": max(sent)}
    return rounded(row)


def rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    """`row` with floats to three decimals."""
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
