"""How much of the machine others took while something was measured: they are in every percentile."""

from __future__ import annotations

import contextlib
import time

import psutil

BUSY = ("user", "nice", "system", "irq", "softirq", "steal")


class Neighbours:
    """What processes that are not this one or of its making use, from now on."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._all, self._own = _all(), _own()

    def cores(self) -> float:
        """Cores that they used on average since this was made. The kernel counts in hundredths of a second, so that
        the sum of many short turns may be a little off; never negative."""
        seconds = max(time.monotonic() - self._began, 1e-3)
        return max(0.0, ((_all() - self._all) - (_own() - self._own)) / seconds)


def _all() -> float:
    times = psutil.cpu_times()
    return sum(float(getattr(times, name, 0.0)) for name in BUSY)


def _own() -> float:
    """Seconds of this process and its descendants, those that have ended included."""
    this = psutil.Process()
    total = 0.0
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total
