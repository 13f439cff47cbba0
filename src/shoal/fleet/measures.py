"""How long models take to load, sleep, wake and move, and how long they are asked for before they serve. Pure.

Nothing decides by these numbers: they are for people. They begin anew with each controller.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Literal

from shoal.fleet.moves import Move, MoveState
from shoal.fleet.snapshot import Fleet, NapKind
from shoal.fleet.state import Instance
from shoal.fleet.state import InstanceState as S

BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
"""Upper bounds of the buckets, in seconds; a value on a bound is within it, values beyond the last have one more."""
FORGOTTEN_AFTER = 3.0
"""Seconds after which a model that was asked for, and for which no relay holds a request, is asked for no more. A relay
asks before its next report tells what it holds."""

Residence = Literal["gpu", "host", "disk"]
Step = Literal["load", "sleep", "wake"]
Outcome = Literal["ready", "given_up"]
_NAPS: dict[NapKind, Step] = {"slept": "sleep", "woke": "wake"}


@dataclass(slots=True)
class Histogram:
    """Values by bucket, and their sum."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total: float = 0.0

    def add(self, value: float) -> None:
        """One more value."""
        self.counts[bisect_left(BOUNDS, value)] += 1
        self.total += value


def residence(instances: Collection[Instance]) -> Residence:
    """Where a model's weights are: on its devices (`gpu`, also where those are the host's memory), kept in the host's
    memory while it sleeps (`host`), or nowhere but in its files (`disk`), as while it loads or sleeps at level 2."""
    found: set[Residence] = {_residence(instance) for instance in instances}
    return "gpu" if "gpu" in found else "host" if "host" in found else "disk"


def _residence(instance: Instance) -> Residence:
    if instance.state in (S.READY, S.DRAINING, S.STOPPING):
        return "gpu"
    if instance.state in (S.SLEEPING, S.WAKING):
        return "host" if instance.rest.level != 2 else "disk"
    return "disk"


class Measures:
    """What a fleet's models took. `steps` by step and model, `waits` by model and how the wait ended; `awaited` are
    the seconds of waits that have ended. `moves` counts those that have ended, by model and outcome; `moved` is what
    they took from their turn on, `switched` what each instance took until another served in its place."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.steps: dict[tuple[Step, str], Histogram] = {}
        self.waits: dict[tuple[str, Outcome], Histogram] = {}
        self.awaited: dict[str, float] = {}
        self.moves: Counter[tuple[str, MoveState]] = Counter()
        self.moved: dict[tuple[str, MoveState], Histogram] = {}
        self.switched: dict[str, Histogram] = {}
        self._seen: dict[str, dict[str, tuple[S, float]]] = {}  # by model and instance: its state, and since when
        self._naps: dict[tuple[str, NapKind], tuple[int, float]] = {}
        self._since: dict[str, float] = {}
        self._held: set[str] = set()

    def asked(self, model: str, now: float) -> None:
        """A relay holds a request for a model that does not serve."""
        if model in self._fleet.models and not self._serves(model):
            self._since.setdefault(model, now)

    def reported(self, now: float) -> None:
        """Relays have said anew what they hold, or one has gone."""
        self._held = {w.model for report in self._fleet.relays.values() for w in report.waiting if w.held}
        for model in self._held:
            self.asked(model, now)
        for model, since in list(self._since.items()):
            if model not in self._held and now - since >= FORGOTTEN_AFTER:
                self._ended(model, "given_up", now)

    def look(self, changed: Collection[str], now: float) -> None:
        """The instances of these models have changed."""
        for model in changed:
            there = {i.id: (i.state, i.changed_at) for i in self._fleet.of_model(model)}
            before = self._seen.pop(model, {})
            if there:
                self._seen[model] = there
            for id, (state, at) in there.items():
                was, since = before.get(id, (state, at))
                if was is S.STARTING and state is S.READY:
                    self._took("load", model, at - since)
            for kind, step in _NAPS.items():
                count, seconds = self._fleet.naps.get((model, kind), (0, 0.0))
                known, earlier = self._naps.get((model, kind), (0, 0.0))
                if count > known:
                    self._took(step, model, (seconds - earlier) / (count - known))
                    self._naps[(model, kind)] = (count, seconds)
            if model in self._since and self._serves(model):
                self._ended(model, "ready", now)

    def move_ended(self, move: Move) -> None:
        """A move is done, has failed or was cancelled. One whose turn never came took nothing."""
        self.moves[move.model, move.state] += 1
        began = next((leg.began_at for leg in move.legs if leg.began_at is not None), None)
        if began is not None and move.ended_at is not None:
            took = max(0.0, move.ended_at - began)
            self.moved.setdefault((move.model, move.state), Histogram()).add(took)
        for leg in move.legs:
            if leg.began_at is not None and leg.switched_at is not None:
                took = max(0.0, leg.switched_at - leg.began_at)
                self.switched.setdefault(move.model, Histogram()).add(took)

    def awaited_until(self, model: str, now: float) -> float:
        """Seconds during which a model was asked for and did not serve, until now."""
        return self.awaited.get(model, 0.0) + max(0.0, now - self._since.get(model, now))

    def forget_but(self, models: Collection[str]) -> None:
        """Keep nothing of models that are gone."""
        for gone in [key for key in self.steps if key[1] not in models]:
            del self.steps[gone]
        for lost in [key for key in self.waits if key[0] not in models]:
            del self.waits[lost]
        for moved in [key for key in self.moves if key[0] not in models]:
            del self.moves[moved]
            self.moved.pop(moved, None)
        for table in (self.awaited, self.switched, self._since, self._seen):
            for name in table.keys() - set(models):
                del table[name]

    def _serves(self, model: str) -> bool:
        return any(i.state is S.READY for i in self._fleet.of_model(model))

    def _took(self, step: Step, model: str, seconds: float) -> None:
        self.steps.setdefault((step, model), Histogram()).add(max(0.0, seconds))

    def _ended(self, model: str, outcome: Outcome, now: float) -> None:
        waited = max(0.0, now - self._since.pop(model))
        self.awaited[model] = self.awaited.get(model, 0.0) + waited
        self.waits.setdefault((model, outcome), Histogram()).add(waited)

    def of_step(self, step: Step) -> Iterator[tuple[str, Histogram]]:
        """What a step took, by model."""
        return ((model, histogram) for (which, model), histogram in self.steps.items() if which == step)
