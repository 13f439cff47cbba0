"""A fleet without processes: devices full of models whose memory, readings and traffic change at every step. Pure but
for what it is given to change."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator

from shoal.fleet.snapshot import Fleet
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Device, Instance, InstanceState, Model
from shoal.gateway.measures import BOUNDS
from shoal.memory.messages import DeviceState, MemberState
from shoal.memory.tools import Books, DeviceBook
from shoal.messages import Distribution, ModelCount, RelayReport, Traffic, Waiting

GIB = 2**30
SIZE = 140 * GIB
MARKED = "model-000"
"""The model that every step says something of: when it was."""
_BUCKETS = len(BOUNDS["first_byte"]) + 1


class Stage:
    """`devices` GPUs of 140 GiB, `models` that serve, spread over them."""

    def __init__(self, devices: int, models: int, seed: int = 1) -> None:
        self._random = random.Random(seed)
        self._names = [f"model-{number:03}" for number in range(models)]
        self._devices = [f"cuda:{number}" for number in range(devices)]
        self._used = dict.fromkeys(self._names, 0)
        self._asked = dict.fromkeys(self._names, 0)
        self._step = 0

    def furnish(self, fleet: Fleet, now: float) -> None:
        """Put all models there, serving."""
        for number, name in enumerate(self._names):
            spec = ModelSpec(name=name, source=f"org/{name}", engine="simulated")
            fleet.models[name] = Model(spec=spec, origin="api", created_at=now, desired=1)
            fleet.instances[self._instance(name)] = Instance(
                self._instance(name), name, "simulated", InstanceState.READY, (self._device(number),), now, now,
                spec=spec, pid=1, ready_at=now, elastic=True, memory={self._device(number): 4 * GIB}, can_sleep=True,
            )  # fmt: skip

    def step(self) -> None:
        """Let time pass: each model's KV cache and traffic become others."""
        self._step += 1
        for name in self._names:
            self._used[name] = int(GIB * (1 + 3 * self._random.random()))
            self._asked[name] += self._random.randrange(5)

    def read(self) -> tuple[Device, ...]:
        """The devices now."""
        return tuple(
            Device(
                id, "cuda", "NVIDIA H200", SIZE, self._in_use(number), utilization=self._random.random(),
                temperature=40 + 30 * self._random.random(), power=300 + 400 * self._random.random(),
            )
            for number, id in enumerate(self._devices)
        )  # fmt: skip

    def books(self) -> Books:
        """What the memory broker would tell."""
        return {
            id: DeviceBook(
                DeviceState(id, SIZE, SIZE, 2 * GIB, 8 * GIB, self._leased(number), 0),
                tuple(self._member(name) for name in self._on(number)),
            )
            for number, id in enumerate(self._devices)
        }

    def report(self) -> RelayReport:
        """What a relay would report."""
        return RelayReport(
            relay="stage",
            epoch="stage",
            version=1,
            outstanding={self._instance(name): self._asked[name] % 7 for name in self._names},
            counts=tuple(ModelCount(name, "ok", count) for name, count in self._asked.items()),
            waiting=tuple(Waiting(name, queued=count % 3) for name, count in self._asked.items()),
            distributions=tuple(
                Distribution(name, "normal", "first_byte", (0,) * 5 + (count,) + (0,) * (_BUCKETS - 6), 0.03 * count)
                for name, count in self._asked.items()
            ),
            traffic=tuple(Traffic(name, 1, 1, 90 * count, 60 * count) for name, count in self._asked.items()),
        )

    def change(self, fleet: Fleet, now: float) -> Iterator[str]:
        """Change a few models besides, and the marked one: its pin, and its time of making, which is `now`. Names."""
        few = {MARKED, *self._names[self._step % 20 :: 20]}
        for name in sorted(few & fleet.models.keys()):
            model = fleet.models[name]
            spec = model.spec.model_copy(update={"pin": not model.spec.pin})
            fleet.models[name] = dataclasses.replace(model, spec=spec, created_at=now)
            yield name

    def _instance(self, name: str) -> str:
        return f"{name}-1"

    def _device(self, number: int) -> str:
        return self._devices[number % len(self._devices)]

    def _on(self, device: int) -> list[str]:
        return self._names[device :: len(self._devices)]

    def _leased(self, device: int) -> int:
        return sum(self._used[name] for name in self._on(device))

    def _in_use(self, device: int) -> int:
        return min(SIZE, self._leased(device) + 4 * GIB * len(self._on(device)))

    def _member(self, name: str) -> MemberState:
        used = self._used[name]
        return MemberState(
            self._instance(name), 0, 1, used, 0, None, 100, used // 2, used - used // 2, used, used, 0, None
        )
