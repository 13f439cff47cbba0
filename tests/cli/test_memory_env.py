"""`shoal memory env`: what a shell makes of it, which vLLM it finds, and what it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.memory.elastic import ElasticTerms
from tests.cli.conftest import Run

GIB = 2**30
UUIDS = ("GPU-aaaa", "GPU-bbbb")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings, engines or broker of this machine's; and no GPU."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a cache"))
    monkeypatch.setenv("SHOAL_ENGINES_DIR", str(tmp_path / "engines"))
    monkeypatch.setenv("SHOAL_MEMORY_SOCKET", str(tmp_path / "it's a.sock"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setitem(sys.modules, "pynvml", None)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pretended ones of 80 GiB."""
    driver = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUUID=lambda index: UUIDS[index],
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(total=80 * GIB, free=70 * GIB),
    )
    monkeypatch.setitem(sys.modules, "pynvml", driver)


def _interpreter(folder: Path, version: str | None, *, cpu: bool) -> Path:
    """Something that answers as a Python with that vLLM does."""
    seen = {"python": "3.12.1", "vllm": version, "torch": "2.11", "alias": True, "cpu": cpu}
    python = folder / "bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\necho '{json.dumps(seen)}'\n")
    python.chmod(0o755)
    command = folder / "bin/vllm"
    command.write_text(f"#!{python}\n")
    command.chmod(0o755)
    return python


def _json(result: Any) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def test_a_shell_can_eval_it(run: Run, tmp_path: Path) -> None:
    name = "o'x $(touch y) `z`"
    result = run(
        "memory", "env", "--vllm", "0.32.0", "--device", "host", "--size", "2GiB", "--floor", "1GiB", "--ceiling",
        "1.5GiB", "--priority", "7", "--required", "--name", name,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "no memory broker answers" in result.stderr  # a warning: it may be started later
    script = 'eval "$SAID"; env -0; printf "%s\\0" $ELASTIC'
    done = subprocess.run(
        ["sh", "-c", script], env={"SAID": result.stdout, "PYTHONPATH": "/mine", "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    *lines, _ = done.stdout.split("\0")
    environ = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("--"))
    assert ElasticTerms.read(environ) == ElasticTerms(
        socket=tmp_path / "it's a.sock", engine=name, floor=GIB, ceiling=3 * GIB // 2, priority=7, mode="required"
    )
    folder, _, rest = environ["PYTHONPATH"].partition(":")
    assert rest == "/mine"
    assert [entry.name for entry in Path(folder).iterdir()] == ["shoal"]
    args = lines[lines.index("--worker-cls") :]
    assert args[args.index("--kv-cache-memory-bytes") + 1] == str(2 * GIB)
    assert not (tmp_path / "y").exists()
    code = "import shoal.memory.client, os; print(os.path.dirname(shoal.__file__))"
    found = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": folder}, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip().endswith("/shoal")


def test_the_vllm_on_path_is_asked_for_its_version(
    run: Run, gpus: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _interpreter(tmp_path / "venv", "0.30.1", cpu=False)
    monkeypatch.setenv("PATH", f"{tmp_path}/venv/bin:/usr/bin:/bin")
    monkeypatch.setenv("PYTHONPATH", "/mine")
    found = _json(run("memory", "env", "--json", "--size", "50%"))
    assert (found["vllm"], found["device"]) == ("0.30.1", "GPU-aaaa")
    assert found["env"]["VLLM_KV_CACHE_LAYOUT"] == "BLNHC"
    assert found["env"]["PYTHONPATH"].endswith(":/mine")
    assert str(40 * GIB) in found["args"]
    assert "--gpu-memory-utilization" in found["args"]
    assert str(80 * GIB) in _json(run("memory", "env", "--json", "--device", "cuda:1"))["args"]
    result = run("memory", "env", "--device", "host")
    assert result.exit_code == 2
    assert "a CUDA build, which runs on GPUs" in " ".join(re.sub(r"[│\n]", " ", result.stderr).split())


def test_an_interpreter_can_be_named(run: Run, tmp_path: Path) -> None:
    python = _interpreter(tmp_path / "cpu", "0.32.0", cpu=True)
    found = _json(run("memory", "env", "--json", "--python", str(python)))
    assert (found["vllm"], found["device"]) == ("0.32.0", "host")
    assert "shoal.engines.vllm.plugin.cpu_worker.ElasticCPUWorker" in found["args"]
    assert found["env"]["SHOAL_MEMORY_ENGINE"] == ""  # it names itself after its process
    result = run("memory", "env", "--python", str(python))
    assert f"# {python.parent}/vllm serve MODEL --worker-cls" in result.stdout


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ([], 1, "there is no vllm on PATH; name its interpreter with --python, or its version with --vllm"),
        (["--vllm", "0.23.0"], 1, "supports vLLM 0.24 to 0.33, and this is 0.23.0"),
        (["--vllm", "latest"], 1, "and this is latest"),
        (["--vllm", "0.32.0", "--python", "/x"], 2, "give one of them"),
        (["--python", "/no/such/python"], 5, "there is no interpreter /no/such/python"),
        (["--python", "nosuch"], 5, "there is no engine environment nosuch"),
        (["--vllm", "0.32.0", "--device", "cuda:2"], 4, "GPUs of this machine: cuda:0, cuda:1"),
        (["--vllm", "0.32.0", "--device", "GPU-cccc"], 4, "this machine has cuda:0, cuda:1, host"),
        (["--vllm", "0.32.0", "--size", "81GiB"], 2, "is more than the device has: 80.0 GiB"),
        (["--vllm", "0.32.0", "--size", "0"], 2, "needs more than nothing"),
        (["--vllm", "0.32.0", "--size", "big"], 2, "is not a size"),
        (["--vllm", "0.32.0", "--floor", "81GiB"], 2, "is more than the device has"),
        (["--vllm", "0.32.0", "--floor", "2GiB", "--size", "1GiB"], 2, "is above the --size of 1.0 GiB"),
        (["--vllm", "0.32.0", "--floor", "2GiB", "--ceiling", "1GiB"], 2, "is above the --ceiling of 1.0 GiB"),
        (["--vllm", "0.32.0", "--priority", "0"], 2, ""),
        (["--vllm", "0.32.0", "--name", 'a"b'], 2, "none of them a quote"),
        (["--vllm", "0.32.0", "--name", "a\nb"], 2, "control character"),
    ],
)
def test_what_cannot_be_is_refused(run: Run, gpus: None, args: list[str], code: int, words: str) -> None:
    result = run("memory", "env", *args)
    assert result.exit_code == code, result.output
    assert words in " ".join(re.sub(r"[│\n]", " ", result.stderr).split())
    assert result.stdout == ""
    assert "Traceback" not in result.output
