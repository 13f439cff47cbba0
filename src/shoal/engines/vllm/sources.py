"""What a model's source is and holds, from the files on this machine alone."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.errors import ShoalError

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class Source:
    """A model's files: `folder` is None for a hub id that is not in the local cache."""

    text: str
    local: bool
    folder: Path | None
    config: dict[str, Any]

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's part of the configuration; a multimodal model nests it."""
        nested = self.config.get("text_config")
        return nested if isinstance(nested, dict) else self.config

    @property
    def architectures(self) -> tuple[str, ...]:
        """The names of classes that could run it, as its configuration gives them."""
        names = self.config.get("architectures")
        return tuple(str(name) for name in names) if isinstance(names, list) else ()

    def weight_bytes(self, dtype: str = "auto") -> int | None:
        """Bytes of the weights as loaded; None if no weight file is here."""
        if self.folder is None:
            return None
        size = sum(path.stat().st_size for path in _weight_files(self.folder))
        stored = self.config.get("dtype", self.config.get("torch_dtype"))
        if dtype in _DTYPE_BYTES and stored in _DTYPE_BYTES and "quantization_config" not in self.config:
            size = size * _DTYPE_BYTES[dtype] // _DTYPE_BYTES[stored]
        return size or None

    def kv_bytes_per_token(self) -> int | None:
        """Bytes of KV cache that a token takes over all layers in 16 bits; None for shapes that are not plain."""
        config = self.text_config
        if "kv_lora_rank" in config or "layer_types" in config:
            return None
        try:
            heads = int(config["num_attention_heads"])
            size = config.get("head_dim") or int(config["hidden_size"]) // heads
            kv_heads = config.get("num_key_value_heads") or heads
            return 2 * 2 * int(config["num_hidden_layers"]) * int(kv_heads) * int(size)
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            return None

    def longest_context(self) -> int | None:
        """The tokens that the model's positions reach; None unless certain (scaled positions reach further)."""
        config = self.text_config
        rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
        kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else "unknown"
        longest = config.get("max_position_embeddings")
        if kind != "default" or "model_max_length" in self.config or not isinstance(longest, int):
            return None
        return longest


def is_local(source: str) -> bool:
    """Whether `source` names a folder of this machine rather than a hub id."""
    return source.startswith(("/", ".", "~")) or Path(source).is_dir()


def read_source(text: str) -> Source:
    """Look at a source. Raises ShoalError (`source_not_found`) for a folder that cannot be a model."""
    if not is_local(text):
        if not _HUB_ID.fullmatch(text) or ".." in text:
            raise _not_found(f"{text!r} is neither a folder nor a Hugging Face hub id such as org/name")
        folder = cached_snapshot(text)
        return Source(text, False, folder, _read_config(folder) if folder is not None else {})
    folder = Path(text).expanduser().absolute()
    if folder.is_file():
        raise _not_found(f"{folder} is a file; give the folder that holds config.json and the weights")
    if not folder.is_dir():
        raise _not_found(f"there is no folder {folder}; check the path, or give a Hugging Face hub id such as org/name")
    if not (folder / "config.json").is_file() and not (folder / "params.json").is_file():
        raise _not_found(f"{folder} holds no config.json, so it is not a model folder; give the one that has it")
    return Source(text, True, folder, _read_config(folder))


def cached_snapshot(hub_id: str) -> Path | None:
    """The folder of the hub's local cache that holds `hub_id`'s main revision, if it was downloaded."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    try:
        revision = (repository / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    folder = repository / "snapshots" / revision
    return folder if (folder / "config.json").is_file() else None


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [folder / name for name in names if (folder / name).is_file()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    # Some repositories hold the same weights twice, once as "consolidated".
    files = [path for path in folder.glob("*.safetensors") if not path.name.startswith("consolidated")]
    return files or list(folder.glob("*.safetensors")) or list(folder.glob("pytorch_model*.bin"))


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _not_found(f"{path} cannot be read ({error}); fetch the model again") from error
    if not isinstance(config, dict):
        raise _not_found(f"{path} is not a JSON object; fetch the model again")
    return config


def _not_found(message: str) -> ShoalError:
    return ShoalError(message, status=400, code="source_not_found", param="source")
