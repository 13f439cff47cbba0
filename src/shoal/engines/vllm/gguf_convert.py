"""Turn a Llama-shaped GGUF file into the folder of safetensors that vLLM reads. Runs inside an engine's interpreter.

    python -m shoal.engines.vllm.gguf_convert MODEL.gguf FOLDER

Needs torch, safetensors and gguf. Prints one JSON object: how many tensors were written, and a checksum of
the weights that does not depend on where they lie in the file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}
TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_CONTROL_TOKEN = 3  # gguf's token type of a special token


def tensor_name(name: str) -> str:
    """The Hugging Face name of a Llama tensor that llama.cpp calls `name`. Raises KeyError for any other."""
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    _, layer, part, _ = name.split(".")
    return f"model.layers.{int(layer)}.{LAYER_NAMES[part]}.weight"


def unpermute(weight: Any, heads: int) -> Any:
    """Undo llama.cpp's order of the rotary dimensions.

    `weight` is q or k, (heads · head size, hidden size). llama.cpp interleaves the two halves that rotate together;
    Hugging Face keeps them one after the other.
    """
    rows, *rest = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, *rest).swapaxes(1, 2).reshape(weight.shape)


def config(field: Callable[[str], Any], *, tied: bool) -> dict[str, Any]:
    """Hugging Face's `config.json` from GGUF metadata; `field` gives the value of a key."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_size": field("llama.embedding_length"),
        "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": field("llama.attention.head_count"),
        "num_key_value_heads": field("llama.attention.head_count_kv"),
        "max_position_embeddings": field("llama.context_length"),
        "rms_norm_eps": round(float(field("llama.attention.layer_norm_rms_epsilon")), 9),
        "rope_theta": field("llama.rope.freq_base"),
        "vocab_size": len(field("tokenizer.ggml.tokens")),
        "tie_word_embeddings": tied,
        "bos_token_id": field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),
        "pad_token_id": field("tokenizer.ggml.padding_token_id"),
        "torch_dtype": "bfloat16",
    }


def tokenizer(field: Callable[[str], Any]) -> dict[str, Any]:
    """Hugging Face's `tokenizer.json`: byte-level BPE after single digits, as SmolLM2 was trained."""
    tokens, types = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": tokens[i], **flags} for i, kind in enumerate(types) if kind == _CONTROL_TOKEN
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {**byte_level, "add_prefix_space": False},
            ],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in field("tokenizer.ggml.merges")],
        },
    }


def tokenizer_config(field: Callable[[str], Any]) -> dict[str, Any]:
    """Hugging Face's `tokenizer_config.json`, with the chat template."""
    tokens = field("tokenizer.ggml.tokens")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[field("tokenizer.ggml.bos_token_id")],
        "eos_token": tokens[field("tokenizer.ggml.eos_token_id")],
        "pad_token": tokens[field("tokenizer.ggml.padding_token_id")],
        "unk_token": "<|endoftext|>",
        "model_max_length": field("llama.context_length"),
        "clean_up_tokenization_spaces": False,
        "chat_template": field("tokenizer.chat_template"),
    }


def convert(source: Path, target: Path) -> dict[str, Any]:
    """Write `target` from the GGUF file `source`; the count of tensors and the checksum of the weights."""
    # Only an engine's interpreter has these.
    import torch
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from safetensors.torch import save_file

    reader = GGUFReader(source)

    def field(key: str) -> Any:
        return reader.fields[key].contents()

    heads = {"attn_q": field("llama.attention.head_count"), "attn_k": field("llama.attention.head_count_kv")}
    weights: dict[str, Any] = {}
    digest = hashlib.sha256()
    for tensor in sorted(reader.tensors, key=lambda tensor: str(tensor.name)):
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).astype("float32"))
        part = tensor.name.split(".")[-2]
        if part in heads:
            values = unpermute(values, heads[part])
        name = tensor_name(tensor.name)
        weights[name] = values.to(torch.bfloat16).contiguous()
        digest.update(f"{name}{tuple(values.shape)}".encode())
        digest.update(weights[name].view(torch.int16).numpy().tobytes())
    target.mkdir(parents=True, exist_ok=True)
    save_file(weights, str(target / "model.safetensors"), metadata={"format": "pt"})
    (target / "model.safetensors").chmod(0o644)
    settings = config(field, tied="lm_head.weight" not in weights)
    generation = {key: settings[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for name, content in (
        ("config.json", settings),
        ("generation_config.json", generation),
        ("tokenizer.json", tokenizer(field)),
        ("tokenizer_config.json", tokenizer_config(field)),
    ):
        (target / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    return {"tensors": len(weights), "sha256": digest.hexdigest()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="GGUF (Llama) to a Hugging Face folder")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    sys.stdout.write(json.dumps(convert(arguments.source, arguments.target)) + "\n")


if __name__ == "__main__":
    main()
