"""How far a start has come, from the lines that the engine logs and from what earlier loads took."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import isfinite
from statistics import median

from shoal.engines.base import Milestone
from shoal.fleet.state import Progress

START = "starting"
"""The phase before the first milestone."""

LOADS_USED = 5
_LONGEST = 4 * 1024
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*+[ -/]*+[@-~]|\][^\x07\x1b]*+(?:\x07|\x1b\\)?+|[@-Z\\-_])")


class ProgressTracker:
    """Follows one start. Times are seconds of any one clock; the first one given, or `started`, is the start.

    `earlier` are what `phases` said of former loads, newest first. Milestones are taken in their order, forward
    only, and any of them may be missing from the log.
    """

    def __init__(
        self,
        milestones: Sequence[Milestone],
        earlier: Sequence[Mapping[str, float]] = (),
        *,
        started: float | None = None,
    ) -> None:
        self._patterns = [milestone.pattern for milestone in milestones]
        self._steps = [START, *(milestone.phase for milestone in milestones)]
        self._percents = [0]
        for milestone in milestones:
            self._percents.append(min(100, max(milestone.percent, self._percents[-1])))
        self._expected = _expected(earlier, set(self._steps))
        self._step = 0
        self._shown = 0
        self._ended: dict[str, float] = {}
        self._started = started
        self._entered = 0.0 if started is None else started

    def feed(self, line: str, now: float) -> bool:
        """Take in a line of the log; whether another phase runs from it on.

        A line may be of any length (of a very long one, its ends are looked at), hold escape codes, and redraw
        itself with carriage returns.
        """
        self._begin(now)
        before = self._steps[self._step]
        if len(line) > _LONGEST:
            line = f"{line[: _LONGEST // 2]}\r{line[-_LONGEST // 2 :]}"
        if "\x1b" in line:
            line = _ESCAPE.sub("", line)
        for part in line.split("\r"):
            self._match(part, now)
        return self._steps[self._step] != before

    def progress(self, now: float) -> Progress:
        """Where the start stands. The percentage never falls, and reaches a milestone's only with its line."""
        self._begin(now)
        self._shown = max(self._shown, self._estimate(now))
        return Progress(self._steps[self._step], self._shown, self._seconds_left(now))

    def phases(self, now: float) -> dict[str, float]:
        """Seconds that each phase took, the running one until now."""
        self._begin(now)
        running = self._steps[self._step]
        return {**self._ended, running: self._elapsed(now)}

    def _begin(self, now: float) -> None:
        if self._started is None:
            self._started = self._entered = now

    def _match(self, part: str, now: float) -> None:
        for step in range(self._step + 1, len(self._steps)):
            if self._patterns[step - 1].search(part):
                break
        else:
            return
        phase = self._steps[self._step]
        if self._steps[step] != phase:
            self._ended[phase] = self._elapsed(now)
            self._entered = max(now, self._entered)
        self._step = step

    def _elapsed(self, now: float) -> float:
        """Seconds in the running phase, those before an interruption by another phase included."""
        return self._ended.get(self._steps[self._step], 0.0) + max(0.0, now - self._entered)

    def _estimate(self, now: float) -> int:
        """Percent, interpolated over the running phase, which may hold several milestones."""
        here = self._step
        phase = self._steps[here]
        lowest = self._percents[here]
        following = self._percents[here + 1] if here + 1 < len(self._percents) else 100
        expected = self._expected.get(phase, 0.0)
        if expected <= 0:
            return lowest
        first = last = here
        while first > 0 and self._steps[first - 1] == phase:
            first -= 1
        while last + 1 < len(self._steps) and self._steps[last + 1] == phase:
            last += 1
        begin = self._percents[first]
        end = self._percents[last + 1] if last + 1 < len(self._percents) else 100
        share = min(1.0, self._elapsed(now) / expected)
        return max(lowest, min(following - 1, int(begin + share * (end - begin))))

    def _seconds_left(self, now: float) -> float | None:
        if not self._expected:
            return None
        phase = self._steps[self._step]
        ahead = {step for step in self._steps[self._step + 1 :] if step != phase and step not in self._ended}
        rest = max(0.0, self._expected.get(phase, 0.0) - self._elapsed(now))
        return rest + sum(self._expected.get(step, 0.0) for step in ahead)


def _expected(earlier: Sequence[Mapping[str, float]], known: set[str]) -> dict[str, float]:
    """The median seconds of each known phase over the newest loads; one that a load skipped took it no time."""
    loads = []
    for load in earlier:
        usable = {phase: s for phase, s in load.items() if phase in known and isfinite(s) and s >= 0}
        if usable:
            loads.append(usable)
        if len(loads) == LOADS_USED:
            break
    phases = {phase for load in loads for phase in load}
    return {phase: median(load.get(phase, 0.0) for load in loads) for phase in phases}
