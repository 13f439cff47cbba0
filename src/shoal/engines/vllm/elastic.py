"""How vLLM is started with elastic memory: flags of its own, and the variables of `shoal.memory.elastic`. Pure."""

from __future__ import annotations

import re
from typing import Literal

from shoal.memory.elastic import ElasticTerms

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

Variant = Literal["cuda", "cpu"]


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


def environment(terms: ElasticTerms, version: str, variant: Variant) -> dict[str, str]:
    """The variables for an engine of `version`. `PYTHONPATH` must lead to the `shoal` package besides.

    Raises UnsupportedVersionError.
    """
    number = check_version(version)
    env = terms.environment()
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
