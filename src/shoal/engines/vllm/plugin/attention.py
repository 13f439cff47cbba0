"""When what an engine takes is worth the pager's attention before its time. Pure.

A look costs the interpreter's time, which vLLM's thread may need more: not one for every block, nor as long as blocks
come back as fast as they go.
"""

from __future__ import annotations

from collections.abc import Callable

from .demand import enough_of

PARTS = 4
"""Part of what is to be ready, one in so many, that is taken between two thoughts of looking."""


class Attention:
    """Counts what was taken since the pager looked, or will be by requests that came since."""

    def __init__(self) -> None:
        self.idle = True
        """Whether the engine had no requests when the pager looked."""
        self._goal = self._taken = 0

    def looked(self, goal: int, *, idle: bool) -> None:
        """The pager looks: `goal` blocks are to be ready, and `idle` is an engine without requests."""
        self._goal, self.idle, self._taken = goal, idle, 0

    def needed(self, blocks: int, fresh: Callable[[int], int]) -> bool:
        """So many blocks more were taken, or will be: whether to look now. `fresh` counts what is ready up to a number,
        and is asked seldom."""
        self._taken += blocks
        if self.idle:
            return True
        if PARTS * self._taken < self._goal:
            return False
        enough, self._taken = enough_of(self._goal) + self._taken, 0
        return fresh(enough) < enough
