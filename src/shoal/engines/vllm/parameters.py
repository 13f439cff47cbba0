"""How many parameters a model of some shape has, for models whose files of weights are not here yet. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal.engines.vllm.shapes import HYBRIDS, read_attention, read_widths

_ELSEWHERE = (
    "num_experts", "n_routed_experts", "num_local_experts", "moe_intermediate_size", "kv_lora_rank",
    "vision_config", "audio_config", *HYBRIDS,
)  # fmt: skip
"""Parts whose size is not that of a dense decoder's layers, in each family in its own way."""


def dense_parameters(config: Mapping[str, Any]) -> int | None:
    """The parameters of a dense decoder of the shape that Llama, Qwen, Mistral and Gemma share; None for others, and
    where the configuration does not say enough. Raises ShoalError (`bad_config`).

    Each layer has queries and the output (hidden · heads · head size each), keys and values (hidden · KV heads · head
    size each) and a gated projection (3 · hidden · inner): Touvron et al., arXiv:2302.13971, section 2.2. Words have
    a vector each, and another one in the head unless it is tied to them. Norms and biases are left out: a thousandth.
    """
    widths = read_widths(config)
    if widths is None or widths.vocabulary is None or any(config.get(name) for name in _ELSEWHERE):
        return None
    attention = read_attention(config)
    if attention is None or "intermediate_size" not in config or config.get("is_encoder_decoder") is True:
        return None
    projections = widths.hidden * attention.size * 2 * (attention.heads + attention.kv_heads)
    tables = 1 if config.get("tie_word_embeddings") is True else 2
    return widths.layers * (projections + 3 * widths.hidden * widths.inner) + tables * widths.vocabulary * widths.hidden
