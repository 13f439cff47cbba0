"""What models were asked for at once, as it was seen: the busiest quarter of an hour of the last day. Pure.

Readings come every few seconds. Of a window they give the requests that ran on average, and what a request held of the
KV cache on average: the KV cache in use over the requests that ran, both added up over time. The busiest window counts,
as traffic engineers reckon with the busy hour: the mean of a day with its night would say that nothing ever collides.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from shoal.fleet.peaks import Load

WINDOW = 900.0
"""Seconds of a window."""
KEPT = 86_400.0
"""Seconds for which windows are kept."""
LEAST = 60.0
"""Seconds that have to be seen of a window before it says anything."""
LONGEST_STEP = 15.0
"""Seconds that one reading may stand for; what is beyond was not seen."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What ran of a model at a reading: requests, and bytes of KV cache in use on one device, over its instances."""

    requests: int
    kv: int


@dataclass(slots=True)
class _Window:
    began: float
    seconds: float = 0.0
    requests: float = 0.0  # request-seconds
    kv: float = 0.0  # byte-seconds


class Observed:
    """The last day of every model."""

    def __init__(self) -> None:
        self._windows: dict[str, deque[_Window]] = {}
        self._last: float | None = None

    def take(self, now: float, seen: Mapping[str, Seen]) -> None:
        """One more reading, at `now` (Unix seconds). Models that are not in it do not run, and keep their windows."""
        step = 0.0 if self._last is None else min(LONGEST_STEP, max(0.0, now - self._last))
        self._last = now
        for model, one in seen.items():
            windows = self._windows.setdefault(model, deque())
            if not windows or not 0 <= now - windows[-1].began < WINDOW:
                windows.append(_Window(now))
                continue  # a window begins with its first step
            window = windows[-1]
            window.seconds += step
            window.requests += step * one.requests
            window.kv += step * one.kv
        for model in [model for model, windows in self._windows.items() if self._expired(windows, now)]:
            del self._windows[model]

    def load(self, model: str, token_bytes: int) -> Load | None:
        """The load of the busiest window, by KV cache in use; None if too little was seen.

        `token_bytes`: what a token takes of the KV cache on one device. How lengths spread is not seen; it is taken to
        be as wide as their mean.
        """
        whole = [window for window in self._windows.get(model, ()) if window.seconds >= LEAST]
        if not whole or token_bytes <= 0:
            return None
        busiest = max(whole, key=lambda window: (window.kv / window.seconds, window.requests / window.seconds))
        if busiest.requests <= 0 or busiest.kv <= 0:
            return Load(0.0, 1.0, observed=True)
        tokens = busiest.kv / busiest.requests / token_bytes
        return Load(busiest.requests / busiest.seconds, max(1.0, tokens), observed=True)

    @staticmethod
    def _expired(windows: deque[_Window], now: float) -> bool:
        while windows and now - windows[0].began > KEPT:
            windows.popleft()
        return not windows
