"""How large a model's weights are, from its files on this machine; only headers are read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from shoal.engines.vllm.tensors import FLOATS, read_header, unreadable

Kind = Literal["safetensors", "index", "bin", "gguf"]
INDEX = "model.safetensors.index.json"
MAX_INDEX = 64 * 2**20
"""Bytes that an index may have: that of a model with a hundred thousand tensors has ten million."""
MOST = 2**50
"""Bytes beyond which weights are an error: a thousand times the largest models."""
FLOAT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of an element by the data types that engines compute in."""
_STORED = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, slots=True)
class Weights:
    """A model's weights as stored. `dtypes`: bytes by dtype, empty where only the files' sizes are known.

    `kind` says how that is known: from the headers of safetensors files, from an index alone (the files are not here
    yet), or from the sizes of PyTorch's or llama.cpp's files.
    """

    kind: Kind
    size: int
    files: int
    dtypes: Mapping[str, int] = field(default_factory=dict)

    def loaded(self, dtype: str, stored: str, *, quantised: bool) -> int:
        """Bytes once they are loaded as `dtype` (`float32`, `float16`, `bfloat16`).

        Floats become that data type, as vLLM allocates its parameters; whatever is quantised stays as it is, and so do
        the floats beside it, which are scales. `stored` is what the configuration says of files without headers.
        """
        if quantised or dtype not in FLOAT_BYTES:
            return self.size
        each = FLOAT_BYTES[dtype]
        if not self.dtypes:
            was = FLOAT_BYTES.get(stored)
            return self.size if was is None or self.kind == "gguf" else self.size * each // was
        return sum(
            size * each // _STORED[name] if name in FLOATS else size for name, size in self.dtypes.items()
        )  # fmt: skip

    def words(self) -> str:
        """``BF16 14.9 GiB in 4 files``-like words, without the sizes."""
        if self.dtypes:
            names = " and ".join(sorted(self.dtypes, key=lambda name: (-self.dtypes[name], name))[:3])
            return f"{names} in {self.files} safetensors file{'s' * (self.files != 1)}"
        how = {
            "index": "by the index of files that are not all here yet",
            "bin": f"by the size of {self.files} PyTorch file{'s' * (self.files != 1)}",
            "gguf": f"by the size of {self.files} GGUF file{'s' * (self.files != 1)}",
            "safetensors": "in empty safetensors files",
        }
        return how[self.kind]


def read_weights(folder: Path, *, complete: bool = True) -> Weights | None:
    """The weights in a model's folder; None if there are none.

    `complete`: files that the index names have to be here; else, as in a cache that is still being filled, the index's
    own total counts. Raises ShoalError (`weights_unreadable`) for files that no engine could load.
    """
    index = folder / INDEX
    if index.is_file():
        names, total = _read_index(index)
        missing = [name for name in names if not (folder / name).is_file()]
        if not missing:
            return _from_headers(folder / name for name in names)
        if complete:
            raise unreadable(folder, f"lacks {len(missing)} of {len(names)} files, {missing[0]} first; fetch it again")
        return None if total is None else Weights("index", total, len(names))
    # Some repositories hold the same weights twice, once as "consolidated".
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return _from_headers([path for path in files if not path.name.startswith("consolidated")] or files)
    patterns: tuple[tuple[Kind, str], ...] = (("bin", "pytorch_model*.bin"), ("gguf", "*.gguf"))
    for kind, pattern in patterns:
        if files := sorted(folder.glob(pattern)):
            return Weights(kind, _checked(folder, sum(_size(path) for path in files)), len(files))
    return None


def _from_headers(paths: Iterable[Path]) -> Weights:
    dtypes: dict[str, int] = {}
    files = 0
    folder = Path()
    for path in paths:
        folder, files = path.parent, files + 1
        for name, size in read_header(path).dtypes.items():
            dtypes[name] = dtypes.get(name, 0) + size
    return Weights("safetensors", _checked(folder, sum(dtypes.values())), files, dtypes)


def _read_index(path: Path) -> tuple[list[str], int | None]:
    """The files that an index names, and the bytes of their tensors, if it says so."""
    data: Any
    try:
        if path.stat().st_size > MAX_INDEX:
            raise unreadable(path, "is too large for an index; fetch it again")
        data = json.loads(path.read_text(encoding="utf-8"))
        names = sorted(set(data["weight_map"].values()))
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise unreadable(path, "cannot be read as an index of weights; fetch it again") from None
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise unreadable(path, "names files that are not beside it; fetch it again")
    metadata = data.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if isinstance(total, float) and total.is_integer():
        total = int(total)
    return names, total if type(total) is int and 0 < total <= MOST else None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise unreadable(path, f"cannot be read: {error.strerror or error}") from None


def _checked(folder: Path, size: int) -> int:
    if size > MOST:
        raise unreadable(folder, f"says that its weights have {size:,} bytes, which cannot be; fetch it again")
    return size
