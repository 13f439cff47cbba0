"""Usage that the controller has not stored yet: one report on its way, and what came since, added up. Pure."""

from __future__ import annotations

from itertools import islice

from shoal.messages import Usage, UsageReport

REPORT_ITEMS = 10_000
"""Items of one report, so that it fits a line whatever the models are called."""
WAITING_ITEMS = 100_000
"""Kinds of usage (key, model, day) that wait; beyond them new kinds are lost, and counted."""


class _Sums:
    """What was used of one kind."""

    __slots__ = ("completion_tokens", "last_used", "prompt_tokens", "requests")

    def __init__(self) -> None:
        self.requests = self.prompt_tokens = self.completion_tokens = 0
        self.last_used = 0.0

    def of(self, kind: tuple[str, str, str]) -> Usage:
        """As it is reported."""
        return Usage(*kind, self.requests, self.prompt_tokens, self.completion_tokens, self.last_used)


class Outbox:
    """Usage on its way to the controller. Nothing is forgotten before it is said to be stored."""

    def __init__(self, relay: str) -> None:
        """`relay` is the name under which the reports are numbered, from 1."""
        self._relay = relay
        self._sequence = 0
        self._sent: UsageReport | None = None
        self._waiting: dict[tuple[str, str, str], _Sums] = {}
        self.lost = 0
        """Requests whose usage there was no room for."""

    @property
    def empty(self) -> bool:
        """Whether all is stored."""
        return self._sent is None and not self._waiting

    def add(self, kind: tuple[str, str, str], prompt: int, completion: int, when: float) -> bool:
        """Keep what a request used at the Unix time `when`, added to what waits of the same key, model and day. Says
        whether nothing waited that it could be added to."""
        sums = self._waiting.get(kind)
        new = sums is None
        if sums is None:
            if len(self._waiting) >= WAITING_ITEMS:
                self.lost += 1
                return True
            sums = self._waiting[kind] = _Sums()
        sums.requests += 1
        sums.prompt_tokens += prompt
        sums.completion_tokens += completion
        if when > sums.last_used:
            sums.last_used = when
        return new

    def report(self) -> UsageReport | None:
        """What to send: the report that is on its way, or else one of what waits, the oldest first; None if nothing."""
        if self._sent is None and self._waiting:
            kinds = list(islice(self._waiting, REPORT_ITEMS))
            self._sequence += 1
            items = tuple(self._waiting.pop(kind).of(kind) for kind in kinds)
            self._sent = UsageReport(self._relay, self._sequence, items)
        return self._sent

    def stored(self, sequence: int) -> bool:
        """Forget report number `sequence`. Says whether it was the one on its way."""
        if self._sent is None or self._sent.seq != sequence:
            return False
        self._sent = None
        return True
