"""What elastic memory cost an engine, for benchmarks: `SHOAL_MEMORY_STATS` names a file that is kept up to date."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

EVERY = 2.0
"""Seconds between two versions of the file."""

KEPT = 100_000
"""Waits kept for the percentiles; the first ones, so that a long run costs no more."""


class Statistics:
    """Counts. Times in seconds."""

    def __init__(self) -> None:
        path = os.environ.get("SHOAL_MEMORY_STATS")
        self._path = Path(path) if path else None
        self._written = 0.0
        self._lock = threading.Lock()
        self._waits: list[float] = []
        self._steps_needing = 0
        self._blocks_backed = self._blocks_unbacked = 0
        self._back_seconds = self._unback_seconds = 0.0
        self.full = 0
        """How often the device had less than the lease allowed."""

    def stepped(self) -> None:
        """A step took blocks."""
        self._steps_needing += 1

    def waited(self, seconds: float) -> None:
        """A step waited for memory."""
        if len(self._waits) < KEPT:
            self._waits.append(seconds)

    def backed(self, blocks: int, seconds: float) -> None:
        """Blocks were backed."""
        with self._lock:
            self._blocks_backed += blocks
            self._back_seconds += seconds
        self._write()

    def unbacked(self, blocks: int, seconds: float) -> None:
        """Blocks were unbacked."""
        with self._lock:
            self._blocks_unbacked += blocks
            self._unback_seconds += seconds
        self._write()

    def close(self) -> None:
        """Write the last version."""
        self._write(now=True)

    def summary(self) -> dict[str, Any]:
        """All of it. `waits` are over the steps that took blocks: one that did not wait waited 0 µs."""
        waits = sorted(self._waits)
        calm = max(0, self._steps_needing - len(waits))

        def quantile(q: float) -> float:
            index = int(q * (calm + len(waits)))
            return 0.0 if index < calm or not waits else round(waits[min(index - calm, len(waits) - 1)] * 1e6, 1)

        return {
            "waits": {
                "count": len(waits),
                "steps_needing": self._steps_needing,
                "p50_us": quantile(0.5),
                "p99_us": quantile(0.99),
                "p999_us": quantile(0.999),
                "max_us": round(waits[-1] * 1e6, 1) if waits else 0.0,
            },
            "blocks_backed": self._blocks_backed,
            "back_seconds": round(self._back_seconds, 4),
            "blocks_unbacked": self._blocks_unbacked,
            "unback_seconds": round(self._unback_seconds, 4),
            "device_full": self.full,
        }

    def _write(self, *, now: bool = False) -> None:
        if self._path is None or not (now or time.monotonic() - self._written >= EVERY):
            return
        with self._lock:
            self._written = time.monotonic()
            temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
            temporary.write_text(json.dumps(self.summary()))
            temporary.replace(self._path)
