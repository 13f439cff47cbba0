"""What vLLM is told about elastic memory, and when its KV cache has a fixed size instead. No engine runs here."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.engines.base import Environment, Launch
from shoal.engines.environments import Environments
from shoal.engines.vllm import elastic
from shoal.engines.vllm.adapter import VllmEngine
from shoal.engines.vllm.overhead import CPU_OVERHEAD, GIB, MIB
from shoal.engines.vllm.sizing import FIXED_BY, KV_DEFAULT, virtual_kv, why_fixed
from shoal.errors import ShoalError
from shoal.fleet.spec import WORKING_SET, ModelSpec
from shoal.fleet.state import Device
from shoal.memory.elastic import ElasticTerms
from tests.engines.test_vllm_adapter import CPU, CUDA, HOST, engine, engines, gpu, model, option, record, spec

__all__ = ["engine", "engines", "model"]  # fixtures
TERMS = ElasticTerms(Path("/run/memory.sock"), "i1", floor=GIB, priority=7)
OLD = Environment("old", "vllm", "cuda", Path("/old/bin/python"), "0.23.1")


def launch(
    engine: VllmEngine, settings: ModelSpec, environment: Environment = CPU, devices: Sequence[Device] = (HOST,)
) -> Launch:
    return engine.launch(
        settings, instance="i1", address="unix:/x", devices=devices, environment=environment, memory=TERMS
    )


def test_on_the_cpu(engine: VllmEngine, model: Callable[..., Path]) -> None:
    made = launch(engine, spec(model(weights=300 * MIB), env={"PYTHONPATH": "/mine"}))
    assert made.elastic
    assert made.fixed_because == ""
    assert option(made.argv, "--worker-cls") == elastic.WORKER["cpu"]
    assert option(made.argv, "--scheduler-cls") == elastic.SCHEDULER
    assert made.argv.count("--kv-cache-memory-bytes") == 1
    size = int(option(made.argv, "--kv-cache-memory-bytes") or 0)
    assert KV_DEFAULT < size < HOST.memory_free - 300 * MIB - CPU_OVERHEAD, "its CPU worker refuses more"
    told = ElasticTerms.read(made.env)
    assert (told.engine, told.floor, told.priority, told.fixed) == ("i1", GIB, 7, KV_DEFAULT)
    folder, own = made.env["PYTHONPATH"].split(":")
    assert own == "/mine"
    assert os.listdir(folder) == ["shoal"], "nothing of Shoal's site-packages may reach an engine"  # noqa: PTH208


def test_on_gpus(engine: VllmEngine) -> None:
    made = launch(engine, spec("org/m", tensor_parallel=2), CUDA, [gpu(0, used=90 * GIB), gpu(1)])
    assert made.elastic
    assert option(made.argv, "--kv-cache-memory-bytes") == str(100 * GIB), "address space, not memory"
    assert float(option(made.argv, "--gpu-memory-utilization") or 1) < 0.1
    assert made.argv.count("--gpu-memory-utilization") == 1


@pytest.mark.parametrize("arg", sorted(FIXED_BY))
@pytest.mark.parametrize("form", ["{}", "{}=x", "short", "underscores"])
def test_arguments_that_leave_no_room_for_it(engine: VllmEngine, arg: str, form: str) -> None:
    given = {"short": arg[:-1], "underscores": "--" + arg[2:].replace("-", "_")}.get(form, form.format(arg))
    made = launch(engine, spec("org/m", args=(given, "x")), CUDA, [gpu(0)])
    assert not made.elastic
    assert arg in made.fixed_because
    assert elastic.WORKER["cuda"] not in made.argv
    assert "SHOAL_MEMORY_SOCKET" not in made.env
    for refuse in (engine.check, lambda settings: launch(engine, settings, CUDA, [gpu(0)])):
        with pytest.raises(ShoalError, match=arg) as refused:
            refuse(spec("org/m", args=(given, "x"), elastic="required"))
        assert refused.value.code == "not_elastic"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"elastic": "off"}, "elastic is off"),
        ({"kv_cache_memory": GIB}, "kv_cache_memory gives"),
        ({"args": ("-dp", "2")}, "--data-parallel-size"),
        ({"env": {"VLLM_KV_CACHE_LAYOUT": "NHD"}}, "VLLM_KV_CACHE_LAYOUT"),
    ],
)
def test_settings_that_fix_its_size(engine: VllmEngine, settings: dict[str, Any], reason: str) -> None:
    assert reason in why_fixed(spec("org/m", **settings))
    assert reason in launch(engine, spec("org/m", **settings), CUDA, [gpu(0)]).fixed_because


@pytest.mark.parametrize("args", [(), ("--max-num-seqs", "8"), ("--enable-sleep-mode",), ("--kv-cache-dtype", "fp8")])
def test_other_arguments_do_not(args: tuple[str, ...]) -> None:
    assert why_fixed(spec("org/m", args=args)) == ""


def test_a_version_that_cannot_be_elastic(
    engine: VllmEngine, engines: Environments, model: Callable[..., Path]
) -> None:
    made = launch(engine, spec("org/m"), OLD, [gpu(0)])
    assert not made.elastic
    assert "0.24 to 0.33, and this is 0.23.1" in made.fixed_because
    assert option(made.argv, "--gpu-memory-utilization") == "0.900"
    with pytest.raises(ShoalError, match=r"0\.24 to 0\.33"):
        launch(engine, spec("org/m", elastic="required"), OLD, [gpu(0)])
    folder = record(engines, "old", "cpu")
    (folder / "shoal-engine.json").write_text((folder / "shoal-engine.json").read_text().replace("0.32.0", "0.23.1"))
    engine.check(spec(model()))
    with pytest.raises(ShoalError, match=r"0\.24 to 0\.33"):
        engine.check(spec(model(), elastic="required"))
    record(engines, "new", "cpu")
    engine.check(spec(model(), elastic="required"))


def test_without_a_broker_its_size_is_fixed(engine: VllmEngine) -> None:
    made = engine.launch(spec("org/m"), instance="i", address="unix:/x", devices=[gpu(0)], environment=CUDA)
    assert not made.elastic
    assert made.fixed_because


def test_an_elastic_model_needs_its_floor_and_no_whole_cache(engine: VllmEngine, model: Callable[..., Path]) -> None:
    folder = model(weights=300 * MIB)
    beside = 300 * MIB + CPU_OVERHEAD
    assert engine.needs(spec(folder)) == beside + WORKING_SET
    assert engine.needs(spec(folder, floor=GIB)) == beside + GIB
    assert engine.needs(spec(folder, ceiling=MIB)) == beside + MIB
    assert engine.needs(spec(folder, args=("--worker-cls", "x"))) == beside + KV_DEFAULT
    assert engine.weights(spec(folder, tensor_parallel=3)) == 100 * MIB
    assert engine.capabilities(spec(folder)).elastic
    assert not engine.capabilities(spec(folder, elastic="off")).elastic


@given(st.integers(0, 64 * 1024), st.integers(0, 64 * 1024), st.none() | st.integers(1, 64 * 1024))
def test_a_host_is_asked_for_no_more_than_it_has_and_no_less_than_one_context(
    free: int, beside: int, ceiling: int | None
) -> None:
    host = Device("host", "host", "RAM", 64 * GIB, 64 * GIB - free * MIB)
    settings = spec("org/m", ceiling=None if ceiling is None else ceiling * MIB)
    size = virtual_kv(settings, None, [host], beside * MIB)
    least = virtual_kv(settings, None, [], 0)
    assert size >= least
    assert size == least or size <= max(0, free - beside) * MIB
    assert size == least or ceiling is None or size <= ceiling * MIB
