"""How vLLM is started with elastic memory: flags of its own and variables that the plugin reads. Pure.

Both sides are here, so that a name is written once: `arguments` and `environment` for whoever starts the engine,
`Terms.read` for the plugin inside it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

OLDEST, NEWEST = (0, 24), (0, 33)
"""The vLLM versions whose hooks are known; 0.26 (GPU) and 0.32 (CPU) are the tested ones."""

NAMED_LAYOUTS = (0, 29)
"""From here on `VLLM_KV_CACHE_LAYOUT` puts each block in one piece; before, the worker does."""

WORKER = {
    "cuda": "shoal.engines.vllm.plugin.worker.ElasticWorker",
    "cpu": "shoal.engines.vllm.plugin.cpu_worker.ElasticCPUWorker",
}
SCHEDULER = "shoal.engines.vllm.plugin.scheduler.ElasticScheduler"

SMALL_SHARE = 0.02
"""For `--gpu-memory-utilization`, which only decides how much must be free at the start: the KV cache is elastic."""

PATIENCE = 60.0
"""Seconds that a request which nothing else stands in the way of waits for memory before it ends with an error."""

FIXED = 4 << 30

Variant = Literal["cuda", "cpu"]
Mode = Literal["auto", "required"]


class UnsupportedVersionError(ValueError):
    """This vLLM cannot be elastic, and what can."""


def check_version(version: str) -> tuple[int, int]:
    """Major and minor of a vLLM `version` such as ``0.26.0+cu130``. Raises UnsupportedVersionError."""
    found = re.match(r"(\d+)\.(\d+)", version)
    number = (int(found[1]), int(found[2])) if found else (0, 0)
    if not OLDEST <= number <= NEWEST:
        raise UnsupportedVersionError(
            f"elastic memory supports vLLM {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}, and this is {version}; "
            "install a supported version, or run it with a fixed KV cache (elastic: off)"
        )
    return number


@dataclass(frozen=True, slots=True)
class ElasticTerms:
    """What one engine is told. Sizes in bytes, for each of its devices.

    `socket` is the broker's; `engine` the name it is known under there. `mode` says what becomes of a model whose cache
    cannot be elastic: ``auto`` runs it with a KV cache of `fixed` bytes, ``required`` refuses it.
    """

    socket: Path
    engine: str
    floor: int = 0
    ceiling: int | None = None
    priority: int = 100
    mode: Mode = "auto"
    fixed: int = FIXED
    patience: float = PATIENCE
    # Where the processes of one engine meet; None: a folder of the user's in the system's temporary one.
    meeting: Path | None = field(default=None)

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> ElasticTerms:
        """The terms in an engine's environment. Raises ValueError with the variable's name."""
        socket = environ.get("SHOAL_MEMORY_SOCKET")
        if not socket:
            raise ValueError(
                "SHOAL_MEMORY_SOCKET is not set: it names the memory broker's socket; `shoal memory env` prints what "
                "an engine needs"
            )
        ceiling = environ.get("SHOAL_MEMORY_CEILING")
        mode = environ.get("SHOAL_MEMORY_ELASTIC", "auto")
        if mode not in ("auto", "required"):
            raise ValueError(f"SHOAL_MEMORY_ELASTIC is {mode!r}; it has to be auto or required")
        meeting = environ.get("SHOAL_MEMORY_MEETING")
        return cls(
            socket=Path(socket),
            engine=environ.get("SHOAL_MEMORY_ENGINE") or "",
            floor=_whole(environ, "SHOAL_MEMORY_FLOOR", 0),
            ceiling=None if not ceiling else _whole(environ, "SHOAL_MEMORY_CEILING", 0),
            priority=_whole(environ, "SHOAL_MEMORY_PRIORITY", 100),
            mode="required" if mode == "required" else "auto",
            fixed=_whole(environ, "SHOAL_MEMORY_FIXED", FIXED),
            patience=_seconds(environ, "SHOAL_MEMORY_PATIENCE", PATIENCE),
            meeting=Path(meeting) if meeting else None,
        )


def environment(terms: ElasticTerms, version: str, variant: Variant) -> dict[str, str]:
    """The variables for an engine of `version`. `PYTHONPATH` must lead to the `shoal` package besides.

    Raises UnsupportedVersionError.
    """
    number = check_version(version)
    env = {
        "SHOAL_MEMORY_SOCKET": str(terms.socket),
        "SHOAL_MEMORY_ENGINE": terms.engine,
        "SHOAL_MEMORY_FLOOR": str(terms.floor),
        "SHOAL_MEMORY_PRIORITY": str(terms.priority),
        "SHOAL_MEMORY_ELASTIC": terms.mode,
        "SHOAL_MEMORY_FIXED": str(terms.fixed),
        "SHOAL_MEMORY_PATIENCE": f"{terms.patience:g}",
    }
    if terms.ceiling is not None:
        env["SHOAL_MEMORY_CEILING"] = str(terms.ceiling)
    if terms.meeting is not None:
        env["SHOAL_MEMORY_MEETING"] = str(terms.meeting)
    if variant == "cuda" and number >= NAMED_LAYOUTS:
        env["VLLM_KV_CACHE_LAYOUT"] = "BLNHC"
    return env


def arguments(version: str, variant: Variant, size: int) -> list[str]:
    """Arguments of `vllm serve` for an engine of `version` whose KV cache may grow to `size` bytes on each device.

    `size` is address space: nothing is taken before it is used. Raises UnsupportedVersionError.
    """
    check_version(version)
    args = ["--worker-cls", WORKER[variant], "--scheduler-cls", SCHEDULER, "--kv-cache-memory-bytes", str(size)]
    if variant == "cuda":
        args += ["--gpu-memory-utilization", f"{SMALL_SHARE:g}"]
    return args


def _whole(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name)
    if not text:
        return default
    if not text.isdecimal():
        raise ValueError(f"{name} is {text!r}; it has to be a whole number")
    return int(text)


def _seconds(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name)
    try:
        seconds = float(text) if text else default
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{name} is {text!r}; it has to be a number of seconds above zero")
    return seconds
