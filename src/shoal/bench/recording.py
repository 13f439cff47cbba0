"""Memory over time: what the device has in use, and what each engine has backed, several times a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from shoal.memory.tools import BrokerError, BrokerTool

from .broker import members
from .devices import Device
from .svg import Band, Line, stacked

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Sample:
    """One moment. `at` is monotonic; sizes in bytes; `backed` by engine."""

    at: float
    used: int
    backed: dict[str, int] = field(default_factory=dict)


class Recorder:
    """Samples on a thread from `start` until `stop`."""

    def __init__(self, device: Device, tool: BrokerTool | None, interval: float = 0.2) -> None:
        self.samples: list[Sample] = []
        self._device = device
        self._tool = tool
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def between(self, begin: float, end: float) -> list[Sample]:
        """The samples of that time."""
        return [sample for sample in list(self.samples) if begin <= sample.at <= end]

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            backed: dict[str, int] = {}
            if self._tool is not None:
                try:
                    backed = {name: member.backed for name, member in members(self._tool).items()}
                except (BrokerError, OSError):
                    # A broker that was killed is part of some benchmarks; the device is still read.
                    self._tool = None
            self.samples.append(Sample(time.monotonic(), self._device.used, backed))


def plot(
    title: str,
    samples: Sequence[Sample],
    engines: Sequence[str],
    *,
    fixed: int | None = None,
    base: int = 0,
    budget: int = 0,
    rate: Sequence[tuple[float, float]] = (),
) -> str:
    """Memory over time as SVG, in GiB above `base`: what is not KV below, each engine's KV on top, and requests.

    `fixed` is the KV cache of an engine that is not elastic, the same at all times.
    """
    begin = samples[0].at if samples else 0.0
    cache = {
        name: [(sample.backed.get(name, 0) if fixed is None else fixed) / GIB for sample in samples] for name in engines
    }
    rest = [
        max(0.0, (sample.used - base) / GIB - sum(cache[name][number] for name in engines))
        for number, sample in enumerate(samples)
    ]
    bands = [Band("weights, graphs, contexts", rest), *(Band(f"KV {name}", cache[name]) for name in engines)]
    return stacked(
        title,
        "GiB",
        [sample.at - begin for sample in samples],
        bands,
        Line("requests/s", rate) if rate else None,
        mark=budget / GIB,
    )
