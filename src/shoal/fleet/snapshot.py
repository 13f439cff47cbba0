"""The fleet's state, owned by the manager's task alone, and pure views of it: what people see, where requests go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from shoal.engines.base import Engine, EngineMetrics
from shoal.fleet.hearing import Hearing
from shoal.fleet.known import Instances
from shoal.fleet.lifecycle import Event
from shoal.fleet.memory import Ledger, MemoryView, PoolView
from shoal.fleet.observed import Observed
from shoal.fleet.profiles import Profile, Profiles
from shoal.fleet.spec import LIVE, ModelSpec
from shoal.fleet.state import Device, Failure, Instance, InstanceState, Model, Progress
from shoal.messages import Key, RelayReport, Route, Target, VirtualModel

UNLOADED = "unloaded"
NapKind = Literal["slept", "sleep_failed", "woke", "wake_failed"]
LEASELESS = "the engine leases no memory: its log says why the model's KV cache cannot be elastic"
# A model's state is that of its instance nearest to serving.
_NEAREST = (
    InstanceState.READY,
    InstanceState.WAKING,
    InstanceState.STARTING,
    InstanceState.QUEUED,
    InstanceState.SLEEPING,
    InstanceState.DRAINING,
    InstanceState.STOPPING,
    InstanceState.FAILED,
)


@dataclass(frozen=True, slots=True)
class InstanceView:
    """An instance as people see it. Times are Unix seconds, memory bytes."""

    id: str
    model: str
    engine: str
    state: InstanceState
    reason: str
    devices: tuple[str, ...]
    created_at: float
    changed_at: float
    ready_at: float | None
    pid: int | None
    address: str
    environment: str
    restarts: int
    restart_at: float | None
    progress: Progress | None
    failure: Failure | None
    memory: MemoryView
    outdated: bool
    """The model's settings have changed since this instance started."""
    can_sleep: bool
    sleepless_because: str
    sleep_level: int | None
    """The level at which it sleeps, or is to; None: awake."""
    wanted_awake: bool
    """It is to wake as soon as it can."""


@dataclass(frozen=True, slots=True)
class ModelView:
    """A model as people see it, with its instances."""

    name: str
    origin: str
    created_at: float
    desired: int
    state: str
    spec: ModelSpec
    instances: tuple[InstanceView, ...]


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A device and the instances on it. Sizes in bytes."""

    id: str
    kind: str
    name: str
    memory_total: int
    memory_used: int
    utilization: float | None
    temperature: float | None
    power: float | None
    error: str | None
    instances: tuple[str, ...]
    pool: PoolView | None = None
    """What elastic KV caches may take of it, and take."""


@dataclass(frozen=True, slots=True)
class Access:
    """What relays have to know beyond the models: who may use them, and names that stand for them."""

    keys: tuple[Key, ...] = ()
    keys_required: bool = False
    virtual: tuple[VirtualModel, ...] = ()


@dataclass(slots=True)
class Fleet:
    """All that the manager knows. Ended instances stay until newer ones push them out."""

    engines: Mapping[str, Engine] = field(default_factory=dict)
    """What is known of each kind of engine."""
    models: dict[str, Model] = field(default_factory=dict)
    instances: Instances = field(default_factory=Instances)
    devices: tuple[Device, ...] = ()
    needs: dict[str, int | None] = field(default_factory=dict)
    weights: dict[str, int | None] = field(default_factory=dict)
    profiles: Profiles = field(default_factory=dict)
    """What loads, sleeps and wakes have shown of models."""
    measured: dict[str, Profile] = field(default_factory=dict)
    """The profile of an instance's model with its settings, as of its preparation or its last sleep or wake."""
    observed: Observed = field(default_factory=Observed)
    ledger: Ledger = field(default_factory=Ledger)
    leaseless: set[str] = field(default_factory=set)
    """Instances that were started to lease their KV cache and do not."""
    context_lengths: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, EngineMetrics] = field(default_factory=dict)
    relays: dict[int, RelayReport] = field(default_factory=dict)
    hearing: Hearing = field(default_factory=Hearing)
    access: Access = field(default_factory=Access)
    after: dict[str, Event] = field(default_factory=dict)
    """What the end of an instance's process will mean, where that was decided before; else `Event.END`."""
    rouse: set[str] = field(default_factory=set)
    """Instances that are to wake as soon as they can: they are being put to sleep now, or wait for room."""
    stuck: set[str] = field(default_factory=set)
    """Instances that sleep and can never wake as things are: their model is too large beside what is pinned."""
    naps: dict[tuple[str, NapKind], tuple[int, float]] = field(default_factory=dict)
    """How often instances of a model slept and woke, or failed to, and the seconds that it took them together."""
    apart: Mapping[str, str] = field(default_factory=dict)
    """Instances that no request may go to yet, each with the one whose place it is to take."""
    leaving: set[str] = field(default_factory=set)
    """Models that are to be removed once their instances have ended."""
    closing: bool = False
    """Shoal stops: nothing is loaded any more."""

    def of_model(self, name: str) -> list[Instance]:
        """The model's instances that have not been stopped, oldest first."""
        return sorted(
            (i for i in self.instances.of(name) if i.state is not InstanceState.STOPPED),
            key=lambda i: (i.created_at, i.id),
        )

    def outstanding(self, instance: str) -> int:
        """Requests that run on an instance, over all relays."""
        return sum(report.outstanding.get(instance, 0) for report in self.relays.values())

    def unheard(self, now: float) -> bool:
        """Whether requests may run that `outstanding` does not count. When Shoal stops, relays have ended before."""
        return not self.closing and not self.hearing.complete(self.relays, now)

    def model_state(self, name: str) -> str:
        """The state of the model's instance nearest to serving, or `unloaded`."""
        states = {instance.state for instance in self.of_model(name)}
        return next((state.value for state in _NEAREST if state in states), UNLOADED)

    def instance_view(self, instance: Instance) -> InstanceView:
        """What people see of an instance."""
        model = self.models.get(instance.model)
        return InstanceView(
            id=instance.id,
            model=instance.model,
            engine=instance.engine,
            state=instance.state,
            reason=instance.reason,
            devices=instance.devices,
            created_at=instance.created_at,
            changed_at=instance.changed_at,
            ready_at=instance.ready_at,
            pid=instance.pid,
            address=instance.address,
            environment=instance.environment,
            restarts=instance.restarts,
            restart_at=instance.restart_at,
            progress=instance.progress,
            failure=instance.failure,
            memory=self.memory_view(instance),
            outdated=model is not None and not instance.state.ended and _runs_other(instance.spec, model.spec),
            can_sleep=instance.can_sleep,
            sleepless_because=instance.sleepless_because,
            sleep_level=instance.rest.level,
            wanted_awake=instance.id in self.rouse,
        )

    def memory_view(self, instance: Instance) -> MemoryView:
        """What people see of an instance's memory."""
        mode = "" if instance.elastic is None else "elastic" if instance.elastic else "fixed"
        reason = instance.fixed_because
        if instance.id in self.leaseless:
            mode, reason = "fixed", LEASELESS
        weights = self.weights.get(instance.id)
        return self.ledger.view(instance.id, self.devices, mode, reason, instance.memory, weights)

    def model_view(self, name: str) -> ModelView:
        """What people see of a model. Raises KeyError."""
        model = self.models[name]
        return ModelView(
            name=name,
            origin=model.origin,
            created_at=model.created_at,
            desired=model.desired,
            state=self.model_state(name),
            spec=model.spec,
            instances=tuple(self.instance_view(instance) for instance in self.of_model(name)),
        )

    def device_views(self) -> tuple[DeviceView, ...]:
        """What people see of the devices."""
        return tuple(
            DeviceView(
                id=device.id,
                kind=device.kind,
                name=device.name,
                memory_total=device.memory_total,
                memory_used=device.memory_used,
                utilization=device.utilization,
                temperature=device.temperature,
                power=device.power,
                error=device.error,
                instances=tuple(i.id for i in self.instances.values() if device.id in i.devices and not i.state.ended),
                pool=self.ledger.pool(device),
            )
            for device in self.devices
        )

    def route(self, name: str) -> Route:
        """Where requests for the model go, or why they cannot go anywhere and when to come back."""
        model = self.models[name]
        instances = self.of_model(name)
        ready = [i for i in instances if i.state is InstanceState.READY and i.id not in self.apart]
        targets = tuple(Target(i.id, i.address, self._capacity(i)) for i in ready)
        detail, retry = ("", None) if targets else _why_not(name, instances)
        return Route(
            model=name,
            state=self.model_state(name),
            created=int(model.created_at),
            targets=targets,
            detail=detail,
            retry_after=retry,
            context_length=self.context_lengths.get(name) or model.spec.context_length,
            comes=bool(targets) or self.comes_by_itself(name) or self.may_be_asked_for(name),
            limit=model.spec.max_concurrency,
            names=self._lora_names(model.spec, [i.spec or model.spec for i in ready]),
        )

    def comes_back(self, instance: Instance) -> bool:
        """Whether an instance is ending only to be started again."""
        return instance.state is InstanceState.STOPPING and self.after.get(instance.id) is Event.END_RESTART

    def comes_by_itself(self, name: str) -> bool:
        """Whether an instance of the model is on its way to serving."""
        states = (InstanceState.QUEUED, InstanceState.STARTING, InstanceState.WAKING)
        return any(
            i.state in states
            or i.id in self.rouse
            or (i.state is InstanceState.READY and i.id in self.apart)
            or self.comes_back(i)
            for i in self.of_model(name)
        )

    def without_doubles(self, instances: list[Instance]) -> list[Instance]:
        """Those of some instances that count: one that is to take another's place does not count beside it."""
        there = {i.id for i in instances}
        return [i for i in instances if self.apart.get(i.id) not in there]

    def may_be_asked_for(self, name: str) -> bool:
        """Whether a request may have the model woken or loaded: it sleeps, or is not loaded and has not failed."""
        if self.closing or name in self.leaving or not self.models[name].spec.on_request:
            return False
        if any(i.sleeps for i in self.of_model(name)):
            serves = any(i.state is InstanceState.READY for i in self.of_model(name))
            if all(i.id in self.stuck for i in self.of_model(name) if i.sleeps):
                return False
            return not serves and not self.comes_by_itself(name)
        return all(
            i.state is InstanceState.DRAINING
            or (i.state is InstanceState.STOPPING and self.after.get(i.id, Event.END) is Event.END)
            for i in self.of_model(name)
        )

    def _capacity(self, instance: Instance) -> int:
        engine = self.engines.get(instance.engine)
        if engine is None or instance.spec is None:
            return 0
        return engine.capacity(instance.spec, [d for d in self.devices if d.id in instance.devices]) or 0

    def _lora_names(self, wanted: ModelSpec, running: list[ModelSpec]) -> tuple[str, ...]:
        """Names that every running instance answers to; of a model that does not run, those that it will."""
        found = [engine.lora_names(s) for s in running or [wanted] if (engine := self.engines.get(s.engine))]
        return tuple(name for name in found[0] if all(name in names for names in found)) if found else ()


def _runs_other(running: ModelSpec | None, wanted: ModelSpec) -> bool:
    """Whether an instance started from other settings than the model has now; those in `LIVE` do not count."""
    keep = dict.fromkeys(LIVE)
    return running is not None and running.model_copy(update=keep) != wanted.model_copy(update=keep)


def _why_not(name: str, instances: list[Instance]) -> tuple[str, int | None]:
    """A sentence for the client, and the seconds after which it may try again (None: not by itself)."""
    by_state = {instance.state: instance for instance in instances}
    if InstanceState.WAKING in by_state:
        return f"{name} is waking; try again shortly", 1
    if (starting := by_state.get(InstanceState.STARTING)) is not None:
        progress = starting.progress
        if progress is None:
            return f"{name} is starting; try again shortly", 5
        left = progress.seconds_left
        wait = f", about {left:.0f} s left" if left is not None else ""
        return f"{name} is starting ({progress.phase}, {progress.percent} %{wait}); try again shortly", (
            max(1, min(60, round(left))) if left is not None else 5
        )
    if (queued := by_state.get(InstanceState.QUEUED)) is not None:
        reason = f": {queued.reason}" if queued.reason else ""
        wait_for = max(1, round(queued.restart_at - queued.changed_at)) if queued.restart_at else 5
        return f"{name} is queued{reason}; try again shortly", wait_for
    if (sleeper := next((i for i in instances if i.sleeps), None)) is not None:
        where = "asleep" if sleeper.state is InstanceState.SLEEPING else "going to sleep"
        return f"{name} is {where} ({sleeper.reason}); wake it with `shoal wake {name}`", None
    if (failed := by_state.get(InstanceState.FAILED)) is not None:
        why = failed.failure.message if failed.failure else failed.reason
        return f"{name} could not be run: {why}; see `shoal logs {name}`, then `shoal load {name}`", None
    if InstanceState.READY in by_state:  # it is apart
        return f"{name} is about to serve; try again shortly", 1
    if instances:
        return f"{name} is being unloaded; load it again with `shoal load {name}`", None
    return f"{name} is not loaded; load it with `shoal load {name}`", None
