"""A model folder for engines that load no weights: a config, and a tokenizer with a made-up word for every token.

Dummy weights say nothing, so the words need not either; but the server still turns every token into text, as it would
for a real model.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path


def prepare(config: Path, folder: Path) -> Path:
    """`folder` with `config` and a tokenizer of its vocabulary; made once, and again if the config changed.

    Raises ValueError if the config names no vocabulary.
    """
    size = vocabulary(config)
    target = folder / "config.json"
    if target.exists() and target.read_bytes() == config.read_bytes() and (folder / "tokenizer.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    words = {f"w{number}": number for number in range(size)}
    tokenizer: dict[str, object] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "w0", "eos_token": f"w{size - 1}"})
    )
    shutil.copyfile(config, target)
    return folder


def vocabulary(config: Path) -> int:
    """How many tokens the model of this config.json knows. Raises ValueError if it does not say."""
    size = json.loads(config.read_text()).get("vocab_size")
    if not isinstance(size, int) or size < 2:
        raise ValueError(f"{config} names no vocab_size")
    return size


def token_bytes(config: Path) -> int:
    """Bytes of KV cache that a token takes in a 16-bit model with plain attention. Raises KeyError without a shape."""
    shape = json.loads(config.read_text())
    heads = shape.get("num_key_value_heads") or shape["num_attention_heads"]
    width = shape.get("head_dim") or shape["hidden_size"] // shape["num_attention_heads"]
    return int(2 * 2 * shape["num_hidden_layers"] * heads * width)
