"""The effects for real: processes, probes, the disk, the store. What comes of them is told to the manager."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import shutil
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

from shoal.engines.base import Engine
from shoal.errors import ShoalError
from shoal.fleet import canary, facts
from shoal.fleet.broker import Broker
from shoal.fleet.devices import Devices
from shoal.fleet.ends import end_once_saved
from shoal.fleet.footprint import Footprints
from shoal.fleet.hub import Hub
from shoal.fleet.launching import Launcher
from shoal.fleet.logs import tail
from shoal.fleet.memory import Terms
from shoal.fleet.monitor import Monitor, Probe
from shoal.fleet.moves import Move
from shoal.fleet.orphans import record_of
from shoal.fleet.processes import Processes
from shoal.fleet.profiles import Profile
from shoal.fleet.records import Event, LoadRecord
from shoal.fleet.relays import Relays
from shoal.fleet.shim import BEGIN
from shoal.fleet.sleeper import Sleeper
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Device, Exit, Failure, Instance, InstanceState, Model
from shoal.messages import RoutingTable
from shoal.net import TcpAddress, UnixAddress
from shoal.paths import Paths, keep_fresh
from shoal.settings import Settings
from shoal.store.store import Store

EXPLAIN_LINES = 400
STORE_PATIENCE = 1.0
WAKE_PATIENCE = 10.0
"""Seconds for which a wake at most holds back what others would let their KV caches grow into: it was woken because
there was room, and running requests wait for that memory meanwhile."""
DEVICE_INTERVAL = 2.0
FRESHEN_EVERY = 1800
MEMORY_EVERY = 5  # looks at the devices between two at the processes' memory
_log = logging.getLogger(__name__)


class LiveEffects:
    """Carries the manager's decisions out on this machine."""

    def __init__(
        self,
        settings: Settings,
        paths: Paths,
        fleet_id: str,
        *,
        engines: Mapping[str, Engine],
        store: Store,
        hub: Hub,
        relays: Relays,
        devices: Devices,
        tell: Callable[[facts.Fact], None],
    ) -> None:
        self._settings = settings
        self._paths = paths
        self.engines = engines
        self._store = store
        self._hub = hub
        self._relays = relays
        self._devices = devices
        self._tell = tell
        self.broker = Broker(
            settings.memory_socket or paths.memory_socket, tell, self._read_devices, settings.memory_wait
        )
        self.processes = Processes(
            paths.instances,
            fleet_id,
            log_bytes=settings.log_bytes,
            grace=settings.stop_timeout,
            on_exit=self._on_exit,
        )
        socket = settings.memory_socket or paths.memory_socket
        footprints = Footprints(
            socket, self._read_devices, self.processes.memory, self.processes.engine_pid, lambda: self._specs.values()
        )
        self._flush = partial(store.flush, STORE_PATIENCE)
        self._sleeper = Sleeper(engines, footprints, tell, self._flush, self._room_to_wake)
        self._launcher = Launcher(
            engines,
            self.processes,
            self.broker,
            paths,
            tell=tell,
            read_devices=self._read_devices,
            flush=self._flush,
            address=self.address,
            started=self.watch,
        )
        self._specs: dict[str, Instance] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._monitors: dict[str, asyncio.Task[None]] = {}
        self._began = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        self._alarm: asyncio.TimerHandle | None = None
        self._look_now = asyncio.Event()

    # -- the interface ------------------------------------------------------------------------------------------------

    def now(self) -> float:
        # The wall clock of the start, carried on by one that is never set: a restart or a drain must not wait an hour
        # because somebody set the clock back.
        return self._began + time.clock_gettime(time.CLOCK_BOOTTIME)

    def token(self) -> str:
        return secrets.token_hex(4)

    def prepare(self, instance: Instance) -> None:
        self._in_background(self._launcher.prepare(instance))

    def spawn(self, instance: Instance, devices: tuple[Device, ...], needs: int | None) -> None:
        self._launcher.want(instance.id)
        self._in_background(self._launcher.start(instance, devices, needs))

    def let_go(self, instance: str) -> None:
        self._in_background(self.broker.let_go(instance))

    def set_terms(self, instance: str, terms: Terms) -> None:
        self._in_background(self._set_terms(instance, terms))

    def weigh(self, instance: Instance) -> None:
        self._sleeper.weigh(instance)

    def suspend(self, instance: Instance) -> None:
        self._sleeper.suspend(instance)

    def resume(self, instance: Instance) -> None:
        self._sleeper.resume(instance)

    def look(self, instance: Instance) -> None:
        if instance.state is not InstanceState.READY:
            self.watch(instance)
        self._sleeper.look(instance)

    def ask(self, instance: Instance) -> None:
        self._in_background(self._ask(instance))

    def terminate(self, instance: str) -> None:
        self._end(instance, self.processes.terminate)

    def kill(self, instance: str) -> None:
        self._end(instance, self.processes.kill)

    def discard(self, instance: str) -> None:
        self._specs.pop(instance, None)
        self.processes.forget(instance)
        self._in_background(asyncio.to_thread(shutil.rmtree, self._paths.log(instance).parent, True))

    def read_devices(self) -> None:
        self._look_now.set()

    def wake_at(self, when: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = asyncio.get_running_loop().call_later(
            max(0.0, when - self.now()) + 0.001, self._tell, facts.Tick()
        )

    def route(self, table: RoutingTable) -> None:
        self._relays.route(table)

    def publish(self, event: str, data: object) -> None:
        self._hub.publish(event, data)

    def save_model(self, model: Model) -> None:
        self._store.save_model(model)

    def delete_model(self, name: str) -> None:
        self._store.delete_model(name)

    def save_instance(self, instance: Instance) -> None:
        self.remember(instance)
        self._store.save_instance(instance)
        if instance.id in self.processes.watched:
            with contextlib.suppress(OSError):  # it is for the day on which the database is lost
                self.processes.keep(instance.id, record_of(instance))

    def delete_instance(self, instance: str) -> None:
        self._store.delete_instance(instance)

    def save_move(self, move: Move) -> None:
        self._store.save_move(move)

    def delete_move(self, id: str) -> None:
        self._store.delete_move(id)

    def add_event(self, event: Event) -> None:
        log = {"error": _log.error, "warning": _log.warning}.get(event.level, _log.info)
        log("%s", event.message)
        self._store.add_event(event)

    def add_load(self, load: LoadRecord) -> None:
        self._store.add_load(load)

    def save_profile(self, profile: Profile) -> None:
        self._store.save_profile(profile)

    def remember(self, instance: Instance) -> None:
        """Know an instance of an earlier controller, so that its end is told."""
        self._specs[instance.id] = instance

    # -- beside it ----------------------------------------------------------------------------------------------------

    def address(self, instance: Instance) -> str:
        """Where the instance's engine listens."""
        port = instance.spec.port if instance.spec is not None else None
        if port is not None:
            return str(TcpAddress("127.0.0.1", port))
        return str(UnixAddress(self.processes.socket(instance.id)))

    def watch(self, instance: Instance) -> None:
        """Watch an instance whose process group runs."""
        self.remember(instance)
        monitor = Monitor(
            self.engines[instance.engine],
            self._paths.log(instance.id),
            self._tell,
            engine_pid=lambda: self.processes.engine_pid(instance.id),
            interval=self._settings.health_interval,
            hang_timeout=self._settings.hang_timeout,
        )

        async def run() -> None:
            earlier: list[LoadRecord] = []
            with contextlib.suppress(ShoalError, TimeoutError):  # a database that is away must not hold up a start
                async with asyncio.timeout(STORE_PATIENCE):
                    earlier = await self._store.loads(instance.model, limit=20)
            await monitor.run(instance, [load.phases for load in earlier if load.outcome == "ready"])

        self._monitors[instance.id] = self._in_background(run())

    async def failure_of(self, instance: Instance, exit: Exit) -> Failure:
        """Why a process group ended, by the end of its log."""
        lines = await asyncio.to_thread(tail, self._paths.log(instance.id), EXPLAIN_LINES)
        if BEGIN in lines:  # what an earlier start printed does not explain this one
            lines = lines[len(lines) - lines[::-1].index(BEGIN) :]
        engine = self.engines[instance.engine]
        spec = instance.spec or ModelSpec(name=instance.model, source="unknown")
        try:
            return engine.explain(spec, lines, exit)
        except Exception:  # what an engine prints must not stop the fleet
            _log.exception("while explaining the end of %s", instance.id)
            return Failure("engine_ended", f"the engine {exit}", f"see `shoal logs {instance.id}`")

    async def watch_devices(self) -> None:
        """Read the devices for ever."""
        memory: dict[str, int] = {}
        looks = 0
        while True:
            try:
                if looks % FRESHEN_EVERY == 0:
                    await asyncio.to_thread(keep_fresh, self._paths)
                if looks % MEMORY_EVERY == 0:
                    memory = await asyncio.to_thread(self.processes.memory) if self._monitors else {}
                began = self.now()  # a driver that maps memory may keep a reading waiting
                self._tell(facts.DevicesRead(await self._read_devices(), memory, began))
            except Exception:  # one look that fails must not be the last
                _log.exception("while reading the devices")
            looks += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._look_now.wait(), DEVICE_INTERVAL)
            self._look_now.clear()

    async def close(self) -> None:
        """Stop watching. Process groups go on."""
        if self._alarm is not None:
            self._alarm.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._sleeper.close()
        await self.broker.close()
        self.processes.close()

    # -- steps --------------------------------------------------------------------------------------------------------

    async def _read_devices(self) -> tuple[Device, ...]:
        return await asyncio.to_thread(self._devices.read)

    async def _set_terms(self, instance: str, terms: Terms) -> None:
        try:
            await self.broker.set_terms(instance, terms)
        except ShoalError as error:
            self._tell(facts.TermsRefused(instance, error.message))

    async def _ask(self, instance: Instance) -> None:
        probe = Probe(instance.address)
        answer = None
        try:
            answer = await canary.ask(probe, instance.model)
        finally:
            await probe.close()
            self._tell(facts.CanaryAnswered(instance.id, answer))

    async def _room_to_wake(self, instance: Instance) -> None:
        """Wait until it fits; what others only cache is asked back for it, and nobody else gets it while it wakes.
        Usually it fits at once."""
        if instance.spec is None:
            return
        devices = tuple(device for device in await self._read_devices() if device.id in instance.devices)
        wanted = partial(self._specs.__contains__, instance.id)
        await self.broker.make_room(
            instance.id, instance.spec, devices, instance.wake_share, kv=None, wanted=wanted, patience=WAKE_PATIENCE
        )

    def _end(self, instance: str, end: Callable[[str], bool]) -> None:
        if (monitor := self._monitors.pop(instance, None)) is not None:
            monitor.cancel()
        self._launcher.give_up(instance)
        self._sleeper.stop(instance)
        self._in_background(end_once_saved(self.processes, instance, end, self._flush))

    def _on_exit(self, instance_id: str, exit: Exit) -> None:
        if (monitor := self._monitors.pop(instance_id, None)) is not None:
            monitor.cancel()
        self._sleeper.stop(instance_id)
        instance = self._specs.get(instance_id)
        if instance is not None:
            self._in_background(self._tell_exit(instance, exit))

    async def _tell_exit(self, instance: Instance, exit: Exit) -> None:
        self._tell(facts.Exited(instance.id, exit, await self.failure_of(instance, exit)))

    def _in_background(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a background task failed", exc_info=error)
