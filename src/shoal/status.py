"""How Shoal itself is, as people see it."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.fleet.snapshot import DeviceView, ModelView


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """Whether everything is saved; if not, what is not and why."""

    ok: bool
    problem: str | None
    unsaved: int


@dataclass(frozen=True, slots=True)
class MemoryStatus:
    """Whether the memory broker answers; if not, why."""

    ok: bool
    problem: str | None
    socket: str


@dataclass(frozen=True, slots=True)
class Status:
    """How Shoal itself is."""

    version: str
    started_at: float
    models: int
    instances: dict[str, int]
    relays: int
    store: StoreStatus
    memory: MemoryStatus
    config_file: str | None
    warnings: list[str]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a watcher has to know before the first change."""

    version: int
    status: Status
    models: list[ModelView]
    devices: tuple[DeviceView, ...]
