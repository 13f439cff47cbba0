"""Anything may happen in any order; what the fleet promises holds after every step."""

from __future__ import annotations

import contextlib

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal.errors import ShoalError
from shoal.fleet import facts
from shoal.fleet.lifecycle import WITH_PROCESS
from shoal.fleet.memory import Terms
from shoal.fleet.state import Exit, Failure
from shoal.fleet.state import InstanceState as S
from tests.fleet.fakes import GIB, World, books, gpu, spec, void

ENDED = (S.STOPPED, S.FAILED, S.QUEUED)
NAMES = st.sampled_from(["a", "b", "c"])


class Fleet(RuleBasedStateMachine):
    """Commands from people and facts from processes, in any order that processes can produce."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(gpu(0), gpu(1))
        self.told = 0

    def _command(self, run: object) -> None:
        assert callable(run)

        def attempt() -> None:
            with contextlib.suppress(ShoalError):
                run()

        self.world.manager.handle(attempt)

    @rule(name=NAMES)
    def add(self, name: str) -> None:
        self._command(lambda: void(self.world.manager.add_model(spec(name))))

    @rule(name=NAMES, count=st.integers(1, 3))
    def load(self, name: str, count: int) -> None:
        self._command(lambda: void(self.world.manager.load(name, count)))

    @rule(name=NAMES, force=st.booleans())
    def unload(self, name: str, force: bool) -> None:
        self._command(lambda: void(self.world.manager.unload(name, force=force)))

    @rule(name=NAMES)
    def requests_are_held(self, name: str) -> None:
        """A relay wants a model, known or not, whatever its state."""
        fleet = self.world.manager.fleet
        before = len(fleet.of_model(name))
        sleeps = any(i.sleeps for i in fleet.of_model(name))
        asked = name in fleet.models and fleet.may_be_asked_for(name) and not sleeps
        self.world.wanted(name)
        assert len(fleet.of_model(name)) == before + asked
        if name in fleet.models:
            assert not fleet.may_be_asked_for(name), "asked twice, it would be loaded twice"

    @rule(name=NAMES, level=st.sampled_from([1, 2, 3]), force=st.booleans())
    def sleep(self, name: str, level: int, force: bool) -> None:
        self._command(lambda: void(self.world.manager.sleep(name, level, force=force)))

    @rule(name=NAMES)
    def wake(self, name: str) -> None:
        self._command(lambda: void(self.world.manager.wake(name)))

    @precondition(lambda self: self.world.effects.alive)
    @rule(data=st.data(), freed=st.sampled_from([0, GIB, 70 * GIB]))
    def slumber(self, data: st.DataObject, freed: int) -> None:
        """An effect of sleep ends, or one that was given up long ago does."""
        id = self._one(data)
        ends: list[facts.Fact] = [
            facts.Weighed(id, 2 * GIB, 0, "text: x"),
            facts.Asleep(id, freed, 0),
            facts.NotAsleep(id, "it kept its memory"),
            facts.Awake(id),
            facts.NoRoom(id, "it needs more than there is"),
            facts.NotAwake(id, Failure("wake_failed", "it answers otherwise than before")),
            facts.LookedAt(id, asleep=data.draw(st.sampled_from([None, True, False]))),
        ]
        self.world.tell(data.draw(st.sampled_from(ends)))

    @rule(name=NAMES, unload=st.booleans())
    def remove(self, name: str, unload: bool) -> None:
        self._command(lambda: void(self.world.manager.remove_model(name, unload=unload)))

    @rule(name=NAMES, floor=st.sampled_from([0, GIB]), priority=st.integers(1, 1000))
    def set_terms(self, name: str, floor: int, priority: int) -> None:
        changes = {"floor": floor, "priority": priority}
        self._command(lambda: void(self.world.manager.change_model(name, lambda old: old.model_copy(update=changes))))

    @rule(
        name=NAMES,
        pin=st.booleans(),
        on_request=st.booleans(),
        sleep_after=st.sampled_from([None, 0.0, 30.0]),
        unload_after=st.sampled_from([None, 60.0]),
    )
    def set_stay(
        self, name: str, pin: bool, on_request: bool, sleep_after: float | None, unload_after: float | None
    ) -> None:
        changes = {"pin": pin, "on_request": on_request, "sleep_after": sleep_after, "unload_after": unload_after}
        self._command(lambda: void(self.world.manager.change_model(name, lambda old: old.model_copy(update=changes))))

    @rule(data=st.data(), away=st.booleans())
    def books_are_read(self, data: st.DataObject, away: bool) -> None:
        """Some of the engines that run lease something, under old terms or new ones; or no broker answers."""
        leases = {
            id: Terms(data.draw(st.sampled_from([0, GIB])), None, 100)
            for id in sorted(self.world.effects.alive)
            if data.draw(st.booleans())
        }
        headroom = data.draw(st.sampled_from([0, 4 * GIB]))
        self.world.tell(facts.BooksRead(None if away else books(self.world, leases, headroom=headroom)))

    @rule(needs=st.sampled_from([None, GIB, 60 * GIB, 100 * GIB]))
    def prepare(self, needs: int | None) -> None:
        self.world.prepare(needs)

    @rule(seconds=st.sampled_from([0.5, 5, 40, 400]))
    def time_passes(self, seconds: float) -> None:
        self.world.after(seconds)

    @rule(data=st.data(), number=st.integers(0, 3))
    def relay_reports(self, data: st.DataObject, number: int) -> None:
        if self.world.effects.tables:
            busy = {id: number for id in self.world.manager.fleet.instances if number and data.draw(st.booleans())}
            self.world.report(busy)

    @precondition(lambda self: self.world.effects.alive)
    @rule(data=st.data())
    def spawned(self, data: st.DataObject) -> None:
        self.world.spawned(self._one(data))

    @precondition(lambda self: self.world.effects.alive)
    @rule(data=st.data())
    def healthy(self, data: st.DataObject) -> None:
        id = self._one(data)
        if self.world.get(id).address:  # nobody watches it before it was spawned
            self.world.healthy(id)

    @precondition(lambda self: self.world.effects.alive)
    @rule(data=st.data())
    def hung(self, data: st.DataObject) -> None:
        self.world.tell(facts.Hung(self._one(data), "stands still"))

    @precondition(lambda self: self.world.effects.alive)
    @rule(data=st.data())
    def overdue(self, data: st.DataObject) -> None:
        self.world.tell(facts.Overdue(self._one(data), {}))

    @precondition(lambda self: self.world.effects.alive)
    @rule(data=st.data())
    def exits(self, data: st.DataObject) -> None:
        self.world.exit(self._one(data), Exit(signal=9))

    @precondition(lambda self: self.world.effects.alive)
    @rule(data=st.data())
    def cannot_be_spawned(self, data: st.DataObject) -> None:
        id = self._one(data)
        if self.world.get(id).address:
            return  # it was spawned
        self.world.effects.alive.discard(id)
        self.world.tell(facts.Spawned(id, failure=Failure("cannot_start", "no room")))

    def _one(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.world.effects.alive)))

    @invariant()
    def processes_and_states_agree(self) -> None:
        for instance in self.world.manager.fleet.instances.values():
            assert (instance.id in self.world.effects.alive) == (instance.state in WITH_PROCESS)
        assert self.world.effects.alive <= set(self.world.manager.fleet.instances), "a leaked process"

    @invariant()
    def room_is_held_back_for_starts_alone(self) -> None:
        starting = {i.id for i in self.world.manager.fleet.instances.values() if i.state is S.STARTING}
        assert set(self.world.effects.held) == starting

    @invariant()
    def running_instances_have_their_models_terms(self) -> None:
        fleet = self.world.manager.fleet
        for instance in fleet.instances.values():
            if not instance.state.ended and instance.spec is not None:
                wanted = Terms.of(fleet.models[instance.model].spec)
                assert Terms.of(instance.spec) == wanted
                told = [terms for id, terms in self.world.effects.terms if id == instance.id]
                if fleet.ledger.leases(instance.id) and fleet.ledger.terms(instance.id) != wanted:
                    assert told, "an engine with other terms was not told"
                    assert told[-1] == wanted

    @invariant()
    def everything_that_stops_was_told_to(self) -> None:
        told = {*self.world.effects.terminated, *self.world.effects.killed}
        for instance in self.world.manager.fleet.instances.values():
            assert instance.state is not S.STOPPING or instance.id in told

    @invariant()
    def only_what_sleeps_is_wanted_awake(self) -> None:
        fleet = self.world.manager.fleet
        for instance in fleet.instances.values():
            assert instance.state is not S.SLEEPING or instance.rest.level in (1, 2)
            assert instance.rest.level is None or instance.sleeps or instance.state in (S.WAKING, S.STOPPING, *ENDED)
        assert all(fleet.instances[id].sleeps for id in fleet.rouse if id in fleet.instances)

    @invariant()
    def one_start_a_device(self) -> None:
        starting = [
            device
            for instance in self.world.manager.fleet.instances.values()
            if instance.state is S.STARTING
            for device in instance.devices
        ]
        assert len(starting) == len(set(starting))

    @invariant()
    def routes_are_true(self) -> None:
        if not self.world.effects.tables:
            return
        fleet = self.world.manager.fleet
        table = self.world.effects.tables[-1]
        assert [route.model for route in table.routes] == sorted(fleet.models)
        for route in table.routes:
            ready = {i.id for i in fleet.of_model(route.model) if i.state is S.READY}
            assert {target.instance for target in route.targets} == ready
            assert route.targets or route.detail
            states = {i.state for i in fleet.of_model(route.model)}
            if states & {S.READY, S.STARTING, S.QUEUED, S.WAKING}:
                assert route.comes
            elif any(i.sleeps for i in fleet.of_model(route.model)):
                cannot = not fleet.models[route.model].spec.on_request or fleet.stuck
                assert route.comes or fleet.closing or route.model in fleet.leaving or cannot
            elif S.FAILED in states:
                assert not route.comes

    @invariant()
    def what_is_known_is_saved(self) -> None:
        fleet = self.world.manager.fleet
        assert self.world.effects.models == fleet.models
        saved = self.world.effects.instances
        assert set(saved) == set(fleet.instances)
        for id, instance in fleet.instances.items():
            assert saved[id].state is instance.state

    @invariant()
    def nobody_leaves_who_is_pinned_or_could_not_come_back(self) -> None:
        """What the policy says of itself, as of the newest step, is not of models that it must leave alone."""
        fleet = self.world.manager.fleet
        events, self.told = self.world.effects.events[self.told :], len(self.world.effects.events)
        for event in events:
            if "gives way" in event.message or ": idle" in event.message:
                spec = fleet.models[event.model or ""].spec
                assert not spec.pin
                assert spec.on_request

    @invariant()
    def nobody_waits_for_ever_for_what_is_not_known(self) -> None:
        room = self.world.manager._life._room
        waiting = set(self.world.effects.prepared)
        assert room._unknown <= waiting, "the files of those will be looked at"

    @invariant()
    def failures_have_reasons(self) -> None:
        for instance in self.world.manager.fleet.instances.values():
            if instance.state is S.FAILED:
                assert instance.failure is not None
                assert instance.reason

    def teardown(self) -> None:
        """However it went, an unload of everything ends everything."""
        self.world.manager.handle(lambda: void(self.world.manager.stop_all(force=True)))
        for _ in range(3):
            for id in sorted(self.world.effects.alive):
                self.world.exit(id)
            self.world.manager.handle(lambda: void(self.world.manager.stop_all(force=True)))
        assert not self.world.effects.alive
        assert all(i.state.ended for i in self.world.manager.fleet.instances.values())


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
