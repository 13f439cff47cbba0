"""Whether two places hold the same bytes, told by two numbers for each: on the device at the speed of its memory.

The bytes count as 64-bit words in rows of `ROW`. One number sums the rows, each times a factor of its own, the other
the columns. A changed word changes both; words that change places change at least one. Sums wrap at 2**64 alike on
every device, so that a copy on the host can be compared with its source.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import accumulate

import torch

ROW = 4096
"""Words in a row: 32 KiB, of which vLLM's allocations (whole pages of 2 MiB) are multiples."""

_FACTOR = 0x1E3779B97F4A7C15
"""Odd and without a pattern, so that the factors of any two rows differ."""


def marks(data: torch.Tensor, first_row: int = 0) -> torch.Tensor:
    """The two numbers of `data` (uint8, whole rows), as an int64 tensor beside it.

    Of data that begins at `first_row` of something larger it is what that part adds to the whole's.
    """
    return marks_of_all([data], first_row)[0]


def marks_of_all(places: Sequence[torch.Tensor], first_row: int = 0) -> torch.Tensor:
    """`marks` of each of many places of one device, as rows of one tensor (int64, places x 2).

    An engine has more than a hundred, and beginning a kernel takes longer than most of these run: two for each place,
    and what is left for all at once.
    """
    if not places:
        return torch.zeros((0, 2), dtype=torch.int64)
    every = [data.view(torch.int64).view(-1, ROW) for data in places]
    device, ends = places[0].device, list(accumulate(len(rows) for rows in every))
    by_row = torch.empty(ends[-1], dtype=torch.int64, device=device)
    by_column = torch.empty((len(every), ROW), dtype=torch.int64, device=device)
    for index, (rows, end) in enumerate(zip(every, ends, strict=True)):
        torch.sum(rows, 1, out=by_row[end - len(rows) : end])
        torch.sum(rows, 0, out=by_column[index])
    by_row *= torch.cat([_factors(device, first_row + len(rows))[first_row:] for rows in every])
    # Sums wrap, and so do their differences.
    until = by_row.cumsum(0)[torch.tensor(ends, device=device) - 1]
    until[1:] -= until[:-1].clone()
    return torch.stack((until, (by_column * _factors(device, ROW)).sum(1)), 1)


def _factors(device: torch.device, count: int) -> torch.Tensor:
    size = 1 << max(15, (count - 1).bit_length())  # a few sizes, so that hardly any is made twice
    return _all_factors(str(device), size)[:count]


@cache
def _all_factors(device: str, size: int) -> torch.Tensor:
    return (2 * torch.arange(size, dtype=torch.int64, device=device) + 1) * _FACTOR
