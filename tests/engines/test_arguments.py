"""What is read of engines' arguments without starting them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.engines.arguments import read_count, read_lora_names, values_of
from shoal.engines.environments import Environments
from shoal.engines.simulated.adapter import SimulatedEngine
from shoal.engines.simulated.options import parse
from shoal.engines.vllm.adapter import VllmEngine
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Device

GIB = 2**30
HOST = Device("host", "host", "memory", 512 * GIB, 0)


def gpu(name: str, gib: int) -> Device:
    return Device("cuda:0", "cuda", name, gib * GIB, 0)


@pytest.mark.parametrize(
    ("args", "count"),
    [
        ((), 256),
        (("--max-num-seqs", "16"), 16),
        (("--max-num-seqs=16",), 16),
        (("--max_num_seqs=16",), 16),
        (("--max-num-seqs", "16", "--other", "--max-num-seqs", "8"), 8),
        (("--max-num-seqs-of-others", "3"), 256),
        (("--max-num-seqs", "0"), None),
        (("--max-num-seqs", "-1"), None),
        (("--max-num-seqs", "many"), None),
        (("--max-num-seqs=",), None),
        (("--max-num-seqs",), None),
    ],
)
def test_counts_are_read_as_the_engine_would(args: tuple[str, ...], count: int | None) -> None:
    assert read_count(args, "--max-num-seqs", 256) == count


@pytest.mark.parametrize(
    ("args", "names"),
    [
        ((), ()),
        (("--lora-modules", "sql=/a", "chat=/b=c", "--port", "x=y"), ("sql", "chat")),
        (("--lora_modules=sql=/a",), ("sql",)),
        (("--lora-modules", '{"name": "sql", "path": "/a", "base_model_name": "b"}', "x=/y"), ("sql", "x")),
        (('--lora-modules={"path":"/a,b","name":"a=b"}',), ("a=b",)),
        (("--lora-modules", "a=/x", "--lora-modules", "b=/y"), ("b",)),
        (("--lora-modules", "a=/x", "a=/y"), ("a",)),
        (("--lora-modules", "=x", "{", '{"name":3}', '["name"]', "null", "plain", ""), ()),
        (("--lora-modules",), ()),
        (("--lora-modules", "[" * 100_000), ()),
    ],
)
def test_adapters_are_read_in_both_forms(args: tuple[str, ...], names: tuple[str, ...]) -> None:
    assert read_lora_names(args) == names


@given(st.lists(st.text(max_size=12) | st.sampled_from(["--lora-modules", "--max-num-seqs", "a=b", "3"])))
def test_no_arguments_are_too_strange_to_read(args: list[str]) -> None:
    assert all(read_lora_names(args))
    count = read_count(args, "--max-num-seqs", 256)
    assert count is None or count >= 1
    assert all(value in args or any(value in arg for arg in args) for value in values_of(args, "--lora-modules"))


@pytest.mark.parametrize(
    ("device", "tensor_parallel", "args", "capacity"),
    [
        (HOST, 1, (), 128),
        (HOST, 2, (), 256),
        (gpu("NVIDIA H200", 140), 1, (), 1024),
        (gpu("NVIDIA H200", 140), 1, ("--data-parallel-size=2",), 2048),
        (gpu("NVIDIA A100-SXM4-80GB", 80), 1, (), 256),
        (gpu("NVIDIA GB10", 119), 1, (), 256),
        (gpu("NVIDIA L4", 22), 1, (), 256),
        (gpu("NVIDIA H200", 140), 1, ("--max-num-seqs", "16"), 16),
        (gpu("NVIDIA H200", 140), 1, ("--max-num-seqs", "?"), None),
    ],
)
def test_vllm_runs_as_many_as_it_would_by_itself(
    tmp_path: Path, device: Device, tensor_parallel: int, args: tuple[str, ...], capacity: int | None
) -> None:
    engine = VllmEngine(Environments(tmp_path))
    spec = ModelSpec(name="m", source="x", tensor_parallel=tensor_parallel, args=args)
    assert engine.capacity(spec, [device]) == capacity
    assert engine.lora_names(spec.model_copy(update={"args": ("--lora-modules", "a=/x")})) == ("a",)


def test_the_simulated_engine_runs_as_many_as_its_options_say() -> None:
    engine = SimulatedEngine()
    for args in ((), ("--max-num-seqs", "3")):
        spec = ModelSpec(name="m", source="x", engine="simulated", args=args)
        assert engine.capacity(spec, [HOST]) == parse(args).max_num_seqs
    assert engine.lora_names(spec) == ()
