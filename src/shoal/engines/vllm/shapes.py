"""What a model's configuration says of its shape: how its KV cache grows, and how wide its layers are. Pure.

Names are those of Hugging Face's `config.json`, with the older ones of GPT-2, Falcon and ChatGLM. What a configuration
leaves out is unknown (None); what no model can have (a negative width, a billion layers) is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shoal.errors import ShoalError
from shoal.fleet.needs import KvCost, KvLayers

MOST = {"layers": 10_000, "heads": 100_000, "width": 10_000_000, "tokens": 10**9}
"""Beyond these a number is a mistake: the largest models have a hundredth of each."""
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "multi_query_group_num")
_INNER = ("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim")

KV_BYTES = {
    "auto": 2, "bfloat16": 2, "float16": 2, "half": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "fp8_inc": 1,
}  # fmt: skip
"""Bytes of an element of the KV cache by `--kv-cache-dtype`; `auto` is the model's 16 bits."""
FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
STATES = ("linear_attention", "mamba", "conv", "recurrent")
"""Kinds of layers that keep a state instead of tokens."""
HYBRIDS = ("layers_block_type", "hybrid_override_pattern", "ssm_state_size", "block_configs")
"""Configurations of layers of many kinds, each family in its own way; nothing is concluded from them."""
_PATTERNS = {"gemma2": 2, "gemma3_text": 6, "gemma3": 6, "cohere2": 4}
"""Families whose configurations may leave out that every so-manieth layer alone attends to everything."""


@dataclass(frozen=True, slots=True)
class Widths:
    """How wide a model is, in elements; what activations are made of. None: not said."""

    hidden: int
    inner: int
    layers: int
    vocabulary: int | None


@dataclass(frozen=True, slots=True)
class Attention:
    """Heads of a layer, those of them with keys and values of their own, and the elements of each."""

    heads: int
    kv_heads: int
    size: int


def read_widths(config: Mapping[str, Any]) -> Widths | None:
    """The widths of a language model, or None if its configuration does not give them. Raises ShoalError."""
    hidden, layers = _first(config, _HIDDEN, "width"), _first(config, _LAYERS, "layers")
    if hidden is None or layers is None:
        return None
    inner = _first(config, _INNER, "width") or 4 * hidden
    experts, chosen = _whole(config, "moe_intermediate_size", "width"), _whole(config, "num_experts_per_tok", "heads")
    if experts is not None and chosen is not None:
        inner = max(inner, experts * chosen)
    return Widths(hidden, inner, layers, _whole(config, "vocab_size", "width"))


def read_kv(config: Mapping[str, Any], *, element: int = 2, tensor_parallel: int = 1) -> KvCost | None:
    """What the KV cache takes on one of `tensor_parallel` devices, with elements of `element` bytes.

    - Multi-head and grouped-query attention keep a key and a value of `head_dim` for each KV head: 2 · heads ·
      head_dim elements a token and layer. Heads are split over devices; fewer heads than devices are repeated (vLLM's
      `ModelConfig.get_num_kv_heads`).
    - Multi-head latent attention keeps one compressed vector and the rotary part of one key: `kv_lora_rank` +
      `qk_rope_head_dim` elements, on every device (DeepSeek-V2, arXiv:2405.04434, section 2.1; vLLM's
      `MLAAttentionSpec`).
    - Layers with a sliding window or chunks keep the last tokens of it only.
    - Layers without attention keep a state that does not grow; it is not counted, and `KvCost.note` says so.

    None if the configuration does not say, or has a KV cache of another kind. Raises ShoalError (`bad_config`).
    """
    layers = _first(config, _LAYERS, "layers")
    if layers is None or config.get("is_encoder_decoder") is True:
        return None
    each = _bytes_a_layer(config, element, tensor_parallel)
    if each is None:
        return None
    kinds, note = _kinds(config, layers)
    if kinds is None:
        return None
    shared = _whole(config, "num_kv_shared_layers", "layers") or 0  # the last ones read what earlier ones keep
    kept = kinds[: max(0, len(kinds) - shared)]
    counts: dict[int | None, int] = {}
    for window in kept:
        if window != 0:
            counts[window] = counts.get(window, 0) + 1
    groups = sorted(counts.items(), key=lambda item: (item[0] is not None, item[0] or 0))
    return KvCost(tuple(KvLayers(count, each, window) for window, count in groups), note)


def longest_context(config: Mapping[str, Any]) -> int | None:
    """`max_position_embeddings` and its like: the positions that the configuration gives. Raises ShoalError."""
    return _first(config, ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len"), "tokens")


def _bytes_a_layer(config: Mapping[str, Any], element: int, tensor_parallel: int) -> int | None:
    rank, rotary = _whole(config, "kv_lora_rank", "width"), _whole(config, "qk_rope_head_dim", "width")
    if rank is not None:
        return None if rotary is None else (rank + rotary) * element
    found = read_attention(config)
    return None if found is None else 2 * max(1, found.kv_heads // tensor_parallel) * found.size * element


def read_attention(config: Mapping[str, Any]) -> Attention | None:
    """The heads of multi-head and grouped-query attention; None if they are not given. Raises ShoalError."""
    heads, hidden = _first(config, _HEADS, "heads"), _first(config, _HIDDEN, "width")
    size = _whole(config, "head_dim", "width") or _whole(config, "kv_channels", "width")
    if heads is None or (size is None and hidden is None):
        return None
    if size is None:
        assert hidden is not None
        size = hidden // heads
    kv_heads = 1 if config.get("multi_query") is True and "num_kv_heads" not in config else None
    kv_heads = _first(config, _KV_HEADS, "heads") or kv_heads or heads
    if not size:
        raise _bad(f"gives {heads} heads to a width of {hidden}")
    return Attention(heads, kv_heads, size)


def _kinds(config: Mapping[str, Any], layers: int) -> tuple[list[int | None] | None, str]:
    """How far each layer looks back: None for everything, 0 for a layer that keeps no tokens; and what is left out."""
    window = _whole(config, "sliding_window", "tokens")
    types = config.get("layer_types")
    if isinstance(types, list):
        if len(types) < layers:
            raise _bad(f"names the kinds of {len(types)} layers, and has {layers}")
        chunk = _whole(config, "attention_chunk_size", "tokens")
        reach: dict[object, int | None] = {FULL: None, SLIDING: window, CHUNKED: chunk, **dict.fromkeys(STATES, 0)}
        if any(not isinstance(kind, str) or kind not in reach for kind in types):
            return None, ""
        found = [reach[kind] for kind in types[:layers]]
        return found, _left_out(found)
    if any(key in config for key in HYBRIDS):
        return None, ""
    every = _whole(config, "full_attention_interval", "layers")
    if every is not None:  # the others are linear
        found = [None if (layer + 1) % every == 0 else 0 for layer in range(layers)]
        return found, _left_out(found)
    if window is None or config.get("use_sliding_window") is False:
        return [None] * layers, ""
    every = _whole(config, "sliding_window_pattern", "layers") or _PATTERNS.get(str(config.get("model_type")))
    if every is not None:
        return [None if (layer + 1) % every == 0 else window for layer in range(layers)], ""
    first = _whole(config, "max_window_layers", "layers") if config.get("use_sliding_window") is True else 0
    return [None if layer < (first or 0) else window for layer in range(layers)], ""


def _left_out(kinds: list[int | None]) -> str:
    without = sum(kind == 0 for kind in kinds)
    return f"the state of {without} layers without attention is not counted" if without else ""


def _first(config: Mapping[str, Any], names: tuple[str, ...], kind: str) -> int | None:
    return next((found for name in names if (found := _whole(config, name, kind)) is not None), None)


def _whole(config: Mapping[str, Any], name: str, kind: str) -> int | None:
    """A whole number from 1, or None where there is none; 0 and JSON's null count as none."""
    value = config.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or value == 0 or value is False:
        return None
    if type(value) is not int:
        return None
    if not 0 < value <= MOST[kind]:
        raise _bad(f"gives {name} as {value:,}")
    return value


def _bad(what: str) -> ShoalError:
    return ShoalError(
        f"config.json {what}, which no model has; fetch the model again", code="bad_config", param="source"
    )
