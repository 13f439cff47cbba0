"""What happens to instances: facts become transitions of the lifecycle table, and those become effects.

No I/O and no clock of its own: everything goes through `Effects`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from shoal.errors import NotFoundError
from shoal.fleet import facts, rests
from shoal.fleet.drains import Drains
from shoal.fleet.effects import Effects
from shoal.fleet.endings import ending, needs_more_room, with_more_room
from shoal.fleet.lifecycle import WITH_PROCESS, Effect, Event, Limits, step
from shoal.fleet.placement import next_starts
from shoal.fleet.records import Event as Note
from shoal.fleet.residing import Residing
from shoal.fleet.room import Room
from shoal.fleet.shares import Shares
from shoal.fleet.slumber import Slumber
from shoal.fleet.snapshot import Fleet
from shoal.fleet.spec import ModelSpec
from shoal.fleet.starts import Starts
from shoal.fleet.state import Failure, Instance, Progress, Rest, slug
from shoal.fleet.state import InstanceState as S

__all__ = ["Life", "Limits"]


class Life:
    """The instances of a fleet. `dirty` names the models that have changed since it was last emptied."""

    def __init__(self, fleet: Fleet, effects: Effects, limits: Limits) -> None:
        self.fleet = fleet
        self.dirty: set[str] = set()
        self.routes_changed = False
        self._effects = effects
        self._limits = limits
        self._room = Room(fleet)
        self._starts = Starts(fleet, effects)
        self._why: dict[str, Failure] = {}
        self.drains = Drains(fleet)
        self.shares = Shares(fleet, effects, self.put, self.note)
        self.slumber = Slumber(
            fleet, effects, self.drains, self._room, limits.drain, self.put, self._apply, self._blame
        )
        self.residing = Residing(fleet, effects, self._room, self.slumber, self, limits.rules, limits.host_memory)

    # -- what people ask for ------------------------------------------------------------------------------------------

    def create(self, spec: ModelSpec) -> Instance:
        """A new instance of a model, queued."""
        now = self._effects.now()
        instance = Instance(
            id=self._new_id(spec.name),
            model=spec.name,
            engine=spec.engine,
            state=S.QUEUED,
            devices=(),
            created_at=now,
            changed_at=now,
            spec=spec,
        )
        self.put(instance)
        self.routes_changed = True
        self.note(instance, "queued", f"{spec.name} is to be loaded")
        self._effects.prepare(instance)
        return instance

    def retry(self, instance: Instance, spec: ModelSpec) -> None:
        """Load a failed instance again, with the model's present settings."""
        fresh = dataclasses.replace(
            instance,
            spec=spec,
            engine=spec.engine,
            devices=(),
            restarts=0,
            restart_at=None,
            failure=None,
            progress=None,
        )
        self._room.forget(instance.id)
        self._apply(fresh, Event.RETRY, "asked for again")
        self._effects.prepare(self.fleet.instances[instance.id])

    def replace(self, instance: Instance) -> None:
        """Queue another instance in place of one that ends."""
        if (model := self.fleet.models.get(instance.model)) is not None:
            self.create(model.spec)

    def unload(self, instance: Instance, *, force: bool = False, why: str = "unloaded") -> Instance:
        """End an instance, after its running requests unless forced. Asked again, it only becomes more urgent.

        Returns it as it is then: one that ends at once may be forgotten at once too.
        """
        instance = self.slumber.give_up(instance)
        before = instance.state
        if before in WITH_PROCESS:
            self.fleet.after[instance.id] = Event.END
            self.routes_changed = True
        after = self._apply(instance, Event.UNLOAD, why)
        if before is S.READY:
            self.drains.put(instance.id, self._effects.now() + (0.0 if force else self._limits.drain))
        elif force and before is S.DRAINING:
            self.drains.put(instance.id, self._effects.now())
        elif force and before is S.STOPPING:
            self._effects.kill(instance.id)
        return after

    # -- what the outside tells ---------------------------------------------------------------------------------------

    def on_prepared(self, fact: facts.Prepared) -> None:
        """The model's files were looked at: it may be placed now, or cannot be started."""
        self._room.looked_at(fact.instance)
        instance = self.fleet.instances.get(fact.instance)
        if instance is None:
            return
        self.dirty.add(instance.model)
        if instance.state.ended and not self.residing.was_refused(instance):
            return
        if fact.failure is None:
            self.fleet.weights[instance.id] = fact.weights
            rests.recall(self.fleet, instance)
            self._room.prepared(instance.id, fact.needs, fact.kinds, fact.kv)
            if instance.state is not S.QUEUED:  # it was found running
                self._room.known(instance)
        elif instance.state is S.QUEUED:
            self.refuse(instance, fact.failure)
        else:  # its files have gone since it was started: what it needs is not known
            self._room.forget(instance.id)

    def on_spawned(self, fact: facts.Spawned) -> None:
        """The process group runs, or could not be started."""
        instance = self.fleet.instances.get(fact.instance)
        if instance is None:
            return
        if fact.failure is None:
            self._starts.runs(instance.id, fact.version)
            started = dataclasses.replace(
                instance,
                address=fact.address,
                environment=fact.environment,
                elastic=fact.elastic,
                fixed_because=fact.fixed_because,
                can_sleep=fact.can_sleep,
                sleepless_because=fact.sleepless_because,
            )
            self.put(started)
            if fact.fixed_because and instance.spec is not None and instance.spec.may_be_elastic:
                self.shares.note_fixed(instance, fact.fixed_because)
        elif instance.state is S.STARTING:
            self.refuse(instance, fact.failure)
        elif instance.state is S.STOPPING:  # unloaded before it could not be started
            self.fleet.after.pop(instance.id, None)
            self._apply(instance, Event.END, "unloaded")

    def on_progressed(self, fact: facts.Progressed) -> None:
        """A start has come further."""
        instance = self.fleet.instances.get(fact.instance)
        if instance is not None and instance.state is S.STARTING:
            self.put(dataclasses.replace(instance, progress=fact.progress), save=False)
            self.routes_changed = True

    def on_healthy(self, fact: facts.Healthy) -> None:
        """The engine answers: requests may come."""
        instance = self.fleet.instances.get(fact.instance)
        if instance is None or instance.state is not S.STARTING:
            return
        now = self._effects.now()
        instance = dataclasses.replace(
            instance, pid=fact.pid or instance.pid, ready_at=now, progress=None, failure=None
        )
        if self.fleet.weights.get(instance.id) is None and fact.weights is not None:  # its files did not tell
            self.fleet.weights[instance.id] = fact.weights
        seconds = self._starts.seconds(instance)
        self._starts.record(instance, fact.phases, "ready")
        self._apply(instance, Event.HEALTHY, f"ready after {seconds:.1f} s")

    def on_overdue(self, fact: facts.Overdue) -> None:
        """A start takes too long: end it."""
        instance = self.fleet.instances.get(fact.instance)
        if instance is None or instance.state is not S.STARTING:
            return
        limit = instance.spec.start_timeout if instance.spec else 0.0
        self._why[instance.id] = Failure(
            "start_timeout",
            f"{instance.model} was not ready within {limit:.0f} s",
            "see its log for what it waits for; raise `start_timeout` if it only needs longer",
        )
        self.fleet.after[instance.id] = Event.END_FAILED
        self.routes_changed = True
        self._starts.record(instance, fact.phases, "start_timeout")
        self._apply(instance, Event.GIVE_UP, self._why[instance.id].message)

    def on_hung(self, fact: facts.Hung) -> None:
        """A running engine stands still: end it, and start it again unless it was to sleep."""
        instance = self.fleet.instances.get(fact.instance)
        if instance is None or not (instance.sleeps or instance.state in (S.READY, S.WAKING)):
            return
        hint = "it is loaded when it is asked for" if instance.sleeps else "it is started again"
        failure = Failure("hung", f"{instance.model} hangs: {fact.reason}", hint)
        self._blame(instance, failure, again=not instance.sleeps)
        self._apply(instance, Event.HANG, f"hangs: {fact.reason}; {hint}", level="warning")

    def on_exited(self, fact: facts.Exited) -> None:
        """A process group is gone, as told or by itself."""
        instance = self.fleet.instances.get(fact.instance)
        if instance is None or instance.state in (S.QUEUED, S.STOPPED, S.FAILED):
            return
        self.drains.ended(instance.id)
        self.slumber.ended(instance.id)
        self.shares.ended(instance)
        self._room.ended(instance)
        self._effects.read_devices()
        failure = self._why.pop(instance.id, fact.failure)
        after = self.fleet.after.pop(instance.id, Event.END)
        if instance.state is S.STARTING and instance.restarts == 0:
            self._starts.record(instance, {}, failure.code)
        if needs_more_room(instance, failure) and self._room.ran_out(instance):
            end = with_more_room(instance, failure)
        else:
            end = ending(instance, failure, fact.exit, after, self._limits.restart, self._effects.now())
        self._apply(end.instance, end.event, end.reason, level=end.level)

    def on_described(self, fact: facts.Described) -> None:
        """What the engine says of the model that it serves."""
        if (instance := self.fleet.instances.get(fact.instance)) is not None:
            self.fleet.context_lengths[instance.model] = fact.context_length
            self.routes_changed = True

    def on_measured(self, fact: facts.Measured) -> None:
        """An engine's readings."""
        if (instance := self.fleet.instances.get(fact.instance)) is not None and not instance.state.ended:
            self.fleet.metrics[fact.instance] = fact.metrics

    def on_devices(self, fact: facts.DevicesRead) -> None:
        """The devices, read anew."""
        now = self._effects.now()
        self._room.read(fact.devices, now if fact.at is None else fact.at)
        self.shares.judge(now)
        for id, used in fact.memory.items():
            if (instance := self.fleet.instances.get(id)) is not None and not instance.state.ended:
                self.fleet.instances[id] = dataclasses.replace(instance, memory={**instance.memory, "host": used})
        self._starts.measure(now)

    def adopt(self, instance: Instance) -> None:
        """Take back an instance whose process group was found alive; it goes on where it was."""
        self._starts.began(instance.id, instance.changed_at)
        self.fleet.hearing.missed(self._effects.now())  # requests may run on it in relays that are not back yet
        if instance.state is S.DRAINING:
            self.drains.put(instance.id, self._effects.now() + self._limits.drain)
        self.put(instance)
        if instance.spec is not None:  # what it needs is not in the store
            self._room.expect(instance.id)
            self._effects.prepare(instance)
        self.slumber.adopt(instance)
        self.routes_changed = True
        self.note(instance, "adopted", f"{instance.id} was found running and taken back as {instance.state.value}")

    def forget(self, instance_id: str) -> None:
        """Drop an ended instance, its log and its folder."""
        instance = self.fleet.instances.pop(instance_id)
        self._room.forget(instance_id)
        self.fleet.weights.pop(instance_id, None)
        self.fleet.measured.pop(instance_id, None)
        self.fleet.metrics.pop(instance_id, None)
        self._starts.forget(instance_id)
        self.fleet.after.pop(instance_id, None)
        self._why.pop(instance_id, None)
        self._effects.delete_instance(instance_id)
        self._effects.discard(instance_id)
        self.dirty.add(instance.model)

    # -- what follows from the state ----------------------------------------------------------------------------------

    def settle(self) -> None:
        """Start whose turn it is, end or put to sleep what has drained, and say what the others wait for."""
        now = self._effects.now()
        for instance_id, reason in self.drains.take_done(now, table_is_out=not self.routes_changed):
            drained = self.fleet.instances[instance_id]
            if drained.retires:
                self.slumber.quiet(drained, reason)
            else:
                self._apply(drained, Event.DRAINED, reason)
        self.slumber.settle()
        look = self.residing.settle(now, changed=bool(self.dirty))
        placed = [i for i in self.fleet.instances.values() if i.state is not S.QUEUED or i.devices]
        starts, waits = next_starts(placed, now)
        for instance_id in starts:
            self._start(self.fleet.instances[instance_id])
        for waiting in waits:
            instance = self.fleet.instances[waiting.instance]
            if instance.reason != waiting.reason:
                self.put(dataclasses.replace(instance, reason=waiting.reason), save=False)
        due = [i.restart_at for i in self.fleet.instances.values() if i.state is S.QUEUED and i.restart_at]
        upcoming = [at for at in (*due, *self.drains.limits, look or now) if at > now]
        if upcoming:
            self._effects.wake_at(min(upcoming))

    def reroute(self) -> None:
        """Where requests go, or what they are told, has changed."""
        self.routes_changed = True

    def note(
        self, instance: Instance, kind: str, message: str, level: str = "info", seconds: float | None = None
    ) -> None:
        """Keep in the history, and tell who watches, what happened and why, and after how long in the former state."""
        self.say(Note(self._effects.now(), level, kind, message, instance.model, instance.id, seconds=seconds))

    def say(self, event: Note) -> None:
        """Keep and tell an event."""
        self._effects.add_event(event)
        self._effects.publish("message", event)

    # -- steps --------------------------------------------------------------------------------------------------------

    def _start(self, instance: Instance) -> None:
        self._starts.began(instance.id, self._effects.now())
        fresh = dataclasses.replace(instance, restart_at=None, ready_at=None, rest=Rest())
        starting = dataclasses.replace(fresh, progress=Progress("starting", 0))
        self._apply(starting, Event.START, f"starts on {', '.join(instance.devices)}")

    def refuse(self, instance: Instance, failure: Failure) -> None:
        """It can never run, or could not be started."""
        refused = dataclasses.replace(instance, failure=failure, pid=None)
        self._apply(refused, Event.REFUSE, failure.message, level="error")

    def _apply(self, instance: Instance, event: Event, reason: str, *, level: str = "info") -> Instance:
        transition = step(instance.state, event)
        if transition.state is instance.state:  # asked twice, or a step on the way out of it
            for effect in transition.effects:
                self._carry_out(effect, instance)
            return instance
        changed = dataclasses.replace(instance, state=transition.state, reason=reason, changed_at=self._effects.now())
        self.put(changed)
        if changed.state is S.READY and instance.state is not S.DRAINING:
            self._room.came(instance.id, changed.changed_at)
        took = max(0.0, changed.changed_at - instance.changed_at)
        self.note(changed, transition.state.value, f"{changed.model}: {reason}", level, took)
        if instance.state in (S.STARTING, S.WAKING):
            self._effects.let_go(instance.id)
        for effect in transition.effects:
            self._carry_out(effect, changed)
        if transition.state.ended:
            self._prune()
        return changed

    def _carry_out(self, effect: Effect, instance: Instance) -> None:
        match effect:
            case Effect.ROUTE:
                self.routes_changed = True
            case Effect.SPAWN:
                by_id = {device.id: device for device in self.fleet.devices}
                devices = tuple(by_id[name] for name in instance.devices if name in by_id)
                self._effects.spawn(instance, devices, self.fleet.needs.get(instance.id))
            case Effect.TERMINATE | Effect.KILL:
                end = self._effects.terminate if effect is Effect.TERMINATE else self._effects.kill
                end(instance.id)
            case Effect.WEIGH | Effect.SUSPEND | Effect.RESUME:
                self.slumber.carry_out(effect, instance)

    def _blame(self, instance: Instance, failure: Failure, *, again: bool = True) -> None:
        """It is about to be ended for that reason, in order to start again or not."""
        self._why[instance.id] = failure
        self.fleet.after[instance.id] = Event.END_RESTART if again else Event.END

    def put(self, instance: Instance, *, save: bool = True) -> None:
        """Keep an instance that has changed."""
        self.fleet.instances[instance.id] = instance
        self.dirty.add(instance.model)
        if save:
            self._effects.save_instance(instance)

    def _prune(self) -> None:
        ended = sorted((i for i in self.fleet.instances.values() if i.state is S.STOPPED), key=lambda i: i.changed_at)
        for instance in ended[: max(0, len(ended) - self._limits.history)]:
            self.forget(instance.id)

    def _new_id(self, model: str) -> str:
        while (new := f"{slug(model)}-{self._effects.token()}") in self.fleet.instances:
            pass
        return new

    def get(self, instance_id: str) -> Instance:
        """The instance of that id. Raises NotFoundError."""
        if (instance := self.fleet.instances.get(instance_id)) is None:
            raise NotFoundError(f"there is no instance {instance_id}; `shoal ps --all` lists them", param="instance")
        return instance

    def end_all(self, instances: Iterable[Instance], *, force: bool) -> list[Instance]:
        """Unload each; those that had not ended before."""
        live = [instance for instance in instances if instance.state is not S.STOPPED]
        for instance in live:
            self.unload(instance, force=force)
        return live
