"""How an instance begins: what its engine says of the model, then room on its devices, then its process group."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from shoal.engines.base import Engine
from shoal.errors import ShoalError
from shoal.fleet import facts
from shoal.fleet.broker import Broker
from shoal.fleet.orphans import record_of
from shoal.fleet.processes import Processes
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Device, Exit, Failure, Instance
from shoal.memory.elastic import ElasticTerms
from shoal.paths import Paths

_log = logging.getLogger(__name__)


class Launcher:
    """Looks at models and starts their engines. What comes of it is told to the manager by `tell`.

    `flush` returns once the store knows what it was told, or does not answer; `address` is where an instance's engine
    is to listen; `started` is called with each instance whose process group runs.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        processes: Processes,
        broker: Broker,
        paths: Paths,
        *,
        tell: Callable[[facts.Fact], None],
        read_devices: Callable[[], Awaitable[tuple[Device, ...]]],
        flush: Callable[[], Awaitable[bool]],
        address: Callable[[Instance], str],
        started: Callable[[Instance], None],
    ) -> None:
        self._engines = engines
        self._processes = processes
        self._broker = broker
        self._paths = paths
        self._tell = tell
        self._read_devices = read_devices
        self._flush = flush
        self._address = address
        self._started = started
        self._wanted: set[str] = set()

    async def prepare(self, instance: Instance) -> None:
        """Have the engine look at the model: whether it can run it, and what it will need."""
        engine = self._engines[instance.engine]
        spec = _spec(instance)
        try:
            await asyncio.to_thread(engine.check, spec)
            devices = await self._read_devices()
            needs = await asyncio.to_thread(engine.needs, spec, devices)
            estimate = await asyncio.to_thread(engine.estimate, spec, devices)
            weights = await asyncio.to_thread(engine.weights, spec)
        except ShoalError as error:
            self._tell(facts.Prepared(instance.id, failure=_failure(error)))
        except Exception as error:
            _log.exception("while looking at %s", spec.source)
            failure = Failure("source_unreadable", f"{spec.source} cannot be read: {error}", "mend its files")
            self._tell(facts.Prepared(instance.id, failure=failure))
        else:
            self._tell(facts.Prepared(instance.id, needs, engine.device_kinds, weights=weights, kv=estimate.kv))

    def want(self, instance: str) -> None:
        """It is about to be started."""
        self._wanted.add(instance)

    def give_up(self, instance: str) -> None:
        """It is not to be started any more, if it has not been."""
        self._wanted.discard(instance)

    async def start(self, instance: Instance, devices: tuple[Device, ...], needs: int | None) -> None:
        """Start an instance that is wanted on `devices`, where it needs so many bytes before it serves, if any."""
        engine = self._engines[instance.engine]
        spec = _spec(instance)
        try:
            environment = await asyncio.to_thread(engine.environment, spec, devices)
            address = self._address(instance)
            memory = self._elastic_terms(instance, spec)
            if needs is not None or memory is not None:
                beside = await asyncio.to_thread(engine.weights, spec) or 0
                kv = None if memory is None else max(0, min(spec.first_kv, (needs or 0) - beside))
                wanted = partial(self._wanted.__contains__, instance.id)
                devices = tuple(
                    await self._broker.make_room(instance.id, spec, devices, needs or 0, kv=kv, wanted=wanted)
                )
            launch = engine.launch(
                spec, instance=instance.id, address=address, devices=devices, environment=environment, memory=memory
            )
            # A process that the store does not know would be an orphan after a crash of this one.
            await self._flush()
            if instance.id not in self._wanted:  # unloaded meanwhile
                self._tell(facts.Exited(instance.id, Exit(), Failure("unloaded", "unloaded before it started")))
                return
            record = record_of(dataclasses.replace(instance, address=address, environment=environment.name))
            self._processes.spawn(instance.id, launch, self._paths.log(instance.id), record)
        except ShoalError as error:
            self._tell(facts.Spawned(instance.id, failure=_failure(error)))
        except OSError as error:
            failure = Failure(
                "cannot_start",
                f"the engine's process could not be started: {error.strerror or error}",
                f"is there room in {self._paths.runtime}?",
            )
            self._tell(facts.Spawned(instance.id, failure=failure))
        except Exception as error:  # whatever it is, the instance must not be left as starting for ever
            _log.exception("while starting %s", instance.id)
            failure = Failure("cannot_start", f"the engine could not be started: {error}", "see the controller's log")
            self._tell(facts.Spawned(instance.id, failure=failure))
        else:
            self._tell(
                facts.Spawned(
                    instance.id,
                    address,
                    environment.name,
                    environment.version,
                    elastic=launch.elastic,
                    fixed_because=launch.fixed_because,
                    can_sleep=launch.can_sleep,
                    sleepless_because=launch.sleepless_because,
                )
            )
            self._started(dataclasses.replace(instance, address=address))
        finally:
            self._wanted.discard(instance.id)

    def _elastic_terms(self, instance: Instance, spec: ModelSpec) -> ElasticTerms | None:
        """What an engine is told of the memory broker; None if its settings give its KV cache a size."""
        if not spec.may_be_elastic:
            return None
        return ElasticTerms(
            self._broker.path,
            instance.id,
            floor=spec.floor,
            ceiling=spec.ceiling,
            priority=spec.priority,
            mode="required" if spec.elastic == "required" else "auto",
        )


def _spec(instance: Instance) -> ModelSpec:
    assert instance.spec is not None
    return instance.spec


def _failure(error: ShoalError) -> Failure:
    return Failure(error.code, error.message)
