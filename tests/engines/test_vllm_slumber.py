"""Which instances of vLLM can sleep, and how they are started so. No engine runs here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shoal.engines.base import Environment, Launch
from shoal.engines.environments import Environments
from shoal.engines.vllm.adapter import VllmEngine
from shoal.engines.vllm.slumber import WORKER, why_sleepless
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Device
from shoal.memory.elastic import ElasticTerms

GIB = 2**30
CPU = Environment("vllm-cpu", "vllm", "cpu", Path("/envs/vllm-cpu/bin/python"), "0.32.0+cpu")
CUDA = Environment("vllm", "vllm", "cuda", Path("/envs/vllm/bin/python"), "0.32.0")
GPU = Device("cuda:0", "cuda", "GPU", 100 * GIB, 0)
HOST = Device("host", "host", "RAM", 24 * GIB, 4 * GIB)
TERMS = ElasticTerms(Path("/run/memory.sock"), "i")


def spec(**settings: Any) -> ModelSpec:
    return ModelSpec(**{"name": "m", "source": "org/m", **settings})


def launch(tmp_path: Path, environment: Environment = CUDA, *, elastic: bool = True, **settings: Any) -> Launch:
    return VllmEngine(Environments(tmp_path)).launch(
        spec(**settings),
        instance="i",
        address="tcp:127.0.0.1:9" if "port" in settings else "unix:/x",
        devices=[HOST if environment is CPU else GPU],
        environment=environment,
        memory=TERMS if elastic else None,
    )


@pytest.mark.parametrize("elastic", [True, False])
def test_on_a_gpu_it_is_started_so_that_it_can(tmp_path: Path, elastic: bool) -> None:
    made = launch(tmp_path, elastic=elastic)
    assert made.can_sleep
    assert made.sleepless_because == ""
    assert made.argv.count("--enable-sleep-mode") == 1
    assert made.env["VLLM_SERVER_DEV_MODE"] == "1"
    assert launch(tmp_path, args=("--enable-sleep-mode",)).argv.count("--enable-sleep-mode") == 1


def test_one_that_sleeps_keeps_copies_of_its_weights_whether_it_is_elastic_or_not(tmp_path: Path) -> None:
    made = launch(tmp_path, elastic=False, args=("--worker-cls", "mine"), env={"PYTHONPATH": "/mine"})
    assert [made.argv[at + 1] for at, arg in enumerate(made.argv) if arg == "--worker-cls"] == [WORKER, "mine"]
    assert made.env["PYTHONPATH"].endswith(":/mine")
    assert launch(tmp_path).argv.count("--worker-cls") == 1, "the elastic worker does it too"


@pytest.mark.parametrize(
    "told", [{"sleep": "off"}, {"environment": replace(CUDA, version="0.23.1")}, {"environment": CPU}]
)
def test_where_there_can_be_no_copies_the_worker_is_vllms_own(tmp_path: Path, told: dict[str, Any]) -> None:
    made = launch(tmp_path, elastic=False, **told)
    assert "--worker-cls" not in made.argv
    assert "PYTHONPATH" not in made.env


@pytest.mark.parametrize("elastic", [True, False])
def test_on_the_cpu_it_says_that_it_cannot(tmp_path: Path, elastic: bool) -> None:
    made = launch(tmp_path, CPU, elastic=elastic)
    assert not made.can_sleep
    assert made.sleepless_because == "vLLM on the CPU frees nothing when it sleeps"
    assert "--enable-sleep-mode" not in made.argv, "vLLM refuses it there"
    assert "VLLM_SERVER_DEV_MODE" not in made.env


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"sleep": "off"}, "sleep is off"),
        ({"sleep": False}, "sleep is off"),  # what YAML makes of off
        ({"port": 9000}, "reach the paths"),
        ({"env": {"VLLM_SERVER_DEV_MODE": "0"}}, "VLLM_SERVER_DEV_MODE is not 1"),
        ({"env": {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}}, "exclude each other"),
        ({"args": ("--kv-cache-dtype", "fp8")}, "elastic is preferred"),
        ({"args": ("--kv-cache-dtype=fp8_e5m2",)}, "elastic is preferred"),
    ],
)
def test_what_keeps_it_from_sleeping(tmp_path: Path, settings: dict[str, Any], reason: str) -> None:
    made = launch(tmp_path, **settings)
    assert not made.can_sleep
    assert reason in made.sleepless_because
    assert "--enable-sleep-mode" not in made.argv
    assert made.elastic, "elastic memory is none the worse for it"


def test_a_quantised_cache_of_fixed_size_may_sleep() -> None:
    assert why_sleepless(spec(args=("--kv-cache-dtype", "fp8"), elastic="off"), "cuda") == ""
    assert why_sleepless(spec(args=("--kv-cache-dtype", "bfloat16")), "cuda") == ""


@pytest.mark.parametrize("args", [("--quantization", "fp8"), ("-q", "awq"), ("--load_format=bitsandbytes",)])
def test_weights_that_are_changed_while_they_are_loaded_are_not_known(tmp_path: Path, args: tuple[str, ...]) -> None:
    assert VllmEngine(Environments(tmp_path)).sleep_frees(spec(args=args)) is None
