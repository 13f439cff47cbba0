"""What is read off histograms, such as relays keep of times. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def quantile(counts: Sequence[int], bounds: Sequence[float], q: float) -> float | None:
    """A quantile, as if values lay evenly within a bucket; of what is beyond all bounds, the last bound. None without
    values.

    `bounds` are upper bounds, ascending; `counts` has one more, of what is beyond them all.
    """
    left = q * sum(counts)
    if left <= 0:
        return None
    lower = 0.0
    for count, upper in zip(counts, bounds, strict=False):
        if count and left <= count:
            return lower + (upper - lower) * left / count
        left -= count
        lower = upper
    return lower if bounds else None
