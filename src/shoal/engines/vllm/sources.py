"""What a model's source is and holds, from the files on this machine alone."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.engines.vllm.parameters import dense_parameters
from shoal.engines.vllm.shapes import read_kv
from shoal.engines.vllm.weights import FLOAT_BYTES, Weights, read_weights
from shoal.errors import ShoalError
from shoal.fleet.needs import KvCost

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)?")


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

    def weights(self) -> Weights | None:
        """The weights as stored; None if none are here. Raises ShoalError (`weights_unreadable`)."""
        return None if self.folder is None else read_weights(self.folder, complete=self.local)

    def weight_bytes(self, dtype: str = "auto") -> int | None:
        """Bytes of the weights as loaded; None if no weight file is here. Raises ShoalError (`weights_unreadable`)."""
        weights = self.weights()
        if weights is None:
            return None
        return weights.loaded(self.computes_in(dtype), self._stored, quantised=self.quantised) or None

    def weights_by_shape(self, dtype: str = "auto") -> int | None:
        """About as many bytes as the weights take once they are loaded, by the shape alone; None if that tells nothing.
        Raises ShoalError (`bad_config`)."""
        parameters = None if self.quantised else dense_parameters({**self.config, **self.text_config})
        return None if parameters is None else parameters * FLOAT_BYTES[self.computes_in(dtype)]

    @property
    def quantised(self) -> bool:
        """Whether the weights are stored quantised."""
        return any("quantization_config" in config for config in (self.config, self.text_config))

    @property
    def _stored(self) -> str:
        """The data type that the configuration gives; empty if it gives none."""
        found = (config.get(key) for config in (self.config, self.text_config) for key in ("dtype", "torch_dtype"))
        return next((name for name in found if isinstance(name, str)), "")

    def computes_in(self, dtype: str) -> str:
        """The data type that vLLM loads floats as: the one asked for, else the configuration's, but 16 bits for 32
        (vLLM's `_resolve_auto_dtype`)."""
        if dtype != "auto":
            return dtype
        return self._stored if self._stored in ("bfloat16", "float16") else "bfloat16"

    def kv(self, *, element: int = 2, tensor_parallel: int = 1) -> KvCost | None:
        """What requests take of the KV cache on each device; None for shapes that are not known. See `read_kv`."""
        return read_kv(self.text_config, element=element, tensor_parallel=tensor_parallel)

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


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _not_found(f"{path} cannot be read ({error}); fetch the model again") from error
    if not isinstance(config, dict):
        raise _not_found(f"{path} is not a JSON object; fetch the model again")
    return config


def _not_found(message: str) -> ShoalError:
    return ShoalError(message, status=400, code="source_not_found", param="source")
