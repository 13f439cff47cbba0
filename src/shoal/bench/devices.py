"""The device that a benchmark runs on: a GPU by NVML, or the host's memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shoal.memory.measuring import Reading
from shoal.memory.nvml import HOST as HOST
from shoal.memory.nvml import Machine


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
    """The host's memory. Raises RuntimeError if this system does not tell it."""
    return _device(Machine(), HOST, "host memory")


def gpu(index: int = 0) -> Device:
    """The GPU of this number in NVML's order. Raises RuntimeError if there is none."""
    machine = Machine()
    try:
        key = machine.key(f"cuda:{index}")
    except ValueError as error:
        raise RuntimeError(str(error)) from None
    return _device(machine, key, _gpu_name(key))


def _device(machine: Machine, key: str, name: str) -> Device:
    def read() -> Reading:
        try:
            return machine()[key]
        except KeyError:
            raise RuntimeError(f"{key} cannot be measured") from None

    return Device(key, name, read().total, read)


def _gpu_name(uuid: str) -> str:
    import pynvml

    try:
        name = pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByUUID(uuid.encode()))
    except pynvml.NVMLError:
        return "GPU"
    return name if isinstance(name, str) else str(name.decode())
