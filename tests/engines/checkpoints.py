"""Files of weights that have a header and nothing behind it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ELEMENT = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "U8": 1, "F8_E4M3": 1}


def header(dtypes: Mapping[str, int]) -> dict[str, Any]:
    """The header of one tensor a dtype, of so many bytes each."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for dtype, size in dtypes.items():
        entries[f"{dtype.lower()}.weight"] = {
            "dtype": dtype,
            "shape": [size // ELEMENT[dtype]],
            "data_offsets": [at, at + size],
        }
        at += size
    return entries


def write(path: Path, entries: Mapping[str, Any], data: int) -> None:
    """A safetensors file with this header and `data` bytes behind it, which take no room on the disk."""
    text = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + data)


def safetensors(path: Path, **dtypes: int) -> None:
    """A safetensors file with so many bytes of each dtype."""
    write(path, header(dtypes), sum(dtypes.values()))
