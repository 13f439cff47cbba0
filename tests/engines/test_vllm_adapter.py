"""The adapter's command lines, and what it refuses before anything starts. No engine runs here."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.engines.base import Engine, Environment
from shoal.engines.environments import RECORD, Environments
from shoal.engines.vllm.adapter import CONTROLLED, VllmEngine
from shoal.engines.vllm.overhead import CPU_OVERHEAD, GIB, MIB
from shoal.engines.vllm.sizing import KV_DEFAULT
from shoal.engines.vllm.sources import is_local, read_source
from shoal.errors import ShoalError
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Device
from tests.engines.checkpoints import safetensors

LOGS = Path(__file__).parent / "logs"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}
HOST = Device("host", "host", "RAM", 24 * GIB, 4 * GIB)
CPU = Environment("vllm-cpu", "vllm", "cpu", Path("/envs/vllm-cpu/bin/python"), "0.32.0+cpu")
CUDA = Environment("vllm", "vllm", "cuda", Path("/envs/vllm/bin/python"), "0.32.0")


def gpu(index: int, *, used: int = 0) -> Device:
    return Device(f"cuda:{index}", "cuda", "GPU", 100 * GIB, used)


def option(argv: tuple[str, ...], name: str) -> str | None:
    return argv[argv.index(name) + 1] if name in argv else None


@pytest.fixture
def engines(tmp_path: Path) -> Environments:
    return Environments(tmp_path / "engines")


@pytest.fixture
def engine(engines: Environments) -> VllmEngine:
    return VllmEngine(engines)


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., Path]:
    def make(weights: int = 1000, **changes: Any) -> Path:
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
        safetensors(folder / "model.safetensors", BF16=weights)
        return folder

    return make


def spec(source: object, **fields: Any) -> ModelSpec:
    return ModelSpec(name="fish", source=str(source), **fields)


def record(engines: Environments, name: str, variant: str, *, registry: str | None = None) -> Path:
    """A pretended environment, as far as the files go that are read."""
    folder = engines.directory / name
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    data = {"kind": "vllm", "variant": variant, "version": "0.32.0", "managed": True}
    (folder / RECORD).write_text(json.dumps(data))
    if registry is not None:
        site = folder / "lib" / "python3.11" / "site-packages"
        for path in ("vllm/model_executor/models/registry.py", "transformers/models/auto/modeling_auto.py"):
            (site / path).parent.mkdir(parents=True)
            (site / path).write_text(registry)
    return folder


def test_it_is_an_engine(engine: VllmEngine) -> None:
    as_engine: Engine = engine
    assert as_engine.kind == "vllm"


def test_a_unix_launch_on_the_cpu(engine: VllmEngine, model: Callable[..., Path]) -> None:
    folder = model()
    launch = engine.launch(
        spec(folder, context_length=2048, dtype="bfloat16", args=("--max-num-seqs", "8"), env={"A": "b"}),
        instance="i1",
        address="unix:/run/x.sock",
        devices=[HOST],
        environment=CPU,
    )
    assert launch.argv[:5] == (str(CPU.python), "-m", "vllm.entrypoints.cli.main", "serve", str(folder))
    assert option(launch.argv, "--uds") == "/run/x.sock"
    assert option(launch.argv, "--served-model-name") == "fish"
    assert option(launch.argv, "--max-model-len") == "2048"
    assert option(launch.argv, "--dtype") == "bfloat16"
    assert option(launch.argv, "--kv-cache-memory-bytes") == str(KV_DEFAULT)
    assert "--enforce-eager" in launch.argv
    assert "--host" not in launch.argv
    assert launch.argv[-2:] == ("--max-num-seqs", "8")
    assert launch.env["A"] == "b"
    assert launch.env["HF_HUB_OFFLINE"] == "1"
    assert launch.env["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert 1 <= int(launch.env["OMP_NUM_THREADS"]) <= max(1, len(os.sched_getaffinity(0)) // 2)
    assert "CUDA_VISIBLE_DEVICES" not in launch.env


def test_a_port_is_on_loopback(engine: VllmEngine, model: Callable[..., Path]) -> None:
    launch = engine.launch(
        spec(model(), port=8123), instance="i", address="tcp:127.0.0.1:8123", devices=[HOST], environment=CPU
    )
    assert option(launch.argv, "--host") == "127.0.0.1"
    assert option(launch.argv, "--port") == "8123"
    assert "--uds" not in launch.argv


def test_a_launch_on_gpus_leaves_neighbours_alone(engine: VllmEngine) -> None:
    launch = engine.launch(
        spec("org/big", tensor_parallel=2),
        instance="i",
        address="unix:/run/x.sock",
        devices=[gpu(1), gpu(3, used=60 * GIB)],
        environment=CUDA,
    )
    assert launch.env["CUDA_VISIBLE_DEVICES"] == "1,3"
    assert launch.env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert "HF_HUB_OFFLINE" not in launch.env
    assert option(launch.argv, "--tensor-parallel-size") == "2"
    assert option(launch.argv, "--gpu-memory-utilization") == "0.390"
    assert "--enforce-eager" not in launch.argv
    assert "--kv-cache-memory-bytes" not in launch.argv


def test_the_models_own_arguments_come_last_and_win(engine: VllmEngine) -> None:
    launch = engine.launch(
        spec("org/m", kv_cache_memory="2GiB", args=("--gpu-memory-utilization", "0.5")),
        instance="i",
        address="unix:/x",
        devices=[gpu(0)],
        environment=CUDA,
    )
    assert launch.argv[-2:] == ("--gpu-memory-utilization", "0.5")
    assert option(launch.argv, "--kv-cache-memory-bytes") == str(2 * GIB)


@given(st.integers(1, 200), st.integers(0, 200))
def test_the_share_of_a_gpu_is_never_more_than_what_is_free(total: int, used: int) -> None:
    device = Device("cuda:0", "cuda", "GPU", total * GIB, min(used, total) * GIB)
    launch = VllmEngine(Environments(Path("/nowhere"))).launch(
        spec("org/m"), instance="i", address="unix:/x", devices=[device], environment=CUDA
    )
    share = float(option(launch.argv, "--gpu-memory-utilization") or "nan")
    assert 0.01 <= share <= 0.9
    assert share == 0.01 or share * device.memory_total <= device.memory_free


@pytest.mark.parametrize("name", sorted(CONTROLLED))
@pytest.mark.parametrize("form", ["{}", "{}=x", "short", "underscores"])
def test_arguments_that_shoal_gives_are_refused(
    engine: VllmEngine, model: Callable[..., Path], name: str, form: str
) -> None:
    arg = {"short": name[:-1], "underscores": "--" + name[2:].replace("-", "_")}.get(form, form.format(name))
    with pytest.raises(ShoalError) as refused:
        engine.check(spec(model(), args=(arg, "x")))
    assert refused.value.code == "bad_argument"
    assert refused.value.param == "args"
    with pytest.raises(ShoalError):
        engine.launch(spec(model(), args=(arg,)), instance="i", address="unix:/x", devices=[HOST], environment=CPU)


@pytest.mark.parametrize("arg", ["--model-impl", "--max-model-len", "--enable-lora", "-x", "--", "--host-x"])
def test_other_arguments_pass(engine: VllmEngine, model: Callable[..., Path], arg: str) -> None:
    engine.check(spec(model(), args=(arg,)))


def test_sources_that_are_no_models(engine: VllmEngine, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    file = tmp_path / "file.gguf"
    file.touch()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    for source in (tmp_path / "none", empty, file, broken, "a/b/c", "spaces are odd", "org/.."):
        with pytest.raises(ShoalError) as refused:
            engine.check(spec(source))
        assert refused.value.code == "source_not_found", source
    engine.check(spec("org/name-1.5B"))


def test_a_name_without_a_slash_is_local_if_the_folder_exists(
    model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model().parent)
    assert is_local("model")
    assert not is_local("gpt2")
    assert is_local("./gpt2")
    assert read_source("model").folder == model()


def test_a_context_beyond_the_model(engine: VllmEngine, model: Callable[..., Path]) -> None:
    with pytest.raises(ShoalError, match="8192") as refused:
        engine.check(spec(model(), context_length=8193))
    assert refused.value.code == "context_too_long"
    engine.check(spec(model(), context_length=8192))
    engine.check(spec(model(), context_length=9000, env={"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}))
    engine.check(spec(model(), context_length=9000, args=("--hf-overrides", "{}")))
    engine.check(spec(model(rope_scaling={"rope_type": "yarn", "factor": 4.0}), context_length=30000))
    engine.check(spec(model(rope_parameters={"rope_type": "llama3"}), context_length=30000))


def test_heads_that_do_not_divide(engine: VllmEngine, model: Callable[..., Path]) -> None:
    with pytest.raises(ShoalError, match="9 attention heads"):
        engine.check(spec(model(), tensor_parallel=2))
    engine.check(spec(model(), tensor_parallel=3))


def test_an_architecture_that_no_environment_knows(
    engine: VllmEngine, engines: Environments, model: Callable[..., Path]
) -> None:
    engine.check(spec(model(architectures=["NewForCausalLM"])))  # nothing is installed: nothing is known
    folder = record(engines, "vllm-cpu", "cpu", registry='"LlamaForCausalLM": ("llama", "LlamaForCausalLM")')
    engine.check(spec(model()))
    with pytest.raises(ShoalError, match="NewForCausalLM") as refused:
        engine.check(spec(model(architectures=["NewForCausalLM"])))
    assert refused.value.code == "unsupported_architecture"
    plugin = folder / "lib" / "python3.11" / "site-packages" / "extra-1.dist-info"
    plugin.mkdir()
    (plugin / "entry_points.txt").write_text("[vllm.general_plugins]\nx = x:y\n")
    engine.check(spec(model(architectures=["NewForCausalLM"])))


def test_needs_are_weights_and_cache_and_overhead(engine: VllmEngine, model: Callable[..., Path]) -> None:
    folder = model(weights=300 * MIB)
    assert engine.needs(spec(folder, kv_cache_memory="1GiB")) == 300 * MIB + GIB + CPU_OVERHEAD
    assert engine.needs(spec(folder, tensor_parallel=3, kv_cache_memory="1GiB")) == 100 * MIB + GIB + CPU_OVERHEAD
    assert engine.needs(spec(folder, dtype="float32", kv_cache_memory="1GiB")) == 600 * MIB + GIB + CPU_OVERHEAD
    assert engine.needs(spec("org/not-here")) is None
    assert engine.needs(spec("/not/here")) is None
    assert engine.needs(spec(folder, environment="gone", kv_cache_memory="1GiB")) == 300 * MIB + GIB + CPU_OVERHEAD


def test_the_default_cache_holds_one_context(engine: VllmEngine, model: Callable[..., Path]) -> None:
    per_token = 2 * 2 * 30 * 3 * 64
    needs = engine.needs(spec(model(weights=2, max_position_embeddings=65536), elastic="off"))
    assert needs == 2 + per_token * (65536 + 256) + CPU_OVERHEAD


def test_a_hub_id_in_the_local_cache_is_known(
    engine: VllmEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    repository = tmp_path / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    (snapshot / "config.json").write_text(json.dumps(CONFIG))
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    for name, size in (("one", 100), ("two", 50), ("consolidated", 999)):
        safetensors(snapshot / f"{name}.safetensors", U8=size)
    assert engine.needs(spec("org/name", kv_cache_memory=1)) == 151 + CPU_OVERHEAD
    with pytest.raises(ShoalError, match="8192"):
        engine.check(spec("org/name", context_length=10000))


def test_the_environment_follows_the_device(engine: VllmEngine, engines: Environments) -> None:
    with pytest.raises(ShoalError, match="shoal engines install vllm-cpu") as missing:
        engine.environment(spec("org/m"), [HOST])
    assert missing.value.code == "engine_not_installed"
    record(engines, "vllm-cpu", "cpu")
    assert engine.environment(spec("org/m"), [HOST]).name == "vllm-cpu"
    with pytest.raises(ShoalError, match=r"shoal engines install vllm$"):
        engine.environment(spec("org/m"), [gpu(0)])
    with pytest.raises(ShoalError) as wrong:
        engine.environment(spec("org/m", environment="vllm-cpu"), [gpu(0)])
    assert wrong.value.code == "wrong_environment"


def test_metrics_of_a_real_engine(engine: VllmEngine) -> None:
    metrics = engine.read_metrics((LOGS / "metrics.txt").read_text())
    assert metrics.requests_running == 0
    assert metrics.prompt_tokens_total == 37
    assert metrics.generation_tokens_total == 8
    assert metrics.steps_total == 8
    assert metrics.prefix_queries_total == 37
    assert metrics.kv_usage == 0


@given(st.text(max_size=500))
def test_broken_metrics_are_skipped(text: str) -> None:
    VllmEngine(Environments(Path("/nowhere"))).read_metrics(text)


def test_no_sleep_is_promised(engine: VllmEngine) -> None:
    assert not engine.capabilities(spec("org/m", args=("--enable-sleep-mode",))).sleep
