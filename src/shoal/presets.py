"""Presets of a running Shoal: saved, compared with what runs, and applied, one at a time."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from shoal.access import AccessControl
from shoal.engines.base import Engine
from shoal.errors import ConflictError, NotFoundError, ShoalError
from shoal.fleet.effects import Effects
from shoal.fleet.move_fit import asked_by, room_after
from shoal.fleet.preset_plan import PresetPlan, compare, replaces, wanted_move
from shoal.fleet.preset_runs import Doing, PresetRun, RunView, is_moved
from shoal.fleet.presets import LastRun, Preset, PresetBook, PresetRecord, capture, make_preset
from shoal.fleet.records import Event
from shoal.fleet.schedules import Planned, Schedule
from shoal.store import Saved, Store

_log = logging.getLogger(__name__)
LOOK, LOOKS = 0.25, 24
"""Seconds between two looks at the room on the devices, and how many; they are read every other second."""
_EVENT_OF = {"done": "info", "cancelled": "warning", "failed": "error"}


class Serving(Doing, Protocol):
    """What presets need of the controller."""

    engines: Mapping[str, Engine]
    store: Store
    access: AccessControl

    @property
    def effects(self) -> Effects:
        """The outside."""
        ...


class PresetControl:
    """Every preset, and the run of one. What changes the book is a command: call it through `Controller.do`."""

    def __init__(self, controller: Serving, clock: Callable[[], float] = time.time) -> None:
        self._controller = controller
        self._clock = clock
        self.book = PresetBook()
        self._run: PresetRun | None = None
        self._task: asyncio.Task[None] | None = None
        self._told: set[int] = set()

    def restore(self, saved: Saved) -> None:
        """At start: know again what was known. A run that was under way when the controller ended is over."""
        self.book = PresetBook(saved.presets)
        now = self._controller.effects.now()
        for name, record in self.book.records.items():
            last = record.last_run
            if last is not None and last.state == "running":
                text = (
                    f"applying the preset {name} was interrupted because Shoal's controller ended; what it asked for "
                    "so far goes on. Apply it again for the rest"
                )
                self._keep(dataclasses.replace(record, last_run=LastRun("interrupted", last.started_at, now, text)))
                self.say("warning", "preset_interrupted", text)

    async def close(self) -> None:
        """The controller ends: leave the run where it is. The next one says that it was interrupted."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    # -- the book -----------------------------------------------------------------------------------------------------

    def save(
        self, name: str, description: str | None = None, *, replace: bool = False, fix_devices: bool = False
    ) -> tuple[PresetRecord, bool]:
        """Save what runs; whether the preset is new. One that is replaced keeps its description if none is given."""
        if description is None:
            known = self.book.records.get(name)
            description = known.preset.description if known is not None else ""
        preset = capture(self._controller.manager.fleet, name, description, fix_devices=fix_devices)
        if preset.name in self.book.records:  # what runs has changed, not when it is to run
            schedules = self.book.records[preset.name].preset.schedules
            preset = preset.model_copy(update={"schedules": schedules})
        return self.put(preset, replace=replace)

    def put(self, preset: Preset, *, replace: bool = False) -> tuple[PresetRecord, bool]:
        """Keep a preset as it is given; whether it is new."""
        self._refuse_if_running(preset.name)
        before = self.book.records.get(preset.name)
        record, new = self.book.put(preset, self._clock(), replace=replace)
        if record is not before:
            self._keep(record)
            self.say("info", "preset_saved", f"the preset {preset.name} was saved: {len(preset.models)} models")
        return record, new

    def remove(self, name: str) -> None:
        """Forget a preset. What runs goes on."""
        self.book.find(name)
        self._refuse_if_running(name)
        self.book.remove(name)
        self._controller.store.delete_preset(name)
        self.say("info", "preset_removed", f"the preset {name} was removed")

    # -- schedules ----------------------------------------------------------------------------------------------------

    @property
    def running(self) -> str | None:
        """The preset that is being applied."""
        return self._run.view.preset if self._run is not None and self._run.view.state == "running" else None

    def planned(self) -> list[Planned]:
        """When each preset is to be applied."""
        return [record.planned for record in self.book.records.values() if record.preset.schedules]

    def schedule(self, name: str, schedule: Schedule) -> PresetRecord:
        """Have a preset applied at these times too; the same times again change only whether others are kept."""
        before = self.book.find(name).preset
        kept = [one for one in before.schedules if (one.cron, one.zone) != (schedule.cron, schedule.zone)]
        data = before.model_dump() | {"schedules": [*kept, schedule]}
        record, _ = self.book.put(make_preset(data), self._clock(), replace=True)
        self._keep(record)
        self.say("info", "preset_scheduled", f"the preset {name} is applied {schedule.words}")
        return record

    def unschedule(self, name: str, cron: str | None = None) -> PresetRecord:
        """Have a preset not applied at these times any more, or at none. NotFoundError if it has no such times."""
        before = self.book.find(name).preset
        wanted = None if cron is None else " ".join(cron.split())
        gone = [one for one in before.schedules if wanted in (None, one.cron)]
        if not gone:
            what = "no schedule" if wanted is None else f"no schedule {wanted!r}"
            raise NotFoundError(
                f"the preset {name} has {what}; `shoal presets schedules` lists them", code="schedule_not_found"
            )
        kept = tuple(one for one in before.schedules if one not in gone)
        record, _ = self.book.put(before.model_copy(update={"schedules": kept}), self._clock(), replace=True)
        self._keep(record)
        times = "; ".join(one.words for one in gone)
        self.say("info", "preset_unscheduled", f"the preset {name} is not applied any more {times}")
        return record

    async def done_with(self, now: float) -> None:
        """What was due up to now is done with."""

        def mark() -> None:
            for record in list(self.book.records.values()):
                if record.preset.schedules and (record.scheduled_at or 0.0) < now:
                    self._keep(dataclasses.replace(record, scheduled_at=now))

        await self._controller.do(mark)

    # -- applying -----------------------------------------------------------------------------------------------------

    async def plan(self, name: str, *, exclusive: bool = True) -> PresetPlan:
        """What applying a preset would do now."""
        return await self._plan(self.book.find(name).preset, exclusive)

    async def _plan(self, preset: Preset, exclusive: bool) -> PresetPlan:
        fleet = self._controller.manager.fleet
        beside = await self._beside(preset, exclusive)
        first = compare(preset, fleet, exclusive=exclusive, beside=beside)
        starting = {step.model for step in first.steps if step.action == "start"}
        faults: dict[str, str] = {}
        for entry in preset.models:
            if entry.spec.name in starting:
                try:
                    if entry.spec.name not in fleet.models:
                        self._controller.access.refuse_model(entry.spec.name)
                    await asyncio.to_thread(self._controller.engines[entry.spec.engine].check, entry.spec)
                except ShoalError as error:
                    faults[entry.spec.name] = error.message
        return compare(preset, fleet, exclusive=exclusive, faults=faults, beside=beside)

    async def _room(self) -> dict[str, int]:
        """The room on the devices, once readings show who has just come or gone; too little if that takes long."""
        room, lags = self._controller.manager.moves.room()
        for _ in range(LOOKS):
            if not lags:
                break
            await asyncio.sleep(LOOK)
            room, lags = self._controller.manager.moves.room()
        return room

    async def _beside(self, preset: Preset, exclusive: bool) -> frozenset[str]:
        """The models that a move can bring to where the preset has them, because old and new fit side by side."""
        fleet, moves = self._controller.manager.fleet, self._controller.manager.moves
        entries, found = {entry.spec.name: entry for entry in preset.models}, set()
        room: dict[str, int] | None = None
        for step in compare(preset, fleet, exclusive=exclusive, beside=entries.keys()).steps:
            if room is None and replaces(step):
                room = await self._room()
            if not replaces(step) or step.model not in fleet.models:
                continue
            if is_moved(moves, step.model):  # both are there already, or will be
                found.add(step.model)
                continue
            try:
                move, spec = moves.draft(wanted_move(entries[step.model], fleet.models[step.model].spec, moves.drain))
            except ShoalError:
                continue  # then it is stopped and started
            engine, profiles = self._controller.engines[spec.engine], dict(fleet.profiles)
            asked = await asyncio.to_thread(asked_by, move, spec, engine, fleet.devices, profiles)
            left = room_after(move, asked, room or {}, fleet.needs)
            if left is not None and {leg.source for leg in move.legs} == set(step.instances):
                room = left
                found.add(step.model)
        return frozenset(found)

    async def apply(self, name: str, *, exclusive: bool = True) -> RunView:
        """Begin to apply a preset. 409 while another is applied."""
        self._refuse_second()
        preset = self.book.find(name).preset
        plan = await self._plan(preset, exclusive)
        self._refuse_second()  # another one may have begun while files were looked at
        self.book.find(name)  # or this one may have been removed
        run = PresetRun(
            self._controller,
            preset,
            plan,
            self._controller.access.refuse_model,
            self._changed,
            self._controller.effects.now,
        )
        self._run, self._told = run, set()
        self._task = asyncio.create_task(self._carry_out(run))
        return run.view

    def current(self) -> RunView:
        """The run under way, or the last one since the controller started. 404 if there was none."""
        if self._run is None:
            raise NotFoundError(
                "no preset has been applied since Shoal's controller started; `shoal presets ls` has earlier runs",
                code="no_preset_run",
            )
        return self._run.view

    def cancel(self) -> RunView:
        """Have the run begin no further step; asked again, have it not wait for those under way. 409 if none runs."""
        if self._run is None or self._run.view.state != "running":
            raise ConflictError("no preset is being applied; there is nothing to cancel", code="no_preset_run")
        self._run.cancel()
        return self._run.view

    async def _carry_out(self, run: PresetRun) -> None:
        view = run.view
        name = view.preset
        others = "" if view.exclusive else ", others are kept"
        begun = LastRun("running", view.started_at)
        await self._controller.do(lambda: self._note(name, begun))
        self.say("info", "preset_started", f"applying the preset {name}: {_counted(view)}{others}")
        self._changed()
        try:
            await run.run()
        except Exception:
            _log.exception("while applying the preset %s", name)
            view.state, view.ended_at = "failed", self._controller.effects.now()
            view.message = f"{name}: Shoal has met a fault of its own; its log has the details"
            self._changed()
        ended = LastRun(view.state, view.started_at, view.ended_at, view.message)
        self.say(_EVENT_OF.get(view.state, "error"), f"preset_{view.state}", view.message)
        await self._controller.do(lambda: self._note(name, ended))

    def _note(self, name: str, last: LastRun) -> None:
        self._keep(dataclasses.replace(self.book.find(name), last_run=last))

    def _changed(self) -> None:
        """The run's view is another one: tell who watches, and remember what failed."""
        run = self._run
        if run is None:
            return
        for number, one in enumerate(run.view.steps):
            if one.state == "failed" and number not in self._told:
                self._told.add(number)
                text = f"preset {run.view.preset}: {one.step.model} could not {one.step.action}: {one.message}"
                self.say("warning", "preset_step_failed", text, one.step.model)
        self._controller.hub.publish("preset_run", run.view)

    def _refuse_second(self) -> None:
        if self._run is not None and self._run.view.state == "running":
            raise ConflictError(
                f"the preset {self._run.view.preset} is being applied; wait until that has ended, or cancel it with "
                "`shoal presets cancel`",
                code="preset_running",
            )

    def _refuse_if_running(self, name: str) -> None:
        if self._run is not None and self._run.view.preset == name:
            self._refuse_second()

    def _keep(self, record: PresetRecord) -> None:
        self.book.records[record.preset.name] = record
        self._controller.store.save_preset(record)

    def say(self, level: str, kind: str, message: str, model: str | None = None) -> None:
        """Keep and tell an event."""
        event = Event(self._controller.effects.now(), level, kind, message, model)
        self._controller.effects.add_event(event)
        self._controller.hub.publish("message", event)


def _counted(view: RunView) -> str:
    """`"2 to start, 1 to stop"`."""
    actions = [one.step.action for one in view.steps]
    words = [f"{actions.count(action)} to {action}" for action in dict.fromkeys(actions)]
    if view.problems:
        words.append(f"{len(view.problems)} that cannot be had")
    return ", ".join(words) or "nothing to do"
