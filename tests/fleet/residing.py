"""A fleet whose devices show what its instances hold, for tests of the residency policy at work."""

from __future__ import annotations

import dataclasses
from typing import Any

from shoal.fleet import facts
from shoal.fleet.life import Limits
from shoal.fleet.lifecycle import RestartPolicy
from shoal.fleet.residency import Rules
from shoal.fleet.state import Device
from shoal.fleet.state import InstanceState as S
from shoal.memory.sizes import Amount
from shoal.messages import ModelCount, RelayReport, Waiting
from tests.fleet.fakes import GIB, World, gpu, void

RULES = Rules(patience=10, min_awake=5, payback=1)
TOTAL = 80 * GIB


def limits(host: str = "50%", **rules: Any) -> Limits:
    chosen = dataclasses.replace(RULES, **rules)
    return Limits(RestartPolicy(3, 1, 10, 60), 30, 5, chosen, Amount.parse(host))


class Fleet(World):
    """A manager whose devices show what its instances hold, as real ones do once they are read."""

    def __init__(self, *sizes: int, host: str = "200GiB", **rules: Any) -> None:
        self._sizes = sizes or (80,)
        self._ended = 0
        super().__init__(*self._devices({}), limits=limits(host, **rules))

    host_free = 496

    def _devices(self, held: dict[str, int]) -> tuple[Device, ...]:
        gpus = tuple(
            dataclasses.replace(gpu(n), memory_total=size * GIB, memory_used=held.get(f"cuda:{n}", 0))
            for n, size in enumerate(self._sizes)
        )
        return (*gpus, Device("host", "host", "memory", 500 * GIB, (500 - self.host_free) * GIB))

    def read(self, seconds: float = 1.0) -> None:
        """Time passes, and the devices are read twice: nothing is in doubt any more."""
        held: dict[str, int] = {}
        for instance in self.manager.fleet.instances.values():
            takes = instance.state in (S.STARTING, S.READY, S.DRAINING, S.WAKING, S.STOPPING)
            for device in instance.devices if takes else ():
                held[device] = held.get(device, 0) + (self.manager.fleet.needs.get(instance.id) or 0)
        for _ in range(2):
            self.effects.clock += seconds / 2
            self.tell(facts.DevicesRead(self._devices(held), {}))

    def come(self, name: str, size: int = 60, *, can_sleep: bool = True, **settings: object) -> str:
        """Add a model, ask for it, and see it through its start."""
        self.add(name, **settings)
        self.wanted(name)
        return self.start(name, size, can_sleep=can_sleep)

    def start(self, name: str, size: int = 60, *, can_sleep: bool = True) -> str:
        """See a model that is queued through its start, if it has devices."""
        self.files(size)
        id = self.only(name).id
        assert self.get(id).state is S.STARTING, self.get(id).reason
        self.spawned(id, can_sleep=can_sleep)
        self.healthy(id)
        self.read()
        return id

    def files(self, size: int = 60) -> None:
        """The files of whoever is new are looked at: all of what it takes is weights."""
        waiting, self.effects.prepared = self.effects.prepared, []
        for instance in waiting:
            self.tell(facts.Prepared(instance, size * GIB, ("cuda",), weights=size * GIB, kv=0))

    def falls_asleep(self, id: str, freed: int = 60) -> None:
        """An instance that drains is quiet, and sleeps."""
        self.report({})
        self.tell(facts.Weighed(id, freed * GIB, 0, "text: x"))
        self.tell(facts.Asleep(id, freed * GIB, 0))
        self.read()

    def wakes(self, id: str) -> None:
        self.tell(facts.Awake(id))
        self.read()

    def say(self, *, held: str = "", outstanding: dict[str, int] | None = None, **ended: int) -> None:
        """The relay's numbers: a request is held for `held`; so many of each model have ended since it started."""
        table = self.effects.tables[-1]
        counts = tuple(ModelCount(name, "ok", count) for name, count in ended.items())
        waiting = (Waiting(held, held=1),) if held else ()
        report = RelayReport("relay", table.epoch, table.version, outstanding or {}, counts, waiting)
        self.tell(facts.RelayReported(1, report))

    def change(self, name: str, **settings: object) -> None:
        """Give a model other settings."""
        self.manager.handle(lambda: void(self.manager.change_model(name, lambda old: old.model_copy(update=settings))))

    def state(self, name: str) -> str:
        return self.manager.fleet.model_state(name)

    def said(self, *words: str) -> list[str]:
        return [event.message for event in self.effects.events if all(word in event.message for word in words)]


class Copies:
    """Copies of weights that are dropped when they are told to."""

    def __init__(self, **held: int) -> None:
        self.of = held
        self.slow = self.late = False

    def held(self, instance: str) -> int:
        return self.of.get(instance.rsplit("-", 1)[0], 0)

    def forget(self, instance: str) -> None:
        self.of.pop(instance.rsplit("-", 1)[0], None)
        self.late = self.slow

    def unsettled(self) -> bool:
        return self.late
