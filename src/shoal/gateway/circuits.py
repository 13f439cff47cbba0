"""Which instances to leave alone for a moment, because connections to them fail. Pure."""

from __future__ import annotations

from collections.abc import Collection

FIRST, LONGEST = 0.5, 10.0
"""Seconds that an instance is left alone after a failure; doubled with each in a row."""


class Circuits:
    """Failed connections in a row, by instance. After each the instance is left alone for a while; then the next
    request is the trial. Times are seconds of one clock of the caller's."""

    def __init__(self) -> None:
        self._failures: dict[str, tuple[int, float]] = {}
        self.failing = False
        """Whether there is any such instance, for those who look before they ask."""

    def failed(self, instance: str, now: float) -> None:
        """No connection could be made."""
        count = self._failures.get(instance, (0, 0.0))[0] + 1
        self._failures[instance] = count, now + min(LONGEST, FIRST * 2 ** min(count - 1, 10))
        self.failing = True

    def succeeded(self, instance: str) -> None:
        """It answers."""
        self._failures.pop(instance, None)
        self.failing = bool(self._failures)

    def open(self, now: float) -> Collection[str]:
        """Instances to leave alone now."""
        return [instance for instance, (_, until) in self._failures.items() if until > now]

    def keep_only(self, instances: Collection[str]) -> None:
        """Forget all others."""
        for instance in [instance for instance in self._failures if instance not in instances]:
            del self._failures[instance]
        self.failing = bool(self._failures)
