"""Effects that only write down what was asked of them, with a clock that tests move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from shoal.engines.base import Engine
from shoal.engines.simulated.adapter import SimulatedEngine
from shoal.fleet import facts
from shoal.fleet.life import Limits
from shoal.fleet.lifecycle import RestartPolicy
from shoal.fleet.manager import Manager
from shoal.fleet.memory import Terms
from shoal.fleet.moves import Move
from shoal.fleet.profiles import Profile, Profiles
from shoal.fleet.records import Event, LoadRecord
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Device, Exit, Failure, Instance, InstanceState, Model
from shoal.memory.messages import DeviceState, MemberState
from shoal.memory.tools import Books, DeviceBook
from shoal.messages import RelayReport, Route, RoutingTable, Target

GIB = 2**30
HOST = Device("host", "host", "memory", 64 * GIB, 4 * GIB)


def gpu(index: int, free: int = 80 * GIB) -> Device:
    """A GPU of 80 GiB with so much free."""
    return Device(f"cuda:{index}", "cuda", "GPU", 80 * GIB, 80 * GIB - free)


def spec(name: str = "m", **settings: object) -> ModelSpec:
    """A model's settings."""
    return ModelSpec.model_validate({"name": name, "source": "somewhere", "engine": "simulated", **settings})


@dataclass
class FakeEffects:
    """Writes everything down. `alive` is the set of process groups that exist."""

    clock: float = 1000.0
    engines: Mapping[str, Engine] = field(default_factory=lambda: {"simulated": SimulatedEngine()})
    tokens: int = 0
    prepared: list[str] = field(default_factory=list)
    alive: set[str] = field(default_factory=set)
    held: dict[str, int | None] = field(default_factory=dict)
    terms: list[tuple[str, Terms]] = field(default_factory=list)
    weighed: list[str] = field(default_factory=list)
    suspended: list[str] = field(default_factory=list)
    resumed: list[str] = field(default_factory=list)
    looked_at: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    terminated: list[str] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    discarded: list[str] = field(default_factory=list)
    readings_asked: int = 0
    alarms: list[float] = field(default_factory=list)
    tables: list[RoutingTable] = field(default_factory=list)
    published: list[tuple[str, object]] = field(default_factory=list)
    models: dict[str, Model] = field(default_factory=dict)
    instances: dict[str, Instance] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    loads: list[LoadRecord] = field(default_factory=list)
    profiles: Profiles = field(default_factory=dict)
    moves: dict[str, Move] = field(default_factory=dict)

    def now(self) -> float:
        return self.clock

    def token(self) -> str:
        self.tokens += 1
        return f"{self.tokens:08x}"

    def prepare(self, instance: Instance) -> None:
        self.prepared.append(instance.id)

    def spawn(self, instance: Instance, devices: tuple[Device, ...], needs: int | None) -> None:
        assert instance.id not in self.alive, "two process groups of one instance"
        assert devices, "an instance without a device"
        self.alive.add(instance.id)
        self.held[instance.id] = needs

    def let_go(self, instance: str) -> None:
        self.held.pop(instance, None)

    def set_terms(self, instance: str, terms: Terms) -> None:
        self.terms.append((instance, terms))

    def weigh(self, instance: Instance) -> None:
        assert instance.id in self.alive
        self.weighed.append(instance.id)

    def suspend(self, instance: Instance) -> None:
        assert self.instances[instance.id].rest == instance.rest, "what it answers has to be kept before it sleeps"
        self.suspended.append(instance.id)

    def resume(self, instance: Instance) -> None:
        self.resumed.append(instance.id)

    def look(self, instance: Instance) -> None:
        self.looked_at.append(instance.id)

    def ask(self, instance: Instance) -> None:
        assert instance.id in self.alive
        self.asked.append(instance.id)

    def terminate(self, instance: str) -> None:
        self.terminated.append(instance)

    def kill(self, instance: str) -> None:
        self.killed.append(instance)

    def discard(self, instance: str) -> None:
        assert instance not in self.alive
        self.discarded.append(instance)

    def read_devices(self) -> None:
        self.readings_asked += 1

    def wake_at(self, when: float) -> None:
        self.alarms.append(when)

    def route(self, table: RoutingTable) -> None:
        self.tables.append(table)

    def publish(self, event: str, data: object) -> None:
        self.published.append((event, data))

    def save_model(self, model: Model) -> None:
        self.models[model.spec.name] = model

    def delete_model(self, name: str) -> None:
        self.models.pop(name, None)

    def save_instance(self, instance: Instance) -> None:
        self.instances[instance.id] = instance

    def delete_instance(self, instance: str) -> None:
        self.instances.pop(instance, None)

    def save_move(self, move: Move) -> None:
        self.moves[move.id] = move

    def delete_move(self, id: str) -> None:
        self.moves.pop(id, None)

    def add_event(self, event: Event) -> None:
        self.events.append(event)

    def add_load(self, load: LoadRecord) -> None:
        self.loads.append(load)

    def save_profile(self, profile: Profile) -> None:
        self.profiles[profile.id] = profile


class World:
    """A manager on fake effects, and short words for what happens to it."""

    elastic = False
    """Whether the KV caches of engines that are spawned grow."""

    def __init__(self, *devices: Device, limits: Limits | None = None) -> None:
        self.effects = FakeEffects()
        self.manager = Manager(
            self.effects, limits or Limits(RestartPolicy(limit=3, delay=1, delay_max=10, reset=60), drain=30, history=5)
        )
        self.tell(facts.DevicesRead(devices or (HOST,), {}))

    def tell(self, fact: facts.Fact) -> None:
        self.manager.handle(fact)

    def add(self, name: str = "m", **settings: object) -> None:
        self.manager.handle(lambda: void(self.manager.add_model(spec(name, **settings))))

    def load(self, name: str = "m", instances: int | None = None) -> None:
        self.manager.handle(lambda: void(self.manager.load(name, instances)))

    def unload(self, name: str = "m", *, force: bool = False) -> None:
        self.manager.handle(lambda: void(self.manager.unload(name, force=force)))

    def prepare(self, needs: int | None = GIB, kinds: tuple[str, ...] = ("cuda", "host")) -> None:
        """Everything that waits to be prepared is."""
        waiting, self.effects.prepared = self.effects.prepared, []
        for instance in waiting:
            self.tell(facts.Prepared(instance, needs, kinds))

    def spawned(self, instance: str, *, can_sleep: bool = True) -> None:
        because = "" if can_sleep else "it was built so"
        address = f"unix:/run/{instance}.sock"
        self.tell(
            facts.Spawned(
                instance, address, "simulated", "1",
                elastic=self.elastic, can_sleep=can_sleep, sleepless_because=because,
            )
        )  # fmt: skip

    def healthy(self, instance: str) -> None:
        self.tell(facts.Healthy(instance, 42, {"starting": 1.0}))

    def exit(self, instance: str, exit: Exit | None = None) -> None:
        """The process group is gone."""
        self.effects.alive.discard(instance)
        failure = Failure("engine_crashed", "the engine crashed", "look at its log")
        self.tell(facts.Exited(instance, exit or Exit(code=1), failure))

    def ready(self, name: str = "m", needs: int | None = GIB) -> str:
        """Add and load a model until it serves; the instance's id."""
        self.add(name)
        self.load(name)
        self.prepare(needs)
        id = self.only(name).id
        self.spawned(id)
        self.healthy(id)
        assert self.only(name).state is InstanceState.READY
        return id

    def sleep(self, name: str = "m", level: int = 1, *, force: bool = False) -> None:
        """Somebody puts a model to sleep."""
        self.manager.handle(lambda: void(self.manager.sleep(name, level, force=force)))

    def wake(self, name: str = "m") -> None:
        """Somebody wakes a model."""
        self.manager.handle(lambda: void(self.manager.wake(name)))

    def asleep(self, name: str = "m", freed: int = GIB, level: int = 1) -> str:
        """Add, load and put a model to sleep until it sleeps; the instance's id."""
        id = self.ready(name)
        self.sleep(name, level, force=True)
        self.tell(facts.Weighed(id, 2 * GIB, 0, "text: Paris"))
        self.tell(facts.Asleep(id, freed, 0))
        assert self.get(id).state is InstanceState.SLEEPING
        return id

    def report(self, outstanding: dict[str, int] | None = None, connection: int = 1) -> None:
        """The relay says that it has the newest table."""
        table = self.effects.tables[-1]
        report = RelayReport("relay", table.epoch, table.version, outstanding or {})
        self.tell(facts.RelayReported(connection, report))

    def wanted(self, name: str = "m") -> None:
        """A relay holds requests for a model."""
        self.tell(facts.RelayWants(1, name))

    def route(self, name: str = "m") -> Route:
        """Where requests for a model go, as published last."""
        (found,) = (route for route in self.effects.tables[-1].routes if route.model == name)
        return found

    def only(self, name: str = "m") -> Instance:
        """The one instance of a model that was not stopped."""
        (instance,) = self.manager.fleet.of_model(name)
        return instance

    def targets(self) -> list[Target]:
        """Where requests for the only model go."""
        (route,) = self.effects.tables[-1].routes
        return list(route.targets)

    def get(self, id: str) -> Instance:
        return self.manager.fleet.instances[id]

    def after(self, seconds: float) -> None:
        """Time passes."""
        self.effects.clock += seconds
        self.tell(facts.Tick())


def books(world: World, leases: Mapping[str, Terms], *, headroom: int = 0, **fields: int) -> Books:
    """The broker's books when these instances lease something on their devices; `fields` are of each rank."""
    found: Books = {}
    for device in world.manager.fleet.devices:
        members = tuple(
            msgspec.structs.replace(
                MemberState(id, rank, 1, 0, terms.floor, terms.ceiling, terms.priority, 0, 0, 0, 0, 0, None), **fields
            )
            for id, terms in leases.items()
            for rank, name in enumerate(world.get(id).devices)
            if name == device.id
        )
        if members:
            state = DeviceState(device.key, device.memory_total, device.memory_total - headroom, headroom, 0, 0, 0)
            found[device.key] = DeviceBook(state, members)
    return found


def void(_: object) -> None:
    """Commands return something; the inbox wants nothing."""
