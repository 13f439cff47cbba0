"""The size of a model by its shape alone, against what is published of real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shoal.engines.vllm.parameters import dense_parameters
from shoal.engines.vllm.sizing import estimate
from shoal.engines.vllm.sources import Source
from shoal.fleet.spec import ModelSpec
from tests.engines.test_shapes import DEEPSEEK_V3, LLAMA_8B

QWEN3_8B = {
    "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
}  # fmt: skip
LLAMA_1B = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "published"), [(LLAMA_8B, 8.03e9), (QWEN3_8B, 8.19e9), (LLAMA_1B, 1.236e9)], ids=["8B", "Qwen3", "tied"]
)
def test_dense_models_have_as_many_as_published(config: dict[str, Any], published: float) -> None:
    assert dense_parameters(config) == pytest.approx(published, rel=0.002)


@pytest.mark.parametrize(
    "config",
    [
        DEEPSEEK_V3,
        {**LLAMA_8B, "num_local_experts": 8},
        {**LLAMA_8B, "vision_config": {"hidden_size": 1024}},
        {**LLAMA_8B, "is_encoder_decoder": True},
        {key: value for key, value in LLAMA_8B.items() if key != "vocab_size"},
        {},
    ],
    ids=["latent attention", "experts", "sees", "encoder", "no vocabulary", "empty"],
)
def test_of_other_models_nothing_is_concluded(config: dict[str, Any]) -> None:
    assert dense_parameters(config) is None


def folder(path: Path, **more: object) -> Source:
    """A model's folder without weights."""
    config = {**LLAMA_8B, "torch_dtype": "bfloat16", **more}
    (path / "config.json").write_text(json.dumps(config))
    return Source(str(path), True, path, config)


def test_a_model_without_files_of_weights_is_estimated_and_says_so(tmp_path: Path) -> None:
    spec = ModelSpec.model_validate({"name": "m", "source": str(tmp_path), "context_length": 4096})
    whole = estimate(spec, folder(tmp_path), "cuda", [], elastic=True)
    assert whole.weights == 2 * (dense_parameters(LLAMA_8B) or 0)
    assert any("estimated from the model's shape" in note for note in whole.notes)
    half = estimate(spec.model_copy(update={"tensor_parallel": 2}), folder(tmp_path), "cuda", [], elastic=True)
    assert half.weights == whole.weights // 2
    wide = estimate(spec.model_copy(update={"dtype": "float32"}), folder(tmp_path), "cuda", [], elastic=True)
    assert wide.weights == 2 * whole.weights
    small = estimate(spec, folder(tmp_path, quantization_config={"bits": 4}), "cuda", [], elastic=True)
    assert small.weights is None
    assert any("not known" in note for note in small.notes)
