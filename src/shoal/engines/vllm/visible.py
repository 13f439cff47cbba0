"""Which GPUs a process sees. Pure."""

from __future__ import annotations

from collections.abc import Iterable


def visible(numbers: Iterable[object]) -> dict[str, str]:
    """The variables by which it sees those of `numbers` alone: NVML's, which follow the bus; CUDA's own order may
    differ."""
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, numbers))}
