"""How long a cached block has not been used, in coarse buckets that all engines share."""

from __future__ import annotations

from bisect import bisect_right

AGES = (0, 1, 4, 16, 64, 256, 1024, 4096)
"""Seconds at which each bucket begins: bucket 2 holds what was last used 4 to 16 s ago, the last all that is older."""


def bucket_of(age: float) -> int:
    """The bucket of something last used `age` seconds ago."""
    return max(0, bisect_right(AGES, age) - 1)
