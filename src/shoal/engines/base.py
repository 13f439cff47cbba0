"""What Shoal knows of an engine: how to start it, and how to read it. All pure; the fleet does the I/O.

An engine's HTTP is vLLM's: `GET /health` answers 200 once it serves, `GET /metrics` is Prometheus text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from shoal.fleet.needs import Needs
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Device, Exit, Failure
from shoal.memory.elastic import ElasticTerms


@dataclass(frozen=True, slots=True)
class Environment:
    """A Python interpreter that has an engine, apart from Shoal's own.

    `variant` is the kind of device that it was built for: `cpu` or `cuda`.
    """

    name: str
    kind: str
    variant: str
    python: Path
    version: str
    managed: bool = True
    """Made by `shoal engines install`, or somebody's own interpreter."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start one engine process group.

    `env` is added to a small, scrubbed environment: an engine never inherits Shoal's secrets. `elastic` says that it
    will lease its KV cache from the memory broker, `fixed_because` why not; so `can_sleep` and `sleepless_because`.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    elastic: bool = False
    fixed_because: str = ""
    can_sleep: bool = False
    sleepless_because: str = ""


@dataclass(frozen=True, slots=True)
class Milestone:
    """A log line that shows how far a start has come: from it on, `phase` runs, at `percent` of the whole."""

    pattern: re.Pattern[str]
    phase: str
    percent: int


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do, as started. Nothing is promised that was not seen to work."""

    sleep: bool = False
    lora: bool = False
    elastic: bool = False


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """Readings of a running engine under one set of names, whatever the engine calls them. None: not reported."""

    requests_running: float | None = None
    requests_waiting: float | None = None
    kv_usage: float | None = None  # 0…1
    prompt_tokens_total: float | None = None
    generation_tokens_total: float | None = None
    preemptions_total: float | None = None
    prefix_queries_total: float | None = None
    prefix_hits_total: float | None = None
    kv_token_bytes: float | None = None
    """Of KV cache that a token takes on one device."""
    steps_total: float | None = None
    """Grows with every step of the engine; if it stands still while requests run, the engine hangs."""
    device_memory: float | None = None
    """Bytes that it holds on its devices, where the engine itself says so."""


@dataclass(frozen=True, slots=True)
class HostCopy:
    """The copy of its weights that an instance keeps in the host's memory while it is awake. Bytes over all its ranks.

    `size` is what a whole copy takes, 0 if there can be none; `held` what of it is there, `taken` what it has of the
    host's memory. `reason` says why it could not be taken.
    """

    size: int = 0
    held: int = 0
    taken: int = 0
    taking: bool = False
    reason: str = ""

    @property
    def whole(self) -> bool:
        """Whether a sleep would have nothing to copy."""
        return 0 < self.size <= self.held


CopyAction = Literal["take", "forget", "look"]


@runtime_checkable
class KeepsCopies(Protocol):
    """What an engine offers besides if its instances can copy their weights to the host before they sleep."""

    def copy_request(self, action: CopyAction) -> tuple[str, str, Mapping[str, object]]:
        """Method, path and body of the request that has an instance take a copy, forget it, or say how it is."""
        ...

    def read_copy(self, text: str) -> HostCopy:
        """The answer to any of them. Raises ValueError if it is none."""
        ...


class Engine(Protocol):
    """One kind of engine."""

    kind: str
    device_kinds: tuple[str, ...]
    milestones: Sequence[Milestone]
    weights_line: re.Pattern[str]
    """A log line that tells what the weights took on a device once they were loaded, in GiB as its group `gib`."""

    def capabilities(self, spec: ModelSpec) -> Capabilities:
        """What an instance started from `spec` can do."""
        ...

    def environment(self, spec: ModelSpec, devices: Sequence[Device]) -> Environment:
        """The interpreter to use. Raises ShoalError (code `engine_not_installed`) if there is none."""
        ...

    def check(self, spec: ModelSpec) -> None:
        """Refuse what cannot start, before anything starts: raises ShoalError (`source_not_found`, …)."""
        ...

    def estimate(self, spec: ModelSpec, devices: Sequence[Device] = ()) -> Needs:
        """What one of `devices` needs for its share of a model, part by part, as far as that is known before a load.

        Without `devices` as for small ones. Raises ShoalError for files that cannot be read.
        """
        ...

    def needs(self, spec: ModelSpec, devices: Sequence[Device] = ()) -> int | None:
        """Bytes that one device has to have free for a share of this model, or None if unknown.

        Of an elastic KV cache only what has to be there from the start counts.
        """
        ...

    def weights(self, spec: ModelSpec) -> int | None:
        """Bytes of the model's weights on one device, or None if unknown."""
        ...

    def sleep_frees(self, spec: ModelSpec) -> int | None:
        """Bytes of one device that a sleep gives back at least, beside leased KV cache; None if that is not known."""
        ...

    def capacity(self, spec: ModelSpec, devices: Sequence[Device]) -> int | None:
        """Requests that one instance of `spec` runs at once on `devices`, or None if unknown.

        It is what the relay sends at once; an engine queues what goes beyond, it does not refuse it. Read from the
        settings alone: it is asked for at every change of the routing table.
        """
        ...

    def lora_names(self, spec: ModelSpec) -> tuple[str, ...]:
        """The LoRA adapters that an instance of `spec` answers to from its start, in the order declared."""
        ...

    def launch(
        self,
        spec: ModelSpec,
        *,
        instance: str,
        address: str,
        devices: Sequence[Device],
        environment: Environment,
        memory: ElasticTerms | None = None,
    ) -> Launch:
        """The command line that serves `spec` at `address` (see `shoal.net`) on `devices`.

        With `memory` it is started elastic if it can be; `Launch` says whether. Raises ShoalError (`not_elastic`) where
        `spec` requires it and it cannot be.
        """
        ...

    def read_metrics(self, text: str) -> EngineMetrics:
        """Readings out of the engine's Prometheus text. Unknown or broken lines are skipped."""
        ...

    def explain(self, spec: ModelSpec, log: Sequence[str], exit: Exit) -> Failure:
        """Why a start or a run failed, from the end of its log (oldest line first)."""
        ...
