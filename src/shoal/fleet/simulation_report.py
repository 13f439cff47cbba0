"""What a simulation came to: waits, motions and utilisation. Times in seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shoal.bench.stats import percentile


@dataclass(frozen=True, slots=True)
class ModelReport:
    """One model. A wait is from when a request comes to when it begins to run; None if none ran."""

    name: str
    served: int
    refused: int
    wait_p50: float | None
    wait_p99: float | None
    wait_max: float | None
    at_once: float | None
    """The part of its served requests that did not wait."""
    wakes: int
    loads: int
    sleeps: int
    unloads: int
    gave_way: int
    """How many of its sleeps and unloads were for others."""
    refusal: str
    """Why its requests were refused."""


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """One device, as parts of the time that was simulated."""

    name: str
    memory: float
    """Of its budget, taken on average."""
    busy: float
    """Of the time, with a request that ran."""


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run of so many simulated seconds."""

    seconds: float
    requests: int
    models: tuple[ModelReport, ...]
    devices: tuple[DeviceReport, ...]
    decisions: int

    @property
    def served(self) -> int:
        """Requests that ran to their end."""
        return sum(model.served for model in self.models)

    @property
    def refused(self) -> int:
        """Requests that could never have been served."""
        return sum(model.refused for model in self.models)


def model_report(
    name: str, waits: Sequence[float], refused: int, refusal: str, counts: Mapping[str, int]
) -> ModelReport:
    """What became of a model whose requests waited for `waits`."""
    ordered = sorted(waits)
    return ModelReport(
        name=name,
        served=len(ordered),
        refused=refused,
        wait_p50=percentile(ordered, 0.5) if ordered else None,
        wait_p99=percentile(ordered, 0.99) if ordered else None,
        wait_max=ordered[-1] if ordered else None,
        at_once=sum(wait == 0 for wait in ordered) / len(ordered) if ordered else None,
        wakes=counts.get("wake", 0),
        loads=counts.get("load", 0),
        sleeps=counts.get("sleep", 0),
        unloads=counts.get("unload", 0),
        gave_way=counts.get("gave_way", 0),
        refusal=refusal,
    )
