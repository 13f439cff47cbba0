"""KV cache by the shape of attention, against numbers worked out by hand; and configurations that cannot be."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.engines.vllm.overhead import CPU_OVERHEAD, CUDA_OVERHEAD, GIB, activations, graphs, overhead
from shoal.engines.vllm.shapes import KV_BYTES, Widths, read_kv, read_widths
from shoal.engines.vllm.sizing import kv_cost
from shoal.engines.vllm.sources import Source
from shoal.errors import ShoalError
from shoal.fleet.needs import KvCost, KvLayers
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Device

LLAMA_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
}  # fmt: skip
DEEPSEEK_V3 = {
    "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128,
    "kv_lora_rank": 512, "qk_rope_head_dim": 64, "v_head_dim": 128,
}  # fmt: skip
GEMMA3_27B = {
    "hidden_size": 5376, "num_hidden_layers": 62, "num_attention_heads": 32, "num_key_value_heads": 16,
    "head_dim": 128, "sliding_window": 1024, "sliding_window_pattern": 6, "model_type": "gemma3_text",
}  # fmt: skip
H200 = Device("cuda:0", "cuda", "NVIDIA H200", 140 * GIB, 0)
SMALL = Device("cuda:0", "cuda", "NVIDIA L4", 23 * GIB, 0)


def spec(*args: str, **settings: Any) -> ModelSpec:
    return ModelSpec(name="m", source="x", args=args, **settings)


def kv(config: dict[str, Any], **options: int) -> KvCost:
    found = read_kv(config, **options)
    assert found is not None
    return found


def test_grouped_query_attention() -> None:
    assert kv(LLAMA_8B).per_token == 131072  # 2 · 32 layers · 8 heads · 128 · 2 bytes
    assert kv(LLAMA_8B, element=1).per_token == 65536
    assert kv(LLAMA_8B).of_request(1000) == 131_072_000
    assert kv(LLAMA_8B).of_request(1, block=16) == 16 * 131072, "whole blocks"
    assert kv(LLAMA_8B).of_request(0, block=16) == 0


def test_heads_are_split_over_devices_and_then_repeated() -> None:
    assert [kv(LLAMA_8B, tensor_parallel=n).per_token for n in (2, 8, 16)] == [65536, 16384, 16384]


def test_multi_head_attention_is_grouped_with_groups_of_one() -> None:
    config = {key: value for key, value in LLAMA_8B.items() if key != "num_key_value_heads"}
    assert kv(config).per_token == 4 * 131072
    assert kv({"n_layer": 12, "n_head": 12, "n_embd": 768}).per_token == 2 * 12 * 768 * 2  # GPT-2
    falcon = {"num_hidden_layers": 32, "num_attention_heads": 71, "hidden_size": 4544, "multi_query": True}
    assert kv(falcon).per_token == 2 * 32 * 64 * 2


def test_latent_attention_keeps_one_vector_on_every_device() -> None:
    assert kv(DEEPSEEK_V3).per_token == 61 * (512 + 64) * 2 == 70272
    assert kv(DEEPSEEK_V3, tensor_parallel=8).per_token == 70272


def test_windows_bound_what_a_long_request_takes() -> None:
    found = kv(GEMMA3_27B)
    each = 2 * 16 * 128 * 2
    assert found.groups == (KvLayers(10, each), KvLayers(52, each, 1024))
    assert found.of_request(1024) == 62 * each * 1024
    assert found.of_request(100_000) == each * (10 * 100_000 + 52 * 1024)


def test_layers_named_one_by_one() -> None:
    types = ["sliding_attention", "full_attention"] * 12
    gpt_oss = {"num_hidden_layers": 24, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64,
               "sliding_window": 128, "layer_types": types, "hidden_size": 2880}  # fmt: skip
    assert kv(gpt_oss).groups == (KvLayers(12, 2048), KvLayers(12, 2048, 128))
    assert kv(gpt_oss | {"sliding_window": None}).groups == (KvLayers(24, 2048),), "a window of no length is none"
    linear = kv(gpt_oss | {"layer_types": ["linear_attention"] * 18 + ["full_attention"] * 6})
    assert linear.groups == (KvLayers(6, 2048),)
    assert "18 layers" in linear.note
    assert read_kv(gpt_oss | {"layer_types": ["some_new_attention"] * 24}) is None
    assert kv(gpt_oss | {"num_kv_shared_layers": 4}).per_token == 20 * 2048
    with pytest.raises(ShoalError, match="the kinds of 2 layers, and has 24"):
        read_kv(gpt_oss | {"layer_types": ["full_attention"] * 2})


@pytest.mark.parametrize(
    ("changes", "windowed"),
    [
        ({"sliding_window": 4096}, 32),  # Mistral 7B
        ({"sliding_window": 4096, "use_sliding_window": False}, 0),  # Qwen2
        ({"sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 28}, 4),
        ({"sliding_window": 4096, "model_type": "gemma2"}, 16),
        ({"sliding_window": None}, 0),
        ({"full_attention_interval": 4}, 0),
    ],
)
def test_windows_by_the_custom_of_the_family(changes: dict[str, Any], windowed: int) -> None:
    groups = kv(LLAMA_8B | changes).groups
    assert sum(group.layers for group in groups if group.window is not None) == windowed


@pytest.mark.parametrize(
    "config",
    [{}, {"num_hidden_layers": 2}, {"num_hidden_layers": 2, "num_attention_heads": 2}, {"kv_lora_rank": 512},
     LLAMA_8B | {"is_encoder_decoder": True}, LLAMA_8B | {"hybrid_override_pattern": "M-M*"},
     LLAMA_8B | {"num_hidden_layers": "32"}, LLAMA_8B | {"num_hidden_layers": True},
     DEEPSEEK_V3 | {"qk_rope_head_dim": None}],
)  # fmt: skip
def test_what_is_not_said_is_not_known(config: dict[str, Any]) -> None:
    assert read_kv(config) is None


@pytest.mark.parametrize(
    "changes",
    [{"num_hidden_layers": 10**9}, {"num_hidden_layers": -1}, {"hidden_size": 10**12}, {"num_attention_heads": 10**6},
     {"num_attention_heads": 8192}, {"head_dim": -128}, {"num_key_value_heads": -8}],
)  # fmt: skip
def test_numbers_that_cannot_be_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ShoalError) as caught:
        read_kv(LLAMA_8B | changes)
    assert caught.value.code == "bad_config"


_numbers = st.none() | st.booleans() | st.integers(-10, 10**12) | st.floats() | st.text(max_size=3) | st.just([1, "x"])
_keys = [*LLAMA_8B, "kv_lora_rank", "qk_rope_head_dim", "sliding_window", "layer_types", "head_dim", "model_type",
         "num_kv_shared_layers", "full_attention_interval", "sliding_window_pattern"]  # fmt: skip


@given(st.dictionaries(st.sampled_from(_keys), _numbers), st.sampled_from([1, 2, 4]), st.integers(1, 8))
def test_no_configuration_crashes(changes: dict[str, Any], element: int, ranks: int) -> None:
    config = {**LLAMA_8B, **changes}
    found, code = None, "bad_config"
    try:
        found = read_kv(config, element=element, tensor_parallel=ranks)
        read_widths(config)
    except ShoalError as error:
        code = error.code
    assert code == "bad_config"
    assert found is None or found.per_token >= 0


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from([1, 16, 128]))
def test_longer_requests_never_take_less(one: int, other: int, block: int) -> None:
    short, long = sorted((one, other))
    found = kv(GEMMA3_27B)
    assert found.of_request(short, block) <= found.of_request(long, block)
    assert found.of_request(long, block) <= found.per_token * (long + block)


@pytest.mark.parametrize(("named", "expected"), [("fp8", 1), ("auto", 2), ("bfloat16", 2), ("int3", None)])
def test_the_data_type_of_the_cache(named: str, expected: int | None) -> None:
    source = Source("x", False, None, dict(LLAMA_8B))
    found = kv_cost(spec("--kv-cache-dtype", named), source)
    assert (found.per_token if found else None) == (None if expected is None else 65536 * expected)
    assert kv_cost(spec(dtype="float32"), source) == read_kv(LLAMA_8B, element=4)
    assert set(KV_BYTES.values()) == {1, 2}


def test_overhead_of_the_model_that_was_measured() -> None:
    """Llama-3.1-8B on an H200: 17.8 GiB in use while idle, of which 15.0 are weights and 1.0 are graphs."""
    widths = read_widths(LLAMA_8B)
    assert widths == Widths(4096, 14336, 32, 128256)
    assert graphs(spec(), widths, [H200]) == GIB
    assert 2.5 * GIB < overhead(spec(), widths, "cuda", [H200]) < 3.2 * GIB


def test_overhead_follows_the_settings() -> None:
    widths = Widths(4096, 14336, 32, 128256)
    assert graphs(spec("--enforce-eager"), widths, [H200]) == 0
    assert graphs(spec("--max-num-seqs", "64"), widths, [H200]) == GIB // 4
    small, large = activations(spec(), widths, [SMALL]), activations(spec(), widths, [H200])
    assert small < large
    long = activations(spec("--max-num-batched-tokens=65536"), widths, [H200])
    assert long == 65536 * 2 * (2 * 4096 + 3 * 14336)
    assert activations(spec("--max-num-batched-tokens=65536", tensor_parallel=8), widths, [H200]) < long
    assert overhead(spec(), None, "cuda", [H200]) == CUDA_OVERHEAD
    assert overhead(spec(), None, "cpu", []) == CPU_OVERHEAD
    assert overhead(spec(), widths, "cpu", []) > CPU_OVERHEAD


def test_experts_count_as_wide_as_those_chosen() -> None:
    moe = LLAMA_8B | {"intermediate_size": 768, "moe_intermediate_size": 768, "num_experts_per_tok": 8}
    assert read_widths(moe) == Widths(4096, 6144, 32, 128256)
