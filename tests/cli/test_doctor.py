"""What `shoal doctor` finds, and what it says to do."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import psutil
import pynvml
import pytest

from shoal.cli import checks
from shoal.engines.base import Environment
from shoal.settings import Settings
from tests.cli.conftest import Run
from tests.cli.scripted import ScriptedShoal


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SHOAL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SHOAL_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("SHOAL_ENGINES_DIR", str(tmp_path / "engines"))
    monkeypatch.setenv("SHOAL_PORT", "0")


def test_a_fresh_machine_can_serve_but_misses_an_engine(run: Run) -> None:
    result = run("doctor", "--json")
    assert result.exit_code == 0, result.output
    found = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert found["engines"]["level"] == "warn"
    assert "shoal engines install" in found["engines"]["hint"]
    assert found["state folder"]["level"] == "ok"
    shown = run("doctor").stdout
    assert "shoal engines install" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80


def test_faults_in_the_settings_fail(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "shoal.yaml"
    file.write_text("prot: 1\n")
    result = run("doctor", "--config", str(file), "--json")
    assert result.exit_code == 1
    (fault,) = [check for check in json.loads(result.stdout)["checks"] if check["name"] == "settings"]
    assert fault["level"] == "fail"
    assert "did you mean port?" in fault["message"]


def test_installed_engines_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shoal.engines.environments import Environments

    cpu = Environment("vllm-cpu", "vllm", "cpu", tmp_path / "python", "0.32.0")
    monkeypatch.setattr(Environments, "ls", lambda self: [cpu])
    assert [check.level for check in checks.check_engines(tmp_path, gpu=False)] == ["ok"]
    for_gpu = checks.check_engines(tmp_path, gpu=True)
    assert [check.level for check in for_gpu] == ["ok", "warn"]
    assert for_gpu[1].hint == "shoal engines install vllm"


def test_a_port_that_another_program_has(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        check = checks.check_port("127.0.0.1", port)
    assert check.level == "fail"
    assert f"--port {port + 1 if port < 65535 else port - 1}" in check.hint
    assert checks.check_port("203.0.113.1", 8000).level == "fail"


def test_a_port_that_shoal_has(shoal: ScriptedShoal) -> None:
    port = int(shoal.url.rpartition(":")[2])
    check = checks.check_port("127.0.0.1", port)
    assert (check.level, check.message) == ("ok", f"Shoal 9.9 runs at 127.0.0.1:{port}")


def test_a_state_folder_that_cannot_be(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert checks.check_writable(file).level == "fail"
    assert checks.check_writable(file / "below").level == "fail"
    assert checks.check_writable(tmp_path).level == "ok"
    assert checks.check_writable(tmp_path / "not" / "yet").level == "ok"
    assert not (tmp_path / "not").exists()
    assert checks.check_writable(Path("/proc/shoal")).level == "fail" or os.access("/proc", os.W_OK)


def test_little_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 50 * 2**20
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    assert checks.check_space("d", tmp_path, 2**30, 100 * 2**20).level == "fail"
    assert checks.check_space("d", tmp_path, 2**30, 0).level == "warn"
    assert checks.check_space("d", tmp_path, 2**20, 0).level == "ok"


def test_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**30, total=2**33))
    assert checks.check_memory().level == "warn"


def test_a_runtime_folder_too_long_for_sockets(tmp_path: Path) -> None:
    check = checks.check_runtime(Settings(runtime_dir=tmp_path / ("x" * 120)))
    assert check.level == "fail"
    assert "SHOAL_RUNTIME_DIR" in check.hint
    assert checks.check_runtime(Settings(runtime_dir=Path("/tmp/s"))).level == "ok"


@pytest.mark.parametrize(
    ("error", "level"),
    [(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "ok"), (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "warn")],
)
def test_no_driver_is_fine_and_a_broken_one_is_not(error: int, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise pynvml.NVMLError(error)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    (check,) = checks.check_gpus()
    assert check.level == level


def test_gpus_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def handle(index: int) -> int:
        if index == 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return index

    for name, answer in {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": handle,
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(free=2**30, total=2**31),
        "nvmlDeviceGetName": lambda handle: "NVIDIA H200",
        "nvmlSystemGetDriverVersion": lambda: "580.1",
    }.items():
        monkeypatch.setattr(pynvml, name, answer)
    first, lost, driver = checks.check_gpus()
    assert (first.name, first.message) == ("cuda:0", "NVIDIA H200, 1.0 GiB free of 2.0 GiB")
    assert (lost.name, lost.level) == ("cuda:1", "warn")
    assert "580.1" in driver.message
