"""What the driver and the kernel say of this machine's memory: GPUs through NVML, the host through /proc and cgroups.

NVML's Python module is loaded by the first reading and only here. Where it or the driver is absent there are no GPUs.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from pathlib import Path
from typing import Any

from .measuring import Reading

log = logging.getLogger(__name__)

HOST = "host"
"""The key of the host's memory. A GPU's key is its UUID as NVML writes it."""


class Machine:
    """Reads every device: a `measuring.Measure`. Thread-safe; a reading takes well under a millisecond a GPU."""

    def __init__(self, *, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> None:
        self._proc = proc
        self._cgroup = cgroup
        self._lock = threading.Lock()
        self._nvml: Any = None
        self._handles: dict[str, Any] | None = None

    def __call__(self) -> dict[str, Reading]:
        """All devices now, by key. A GPU that does not answer is left out."""
        found: dict[str, Reading] = {}
        for uuid, handle in self._gpus().items():
            try:
                memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
            except self._nvml.NVMLError as error:
                log.warning("%s cannot be measured: %s", uuid, error)
                continue
            found[uuid] = Reading(int(memory.total), int(memory.free))
        host = self._host()
        if host is not None:
            found[HOST] = host
        return found

    def gpus(self) -> tuple[str, ...]:
        """The UUIDs of the GPUs, in the order of `nvidia-smi`: that of their places on the bus."""
        return tuple(self._gpus())

    def key(self, name: str) -> str:
        """The key of what a person calls ``cuda:1``; a UUID and ``host`` are keys already. Raises ValueError."""
        prefix, colon, number = name.partition(":")
        if prefix != "cuda" or not colon:
            return name
        gpus = self.gpus()
        if not number.isdecimal() or int(number) >= len(gpus):
            known = ", ".join(f"cuda:{i}" for i in range(len(gpus))) or "none; the NVIDIA driver shows no GPU"
            raise ValueError(f"no device {name}; GPUs of this machine: {known}")
        return gpus[int(number)]

    def _gpus(self) -> dict[str, Any]:
        with self._lock:
            if self._handles is None:
                self._handles = self._open()
            return self._handles

    def _open(self) -> dict[str, Any]:
        try:
            import pynvml
        except ImportError as error:
            log.info("no GPU is measured: %s", error)
            return {}
        handles: dict[str, Any] = {}
        try:
            pynvml.nvmlInit()
            self._nvml = pynvml
            for index in range(pynvml.nvmlDeviceGetCount()):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                uuid = pynvml.nvmlDeviceGetUUID(handle)
                handles[uuid if isinstance(uuid, str) else uuid.decode()] = handle
        except pynvml.NVMLError as error:
            log.info("no GPU is measured: %s", error)
        return handles

    def _host(self) -> Reading | None:
        """The host's memory, or the part of it that this control group may use."""
        fields: dict[str, int] = {}
        with contextlib.suppress(OSError, ValueError):
            for line in (self._proc / "meminfo").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in ("MemTotal", "MemAvailable"):
                    fields[name] = int(value.split()[0]) * 1024
        if len(fields) < 2:
            return None
        total, free = fields["MemTotal"], fields["MemAvailable"]
        limit, charged = self._number("memory.max"), self._number("memory.current")
        if limit is not None and charged is not None and limit < total:
            # The kernel drops clean file pages before it lets a group run out.
            charged -= min(charged, self._inactive_file())
            total, free = limit, min(free, max(0, limit - charged))
        return Reading(total, free)

    def _number(self, name: str) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            return int((self._cgroup / name).read_text())
        return None

    def _inactive_file(self) -> int:
        with contextlib.suppress(OSError, ValueError):
            for line in (self._cgroup / "memory.stat").read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == "inactive_file":
                    return int(value)
        return 0
