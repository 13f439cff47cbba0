"""Whether every relay is heard that may carry requests: that nobody tells of any does not mean that none runs. Pure.

Relays and engines outlive a controller, and a relay outlives its connection: it goes on relaying, and tells of that
once it has connected again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

from shoal.messages import RelayReport

SILENCE = 5.0
"""Seconds for which, at most, a relay that is away is taken to carry requests. One that lives tries to connect five
times a second (`LONGEST_WAIT` in `gateway/link.py`), so it is back long before, also where the machine is short of
time; one that has died carries nothing, and holds nothing up for longer."""


@dataclass(slots=True)
class Hearing:
    """`relays`: how many there are, if none has died. `until`: when those that are away are no longer waited for (Unix
    seconds)."""

    relays: int = 1
    until: float = -inf

    def missed(self, now: float) -> None:
        """A relay may be away that carries requests."""
        self.until = now + SILENCE

    def complete(self, reports: Mapping[int, RelayReport], now: float) -> bool:
        """Whether what relays said last, by connection, is all that there is to know of running requests."""
        # By name: one that connects anew may be there twice for a moment.
        return now >= self.until or len({report.relay for report in reports.values()}) >= self.relays
