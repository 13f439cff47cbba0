"""The device that a benchmark runs on: a GPU by NVML, or the host's memory. NVML is loaded only for a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import psutil

from shoal.memory.measuring import Reading

HOST = "host"


@dataclass(frozen=True, slots=True)
class Device:
    """`key` is what the broker calls it. Sizes in bytes."""

    key: str
    name: str
    size: int
    read: Callable[[], Reading]

    @property
    def used(self) -> int:
        """Bytes in use now, by anyone."""
        now = self.read()
        return now.total - now.free


def host() -> Device:
    """The host's memory. What is in use is what its processes hold, not the page cache."""

    def read() -> Reading:
        memory = psutil.virtual_memory()
        return Reading(memory.total, memory.available)

    return Device(HOST, "host memory", psutil.virtual_memory().total, read)


def gpu(index: int = 0) -> Device:
    """The GPU of this number in NVML's order. Raises RuntimeError if there is none."""
    try:
        import pynvml
    except ImportError as error:
        raise RuntimeError("a GPU is read by NVML: install nvidia-ml-py, or rehearse on the CPU with --cpu") from error
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        uuid, name = _text(pynvml.nvmlDeviceGetUUID(handle)), _text(pynvml.nvmlDeviceGetName(handle))
        total = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    except pynvml.NVMLError as error:
        raise RuntimeError(f"GPU {index} cannot be read: {error}") from error

    def read() -> Reading:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        return Reading(int(memory.total), int(memory.free))

    return Device(uuid, name, total, read)


def of(key: str) -> Device:
    """The device that the broker calls `key`. Raises RuntimeError if this machine has none of that name."""
    if key == HOST:
        return host()
    import pynvml

    pynvml.nvmlInit()
    for index in range(pynvml.nvmlDeviceGetCount()):
        device = gpu(index)
        if device.key == key:
            return device
    raise RuntimeError(f"this machine has no device {key}")


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
