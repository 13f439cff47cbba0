"""The one task that owns the fleet's state. All others send it commands and facts, and read what it publishes."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping

from shoal.errors import ConflictError, ShoalError
from shoal.fleet import facts
from shoal.fleet.catalogue import Catalogue
from shoal.fleet.effects import Effects
from shoal.fleet.facts import Fact
from shoal.fleet.host_room import HostCopies
from shoal.fleet.inbox import Inbox
from shoal.fleet.life import Life, Limits
from shoal.fleet.measures import Measures
from shoal.fleet.memory import Terms
from shoal.fleet.move_runs import Moves
from shoal.fleet.occupancy import seen_now
from shoal.fleet.records import Event as Note
from shoal.fleet.snapshot import Access, Fleet, ModelView
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Instance, Model
from shoal.fleet.state import InstanceState as S
from shoal.fleet.telling import Telling

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What a command led to: the model as it is now, and whether anything was set in motion."""

    model: ModelView
    changed: bool


class Manager(Inbox):
    """The fleet. `start` runs its loop; `do` runs a command inside it; `tell` hands it a fact."""

    def __init__(self, effects: Effects, limits: Limits, fleet: Fleet | None = None) -> None:
        super().__init__()
        self.fleet = fleet if fleet is not None else Fleet(engines=effects.engines)
        self.fleet.hearing.relays = limits.relays
        self._effects = effects
        self._life = Life(self.fleet, effects, limits)
        self.moves = Moves(self.fleet, effects, self._life, self.change_model, limits.drain)
        self.measures = Measures(self.fleet)
        self.moves.ended = self.measures.move_ended
        self._models = Catalogue(self.fleet, effects, self._life)
        self._telling = Telling(self.fleet, effects, self._life, self.measures)

    def keep_copies(self, copies: HostCopies) -> None:
        """Have the residency policy know of copies of weights, and forget them where they are in the way."""
        self._life.residing.copies = copies

    # -- the loop -----------------------------------------------------------------------------------------------------

    def handle(self, item: Fact | Callable[[], None]) -> None:
        """Take one command or fact, and do all that follows from it. A fault in one does not end the loop."""
        try:
            if callable(item):
                item()
            else:
                self._take(item)
            self.moves.settle()  # no table is to say that nothing comes where a move goes on
            self._telling.relays()  # draining looks at what the relays were told
            self._life.settle()
            self.moves.settle()
        except Exception:  # a fault nobody foresaw; were the loop to end with it, every command would wait for ever
            _log.exception("while handling %r", item)
        try:  # apart from that: what has changed before the fault is true, and others have to know it
            self._telling.all()
        except Exception:
            _log.exception("while telling what %r led to", item)

    @property
    def evictions(self) -> Mapping[tuple[str, str, str], int]:
        """How often the policy had models leave their devices: by model, kind (`sleep`, `unload`) and cause."""
        return self._life.residing.left

    # -- commands: call them through `do` -----------------------------------------------------------------------------

    def add_model(self, spec: ModelSpec, origin: str = "api") -> Outcome:
        """Declare a model. The same one again changes nothing; another under its name is refused."""
        known = self.fleet.models.get(spec.name)
        if known is not None:
            if known.spec == spec:
                return Outcome(self.fleet.model_view(spec.name), changed=False)
            raise ConflictError(
                f"there is a model {spec.name} with other settings; change or remove it, or take another name",
                code="model_exists",
                param="name",
            )
        self._models.put(Model(spec, origin, self._effects.now()))
        self._models.say("model_added", f"{spec.name} was added", spec.name)
        return Outcome(self.fleet.model_view(spec.name), changed=True)

    def terms_to_change(self, name: str, make: Callable[[ModelSpec], ModelSpec]) -> dict[str, tuple[Terms, Terms]]:
        """For `change_model` with the same arguments: the terms, before and after, of each instance whose lease they
        would change. Raises what that would raise for settings that cannot be."""
        model = self._models.to_change(name)
        wanted = Terms.of(make(model.spec))
        changes = {}
        for instance in self.fleet.of_model(name):
            terms = self.fleet.ledger.terms(instance.id)
            if terms is not None and not instance.state.ended and terms != wanted:
                changes[instance.id] = (terms, wanted)
        return changes

    def change_model(self, name: str, make: Callable[[ModelSpec], ModelSpec]) -> Outcome:
        """Give a model other settings. Instances that run take its terms of memory over at once, and keep the others
        until they are loaded anew."""
        model = self._models.to_change(name)
        spec = make(model.spec)
        if spec.name != name:
            raise ShoalError("a model cannot be renamed; add it under its new name", code="immutable", param="name")
        if spec == model.spec:
            return Outcome(self.fleet.model_view(name), changed=False)
        self._models.put(dataclasses.replace(model, spec=spec))
        self._life.shares.set_terms(name, Terms.of(spec))
        self._models.say("model_changed", f"{name} has new settings", name)
        return Outcome(self.fleet.model_view(name), changed=True)

    def remove_model(self, name: str, *, unload: bool = False, force: bool = False) -> bool:
        """Forget a model. While instances run it is refused, unless they are to be unloaded first: then False,
        and it has to be asked again once they have ended."""
        model = self._models.to_change(name)
        live = [i for i in self.fleet.of_model(name) if not i.state.ended]
        if live and not unload:
            raise ConflictError(
                f"{name} has {len(live)} running instance(s); unload it first, or remove it with --unload",
                code="model_in_use",
            )
        if live:
            self.fleet.leaving.add(name)
            if model.desired:
                self._models.put(dataclasses.replace(model, desired=0))
            self._life.end_all(live, force=force)
            return False
        self._models.drop(name)
        return True

    def load(self, name: str, instances: int | None = None) -> Outcome:
        """Have so many instances of a model (its own number if None). Those that run already count."""
        model = self._models.get(name)
        wanted = instances if instances is not None else model.spec.instances
        if not 1 <= wanted <= 64:
            raise ShoalError("instances has to be from 1 to 64", code="invalid_request", param="instances")
        if wanted > 1 and model.spec.port is not None:
            raise ShoalError(
                f"{name} has the fixed port {model.spec.port}, which serves one instance only", param="instances"
            )
        self.fleet.leaving.discard(name)
        present = self.fleet.of_model(name)
        serving = (S.QUEUED, S.STARTING, S.READY, S.WAKING)
        live = [i for i in present if i.state in serving or i.sleeps or self.fleet.comes_back(i)]
        live = self.fleet.without_doubles(live)
        asleep = [i for i in live if i.sleeps]
        missing = max(0, wanted - len(live))
        roused = [self._life.slumber.wake(i, "loaded") for i in asleep[: max(0, wanted - len(live) + len(asleep))]]
        if model.desired != max(wanted, len(live)):
            self._models.put(dataclasses.replace(model, desired=max(wanted, len(live))))
        failed = [i for i in present if i.state is S.FAILED]
        for instance in failed[:missing]:
            self._life.retry(instance, model.spec)
        for _ in range(missing - len(failed)):
            self._life.create(model.spec)
        return Outcome(self.fleet.model_view(name), changed=missing > 0 or any(roused))

    def load_on_request(self, name: str) -> None:
        """A relay holds requests for a model: wake it if it sleeps; load it, if it is not loaded and may be. One that
        comes already needs nothing; one that failed would fail again, so that is left to `load`."""
        if name not in self.fleet.models or not self.fleet.may_be_asked_for(name):
            return
        if asleep := [i for i in self.fleet.of_model(name) if i.sleeps]:
            for instance in asleep:
                self._life.slumber.wake(instance, "a request asks for it")
        else:
            self._models.say("load_on_request", f"{name} is loaded because a request asked for it", name)
            self.load(name)

    def unload(self, name: str, *, force: bool = False) -> Outcome:
        """End every instance of a model; running requests may finish first unless forced. The next request has it
        loaded again, unless its settings forbid that (`on_request`)."""
        model = self._models.get(name)
        if model.desired:
            self._models.put(dataclasses.replace(model, desired=0))
        ended = self._life.end_all(self.fleet.of_model(name), force=force)
        return Outcome(self.fleet.model_view(name), changed=bool(ended))

    def sleep(self, name: str, level: int = 1, *, force: bool = False) -> Outcome:
        """Put every instance of a model to sleep; running requests may finish first unless forced. The next request
        wakes it, unless its settings forbid that (`on_request`)."""
        self._models.get(name)
        changed = self._life.slumber.sleep_all(name, level, force=force)
        return Outcome(self.fleet.model_view(name), changed)

    def wake(self, name: str) -> Outcome:
        """Wake every instance of a model that sleeps. Those that serve need nothing."""
        self._models.get(name)
        changed = self._life.slumber.wake_all(name)
        return Outcome(self.fleet.model_view(name), changed)

    def sleep_instance(self, instance_id: str, level: int = 1, *, force: bool = False) -> tuple[Instance, bool]:
        """Put one instance to sleep; the instance as it is now, and whether anything was set in motion."""
        changed = self._life.slumber.sleep(self._life.get(instance_id), level, force=force)
        return self._life.get(instance_id), changed

    def wake_instance(self, instance_id: str) -> tuple[Instance, bool]:
        """Wake one instance; the instance as it is now, and whether anything was set in motion."""
        changed = self._life.slumber.wake_now(self._life.get(instance_id))
        return self._life.get(instance_id), changed

    def stop_instance(self, instance_id: str, *, force: bool = False) -> tuple[Instance, bool]:
        """End one instance; the instance as it is now, and whether anything was set in motion."""
        instance = self._life.get(instance_id)
        changed = instance.state is not S.STOPPED
        model = self.fleet.models.get(instance.model)
        counts = instance.state not in (S.DRAINING, S.STOPPING) and instance_id not in self.fleet.apart
        if changed:
            if counts:
                self._models.want_one_less(model)
            instance = self._life.unload(instance, force=force)
        return instance, changed

    def declare(self, specs: Mapping[str, ModelSpec], origin: str) -> dict[str, list[str]]:
        """Make the models of one origin exactly these. Those gone from it are forgotten once they do not run."""
        added, changed, removed, restart = [], [], [], []
        for name, spec in specs.items():
            model = self.fleet.models.get(name)
            if model is None:
                self._models.put(Model(spec, origin, self._effects.now()))
                added.append(name)
            elif model.spec != spec or model.origin != origin:
                self._models.put(dataclasses.replace(model, spec=spec, origin=origin))
                self._life.shares.set_terms(name, Terms.of(spec))
                changed.append(name)
                if any(view.outdated for view in self.fleet.model_view(name).instances):
                    restart.append(name)
        for name in [m.spec.name for m in self.fleet.models.values() if m.origin == origin]:
            if name not in specs:
                removed.append(name)
                if any(not i.state.ended for i in self.fleet.of_model(name)):
                    # It serves somebody: it stays, as one that may be removed by hand.
                    self._models.put(dataclasses.replace(self.fleet.models[name], origin="api"))
                    restart.append(name)
                else:
                    self._models.drop(name)
        return {"added": added, "changed": changed, "removed": removed, "restart_needed": restart}

    def set_access(self, change: Callable[[Access], Access]) -> None:
        """Tell the relays of other keys or virtual models."""
        self.fleet.access = change(self.fleet.access)
        self._life.routes_changed = True

    def recover(
        self, models: Iterable[Model], instances: Iterable[Instance], running: set[str], ended: Iterable[facts.Exited]
    ) -> None:
        """At start: know again what was known, take back what runs, and see how the rest ended meanwhile."""
        self.fleet.models.update({model.spec.name: model for model in models})
        for instance in instances:
            if instance.id in running:
                self._life.adopt(instance)
            else:
                self.fleet.instances[instance.id] = instance
                if instance.state is S.QUEUED or self._life.residing.was_refused(instance):
                    self._effects.prepare(instance)
        for fact in ended:
            self._exited(fact)
        self.moves.go_on()
        self._life.routes_changed = True

    def adopt(self, instance: Instance) -> None:
        """Have an instance whose process group runs although nobody knew of it. A model of its name that is not there
        is added with the settings that it runs with. Raises ConflictError if there is an instance of its id."""
        if instance.id in self.fleet.instances or instance.spec is None:
            raise ConflictError(f"{instance.id} cannot be had back: there is one of this id", code="wrong_state")
        model = self.fleet.models.get(instance.model)
        if model is None:
            model = Model(instance.spec, "api", self._effects.now())
            self._models.say("model_added", f"{instance.model} was added: it runs already", instance.model)
        self._models.put(dataclasses.replace(model, desired=model.desired + 1))
        self._life.adopt(instance)

    def restore(self, *, remembered: bool) -> None:
        """Load what is to be loaded at every start and, if `remembered`, what was wanted when Shoal stopped."""
        for model in list(self.fleet.models.values()):
            wanted = max(model.desired if remembered else 0, model.spec.instances if model.spec.load_on_start else 0)
            if wanted:
                try:
                    self.load(model.spec.name, wanted)
                except ShoalError as error:  # what was wanted may not fit settings that were changed since
                    text = f"{model.spec.name} was not loaded: {error.message}"
                    self._models.say("not_restored", text, model.spec.name, "error")

    def stop_all(self, *, force: bool = False) -> list[str]:
        """End every instance because Shoal stops. What serves stays wanted; what sleeps is loaded when it is asked for,
        because nothing can be asleep that was not loaded before. The instances that still run."""
        if not self.fleet.closing:
            for instance in list(self.fleet.instances.values()):
                self._models.want_no_sleeper(instance)
        self.fleet.closing = True
        live = [i for i in self.fleet.instances.values() if not i.state.ended]
        self._life.end_all(live, force=force)
        return [i.id for i in self.fleet.instances.values() if not i.state.ended]

    # -- facts --------------------------------------------------------------------------------------------------------

    def _take(self, fact: Fact) -> None:
        match fact:
            case facts.Prepared():
                self._life.on_prepared(fact)
            case facts.Spawned():
                self._life.on_spawned(fact)
            case facts.Progressed():
                self._life.on_progressed(fact)
            case facts.Healthy():
                self._life.on_healthy(fact)
            case facts.Described():
                self._life.on_described(fact)
            case facts.Overdue():
                self._life.on_overdue(fact)
            case facts.Hung():
                self._life.on_hung(fact)
            case facts.Exited():
                self._exited(fact)
            case facts.CanaryAnswered():
                self.moves.answered(fact)
            case facts.Measured():
                self._life.on_measured(fact)
            case (
                facts.Weighed()
                | facts.Asleep()
                | facts.NotAsleep()
                | facts.Awake()
                | facts.NotAwake()
                | facts.NoRoom()
                | facts.LookedAt()
            ):
                self._life.slumber.take(fact)
            case facts.DevicesRead():
                with self._telling.of_devices():
                    self._life.on_devices(fact)
                    self.fleet.observed.take(self._effects.now(), seen_now(self.fleet))
            case facts.BooksRead():
                with self._telling.of_memory():
                    self._life.shares.on_books(fact)
            case facts.TermsRefused():
                self._life.shares.on_refused(fact)
            case facts.RelayReported():
                self.fleet.relays[fact.connection] = fact.report
                self.measures.reported(self._effects.now())
            case facts.RelayWants():
                self.measures.asked(fact.model, self._effects.now())
                self.load_on_request(fact.model)
            case facts.RelayGone():
                if self.fleet.relays.pop(fact.connection, None) is not None:
                    self.fleet.hearing.missed(self._effects.now())
                self.measures.reported(self._effects.now())
            case facts.StoreProblem():
                level, text = ("error", fact.problem) if fact.problem else ("info", "everything is saved again")
                self._effects.publish("message", Note(self._effects.now(), level, "store", text, None, None))
            case facts.Tick():
                pass  # `settle` follows every fact

    # -- helpers ------------------------------------------------------------------------------------------------------

    def _exited(self, fact: facts.Exited) -> None:
        if (instance := self.fleet.instances.get(fact.instance)) is not None:
            self._models.want_no_sleeper(instance)
        self._life.on_exited(fact)
