"""Reading this machine's memory: the host for real, GPUs through a pretended driver."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.memory.measuring import Reading
from shoal.memory.nvml import Machine

GIB = 2**30


class FakeError(Exception):
    """NVML's."""


def _driver(*uuids: str | bytes, broken: int | None = None, count: Any = None) -> SimpleNamespace:
    def info(index: int) -> SimpleNamespace:
        if index == broken:
            raise FakeError("GPU is lost")
        return SimpleNamespace(total=80 * GIB, free=(70 + index) * GIB, used=0)

    return SimpleNamespace(
        NVMLError=FakeError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=count or (lambda: len(uuids)),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUUID=lambda index: uuids[index],
        nvmlDeviceGetMemoryInfo=info,
    )


def _proc(folder: Path, total: int, available: int) -> Path:
    (folder / "meminfo").write_text(
        f"MemTotal: {total // 1024} kB\nMemFree: 1 kB\nMemAvailable: {available // 1024} kB\nHugePages_Total: 0\n"
    )
    return folder


def test_gpus_are_known_by_uuid_and_by_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _driver("GPU-a", b"GPU-b"))
    machine = Machine()
    assert machine.gpus() == ("GPU-a", "GPU-b")
    found = machine()
    assert found["GPU-b"] == Reading(80 * GIB, 71 * GIB)
    assert [machine.key(name) for name in ("cuda:1", "GPU-a", "host")] == ["GPU-b", "GPU-a", "host"]
    for wrong in ("cuda:2", "cuda:", "cuda:x", "cuda:-1"):
        with pytest.raises(ValueError, match=r"GPUs of this machine: cuda:0, cuda:1"):
            machine.key(wrong)


def test_a_gpu_that_fell_off_the_bus_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _driver("GPU-a", "GPU-b", broken=0))
    assert set(Machine()()) == {"GPU-b", "host"}


def test_without_a_driver_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> int:
        raise FakeError("NVML Shared Library Not Found")

    for module in (_driver(count=no_driver), None):
        monkeypatch.setitem(sys.modules, "pynvml", module)
        machine = Machine()
        assert set(machine()) == {"host"}
        with pytest.raises(ValueError, match="the NVIDIA driver shows no GPU"):
            machine.key("cuda:0")


def test_the_host_is_read_for_real() -> None:
    reading = Machine()()["host"]
    assert 0 < reading.free <= reading.total


def test_a_control_group_makes_the_host_smaller(tmp_path: Path) -> None:
    proc = _proc(tmp_path, 64 * GIB, 40 * GIB)
    machine = Machine(proc=proc, cgroup=tmp_path)
    assert machine()["host"] == Reading(64 * GIB, 40 * GIB)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text(f"{9 * GIB}\n")
    assert machine()["host"] == Reading(64 * GIB, 40 * GIB)
    (tmp_path / "memory.max").write_text(f"{10 * GIB}\n")
    assert machine()["host"] == Reading(10 * GIB, GIB)
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {3 * GIB}\n")
    assert machine()["host"] == Reading(10 * GIB, 4 * GIB)
    _proc(tmp_path, 64 * GIB, 2 * GIB)  # the machine itself has less than the group may use
    assert machine()["host"] == Reading(10 * GIB, 2 * GIB)


@pytest.mark.parametrize("text", ["", "MemTotal: many kB\nMemAvailable: 5 kB\n", "MemTotal: 5 kB\n", "nonsense\n"])
def test_a_host_that_cannot_be_read_is_left_out(tmp_path: Path, text: str) -> None:
    (tmp_path / "meminfo").write_text(text)
    assert "host" not in Machine(proc=tmp_path, cgroup=tmp_path)()
    assert "host" not in Machine(proc=tmp_path / "none", cgroup=tmp_path)()
