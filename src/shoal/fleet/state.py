"""What the fleet holds: devices, models, instances. Plain immutable records; decisions are made from them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum

from shoal.fleet.spec import ModelSpec


class InstanceState(StrEnum):
    """Where an instance is in its life; `lifecycle.py` says what leads where."""

    QUEUED = "queued"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    SLEEPING = "sleeping"
    WAKING = "waking"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """Whether nothing runs and nothing will without being asked."""
        return self in (InstanceState.STOPPED, InstanceState.FAILED)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a start has come. `seconds_left` is None until an earlier load of the model taught it."""

    phase: str
    percent: int
    seconds_left: float | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something failed, in one sentence, and what to do about it.

    `code` is a stable word for programs: `out_of_memory`, `source_not_found`, `engine_not_installed`, …
    """

    code: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: an exit code, or the signal that killed it. Both None: nobody saw it."""

    code: int | None = None
    signal: int | None = None

    def __str__(self) -> str:
        if self.signal is not None:
            return f"killed by signal {self.signal}"
        return f"exited with code {self.code}" if self.code is not None else "ended unseen"


@dataclass(frozen=True, slots=True)
class Rest:
    """What is known of an instance's sleep. Sizes in bytes, over all its devices."""

    level: int | None = None
    """The level at which it sleeps or is to sleep: 1 keeps the weights in host memory, 2 drops them. None: awake."""
    canary: str | None = None
    """What it answered to the canary before its first sleep; empty: it answers none. None: not asked yet."""
    held: int | None = None
    """What it held before it went to sleep."""
    kv: int = 0
    """Of that, what its KV cache leased."""
    freed: int = 0
    """What its sleep gave back beside leased KV cache: what waking takes again."""


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, or the host's memory for CPU engines. Sizes in bytes; what cannot be read is None."""

    id: str
    kind: str  # cuda, host, simulated
    name: str
    memory_total: int
    memory_used: int
    utilization: float | None = None  # 0…1
    temperature: float | None = None  # degrees Celsius
    power: float | None = None  # watts
    error: str | None = None
    uuid: str = ""
    """A GPU's name in NVML, which stays the same in every process."""

    @property
    def key(self) -> str:
        """Its name at the memory broker."""
        return self.uuid or self.id

    @property
    def memory_free(self) -> int:
        """Bytes that nobody uses."""
        return max(0, self.memory_total - self.memory_used)


@dataclass(frozen=True, slots=True)
class Instance:
    """One engine process group that serves a model. Times are Unix seconds."""

    id: str
    model: str
    engine: str
    state: InstanceState
    devices: tuple[str, ...]
    created_at: float
    changed_at: float
    reason: str = ""
    address: str = ""
    spec: ModelSpec | None = None
    environment: str = ""
    pid: int | None = None
    ready_at: float | None = None
    restarts: int = 0
    restart_at: float | None = None
    progress: Progress | None = None
    failure: Failure | None = None
    memory: dict[str, int] = field(default_factory=dict)
    elastic: bool | None = None
    """Whether it was started to lease its KV cache; None before its start."""
    fixed_because: str = ""
    can_sleep: bool = False
    """Whether it was started so that it can sleep."""
    sleepless_because: str = ""
    rest: Rest = Rest()

    @property
    def wake_share(self) -> int:
        """Bytes that it takes of each of its devices when it wakes."""
        return -(-self.rest.freed // max(1, len(self.devices)))

    @property
    def retires(self) -> bool:
        """Whether it is on its way to sleep: it drains, or is being put to sleep."""
        return self.state is InstanceState.DRAINING and self.rest.level is not None

    @property
    def sleeps(self) -> bool:
        """Whether it is asleep or on its way there."""
        return self.state is InstanceState.SLEEPING or self.retires


def slug(model: str) -> str:
    """What an instance's id starts with: the model's name as far as it is letters and digits, at most 24 of them."""
    return re.sub(r"[^a-z0-9]+", "-", model.rsplit("/", 1)[-1].lower()).strip("-")[:24].strip("-") or "model"


@dataclass(frozen=True, slots=True)
class Model:
    """A model that clients can name. `origin` says who declared it: `api` or `file`."""

    spec: ModelSpec
    origin: str
    created_at: float
    desired: int = 0
    """How many instances should run; kept over restarts."""
