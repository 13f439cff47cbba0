"""The devices of this machine: GPUs through NVML, the host's memory, and pretended ones for the simulated engine."""

from __future__ import annotations

import contextlib
import logging
import platform
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import psutil

from shoal.fleet.state import Device

HOST = "host"
_log = logging.getLogger(__name__)


class Devices:
    """Reads every device. Blocks for milliseconds: run it in a thread."""

    def __init__(self, simulated: Sequence[int] = ()) -> None:
        self._simulated = tuple(simulated)
        self._nvml: Any = None
        self._handles: list[Any] = []
        self.problem: str | None = _no_driver(self)

    def read(self) -> tuple[Device, ...]:
        """All devices now: GPUs in PCI order, then pretended ones, then the host."""
        return (
            *(self._gpu(index, handle) for index, handle in enumerate(self._handles)),
            *(
                Device(f"simulated:{index}", "simulated", "simulated device", size, 0)
                for index, size in enumerate(self._simulated)
            ),
            read_host(),
        )

    def held_by(self, pids: Collection[int]) -> dict[str, int]:
        """Bytes of each GPU that these processes hold together, as far as the driver says."""
        held: dict[str, int] = {}
        for index, handle in enumerate(self._handles):
            try:
                processes = self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)
            except self._nvml.NVMLError:
                continue
            if sizes := [one.usedGpuMemory or 0 for one in processes if one.pid in pids]:
                held[f"cuda:{index}"] = sum(sizes)
        return held

    def close(self) -> None:
        """Let go of the driver."""
        if self._nvml is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
            self._nvml = None

    def open(self) -> None:
        """Find the GPUs. Raises pynvml.NVMLError where there is no driver."""
        import pynvml

        pynvml.nvmlInit()
        self._nvml = pynvml
        self._handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]

    def _gpu(self, index: int, handle: Any) -> Device:
        nvml = self._nvml
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            name = nvml.nvmlDeviceGetName(handle)
            uuid = nvml.nvmlDeviceGetUUID(handle)
        except nvml.NVMLError as error:  # a GPU that has fallen off the bus
            return Device(f"cuda:{index}", "cuda", "unknown GPU", 0, 0, error=str(error))
        return Device(
            id=f"cuda:{index}",
            kind="cuda",
            name=name if isinstance(name, str) else name.decode(),
            uuid=uuid if isinstance(uuid, str) else uuid.decode(),
            memory_total=int(memory.total),
            memory_used=int(memory.used),
            utilization=_reading(nvml, lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100),
            temperature=_reading(nvml, lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))),
            power=_reading(nvml, lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
        )


def _no_driver(devices: Devices) -> str | None:
    try:
        devices.open()
    except Exception as error:
        return str(error)
    return None


def _reading(nvml: Any, read: Any) -> float | None:
    try:
        return float(read())
    except nvml.NVMLError:
        return None


def read_host() -> Device:
    """The host's memory, or the part of it that this control group may use."""
    memory = psutil.virtual_memory()
    total, used = int(memory.total), int(memory.total - memory.available)
    limit, charged = _cgroup("memory.max"), _cgroup("memory.current")
    if limit is not None and limit < total:
        total = limit
        reclaimable = _cgroup_stat("inactive_file")
        used = max(0, (charged or 0) - reclaimable)
    return Device(HOST, "host", platform.processor() or platform.machine(), total, used, utilization=None)


def _cgroup(name: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(Path("/sys/fs/cgroup", name).read_text())
    return None


def _cgroup_stat(key: str) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
    return 0
