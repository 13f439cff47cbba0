"""A fleet in accelerated time: the real policy against recorded or generated traffic, event by event, without sleeping.

Models take as long as they are said to: a request runs for ``prompt / prefill_rate + output / decode_rate`` seconds,
however many run beside it, up to `max_concurrency` at once; wakes, sleeps, loads and unloads take their costs. What is
decided is decided by `residency_plan.decide`, from the same kind of snapshot as in a fleet that runs; here it is also
asked only when its answer may have changed. Budgets are checked at every step.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import exp, inf

from shoal.errors import ShoalError
from shoal.fleet.residency import Action, Device, Kind, Motion, Plan, Residency, Resident, Rules, Snapshot
from shoal.fleet.residency_plan import decide
from shoal.fleet.simulation_models import Setup, SimulatedModel, check, start
from shoal.fleet.simulation_report import DeviceReport, Report, model_report
from shoal.fleet.simulation_trace import Request, level

RATE_WINDOW = 300.0
"""Seconds over which a model's request rate is averaged, with weights that fall exponentially."""

Observer = Callable[[Snapshot, Plan], None]
_ARRIVING = (Motion.LOADING, Motion.WAKING)
_BEGINS = {
    Kind.WAKE: Motion.WAKING, Kind.LOAD: Motion.LOADING, Kind.SLEEP: Motion.SLEEPING, Kind.UNLOAD: Motion.UNLOADING
}  # fmt: skip


@dataclass(slots=True, eq=False)
class _Model:
    """A model while it is simulated. `seen` is it as residency sees it, None when that has changed."""

    number: int
    spec: SimulatedModel
    seen: Resident | None
    last: Resident
    queue: list[tuple[int, int, Request]] = field(default_factory=list)
    oldest: deque[tuple[int, float]] = field(default_factory=deque)
    started: set[int] = field(default_factory=set)
    running: int = 0
    rate: float = 0.0
    rate_at: float = 0.0
    waits: list[float] = field(default_factory=list)
    refused: int = 0
    refusal: str = ""
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True, eq=False)
class _Device:
    """A device while it is simulated, with sums over time."""

    budget: int
    taken: int = 0
    running: int = 0
    since: float = 0.0
    byte_seconds: float = 0.0
    busy_seconds: float = 0.0
    gave_way: deque[float] = field(default_factory=deque)

    def until(self, now: float) -> None:
        """Bring the sums up to `now`."""
        passed = now - self.since
        self.byte_seconds += self.taken * passed
        self.busy_seconds += passed if self.running else 0.0
        self.since = now


class Simulation:
    """One run. `observe` is shown every snapshot with the plan that was made from it."""

    def __init__(
        self, setup: Setup, devices: Sequence[Device], host_budget: int, observe: Observer | None = None,
        rules: Rules | None = None,
    ) -> None:  # fmt: skip
        check(setup, devices)
        self._rules = rules or setup.rules.rules()
        self._observe = observe
        self._host_budget = host_budget
        self._devices = {device.id: _Device(device.budget) for device in devices}
        self._shown: tuple[Device, ...] = tuple(Device(device.id, device.budget) for device in devices)
        placed = start(setup, devices, 0.0)
        self._models = {
            name: _Model(number, spec, placed[name], placed[name])
            for number, (name, spec) in enumerate(setup.models.items())
        }
        self._residents = list(placed.values())
        self._dirty: set[str] = set()
        self._events: list[tuple[float, int, Callable[[_Model], None], _Model]] = []
        self._number = 0
        self._now = 0.0
        self._look = 0.0
        self._blocked = False
        self._pending = 0
        self.decisions = 0
        for resident in placed.values():
            self._take(resident, resident.taken)

    def run(self, requests: Iterable[Request]) -> Report:
        """Let all `requests` come, and run until each has ended. Raises ShoalError for one of an unknown model."""
        coming = iter(requests)
        request = next(coming, None)
        count = 0
        while request is not None or self._pending:
            at = min(inf if request is None else request.at, self._events[0][0] if self._events else inf, self._look)
            if at == inf:
                raise RuntimeError(f"the simulation stands still with {self._pending} requests that wait")
            self._now = at
            while self._events and self._events[0][0] <= at:
                _, _, then, model = heapq.heappop(self._events)
                then(model)
            while request is not None and request.at <= at:
                count += 1
                self._arrive(request)
                request = next(coming, None)
            while self._look <= at:
                if not self._decide():
                    break
        return self._report(count)

    # What happens

    def _arrive(self, request: Request) -> None:
        model = self._models.get(request.model)
        if model is None:
            where = f"line {request.line}: " if request.line else ""
            raise ShoalError(
                f"{where}there is no model {request.model}; declare it in the file of models, or leave it out",
                code="model_not_found",
            )
        now = self._now
        model.rate = model.rate * exp((model.rate_at - now) / RATE_WINDOW) + 1 / RATE_WINDOW
        model.rate_at = now
        self._pending += 1
        self._number += 1
        first = not model.queue
        heapq.heappush(model.queue, (level(request.priority), self._number, request))
        model.oldest.append((self._number, now))
        resident = model.last
        if resident.place is Residency.GPU and resident.motion is None:
            self._serve(model)
        elif first and resident.motion is None:
            self._look = now
        self._used(model, keep_alive=request.keep_alive)

    def _serve(self, model: _Model) -> None:
        """Start what may start."""
        spec = model.spec
        while model.queue and model.running < spec.max_concurrency:
            _, number, request = heapq.heappop(model.queue)
            if model.oldest[0][0] == number:
                model.oldest.popleft()
                while model.oldest and model.oldest[0][0] in model.started:
                    model.started.discard(model.oldest.popleft()[0])
            else:
                model.started.add(number)
            model.waits.append(self._now - request.at)
            model.running += 1
            if model.running == 1:
                self._runs(model, 1)
            lasts = request.prompt_tokens / spec.prefill_rate + request.output_tokens / spec.decode_rate
            self._after(lasts, self._served, model)

    def _served(self, model: _Model) -> None:
        self._pending -= 1
        model.running -= 1
        if model.running == 0:
            self._runs(model, -1)
        motion = model.last.motion
        if motion is None:
            self._serve(model)
            if not model.running:
                self._idle_from_now(model)
        elif not model.running:
            self._drained(model)
        self._used(model, keep_alive=model.last.keep_alive)

    def _idle_from_now(self, model: _Model) -> None:
        """Look again when its time limits have passed, or at once if somebody waits for its memory."""
        if self._blocked:
            self._look = self._now
        limits = [limit for limit in (model.last.leaves_after, model.last.unload_after) if limit is not None]
        if limits:
            self._look = min(self._look, self._now + min(limits))

    def _drained(self, model: _Model) -> None:
        sleeps = model.last.motion is Motion.SLEEPING
        self._after(model.spec.sleep if sleeps else model.spec.unload, self._moved, model)

    def _moved(self, model: _Model) -> None:
        """Its motion is over."""
        one, now = model.last, self._now
        if one.motion in _ARRIVING:
            copied = one.motion is Motion.WAKING and one.sleep_level == 1
            one = dataclasses.replace(one, place=Residency.GPU, motion=None, awake_since=now, copied=copied)
        elif one.motion is Motion.SLEEPING:
            one = dataclasses.replace(one, place=Residency.HOST, motion=None, copied=False)
        else:
            one = dataclasses.replace(one, place=Residency.DISK, motion=None, on=(), copied=False)
        self._set(model, one)
        if one.place is Residency.GPU:
            self._serve(model)
        self._look = now

    # What is decided

    def _decide(self) -> bool:
        """Ask the policy and begin what it says; False if the next look is later."""
        state = self._snapshot()
        self.decisions += 1
        self._look = inf
        plan = decide(state, self._rules)
        if self._observe is not None:
            self._observe(state, plan)
        self._blocked = bool(plan.waits)
        for refusal in plan.refusals:
            self._refuse(self._models[refusal.name], refusal.reason)
        began = False
        for action in plan.actions:
            if not action.after:
                self._begin(self._models[action.name], action)
                began = True
        if plan.next_look is not None:
            if plan.next_look <= self._now and not began:
                raise RuntimeError("the policy looks again at once without having done anything")
            self._look = min(self._look, plan.next_look)
        return self._look <= self._now

    def _refuse(self, model: _Model, reason: str) -> None:
        model.refused += len(model.queue)
        model.refusal = reason
        self._pending -= len(model.queue)
        model.queue.clear()
        model.oldest.clear()
        model.started.clear()
        self._dirty.add(model.last.name)

    def _begin(self, model: _Model, action: Action) -> None:
        model.counts[action.kind.value] += 1
        one = model.last
        if action.kind is Kind.FORGET:
            self._set(model, dataclasses.replace(one, copied=False))
            return
        if action.kind is Kind.FLOOR:
            floor = one.floor if action.floor is None else action.floor
            self._set(model, dataclasses.replace(one, floor=floor, awake=one.awake + floor - one.floor))
            return
        self._set(model, dataclasses.replace(one, motion=_BEGINS[action.kind], on=action.devices))
        if action.gives_way_to:
            model.counts["gave_way"] += 1
            for device in action.devices:
                self._devices[device].gave_way.append(self._now)
            self._show()
        if action.kind in (Kind.WAKE, Kind.LOAD):
            self._after(model.spec.wake if action.kind is Kind.WAKE else model.spec.load, self._moved, model)
        elif not model.running:
            self._drained(model)

    def _show(self) -> None:
        """The devices as the policy sees them, with who gave way lately."""
        since = self._now - self._rules.switch_window
        for device in self._devices.values():
            while device.gave_way and device.gave_way[0] < since:
                device.gave_way.popleft()
        self._shown = tuple(Device(n, device.budget, tuple(device.gave_way)) for n, device in self._devices.items())

    def _snapshot(self) -> Snapshot:
        for name in self._dirty:
            model = self._models[name]
            model.last = dataclasses.replace(
                model.last, running=model.running, waiting=len(model.queue), rate=model.rate,
                waiting_since=model.oldest[0][1] if model.oldest else None,
            )  # fmt: skip
            self._residents[model.number] = model.last
        self._dirty.clear()
        return Snapshot(self._now, self._shown, tuple(self._residents), self._host_budget)

    # Books

    def _after(self, delay: float, then: Callable[[_Model], None], model: _Model) -> None:
        self._number += 1
        heapq.heappush(self._events, (self._now + delay, self._number, then, model))

    def _used(self, model: _Model, *, keep_alive: float | None) -> None:
        one = model.last
        if one.last_use != self._now or one.keep_alive != keep_alive:
            model.last = dataclasses.replace(one, last_use=self._now, keep_alive=keep_alive)
        self._dirty.add(one.name)

    def _set(self, model: _Model, one: Resident) -> None:
        before = model.last
        self._take(before, -before.taken)
        self._take(one, one.taken)
        model.last = one
        self._dirty.add(one.name)

    def _take(self, resident: Resident, size: int) -> None:
        for name in resident.on:
            device = self._devices[name]
            device.until(self._now)
            device.taken += size
            if device.taken > device.budget:
                raise RuntimeError(f"{name} has more taken than its budget of {device.budget} bytes")

    def _runs(self, model: _Model, change: int) -> None:
        for name in model.last.on:
            device = self._devices[name]
            device.until(self._now)
            device.running += change

    def _report(self, requests: int) -> Report:
        for device in self._devices.values():
            device.until(self._now)
        models = tuple(
            model_report(name, model.waits, model.refused, model.refusal, model.counts)
            for name, model in self._models.items()
        )
        lasted = max(self._now, 1e-9)
        devices = tuple(
            DeviceReport(name, device.byte_seconds / device.budget / lasted, device.busy_seconds / lasted)
            for name, device in self._devices.items()
        )
        return Report(self._now, requests, models, devices, self.decisions)


def simulate(
    setup: Setup, devices: Sequence[Device], requests: Iterable[Request], *, host_budget: int,
    observe: Observer | None = None,
) -> Report:  # fmt: skip
    """Run `requests` through a fleet of `devices`. Raises ShoalError for what cannot be simulated."""
    return Simulation(setup, devices, host_budget, observe).run(requests)
