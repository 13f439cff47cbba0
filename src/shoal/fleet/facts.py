"""What the outside tells the manager. Commands come from people, facts from processes, devices and the relay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shoal.engines.base import EngineMetrics
from shoal.fleet.state import Device, Exit, Failure, Progress
from shoal.memory.tools import Books
from shoal.messages import RelayReport


@dataclass(frozen=True, slots=True)
class Prepared:
    """The model's files were looked at. `failure`: it cannot be started. `needs`: bytes a device, None if unknown, of
    which the weights are `weights`, and `kv` the KV cache that has to be there from the start."""

    instance: str
    needs: int | None = None
    kinds: tuple[str, ...] = ()
    failure: Failure | None = None
    weights: int | None = None
    kv: int | None = None


@dataclass(frozen=True, slots=True)
class Spawned:
    """The process group exists, or `failure` says why it does not. `elastic`: it will lease its KV cache."""

    instance: str
    address: str = ""
    environment: str = ""
    version: str = ""
    failure: Failure | None = None
    elastic: bool = False
    fixed_because: str = ""
    can_sleep: bool = False
    sleepless_because: str = ""


@dataclass(frozen=True, slots=True)
class Progressed:
    """The start has come further."""

    instance: str
    progress: Progress


@dataclass(frozen=True, slots=True)
class Healthy:
    """The engine answers. `phases`: seconds that each phase of the start took. `weights`: bytes that its weights took
    on its fullest device, if it said so."""

    instance: str
    pid: int | None
    phases: Mapping[str, float]
    weights: int | None = None


@dataclass(frozen=True, slots=True)
class Described:
    """What an engine says of the model that it serves."""

    instance: str
    context_length: int


@dataclass(frozen=True, slots=True)
class Overdue:
    """The start has taken longer than the model allows."""

    instance: str
    phases: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Hung:
    """A running engine does not get on, for the reason given."""

    instance: str
    reason: str


@dataclass(frozen=True, slots=True)
class Exited:
    """The process group is gone. `failure` is what its log says about an end that nobody asked for."""

    instance: str
    exit: Exit
    failure: Failure


@dataclass(frozen=True, slots=True)
class CanaryAnswered:
    """What an engine answered to the canary: empty, if it completes no text; None, if it did not answer."""

    instance: str
    answer: str | None


@dataclass(frozen=True, slots=True)
class Measured:
    """An engine's own readings."""

    instance: str
    metrics: EngineMetrics


@dataclass(frozen=True, slots=True)
class Weighed:
    """What an instance holds before its sleep, in bytes over all its devices, `kv` of them leased for its KV cache, and
    what it answers to the canary (empty: it answers none). None: not asked, because it was known, or because it was
    found asleep already."""

    instance: str
    held: int | None = None
    kv: int = 0
    canary: str | None = None


@dataclass(frozen=True, slots=True)
class Asleep:
    """It sleeps, and gave so many bytes back, `kv` of them leased for its KV cache."""

    instance: str
    freed: int
    kv: int


@dataclass(frozen=True, slots=True)
class NotAsleep:
    """It would not sleep, or kept its memory."""

    instance: str
    reason: str


@dataclass(frozen=True, slots=True)
class Awake:
    """It is awake and answers the canary as before."""

    instance: str


@dataclass(frozen=True, slots=True)
class NoRoom:
    """It was not woken: what it takes of its devices did not come free. It sleeps on."""

    instance: str
    reason: str


@dataclass(frozen=True, slots=True)
class NotAwake:
    """It would not wake, or answers otherwise than before."""

    instance: str
    failure: Failure


@dataclass(frozen=True, slots=True)
class LookedAt:
    """Whether an instance that was taken back sleeps; None: it did not say."""

    instance: str
    asleep: bool | None


Slumber = Weighed | Asleep | NotAsleep | Awake | NoRoom | NotAwake | LookedAt


@dataclass(frozen=True, slots=True)
class DevicesRead:
    """The devices, and the host memory of each instance in bytes. `at`: when that reading began (None: now)."""

    devices: tuple[Device, ...]
    memory: Mapping[str, int]
    at: float | None = None


@dataclass(frozen=True, slots=True)
class BooksRead:
    """The memory broker's books, None if it cannot be reached."""

    books: Books | None


@dataclass(frozen=True, slots=True)
class TermsRefused:
    """The memory broker refused an instance's new terms, for the reason given."""

    instance: str
    reason: str


@dataclass(frozen=True, slots=True)
class RelayReported:
    """A relay, known by its connection, says what it carries."""

    connection: int
    report: RelayReport


@dataclass(frozen=True, slots=True)
class RelayWants:
    """A relay holds requests for a model that does not serve."""

    connection: int
    model: str


@dataclass(frozen=True, slots=True)
class RelayGone:
    """A relay's connection has closed."""

    connection: int


@dataclass(frozen=True, slots=True)
class StoreProblem:
    """What the store could not save, or None when all is saved again."""

    problem: str | None


@dataclass(frozen=True, slots=True)
class Tick:
    """A time that the manager asked to be woken at has come."""


Fact = (
    Prepared
    | Spawned
    | Progressed
    | Healthy
    | Described
    | Overdue
    | Hung
    | Exited
    | CanaryAnswered
    | Measured
    | Slumber
    | DevicesRead
    | BooksRead
    | TermsRefused
    | RelayReported
    | RelayWants
    | RelayGone
    | StoreProblem
    | Tick
)
