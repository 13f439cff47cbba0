"""What a safetensors file holds, from its header alone: no weights are read.

The format (https://huggingface.co/docs/safetensors, "Format"): 8 bytes with the header's length N as an unsigned
little-endian integer, N bytes of JSON, then the data. The JSON gives each tensor's `dtype`, `shape` and
`data_offsets`, from where to where it lies in the data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from shoal.errors import ShoalError

MAX_HEADER = 100_000_000
"""Bytes that a header may have; the format's own library refuses more."""
_LENGTH = 8
_LFS = b"version https://git-lfs"

BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16,
    "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8, "F4": 4,
}  # fmt: skip
"""Bits of an element. A dtype that is not here counts by its offsets alone."""
FLOATS = frozenset({"F32", "F16", "BF16"})
"""Dtypes of weights that are not quantised; an engine converts them to the data type that it computes in."""


@dataclass(frozen=True, slots=True)
class Header:
    """Bytes of a file's tensors by dtype, and how many tensors they are."""

    dtypes: Mapping[str, int]
    tensors: int


def read_header(path: Path) -> Header:
    """The header of a safetensors file.

    Raises ShoalError (`weights_unreadable`) if it is not one, is cut short, or says what cannot be.
    """
    try:
        stat = path.stat()
        return _read(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise unreadable(path, f"cannot be read: {error.strerror or error}") from None


@lru_cache(maxsize=1024)
def _read(path: Path, size: int, _changed: int) -> Header:
    """Kept by the file's size and time: a fleet asks for the same file again at every start."""
    with path.open("rb") as file:
        head = file.read(len(_LFS))
        if head.startswith(_LFS):
            raise unreadable(path, "is only the pointer that git keeps for it; fetch the file itself (git lfs pull)")
        if len(head) < _LENGTH:
            raise unreadable(path, f"has {size} bytes, which is no safetensors file; fetch it again")
        length = int.from_bytes(head[:_LENGTH], "little")
        if not 2 <= length <= min(MAX_HEADER, size - _LENGTH):
            raise unreadable(path, f"says that its header has {length} bytes, which cannot be; fetch it again")
        file.seek(_LENGTH)
        text = file.read(length)
    return parse_header(path, text, size - _LENGTH - length)


def parse_header(path: Path, text: bytes, data: int) -> Header:
    """What the JSON of a header says of `data` bytes of tensors. Pure; raises as `read_header`."""
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        raise unreadable(path, "has a header that is not JSON; fetch it again") from None
    if not isinstance(entries, dict):
        raise unreadable(path, "has a header that is not a JSON object; fetch it again")
    entries.pop("__metadata__", None)
    dtypes: dict[str, int] = {}
    last = 0
    for name, entry in entries.items():
        dtype, begin, end = _tensor(path, name, entry)
        last = max(last, end)
        dtypes[dtype] = dtypes.get(dtype, 0) + end - begin
    if last > data:
        raise unreadable(path, f"is cut short: its tensors have {last:,} bytes, and {data:,} are there; fetch it again")
    if sum(dtypes.values()) > data:
        raise unreadable(path, "has tensors that lie over one another; fetch it again")
    return Header(dtypes, len(entries))


def _tensor(path: Path, name: str, entry: Any) -> tuple[str, int, int]:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
        if not whole or not isinstance(dtype, str) or end < begin:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise unreadable(path, f"says of the tensor {name[:100]!r} what no tensor has; fetch it again") from None
    bits = BITS.get(dtype)
    if bits is not None and math.prod(shape) * bits > (end - begin) * 8:
        raise unreadable(path, f"gives the tensor {name[:100]!r} fewer bytes than its shape has; fetch it again")
    return dtype, begin, end


def unreadable(path: Path, what: str) -> ShoalError:
    """The error for a file of weights that cannot be used."""
    return ShoalError(f"{path} {what}", code="weights_unreadable", param="source")
