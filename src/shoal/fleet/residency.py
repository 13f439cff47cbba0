"""What residency is decided from and what comes of it: a snapshot of the models, the rules, and a plan. Plain records.

`residency_plan.py` decides. A *resident* here is one engine with its model: a model of several instances is several
residents, each with its share of the requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

HOST = ""
"""The account of the host's memory; devices have names."""
NEVER = -1.0
"""As `keep_alive`: never for being idle."""


class Residency(StrEnum):
    """Where a model's weights are."""

    GPU = "gpu"
    HOST = "host"  # it sleeps
    DISK = "disk"  # it is not loaded


class Motion(StrEnum):
    """What is under way with a model. It began in `Resident.place` and that changes when it is done."""

    LOADING = "loading"
    WAKING = "waking"
    SLEEPING = "sleeping"  # from the drain on
    UNLOADING = "unloading"  # from the drain on


_GPU, _HOST = Residency.GPU, Residency.HOST  # looked up once: a decision asks thousands of times
_SLEEPING, ARRIVING = Motion.SLEEPING, (Motion.LOADING, Motion.WAKING)


class Kind(StrEnum):
    """What a plan can have done."""

    WAKE = "wake"
    LOAD = "load"
    SLEEP = "sleep"
    UNLOAD = "unload"
    FORGET = "forget"  # the host copy of weights that are not in it alone
    FLOOR = "floor"


@dataclass(frozen=True, slots=True)
class Device:
    """A device: the bytes that models may take of it, when models on it last gave way to others (any order), how large
    it is in all (0: as its budget), and the bytes beside the budget that stay free where several share it."""

    id: str
    budget: int
    gave_way: tuple[float, ...] = ()
    size: int = 0
    kept: int = 0


@dataclass(frozen=True, slots=True)
class Resident:
    """One engine with its model. Bytes are on each of its devices unless told otherwise; times are of one clock."""

    name: str
    place: Residency = Residency.DISK
    motion: Motion | None = None
    on: tuple[str, ...] = ()
    """The devices that it is on, or is loading to; empty on disk."""
    usable: tuple[str, ...] = ()
    """The devices that it may be on, any `width` of them; empty: all."""
    width: int = 1
    awake: int = 0
    """What it takes awake: weights, overhead, and the floor in force of its KV cache. 0 if nothing is known yet."""
    asleep: int = 0
    """What is left of that while it sleeps."""
    host: int = 0
    """What its sleep takes of the host's memory, all devices together."""
    copied: bool = False
    """The host holds a copy of its weights that can be dropped: it is awake, so that its next sleep copies nothing, or
    it sleeps at level 2."""
    sleep_level: int = 0
    """1: weights go to the host. 2: they are dropped. 0: the engine cannot sleep, and is unloaded instead."""
    running: int = 0
    waiting: int = 0
    waiting_since: float | None = None
    """When the oldest request came that waits."""
    rate: float = 0.0
    """Requests a second, averaged with weights that fall with age, as of `last_use`."""
    last_use: float = 0.0
    """When its last request came or ended."""
    awake_since: float = 0.0
    priority: int = 100
    pinned: bool = False
    floor: int = 0
    """Bytes of KV cache that it can always get back: those in force, which are part of `awake`."""
    floor_wanted: int = 0
    """What its settings promise; more than `floor` while that is lent."""
    floor_least: int | None = None
    """Down to this its floor may be lent while it is idle. None: it is not lent."""
    sleep_after: float | None = None
    """Idle seconds after which it leaves the device. None: never; 0: at once."""
    unload_after: float | None = None
    """Idle seconds after which nothing of it stays in memory. None: never."""
    keep_alive: float | None = None
    """What its last request said in place of `sleep_after`; negative: never."""
    wake_cost: float = 0.5
    """Seconds, as measured: waking, sleeping, loading, and until those that run now will have ended."""
    sleep_cost: float = 0.2
    load_cost: float = 60.0
    drain_cost: float = 10.0

    @property
    def busy(self) -> bool:
        """Whether it has requests."""
        return self.running > 0 or self.waiting > 0

    @property
    def can_sleep(self) -> bool:
        """Whether its engine can sleep."""
        return self.sleep_level > 0

    @property
    def comeback(self) -> float:
        """Seconds until it serves again once it has given way."""
        return self.wake_cost if self.sleep_level else self.load_cost

    @property
    def taken(self) -> int:
        """Bytes on each of `on`. What moves counts as the larger of what it was and what it will be."""
        place = self.place
        if place is _GPU or (self.motion is not None and self.motion in ARRIVING):
            return self.awake
        return self.asleep if place is _HOST else 0

    @property
    def host_taken(self) -> int:
        """Bytes of the host's memory. One that goes to sleep has them from the start of it."""
        held = self.place is _HOST or self.copied or self.motion is _SLEEPING
        return self.host if held else 0

    @property
    def leaves_after(self) -> float | None:
        """Idle seconds after which it leaves the device, as its last request or its settings have it."""
        if self.keep_alive is not None:
            return None if self.keep_alive < 0 else self.keep_alive
        return self.sleep_after


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a decision is made from. Equal snapshots give equal plans."""

    now: float
    devices: tuple[Device, ...]
    residents: tuple[Resident, ...]
    host_budget: int = 0
    """Bytes of host memory for weights of models that sleep, and for copies of those that will."""
    host_settled: bool = True
    """Whether that is to be believed if it is too little. Not if memory was given back that no reading shows yet: then
    nobody makes room on the host, and who needs some waits for `HOST`."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings of the policy. Seconds."""

    patience: float = 10.0
    """So long a request waits for models in use to fall idle; then one of them gives way all the same."""
    min_awake: float = 5.0
    """So long a model that came stays, at least, before it gives way."""
    payback: float = 2.0
    """And at least so many times what its own return will cost."""
    switches: int = 60
    """So often at most models give way on one device in `switch_window` seconds."""
    switch_window: float = 60.0
    horizon: float = 300.0
    """How far ahead a plan is judged: a model not needed within this is not missed."""
    claims_at_once: int = 2
    """For so many claims at most others give way in one decision. This bounds its time; for the rest the next look is
    at once."""

    def times(self, resident: Resident) -> tuple[float, float]:
        """From when a resident may give way, and from when it counts as idle if it has no requests.

        After its last use it is in a lull for as long as it would have to stay away at least, if at its rate more
        requests are likely to come in that time.
        """
        away = max(self.min_awake, self.payback * (resident.wake_cost if resident.sleep_level else resident.load_cost))
        lull = away if resident.rate * away > 1.0 else 0.0
        return resident.awake_since + away, resident.last_use + lull

    def stays(self, resident: Resident) -> float:
        """The time from which a resident may give way."""
        return self.times(resident)[0]

    def in_use(self, resident: Resident, now: float) -> bool:
        """Whether it has requests, or is in a lull between them."""
        return resident.running > 0 or resident.waiting > 0 or now < self.times(resident)[1]


class Action(NamedTuple):
    """One step of a plan, with its reason in words.

    It may begin when the motions of all in `after` are over, what they forget has come back, and, for `HOST`, once the
    host's memory was read anew. `floor` is what an action of that kind sets.
    """

    kind: Kind
    name: str
    devices: tuple[str, ...]
    reason: str
    after: tuple[str, ...] = ()
    gives_way_to: str = ""
    """The model that it makes room for; empty if it goes for itself."""
    floor: int | None = None
    cause: str = ""
    """Why it leaves: `idle`, `gave_way`, `host_memory` (others go to sleep) or `elsewhere` (where it fits)."""


class Refusal(NamedTuple):
    """A model whose requests cannot be served as things are, or not yet, and why, with the numbers."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, in order. Carry out what may begin, and ask again when anything changes or at `next_look`.

    `waits` says of each model with requests that wait and for which nothing can be done yet what it waits for.
    """

    actions: tuple[Action, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    waits: tuple[Refusal, ...] = ()
    next_look: float | None = None
    """When the answer may change although nothing happens. None: not before something does."""
