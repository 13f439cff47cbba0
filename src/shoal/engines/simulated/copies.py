"""The copy of its weights that a simulated engine pretends to keep in host memory, as Shoal's worker does in vLLM."""

from __future__ import annotations

import time
from collections.abc import Callable

REFUSED = "a copy of the weights needs more of the host's memory than is free, as --fail copy-fails asked for"


class HostCopy:
    """A copy of `size` bytes that takes `seconds` in all, and is kept until it is forgotten. With `fails`, never."""

    def __init__(
        self, size: int, seconds: float, *, fails: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._size = size
        self._seconds = seconds
        self._fails = fails
        self._clock = clock
        self._done = 0.0  # seconds of copying that were done before `_since`
        self._since: float | None = None  # when it was gone on with; None: it is not
        self._needed = False
        self._reason = ""

    def look(self) -> dict[str, object]:
        """What the worker in vLLM says of its own."""
        done = self._progress()
        return {
            "size": self._size,
            "held": self._size if done >= 1 else int(self._size * done),
            "reserved": self._size if done > 0 or self._since is not None else 0,
            "taking": self._since is not None and done < 1,
            "reason": self._reason,
        }

    def take(self) -> dict[str, object]:
        """Begin to copy, or go on."""
        if self._fails:
            self._reason = REFUSED
        elif self._since is None and not self._needed:
            self._since, self._reason = self._clock(), ""
        return self.look()

    def forget(self) -> dict[str, object]:
        """Give it up, unless it is all that there is of the weights."""
        if self._needed:
            self._reason = "the engine sleeps, and these are its weights"
        else:
            self._done, self._since, self._reason = 0.0, None, ""
        return self.look()

    def complete(self) -> float:
        """A sleep needs it now: the seconds that the rest of it takes. It counts as there from then on."""
        rest = (1 - self._progress()) * self._seconds
        self._needed = True
        if not self._fails:
            self._done, self._since = max(self._seconds, 1e-9), None
        return rest

    def woke(self) -> None:
        """The weights are on the device again."""
        self._needed = False

    def _progress(self) -> float:
        done = self._done + (self._clock() - self._since if self._since is not None else 0.0)
        if self._seconds <= 0:
            return 1.0 if self._since is not None or self._done > 0 else 0.0
        return min(1.0, done / self._seconds)
