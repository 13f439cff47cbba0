"""The controller process: puts the fleet together, finds again what runs, serves the admin API, and ends in order.

Started by `supervisor.py` as `python -m shoal.controller`, with its settings in an open file.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from shoal import __version__
from shoal.access import AccessControl, new_store
from shoal.api.server import serve_api
from shoal.config import Handover, load_settings
from shoal.engines.base import Engine
from shoal.engines.registry import engines as find_engines
from shoal.errors import ShoalError
from shoal.fleet import facts
from shoal.fleet.copies import AskOverHttp, Copies
from shoal.fleet.devices import Devices
from shoal.fleet.history import History
from shoal.fleet.hub import Hub
from shoal.fleet.life import Limits
from shoal.fleet.lifecycle import RestartPolicy
from shoal.fleet.live import LiveEffects
from shoal.fleet.manager import Manager, Outcome
from shoal.fleet.memory import Terms
from shoal.fleet.relays import Relays
from shoal.fleet.residency import Rules
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Instance
from shoal.fleet.state import InstanceState as S
from shoal.gateway.measures import BOUNDS
from shoal.introduction import Introduction
from shoal.memory.sizes import Amount
from shoal.messages import UsageReport
from shoal.orphans import OrphanControl
from shoal.paths import Paths, find_paths, fleet_id, make_runtime
from shoal.presets import PresetControl
from shoal.recovery import recover
from shoal.schedules import Scheduler
from shoal.settings import Settings
from shoal.sign_in import SignIn
from shoal.status import MemoryStatus, Snapshot, Status, StoreStatus
from shoal.store.store import Store

T = TypeVar("T")
SAVE_PATIENCE = 1.0
"""Seconds that an answer waits for the store: what was accepted is to survive a crash, but a sick disk stops nobody."""
FOLDER_INTERVAL = 2.0
_log = logging.getLogger("shoal.controller")


@dataclass(slots=True)
class Controller:
    """Everything that the admin API works with."""

    settings: Settings
    config_file: Path | None
    paths: Paths
    engines: Mapping[str, Engine]
    store: Store
    devices: Devices
    command_models: tuple[ModelSpec, ...] = ()
    flags: Mapping[str, Any] = field(default_factory=dict)
    started_at: float = field(default_factory=time.time)
    problems: list[str] = field(default_factory=list)
    file_settings: Settings = field(init=False)
    """As they were when the configuration file was read last; those in force are of the start."""
    manager: Manager = field(init=False)
    effects: LiveEffects = field(init=False)
    hub: Hub = field(init=False)
    relays: Relays = field(init=False)
    access: AccessControl = field(init=False)
    sign_in: SignIn = field(init=False)
    presets: PresetControl = field(init=False)
    schedules: Scheduler = field(init=False)
    orphans: OrphanControl = field(init=False)
    copies: Copies = field(init=False)
    history: History = field(init=False)
    introduction: Introduction = field(init=False)
    """What a client on this machine knows this controller's socket by."""
    _reloads: asyncio.Lock = field(init=False, default_factory=asyncio.Lock)
    _changes: asyncio.Lock = field(init=False, default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.hub = Hub(self.snapshot)
        self.history = History(BOUNDS["first_byte"])
        self.introduction = Introduction.of(self.paths.controller_socket)
        self.relays = Relays(self.paths.relay_socket, self._tell, self.store_usage)
        self.effects = LiveEffects(
            self.settings,
            self.paths,
            fleet_id(self.paths),
            engines=self.engines,
            store=self.store,
            hub=self.hub,
            relays=self.relays,
            devices=self.devices,
            tell=self._tell,
        )
        limits = Limits(
            RestartPolicy(
                self.settings.restart_limit,
                self.settings.restart_delay,
                self.settings.restart_delay_max,
                self.settings.restart_reset,
            ),
            self.settings.drain_timeout,
            self.settings.history,
            Rules(
                patience=self.settings.patience,
                min_awake=self.settings.min_awake,
                switches=self.settings.switches,
            ),
            Amount.parse(self.settings.host_memory),
            self.settings.relay_workers,
        )
        self.manager = Manager(self.effects, limits)
        self.copies = Copies(self.manager.fleet, AskOverHttp(self.engines), limits.host_memory, self.effects.now)
        self.manager.keep_copies(self.copies)
        self.access = AccessControl(self.store, self.manager, self.effects, exposed=self.settings.exposed)
        self.sign_in = SignIn(self.store, self.effects, fleet_id(self.paths))
        self.presets = PresetControl(self)
        self.schedules = Scheduler(self)
        self.orphans = OrphanControl(self)
        self.store.on_problem = lambda problem: self._tell(facts.StoreProblem(problem))

    def _tell(self, fact: facts.Fact) -> None:
        self.manager.tell(fact)

    def status(self) -> Status:
        """How Shoal itself is, now."""
        counts: dict[str, int] = {}
        for instance in self.manager.fleet.instances.values():
            counts[instance.state.value] = counts.get(instance.state.value, 0) + 1
        store = StoreStatus(self.store.problem is None, self.store.problem, self.store.unsaved)
        warnings = [*self.problems, *self.access.faults, *self.sign_in.faults]
        if store.problem:
            warnings.append(store.problem)
        relays, wanted = self.relays.connected, self.settings.relay_workers
        if not relays:
            warnings.append("no relay is connected: no request can be served now")
        elif relays < wanted:
            warnings.append(f"{relays} of {wanted} relays are connected: connections to the others wait for them")
        if (lost := self.orphans.warning()) is not None:
            warnings.append(lost)
        broker = self.effects.broker
        if broker.problem:
            warnings.append(f"elastic models cannot grow: {broker.problem}")
        return Status(
            version=__version__,
            started_at=self.started_at,
            models=len(self.manager.fleet.models),
            instances=counts,
            relays=relays,
            store=store,
            memory=MemoryStatus(broker.problem is None, broker.problem, str(broker.path)),
            config_file=str(self.config_file) if self.config_file else None,
            warnings=warnings,
        )

    def snapshot(self) -> Snapshot:
        """The whole fleet, as people see it."""
        fleet = self.manager.fleet
        models = [fleet.model_view(name) for name in sorted(fleet.models)]
        return Snapshot(1, self.status(), models, fleet.device_views())

    async def do(self, command: Callable[[], T]) -> T:
        """Run a command of the manager, and save what came of it before its answer is given, if the store is well."""
        result = await self.manager.do(command)
        await self.store.flush(SAVE_PATIENCE)
        return result

    async def change_model(self, name: str, make: Callable[[ModelSpec], ModelSpec]) -> Outcome:
        """Give a model other settings. Running instances take floor, ceiling and priority over at once; where the
        broker refuses them, nothing is changed at all."""
        async with self._changes:  # of two at once, one could undo what the other has done
            terms = await self.manager.do(partial(self.manager.terms_to_change, name, make))
            changed: list[tuple[str, Terms]] = []
            try:
                for instance, (before, wanted) in terms.items():
                    await self.effects.broker.set_terms(instance, wanted)
                    changed.append((instance, before))
                return await self.do(partial(self.manager.change_model, name, make))
            except ShoalError:
                for instance, before in changed:
                    self.effects.set_terms(instance, before)
                raise

    async def store_usage(self, report: UsageReport) -> None:
        """Count a relay's report, once, and return when it is safe. Raises StoreError, and the relay has to keep it."""
        await self.store.add_usage(report, time.time())

    async def reload(self) -> dict[str, list[str]]:
        """Read the configuration file again. Models follow at once; other settings need a restart, and are named."""
        if self.config_file is None:
            raise ShoalError("Shoal was started without a configuration file; there is nothing to reload", status=409)
        async with self._reloads:  # two at once could end with the older one's reading of the file
            new = await asyncio.to_thread(load_settings, self.flags, file=self.config_file)
            before, after = self.file_settings.model_dump(), new.model_dump()
            followed = ("models", "virtual_models")
            changed = [key for key in after if key not in followed and before[key] != after[key]]
            result = await self.do(lambda: self._follow(new))
            self.file_settings = new
        return {**result, "restart_needed": sorted({*result["restart_needed"], *changed})}

    @contextlib.asynccontextmanager
    async def running(self, *, first: bool) -> AsyncIterator[None]:
        """Run the fleet while the block runs. `first`: Shoal itself starts, not only its controller anew."""
        await self.store.open()
        saved = await self.store.load()
        self.problems.extend(saved.problems)
        self.manager.fleet.profiles = {profile.id: profile for profile in saved.profiles}
        self.sign_in.restore(saved)
        self.access.restore(saved)  # before any table can be made: none is to let anybody in whom keys keep out
        self.manager.handle(facts.DevicesRead(await asyncio.to_thread(self.devices.read), {}))
        self.manager.moves.restore(saved.moves)
        for instance in await recover(saved, self.effects, self.manager, self.orphans):
            self.look_after(instance)
        self.manager.handle(lambda: self._declare(first=first))
        self.presets.restore(saved)
        await self.relays.start()
        tasks = [
            asyncio.create_task(self.manager.run()),
            asyncio.create_task(self.effects.watch_devices()),
            asyncio.create_task(self.effects.broker.watch()),
            asyncio.create_task(self.schedules.run()),
            asyncio.create_task(self.copies.run()),
            asyncio.create_task(self.sign_in.run()),
            asyncio.create_task(self.history.run(self.manager.fleet)),
        ]
        try:
            yield
        finally:
            await self.presets.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.copies.close()
            self.sign_in.close()
            await self.relays.stop()
            await self.effects.close()
            await self.store.close()
            self.devices.close()

    def _follow(self, settings: Settings) -> dict[str, list[str]]:
        """Have the models, real and virtual, that a reading of the configuration file declares."""
        result = self.manager.declare(settings.models, "file")
        virtual = self.access.declare(settings.virtual_models)
        return {what: names + virtual.get(what, []) for what, names in result.items()}

    def _declare(self, *, first: bool) -> None:
        self.file_settings = self.settings
        try:
            # A controller that is started anew takes the file as it is now: it may have been reloaded meanwhile.
            if self.config_file is not None:
                self.file_settings = load_settings(self.flags, file=self.config_file)
            self._follow(self.file_settings)
        except ShoalError as error:
            self.problems.append(f"models are as they were before: {error.message}")
        if first:
            self.manager.declare({spec.name: spec for spec in self.command_models}, "command")
            self.manager.restore(remembered=self.settings.restore)
        self.access.publish()

    def look_after(self, instance: Instance) -> None:
        """Go on with an instance whose process group was taken back: watch it, or have it end if it was to."""
        if instance.id not in self.effects.processes.watched:
            return  # it has ended meanwhile, which the manager is told
        instance = self.manager.fleet.instances.get(instance.id, instance)
        if instance.state is S.STOPPING:
            self.effects.terminate(instance.id)
        elif instance.state in (S.STARTING, S.READY):
            self.effects.watch(instance)


async def serve(handover: Handover, *, first: bool, notify_fd: int | None) -> None:
    """Run until SIGTERM, then unload all (unless `keep_engines`). A second SIGTERM does not wait for requests."""
    settings = handover.settings
    paths = find_paths(settings)
    make_runtime(paths)
    store = new_store(settings, paths)
    controller = Controller(
        settings,
        handover.config_file,
        paths,
        find_engines(settings),
        store,
        Devices(settings.simulated_devices),
        handover.models,
        handover.flags,
    )
    loop = asyncio.get_running_loop()
    stops: asyncio.Queue[None] = asyncio.Queue()
    hangups = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stops.put_nowait, None)
    loop.add_signal_handler(signal.SIGHUP, hangups.set)
    # The supervisor has them wait until here, so that none is lost and none ends a start halfway.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGHUP))
    async with (
        controller.running(first=first),
        serve_api(controller),
        _reloading(controller, hangups),
        _watching_over(paths),
    ):
        if notify_fd is not None:
            os.write(notify_fd, b"ready\n")
            os.close(notify_fd)
        await stops.get()
        if not settings.keep_engines:
            await _stop_engines(controller, stops)


@contextlib.asynccontextmanager
async def _reloading(controller: Controller, hangups: asyncio.Event) -> AsyncIterator[None]:
    """Reload at every SIGHUP while the block runs; a storm of them is one."""

    async def run() -> None:
        while await hangups.wait():
            hangups.clear()
            try:
                _log.info("reloaded: %s", await controller.reload())
            except ShoalError as error:
                _log.error("not reloaded: %s", error.message)

    task = asyncio.create_task(run())
    try:
        yield
    finally:
        task.cancel()


@contextlib.asynccontextmanager
async def _watching_over(paths: Paths) -> AsyncIterator[None]:
    """While the block runs, end this process if its runtime folder goes: nobody can reach it any more.

    The supervisor starts a new one, which makes the folder anew, and restarts the engines, whose sockets are gone too.
    """

    async def run() -> None:
        while paths.controller_socket.exists():
            await asyncio.sleep(FOLDER_INTERVAL)
        _log.error("the runtime folder %s was removed; starting over", paths.runtime)
        logging.shutdown()
        os._exit(1)

    task = asyncio.create_task(run())
    try:
        yield
    finally:
        task.cancel()


async def _stop_engines(controller: Controller, stops: asyncio.Queue[None]) -> None:
    force = False
    while await controller.manager.do(partial(controller.manager.stop_all, force=force)):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await stops.get()
                force = True


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="shoal.controller")
    parser.add_argument("--settings-fd", type=int, required=True, help="an open file that holds the settings")
    parser.add_argument("--notify-fd", type=int)
    parser.add_argument("--again", action="store_true", help="the supervisor starts it anew after it ended")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s controller %(levelname)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    with os.fdopen(options.settings_fd, encoding="utf-8") as file:
        handover = Handover.restore(file.read())
    uvloop.run(serve(handover, first=not options.again, notify_fd=options.notify_fd))


if __name__ == "__main__":
    main()
