"""When requests come: ramps of a rate, and how the bursts of several models lie to each other. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Burst:
    """One model's burst: seconds from the start of the phase at which its requests are due."""

    model: int
    begin: float
    due: tuple[float, ...]
    length: float
    """Seconds from `begin` to the end of the ramp."""


def ramp_rates(peak: int, step: int) -> list[int]:
    """Requests a second in each second: up from `step` to `peak` by `step` and down again. Raises ValueError."""
    if step < 1 or peak < step:
        raise ValueError(f"a ramp to {peak} by {step} a second: the peak has to be at least the step, and that 1")
    up = list(range(step, peak + 1, step))
    return up + up[-2::-1]


def ramp(peak: int, step: int) -> list[float]:
    """Seconds at which the requests of a ramp are due, evenly spaced within each second."""
    return [second + k / rate for second, rate in enumerate(ramp_rates(peak, step)) for k in range(rate)]


def bursts(models: int, peak: int, step: int, *, gap: float, together: bool = False) -> list[Burst]:
    """A ramp for each model, `gap` seconds between the end of one and the begin of the next, or all `together`."""
    times, length = ramp(peak, step), float(len(ramp_rates(peak, step)))
    begins = [0.0 if together else model * (length + gap) for model in range(models)]
    return [Burst(model, begin, tuple(begin + time for time in times), length) for model, begin in enumerate(begins)]


def lasts(planned: Sequence[Burst]) -> float:
    """Seconds from the start of the phase to the end of the last ramp."""
    return max((burst.begin + burst.length for burst in planned), default=0.0)


def rate_over_time(planned: Sequence[Burst]) -> list[tuple[float, float]]:
    """(second, requests due in that second), for a plot."""
    counts = [0] * (int(lasts(planned)) + 1)
    for burst in planned:
        for time in burst.due:
            counts[int(time)] += 1
    return [(float(second), float(count)) for second, count in enumerate(counts)]
