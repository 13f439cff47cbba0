"""What the simulated engine counts, written as vLLM writes it."""

from __future__ import annotations

import resource
import time
from bisect import bisect_left
from collections.abc import Sequence

_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_FIRST_TOKEN = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
    640,
)
_LATENCY = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920)
_PAGE = resource.getpagesize()


class Histogram:
    """Counts by upper bound."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.count = 0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value
        self.count += 1

    def lines(self, name: str, labels: str) -> list[str]:
        """The samples in Prometheus text."""
        lines, total = [], 0
        for bound, count in zip([*map(str, map(float, self._bounds)), "+Inf"], self._counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{{labels},le="{bound}"}} {float(total)}')
        return [*lines, f"{name}_count{{{labels}}} {float(self.count)}", f"{name}_sum{{{labels}}} {self.sum}"]


class Metrics:
    """The counters of one process."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0
        self.cancelled = 0
        self.finished = {"stop": 0, "length": 0, "abort": 0, "error": 0}
        self.step_tokens = Histogram(_STEP_TOKENS)
        self.first_token = Histogram(_FIRST_TOKEN)
        self.latency = Histogram(_LATENCY)

    def render(self, model: str, gauges: dict[str, float]) -> str:
        """The page at /metrics. `gauges` are further readings by name."""
        escaped = model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        labels = f'engine="0",model_name="{escaped}"'
        counters = {
            "vllm:prompt_tokens": self.prompt_tokens,
            "vllm:generation_tokens": self.generation_tokens,
            "vllm:num_preemptions": self.preemptions,
            "vllm:prefix_cache_queries": self.prefix_queries,
            "vllm:prefix_cache_hits": self.prefix_hits,
            "simulated:cancelled": self.cancelled,
        }
        lines = []
        for name, value in gauges.items():
            lines += [f"# TYPE {name} gauge", f"{name}{{{labels}}} {float(value)}"]
        for name, total in counters.items():
            lines += [f"# TYPE {name}_total counter", f"{name}_total{{{labels}}} {float(total)}"]
        lines.append("# TYPE vllm:request_success_total counter")
        for reason, total in self.finished.items():
            lines.append(f'vllm:request_success_total{{{labels},finished_reason="{reason}"}} {float(total)}')
        for name, histogram in (
            ("vllm:iteration_tokens_total", self.step_tokens),
            ("vllm:time_to_first_token_seconds", self.first_token),
            ("vllm:e2e_request_latency_seconds", self.latency),
        ):
            lines += [f"# TYPE {name} histogram", *histogram.lines(name, labels)]
        lines += ["# TYPE process_cpu_seconds_total counter", f"process_cpu_seconds_total {time.process_time()}"]
        lines += ["# TYPE process_resident_memory_bytes gauge", f"process_resident_memory_bytes {_resident()}"]
        return "\n".join(lines) + "\n"


def _resident() -> float:
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - pathlib would cost the start
        return float(int(file.read().split()[1]) * _PAGE)
