"""How fast something happens, and how little of it was needed lately. Pure: times are given, in seconds."""

from __future__ import annotations

from collections import deque


class Pace:
    """How often `count` grows, over about the last second; quick to rise."""

    def __init__(self) -> None:
        self.count = 0
        self._samples: deque[tuple[float, int]] = deque()

    def per_second(self, now: float) -> float:
        """The rate now; to be asked now and then, in order of time."""
        samples = self._samples
        if not samples or now - samples[-1][0] >= 0.05:
            samples.append((now, self.count))
        while len(samples) > 2 and now - samples[0][0] > 1.0:
            samples.popleft()
        recent = next((sample for sample in samples if now - sample[0] <= 0.25), samples[-1])
        rates = [(self.count - count) / (now - at) for at, count in (samples[0], recent) if now - at >= 0.05]
        return max(rates, default=0.0)


class Window:
    """The least of a value over the last one to two windows; zero until one has passed."""

    def __init__(self) -> None:
        self._began = float("-inf")
        self._least = self._previous = 0

    def least(self, value: int, now: float, seconds: float) -> int:
        if now - self._began >= seconds:
            self._previous = min(self._least, value)
            self._least, self._began = value, now
        else:
            self._least = min(self._least, value)
        return max(0, min(self._previous, self._least))
