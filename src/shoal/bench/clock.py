"""The time of a benchmark's run, from the first import of this on."""

from __future__ import annotations

import time

_BEGAN = time.monotonic()


def say(*what: object) -> None:
    """Print, after the seconds that the run has taken."""
    print(f"[{time.monotonic() - _BEGAN:6.1f}]", *what, flush=True)  # noqa: T201


def left(limit: float) -> float:
    """Seconds that are left of `limit` for all."""
    return limit - (time.monotonic() - _BEGAN)
