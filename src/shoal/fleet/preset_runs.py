"""Carrying a preset's plan out: commands to the fleet one after the other, each until what it asked for is there.

Groups of steps run side by side. What fails holds up only what depends on it: the later steps of its model, and where
memory did not come back, the steps of its group that would take it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from shoal.errors import ConflictError, ShoalError
from shoal.fleet.hub import Hub
from shoal.fleet.manager import Manager, Outcome
from shoal.fleet.move_runs import Moves
from shoal.fleet.preset_plan import FREES, PresetPlan, Problem, Step, compare, replaces, wanted_move
from shoal.fleet.presets import Preset, PresetEntry, RunState, asleep, live
from shoal.fleet.snapshot import Fleet
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Instance
from shoal.fleet.state import InstanceState as S

T = TypeVar("T")
StepState = Literal["waiting", "running", "done", "failed", "skipped"]
_log = logging.getLogger(__name__)


class Doing(Protocol):
    """What a run needs of the controller."""

    manager: Manager
    hub: Hub

    async def do(self, command: Callable[[], T]) -> T:
        """Run a command of the manager."""
        ...

    async def change_model(self, name: str, make: Callable[[ModelSpec], ModelSpec]) -> Outcome:
        """Give a model other settings."""
        ...


@dataclass(slots=True)
class StepView:
    """A step of a run, as people see it. Times in Unix seconds."""

    group: int
    step: Step
    state: StepState = "waiting"
    message: str = ""
    started_at: float | None = None
    ended_at: float | None = None


@dataclass(slots=True)
class RunView:
    """A run, as people see it. `missing`: what is not as the preset has it, known once it has ended."""

    preset: str
    exclusive: bool
    state: RunState
    started_at: float
    ended_at: float | None = None
    message: str = ""
    cancelling: bool = False
    steps: list[StepView] = field(default_factory=list)
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    missing: tuple[Problem, ...] = ()


class StepFailedError(ShoalError):
    """What a step asked for will not come."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=500, code="step_failed")


class PresetRun:
    """One run of a plan. `refuse` raises ShoalError for names that no model may be added under; `changed` is called
    whenever `view` has changed; `clock` gives Unix seconds."""

    def __init__(
        self,
        controller: Doing,
        preset: Preset,
        plan: PresetPlan,
        refuse: Callable[[str], None],
        changed: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._controller = controller
        self._preset = preset
        self._plan = plan
        self._entries: dict[str, PresetEntry] = {entry.spec.name: entry for entry in preset.models}
        self._refuse = refuse
        self._changed = changed
        self._clock = clock
        self._tasks: list[asyncio.Task[None]] = []
        steps = [StepView(n, step) for n, group in enumerate(plan.groups) for step in group]
        self.view = RunView(
            plan.preset, plan.exclusive, "running", clock(), steps=steps, problems=plan.problems, notes=plan.notes
        )

    def cancel(self) -> None:
        """Begin no further step; asked again, do not wait for those under way either: what they asked for goes on."""
        if self.view.cancelling:
            for task in self._tasks:
                task.cancel()
        self.view.cancelling = True
        self._changed()

    async def run(self) -> None:
        """Carry it all out, and see what is in place. Raises nothing but the cancellation of its own task."""
        groups = range(len(self._plan.groups))
        self._tasks = [asyncio.create_task(self._group([s for s in self.view.steps if s.group == n])) for n in groups]
        try:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:
            for task in self._tasks:
                task.cancel()
        self._end()

    def _end(self) -> None:
        for one in self.view.steps:
            if one.state == "waiting":
                self._mark(one, "skipped", "cancelled before it began")
        after = compare(self._preset, self._fleet, exclusive=self._plan.exclusive)
        why = {one.model: one.message for one in self._plan.problems}
        why |= {s.step.model: s.message for s in self.view.steps if s.state in ("failed", "skipped")}
        open_steps = [step for step in after.steps if step.action != "keep"]
        missing = dict.fromkeys(
            [one.model for one in (*after.problems, *self._plan.problems)] + [step.model for step in open_steps]
        )
        reasons = {step.model: f"to {step.action}: {step.reason}" for step in reversed(open_steps)}
        self.view.missing = tuple(Problem(name, why.get(name) or reasons.get(name, "")) for name in missing)
        self.view.ended_at = self._clock()
        name, there = self._preset.name, len(self._preset.models) - len(set(self._entries) & set(missing))
        if not missing:
            self.view.state, self.view.message = "done", f"{name} is in place"
        else:
            self.view.state = "cancelled" if self.view.cancelling else "failed"
            what = "; ".join(f"{one.model}: {one.message}" for one in self.view.missing)
            self.view.message = f"{name}: {there} of {len(self._entries)} models are in place. Not in place: {what}"
        self._changed()

    async def _group(self, steps: Sequence[StepView]) -> None:
        lost: set[str] = set()
        held = ""  # which step did not give its memory back
        for one in steps:
            step = one.step
            if self.view.cancelling:
                self._mark(one, "skipped", "cancelled before it began")
            elif step.model in lost:
                self._mark(one, "skipped", "an earlier step of this model failed")
            elif held and step.action in ("start", "wake"):
                self._mark(one, "skipped", f"memory that it needs did not come free: {held}")
            else:
                await self._one(one)
            if one.state in ("failed", "skipped"):
                lost.add(step.model)
                if one.state == "failed" and (step.action in FREES or replaces(step)):
                    held = f"{step.model} was to {step.action}, and {one.message}"

    async def _one(self, one: StepView) -> None:
        one.started_at = self._clock()
        self._mark(one, "running", "")
        try:
            await self._carry_out(one.step)
        except asyncio.CancelledError:
            self._mark(one, "failed", "cancelled under way; what was asked for goes on")
            raise
        except ShoalError as error:
            self._mark(one, "failed", error.message)
        except Exception:  # a run has to end, and to say what is in place
            _log.exception("while carrying out %r", one.step)
            self._mark(one, "failed", "Shoal has met a fault of its own; its log has the details")
        else:
            self._mark(one, "done", "")

    def _mark(self, one: StepView, state: StepState, message: str) -> None:
        one.state, one.message = state, message
        if state != "running":
            one.ended_at = self._clock()
        self._changed()

    # -- one step -----------------------------------------------------------------------------------------------------

    @property
    def _fleet(self) -> Fleet:
        return self._controller.manager.fleet

    async def _carry_out(self, step: Step) -> None:
        name, moves = step.model, self._controller.manager.moves
        match step.action:
            case "keep":
                # One that replaces it may have switched already: in place is what serves once its source is gone.
                await self._until(lambda: not is_moved(moves, name) and serves(self._fleet, name, step.count))
            case "move" | "change" if replaces(step):
                await self._until(lambda: not is_moved(moves, name))  # an interrupted run may have begun it
                id = await self._controller.do(lambda: self._replace(step))
                await self._until(lambda: id is None or moved(moves, id))
            case "change":
                await self._controller.change_model(name, lambda _: self._entries[name].spec)
            case "start":
                await self._controller.do(lambda: self._start(step))
                await self._until(lambda: serves(self._fleet, name, step.count))
            case "stop":
                await self._controller.do(lambda: self._stop(step))
                await self._until(lambda: ended(self._fleet, step.instances))
            case "wake":
                await self._controller.do(lambda: self._each(step.instances, self._controller.manager.wake_instance))
                await self._until(lambda: woke(self._fleet, step.instances))
            case "sleep":
                ids = await self._controller.do(lambda: self._sleep(step))
                await self._until(lambda: fell_asleep(self._fleet, ids))

    def _replace(self, step: Step) -> str | None:
        """Begin a move; its id. None: there is nothing left to move."""
        model, moves = self._fleet.models.get(step.model), self._controller.manager.moves
        if model is None:
            raise StepFailedError("it was removed meanwhile")
        try:
            return moves.begin(wanted_move(self._entries[step.model], model.spec, moves.drain)).id
        except ConflictError as error:
            if error.code == "nothing_to_move":
                return None
            raise

    def _start(self, step: Step) -> None:
        if step.model not in self._fleet.models:
            self._refuse(step.model)
            self._controller.manager.add_model(self._entries[step.model].spec)
        self._controller.manager.load(step.model, step.count)

    def _stop(self, step: Step) -> None:
        if step.model not in self._fleet.models:
            return  # it was removed meanwhile
        if {i.id for i in live(self._fleet, step.model)} <= set(step.instances):
            self._controller.manager.unload(step.model)
        else:
            self._each(step.instances, self._controller.manager.stop_instance)

    def _sleep(self, step: Step) -> tuple[str, ...]:
        there = live(self._fleet, step.model)
        missing = step.count - sum(asleep(self._fleet, i) and i.rest.level == step.level for i in there)
        ready = [i.id for i in there if i.state is S.READY]
        chosen = tuple(ready[len(ready) - missing :] if missing > 0 else ())
        if len(chosen) < missing:
            raise StepFailedError(f"{missing} were to go to sleep and {len(ready)} serve; somebody else changed it")
        self._each(chosen, lambda id: self._controller.manager.sleep_instance(id, step.level or 1))
        return chosen

    def _each(self, ids: Sequence[str], command: Callable[[str], Any]) -> None:
        for id in ids:
            one = self._fleet.instances.get(id)
            if one is not None and not one.state.ended:
                command(id)

    async def _until(self, look: Callable[[], bool]) -> None:
        """Wait until `look` is true, which is asked at every change of the fleet. What it raises is raised."""
        while not look():
            await self._controller.hub.change()


# -- whether what was asked for is there; StepFailedError if it will not come -----------------------------------------


def serves(fleet: Fleet, model: str, count: int) -> bool:
    """Whether so many instances of a model serve."""
    there = fleet.of_model(model)
    ready = sum(i.state is S.READY for i in there)
    if ready >= count:
        return True
    if fleet.comes_by_itself(model):
        return False
    failed = [i for i in there if i.state is S.FAILED]
    if failed:
        failure = failed[-1].failure
        raise StepFailedError(" ".join((failure.message, failure.hint)).strip() if failure else failed[-1].reason)
    raise StepFailedError(f"{ready} of {count} serve and no other comes; somebody else stopped it or put it to sleep")


def is_moved(moves: Moves, model: str) -> bool:
    """Whether a move of a model waits or is under way."""
    return any(move.model == model and not move.ended for move in moves.records.values())


def moved(moves: Moves, id: str) -> bool:
    """Whether a move has ended with the new instances in place."""
    move = moves.find(id)
    if move.ended and move.state != "done":
        raise StepFailedError(move.message)
    return move.ended


def ended(fleet: Fleet, ids: Sequence[str]) -> bool:
    """Whether none of these instances runs any more."""
    return all(i.state.ended for i in _known(fleet, ids))


def woke(fleet: Fleet, ids: Sequence[str]) -> bool:
    """Whether all of these instances serve."""
    for id in ids:
        one = fleet.instances.get(id)
        if one is None or one.state.ended or asleep(fleet, one) or (one.state is S.DRAINING and not one.sleeps):
            raise StepFailedError(_why(one, "did not wake"))
    return all(i.state is S.READY for i in _known(fleet, ids))


def fell_asleep(fleet: Fleet, ids: Sequence[str]) -> bool:
    """Whether all of these instances sleep."""
    for id in ids:
        one = fleet.instances.get(id)
        if one is None or not one.sleeps:
            raise StepFailedError(_why(one, "does not sleep"))
    return all(i.state is S.SLEEPING for i in _known(fleet, ids))


def _known(fleet: Fleet, ids: Sequence[str]) -> list[Instance]:
    return [fleet.instances[id] for id in ids if id in fleet.instances]


def _why(one: Instance | None, what: str) -> str:
    if one is None:
        return f"it {what}: it is gone"
    told = one.failure.message if one.failure else one.reason
    return f"{one.id} {what}: it is {one.state.value}" + (f" ({told})" if told else "")
