"""When an engine that has not died counts as hung. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.engines.base import EngineMetrics
from shoal.units import format_seconds


@dataclass(slots=True)
class HangDetector:
    """Fed with every look at an engine; says when it has stood still for `timeout` seconds.

    It stands still if it does not answer, or if requests run and no step was made: neither its count of steps nor
    any count of tokens has changed.
    """

    timeout: float
    _answered_at: float | None = None
    _moved_at: float | None = None
    _counts: tuple[float | None, ...] = ()

    def look(self, now: float, metrics: EngineMetrics | None) -> str | None:
        """`metrics` is None if the engine did not answer. The reason why it counts as hung, or None."""
        if self._answered_at is None or self._moved_at is None:
            self._answered_at = self._moved_at = now
        if metrics is None:
            silent = now - self._answered_at
            return f"no answer for {format_seconds(silent)}" if silent >= self.timeout else None
        self._answered_at = now
        counts = (metrics.steps_total, metrics.prompt_tokens_total, metrics.generation_tokens_total)
        if counts != self._counts or not metrics.requests_running or all(count is None for count in counts):
            self._counts = counts
            self._moved_at = now
            return None
        still = now - self._moved_at
        if still < self.timeout:
            return None
        return f"{metrics.requests_running:.0f} request(s) run but no step was made for {format_seconds(still)}"
