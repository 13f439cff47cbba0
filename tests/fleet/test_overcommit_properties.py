"""A device's memory is never promised twice: models come, sleep, wake and end in any order, and readings are late."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal.fleet import facts
from shoal.fleet.state import Device, Exit, Instance
from shoal.fleet.state import InstanceState as S
from tests.fleet.fakes import GIB, World, gpu
from tests.fleet.residing import limits

SIZE = 80
NEEDS = {"a": 15, "b": 20, "c": 25, "d": 30, "e": 35}
STAYS = 1
"""GiB that a model which sleeps keeps of the device."""
NAMES = st.sampled_from(sorted(NEEDS))
COMES = (S.STARTING, S.WAKING)


class Memory(RuleBasedStateMachine):
    """One GPU, whose engines take and give memory when the fleet has them, and readings of it that take their time."""

    def __init__(self) -> None:
        super().__init__()
        self.host = Device("host", "host", "memory", 500 * GIB, 10 * GIB)
        self.world = World(gpu(0), self.host, limits=limits(patience=10, min_awake=2, payback=1))
        self.reading: tuple[float, int] | None = None
        self.slept: set[str] = set()
        for name in NEEDS:
            self.world.add(name)

    # -- what the device really holds ---------------------------------------------------------------------------------

    def _all(self) -> list[Instance]:
        return list(self.world.manager.fleet.instances.values())

    def _holds(self, one: Instance, *, come: bool) -> int:
        """GiB; `come`: once those that come have taken all that they need, else before they take any."""
        whole, rest = NEEDS[one.model], STAYS if one.id in self.slept else 0
        if one.state in COMES:
            return whole if come else rest
        if one.state in (S.READY, S.DRAINING, S.STOPPING, S.SLEEPING):
            return rest or whole
        return 0

    @invariant()
    def nobody_runs_out(self) -> None:
        held = {one.id: self._holds(one, come=True) for one in self._all()}
        assert sum(held.values()) <= SIZE, held

    # -- what happens -------------------------------------------------------------------------------------------------

    @rule(name=NAMES)
    def is_asked_for(self, name: str) -> None:
        self.world.wanted(name)

    @rule()
    def files_are_looked_at(self) -> None:
        waiting, self.world.effects.prepared = self.world.effects.prepared, []
        for id in waiting:
            needs = NEEDS[self.world.get(id).model] * GIB
            self.world.tell(facts.Prepared(id, needs, ("cuda",), weights=needs, kv=0))

    @rule(seconds=st.sampled_from([0.1, 1.0, 6.0, 20.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.after(seconds)

    @rule(data=st.data())
    def a_reading_begins(self, data: st.DataObject) -> None:
        """Of those that come, each has taken nothing or everything by then."""
        used = sum(self._holds(one, come=one.state not in COMES or data.draw(st.booleans())) for one in self._all())
        self.reading = self.world.effects.clock, used

    @precondition(lambda self: self.reading is not None)
    @rule(copies=st.booleans())
    def a_reading_ends(self, copies: bool) -> None:
        """With what each engine holds of the host's memory: next to nothing, or a copy of its weights too."""
        assert self.reading is not None
        (at, used), self.reading = self.reading, None
        memory = dict.fromkeys(self.world.effects.alive, (40 if copies else 3) * GIB)
        self.world.tell(facts.DevicesRead((gpu(0, (SIZE - used) * GIB), self.host), memory, at))

    @precondition(lambda self: any(one.state is S.STARTING for one in self._all()))
    @rule()
    def a_start_ends_well(self) -> None:
        one = next(one for one in self._all() if one.state is S.STARTING)
        self.world.spawned(one.id)
        self.world.healthy(one.id)

    @precondition(lambda self: any(one.state is S.DRAINING and one.retires for one in self._all()))
    @rule(data=st.data())
    def one_falls_asleep(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from([i for i in self._all() if i.state is S.DRAINING and i.retires]))
        self.world.report({})
        whole = NEEDS[one.model] * GIB
        self.world.tell(facts.Weighed(one.id, whole, 0, "text: x"))
        if self.world.get(one.id).retires:
            self.slept.add(one.id)
            self.world.tell(facts.Asleep(one.id, whole - STAYS * GIB, 0))
            if self.world.get(one.id).state not in (S.SLEEPING, S.WAKING):
                self.slept.discard(one.id)

    @precondition(lambda self: any(one.state is S.WAKING for one in self._all()))
    @rule(data=st.data())
    def one_wakes(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from([i for i in self._all() if i.state is S.WAKING]))
        self.slept.discard(one.id)
        self.world.tell(facts.Awake(one.id))

    @precondition(lambda self: any(one.state is S.STOPPING for one in self._all()))
    @rule(data=st.data())
    def one_ends(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from([i for i in self._all() if i.state is S.STOPPING]))
        self._gone(one)

    @precondition(lambda self: self.world.effects.alive)
    @rule(data=st.data())
    def one_crashes(self, data: st.DataObject) -> None:
        self._gone(self.world.get(data.draw(st.sampled_from(sorted(self.world.effects.alive)))))

    def _gone(self, one: Instance) -> None:
        self.slept.discard(one.id)
        self.world.exit(one.id, Exit(signal=9))


TestMemory = Memory.TestCase
TestMemory.settings = settings(deadline=None, stateful_step_count=60)
