"""The leases of all ranks of one engine, as one: what the smallest allows, every rank has."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from shoal.memory.client import Callbacks, Lease, LeaseError, Rank
from shoal.memory.elastic import ElasticTerms

CONNECT_TIMEOUT = 30.0

ASK_EVERY = 0.2
"""Seconds between two asks of an engine that has all that it wants. Each is a message, an answer and two turns of a
thread beside the engine's own."""


class Leases:
    """A lease for each of `ranks` while open; `changed` is called when one has news, from any thread."""

    def __init__(self, terms: ElasticTerms, ranks: Sequence[Rank]) -> None:
        self._terms = terms
        self._ranks = list(ranks)
        self._leases: list[Lease] = []
        self.changed: Callable[[], object] = lambda: None
        self._asked: tuple[int, int, int] | None = None
        self._asked_at = float("-inf")
        self._known = False
        self.releases = 0
        """How often something was given back, or all with the lease. The broker takes it off what it was told of."""

    @property
    def lease(self) -> int:
        """Bytes that every rank may keep backed."""
        return min((lease.lease for lease in self._leases), default=0)

    @property
    def excess(self) -> int:
        """Bytes that every rank should give back, for the sake of the one that has to most."""
        return max((lease.excess for lease in self._leases), default=0)

    @property
    def ceiling(self) -> int | None:
        """Bytes that every rank may have at most by its terms; None for the device."""
        return min((ceiling for lease in self._leases if (ceiling := lease.terms[1]) is not None), default=None)

    @property
    def most(self) -> int | None:
        """Bytes that every rank could ever have as things stand, or None if no broker has said."""
        return min((most for lease in self._leases if (most := lease.most) is not None), default=None)

    def open(self) -> None:
        """Join the broker. Raises `LeaseError` if none answers, or with its refusal."""
        callbacks = Callbacks(
            granted=lambda _: self._news(),
            recalled=lambda _, __: self._news(),
            terms=lambda *new: self._keep(new),
            connected=lambda _: self._news(),
        )
        self._asked = None
        self.releases += 1
        # An engine that wakes has its floor again as soon as it fits, and wakes even if it does not fit now.
        returning, self._known = self._known, True
        self._leases = [Lease(self._terms.socket, rank, callbacks, returning=returning) for rank in self._ranks]
        deadline = time.monotonic() + CONNECT_TIMEOUT
        try:
            for lease in self._leases:
                lease.wait_connected(max(0.1, deadline - time.monotonic()))
        except LeaseError:
            self.close()
            self._known = returning
            raise

    def ask(self, need: int, want: int, least: int = 0) -> bool:
        """What requests need, and what could be used besides, in bytes on every rank.

        `least` while nothing runs: what the first request needs to run at all. False: it does not press, and is to be
        asked again a little later.
        """
        if (need, want, least) == self._asked:
            return True
        now = time.monotonic()
        if (
            self._asked is not None
            and least == self._asked[2]
            and max(need, want) <= self.lease
            and not self.excess
            and now - self._asked_at < ASK_EVERY
        ):
            return False
        self._asked, self._asked_at = (need, want, least), now
        for lease in self._leases:
            lease.ask(need, want, least)
        return True

    @property
    def pending(self) -> bool:
        """Whether the last ask is not answered yet."""
        return not all(lease.wait_answered(0) for lease in self._leases)

    def release(self, size: int) -> None:
        """Every rank has given `size` bytes back."""
        # A release may void what was asked before it, so the same words are said again.
        self._asked = None
        self.releases += 1
        for lease in self._leases:
            lease.release(size)

    def wait(self, size: int, timeout: float) -> bool:
        """Wait until every rank may have `size` bytes. Returns whether it may."""
        deadline = time.monotonic() + timeout
        return all(lease.wait_lease(size, max(0.0, deadline - time.monotonic())) for lease in self._leases)

    def report(self, *, used: int, cached: tuple[int, ...], backed: int, waiting: int) -> None:
        """What every rank holds."""
        for lease in self._leases:
            lease.report(used=used, cached=cached, backed=backed, waiting=waiting)

    def close(self) -> None:
        """Give everything back. Nothing may be backed any more."""
        leases, self._leases = self._leases, []
        for lease in leases:
            lease.close()

    def _news(self) -> None:
        self.changed()

    def _keep(self, terms: tuple[int, int | None, int]) -> None:
        """What was changed at run time holds after a sleep, too."""
        floor, ceiling, priority = terms
        self._ranks = [replace(rank, floor=floor, ceiling=ceiling, priority=priority) for rank in self._ranks]
        self._news()
