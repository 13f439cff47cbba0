"""What the fleet remembers: events for people, and loads from which progress estimates learn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, in one sentence. `at` is Unix seconds, `level` is info, warning or error.

    `kind` is a stable word for programs. `id` grows with every event that is saved; None until then. `seconds` is how
    long an instance was in the state that ended with it; None where nothing ended.
    """

    at: float
    level: str
    kind: str
    message: str
    model: str | None = None
    instance: str | None = None
    id: int | None = field(default=None, compare=False)
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class LoadRecord:
    """One start of an instance, from the first step to `outcome`: `ready`, or the code of its failure.

    `devices` are the kinds of device that it ran on (`cuda`, `host`, …), `version` is the engine's, `started_at` Unix
    seconds, `phases` seconds by phase in the order they ran, `memory` bytes by device or use.
    """

    model: str
    instance: str
    engine: str
    environment: str
    version: str
    devices: tuple[str, ...]
    started_at: float
    seconds: float
    outcome: str
    phases: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, int] = field(default_factory=dict)
