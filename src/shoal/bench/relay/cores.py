"""Which core runs what: the proxy has one for itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

_ENDS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Cores:
    """The core of the proxy, of the load, and of the upstream. With two cores load and upstream share one."""

    proxy: int
    load: int
    upstream: int

    def describe(self) -> dict[str, int]:
        """For the result."""
        return asdict(self)


def share_out(available: Collection[int]) -> Cores:
    """The first core for the proxy, the next for the load, the next for the upstream, as far as there are so many."""
    ordered = sorted(available)
    return Cores(ordered[0], ordered[min(1, len(ordered) - 1)], ordered[min(2, len(ordered) - 1)])


@contextmanager
def starting_on(core: int) -> Iterator[None]:
    """What this thread starts inside the block runs on `core` alone, and so does all that it starts in turn.

    A signal to end that comes meanwhile takes effect after the block: what was started is in somebody's books by then.
    For the main thread.
    """
    came: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: came.append(number)) for number in _ENDS}
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {core})
        yield
    finally:
        os.sched_setaffinity(0, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
