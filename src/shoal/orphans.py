"""Orphans of a running Shoal: engines that run and that nobody has, taken back under control or ended."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from shoal.access import AccessControl
from shoal.engines.base import Engine
from shoal.errors import ConflictError, NotFoundError, ShoalError
from shoal.fleet.devices import Devices
from shoal.fleet.live import LiveEffects
from shoal.fleet.manager import Manager
from shoal.fleet.orphans import Orphan, RecordError, claim_runtime, end_orphan, find_orphans, read_record
from shoal.fleet.processes import RECORD, Found
from shoal.fleet.records import Event
from shoal.fleet.snapshot import InstanceView
from shoal.fleet.state import Instance
from shoal.fleet.state import InstanceState as S
from shoal.paths import Paths, fleet_id

T = TypeVar("T")


class Keeping(Protocol):
    """What orphans need of the controller."""

    paths: Paths
    engines: Mapping[str, Engine]
    devices: Devices
    manager: Manager
    effects: LiveEffects
    access: AccessControl

    async def do(self, command: Callable[[], T]) -> T:
        """Run a command of the manager."""
        ...

    def look_after(self, instance: Instance) -> None:
        """Watch an instance whose process group was taken back."""
        ...


class OrphanControl:
    """The orphans that this user's processes hold. Nothing is kept: each call looks anew."""

    def __init__(self, controller: Keeping) -> None:
        self._controller = controller
        self._lock = asyncio.Lock()
        self.left: set[str] = set()
        """This Shoal's own, by instance, that were found at its start and not taken back or ended since."""

    def leave(self, found: Found) -> None:
        """At start: this group is this fleet's, and nothing knows of it. It goes on, and people are told."""
        self.left.add(found.instance)
        text = f"{found.instance} (process {found.pid}) runs and no record names it; see `shoal orphans ls`"
        self._controller.effects.add_event(Event(self._now(), "warning", "orphan_found", text, None, found.instance))

    def bring_along(self, known: Collection[str]) -> None:
        """At start, after a change of `runtime_dir`: groups of this Shoal's that its database names move to the folder
        of now. Those that cannot stay where they are, and people are told."""
        effects = self._controller.effects
        for folder, mark in effects.processes.elsewhere():
            there = folder.parent.parent
            if folder.name not in known:
                continue
            with claim_runtime(there) as free:
                if not free:  # whoever runs there has it
                    continue
                try:
                    effects.processes.take_over(folder, mark)
                except OSError as error:
                    text = f"{folder.name} runs and cannot be moved from {there}: {error.strerror or error}"
                    text += "; it holds its memory, see `shoal orphans ls`"
                    effects.add_event(Event(self._now(), "warning", "orphan_found", text, None, folder.name))
                else:
                    lead(there / "memory.sock", effects.broker.path)

    def warning(self) -> str | None:
        """A sentence for the status while there are some of this Shoal's own."""
        running = self.left - self._controller.effects.processes.watched
        if not running:
            return None
        names = ", ".join(sorted(running))
        return f"engines run that no record names, and hold their memory: {names}; see `shoal orphans ls`"

    async def find(self) -> list[Orphan]:
        """Every orphan, the oldest first."""
        controller = self._controller
        found = await asyncio.to_thread(
            find_orphans,
            controller.paths.runtime,
            fleet_id(controller.paths),
            lambda: controller.effects.processes.watched,
            controller.devices.held_by,
        )
        watched = controller.effects.processes.watched
        there = controller.paths.instances.resolve()
        # What was started while the machine was looked at is none.
        found = [o for o in found if o.instance not in watched or (o.folder and Path(o.folder).parent != there)]
        ended = self.left - {one.instance for one in found} - watched
        for instance in ended:  # nobody has it, so nobody else clears up after it; its shim has to say that it ended
            if (controller.paths.instances / instance / "exit.json").exists():
                controller.effects.discard(instance)
        self.left -= ended
        return found

    async def adopt(self, name: str) -> InstanceView:
        """Take an orphan, by its instance's id or its pid, back under control.

        Its model is added with the settings that it runs with, if there is none of its name. Raises NotFoundError, and
        ConflictError if it cannot be had back.
        """
        async with self._lock:
            orphan = await self._one(name)
            if not orphan.adoptable or orphan.folder is None:
                raise _refused(orphan, orphan.not_adoptable_because)
            folder = Path(orphan.folder)
            instance = self._read(orphan, folder)
            if folder.parent == self._controller.paths.instances.resolve():
                return await self._take(orphan, instance, folder)
            with claim_runtime(folder.parent.parent) as free:
                if not free:
                    raise _refused(orphan, f"a Shoal runs in {folder.parent.parent} now, and has it")
                lead(folder.parent.parent / "memory.sock", self._controller.effects.broker.path)
                return await self._take(orphan, instance, folder)

    async def end(self, name: str, *, force: bool = False) -> Orphan:
        """Have an orphan end, by its instance's id or its pid; returns at once. Raises NotFoundError."""
        async with self._lock:
            orphan = await self._one(name)
            folder = None if orphan.folder is None else Path(orphan.folder)
            if folder is None or folder.parent == self._controller.paths.instances.resolve():
                self._end(orphan, force)
                return orphan
            with claim_runtime(folder.parent.parent) as free:
                if not free:
                    raise _refused(orphan, f"a Shoal runs in {folder.parent.parent} now, and has it")
                self._end(orphan, force)
                return orphan

    # -- steps --------------------------------------------------------------------------------------------------------

    async def _one(self, name: str) -> Orphan:
        found = [one for one in await self.find() if name in (one.instance, str(one.pid))]
        if not found:
            raise NotFoundError(
                f"there is no orphan {name}; `shoal orphans ls` lists them", code="orphan_not_found", param="orphan"
            )
        if len(found) > 1:
            pids = ", ".join(str(one.pid) for one in found)
            raise ConflictError(f"several orphans are called {name}; name one by its process: {pids}", param="orphan")
        return found[0]

    def _read(self, orphan: Orphan, folder: Path) -> Instance:
        """The instance that it is to be here. Raises ConflictError."""
        fleet = self._controller.manager.fleet
        try:
            instance = read_record((folder / RECORD).read_text(encoding="utf-8"))
        except RecordError as error:
            raise _refused(orphan, str(error)) from None
        except OSError as error:
            raise _refused(orphan, f"its record cannot be read: {error.strerror}") from None
        if instance.engine not in self._controller.engines:
            raise _refused(orphan, f"this Shoal has no engine {instance.engine}")
        if instance.id in fleet.instances:
            raise _refused(orphan, f"there is another instance {instance.id} here")
        if instance.state is S.STOPPING:
            raise _refused(orphan, "it is being ended")
        if instance.model not in fleet.models:
            self._controller.access.refuse_model(instance.model)
        return serving_again(instance)

    async def _take(self, orphan: Orphan, instance: Instance, folder: Path) -> InstanceView:
        controller, processes = self._controller, self._controller.effects.processes
        try:
            found = processes.take_over(folder, orphan.fleet)
        except OSError as error:
            raise _refused(orphan, f"it cannot be taken over: {error.strerror or error}") from None
        if instance.address.startswith("unix:"):
            instance = dataclasses.replace(instance, address=controller.effects.address(instance))

        def take() -> None:  # in one step: its end, whenever it comes, is told to a manager that knows it
            controller.effects.remember(instance)
            if not processes.adopt(found):
                raise _refused(orphan, "it has just ended")
            controller.manager.adopt(instance)

        await controller.do(take)
        await asyncio.to_thread(link_log, controller.paths.log(instance.id), processes.log_of(instance.id))
        self.left.discard(instance.id)
        controller.look_after(instance)
        return controller.manager.fleet.instance_view(controller.manager.fleet.instances[instance.id])

    def _end(self, orphan: Orphan, force: bool) -> None:
        if end_orphan(orphan, force=force):
            whose = f" of {orphan.model}" if orphan.model else ""
            text = f"the orphan {orphan.instance}{whose} (process {orphan.pid}) is ended: {orphan.why}"
            event = Event(self._now(), "info", "orphan_ended", text, orphan.model, orphan.instance)
            self._controller.effects.add_event(event)
            self._controller.effects.publish("message", event)

    def _now(self) -> float:
        return self._controller.effects.now()


def serving_again(instance: Instance) -> Instance:
    """What an orphan is to be: one that was to end or to sleep goes on serving. Should it sleep already, the look that
    follows finds that out, and has it woken."""
    rest = dataclasses.replace(instance.rest, level=None) if instance.retires else instance.rest
    state = S.READY if instance.state is S.DRAINING else instance.state
    return dataclasses.replace(instance, state=state, rest=rest, restarts=0, restart_at=None, reason="")


def lead(theirs: Path, mine: Path) -> None:
    """Let engines that look for a memory broker which is gone find this one: it has what they may take of the devices.

    A Shoal that starts in that folder again takes the link away first (`make_runtime`).
    """
    if theirs.is_symlink() or theirs.is_socket():
        with contextlib.suppress(OSError):  # the engine keeps what it has, then
            theirs.unlink()
            theirs.symlink_to(mine)


def link_log(mine: Path, theirs: Path | None) -> None:
    """Let the log that a shim writes elsewhere be found where this Shoal looks for it."""
    if theirs is None or theirs == mine or mine.exists():
        return
    mine.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in ("", ".1"):
        link = mine.with_name(mine.name + name)
        if not link.is_symlink():
            link.symlink_to(theirs.with_name(theirs.name + name))


def _refused(orphan: Orphan, why: str) -> ShoalError:
    return ConflictError(
        f"{orphan.instance} (process {orphan.pid}) cannot be taken back or ended: {why}", code="orphan_refused"
    )
