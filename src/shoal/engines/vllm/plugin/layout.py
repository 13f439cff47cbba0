"""Where vLLM is to put its KV cache: in one range of addresses, each block in as few pieces as possible. Pure.

Reads vLLM's `KVCacheConfig` by its attributes, because its class changed with 0.29: before, each layer has a tensor of
its own, and they are rewritten here to share one (`offset` and `block_stride`); from then on there is one anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shoal.memory.pages import Geometry, Run

ELASTIC_KINDS = frozenset({"FullAttentionSpec", "MLAAttentionSpec"})
"""vLLM's names for caches whose blocks belong to a request until it ends. Any other kind stays fixed: recurrent state
is no block, and windows leave their old blocks in tables that the device may still read."""


LARGE_BLOCK = 2 << 20
"""Bytes: blocks of this size and more share a page with one other."""

LARGE_PAGE = 4 << 20
"""Bytes of such a page."""


class NotElasticError(ValueError):
    """This model's cache cannot be elastic; the message says why."""


@dataclass(frozen=True, slots=True)
class Layout:
    """`size` bytes for vLLM's one allocation, and where blocks lie in it."""

    geometry: Geometry
    size: int


def refuse_others(specs: Mapping[str, Any]) -> None:
    """Raises NotElasticError unless all layers of `specs` (vLLM's `get_kv_cache_spec`) keep one known kind of cache."""
    if not specs:
        raise NotElasticError("the model has no KV cache")
    for layer, spec in specs.items():
        kind = type(spec).__name__
        if kind not in ELASTIC_KINDS:
            raise NotElasticError(f"layer {layer} keeps a {kind}, whose memory cannot be taken away block by block")
    if len({(spec.block_size, spec.page_size_bytes) for spec in specs.values()}) > 1:
        raise NotElasticError("its layers keep caches of different shapes")


def gpu_page(config: Any) -> int | None:
    """Bytes of a page that suit the blocks of `config` on a GPU; None for what its driver calls a page.

    What a page costs the driver does not grow with its size, so large ones halve the time of growth and of sleep. But
    a page stays while one block on it is used: with more than two on each, a burst that ebbs keeps much from others.
    """
    tensors = config.kv_cache_tensors
    if not tensors:
        return None
    shared = any(hasattr(tensor, "layer_stride") or tensor.block_stride for tensor in tensors)
    size = max(tensor.size for tensor in tensors) if shared else sum(tensor.size for tensor in tensors)
    return LARGE_PAGE if size // config.num_blocks >= LARGE_BLOCK else None


def plan(config: Any, page_size: int) -> Layout:
    """The layout of `config`, whose tensors are rewritten where vLLM has no layout of that kind itself.

    Raises NotElasticError.
    """
    tensors = config.kv_cache_tensors
    if not tensors:
        raise NotElasticError("the model has no KV cache")
    if len(config.kv_cache_groups) != 1:
        raise NotElasticError(f"vLLM keeps its cache in {len(config.kv_cache_groups)} groups of layers")
    if hasattr(tensors[0], "layer_stride"):
        return _named(config, page_size)
    return _packed(config, page_size)


def _packed(config: Any, page_size: int) -> Layout:
    """0.24 to 0.28: one tensor a layer becomes a slice of each block."""
    tensors, blocks = config.kv_cache_tensors, config.num_blocks
    if any(tensor.block_stride for tensor in tensors):
        stride = tensors[0].block_stride
        if any(tensor.block_stride != stride or tensor.size != stride * blocks for tensor in tensors):
            raise NotElasticError("its layers lie in blocks of different sizes")
        return Layout(Geometry.contiguous(blocks, stride, page_size), stride * blocks)
    parts = []
    for tensor in tensors:
        part, rest = divmod(tensor.size, blocks)
        if rest:
            raise NotElasticError(f"a layer's {tensor.size} bytes are not a whole number for each of {blocks} blocks")
        parts.append(part)
    stride, offset = sum(parts), 0
    rewritten = []
    for tensor, part in zip(tensors, parts, strict=True):
        rewritten.append(
            type(tensor)(size=stride * blocks, shared_by=tensor.shared_by, offset=offset, block_stride=stride)
        )
        offset += part
    config.kv_cache_tensors = rewritten
    return Layout(Geometry.contiguous(blocks, stride, page_size), stride * blocks)


def _named(config: Any, page_size: int) -> Layout:
    """From 0.29 on: every layer of every tensor is a run; runs that touch are one."""
    tensors, blocks = config.kv_cache_tensors, config.num_blocks
    size = tensors[0].size
    page = int(config.kv_cache_groups[0].kv_cache_spec.page_size_bytes)
    found = set()
    for tensor in tensors:
        if getattr(tensor, "host_resident", False):
            raise NotElasticError("a part of its cache lies in the host's memory")
        if tensor.size != size:
            raise NotElasticError("its layers lie in caches of different sizes")
        for index in range(len(tensor.layers)):
            found.add(Run(tensor.offset + index * tensor.layer_stride, tensor.block_stride, page))
    stride = size // blocks
    if stride * blocks == size and all(run.stride == stride >= run.offset + run.length for run in found):
        # Block after block, whatever gaps are in one.
        return Layout(Geometry.contiguous(blocks, stride, page_size), size)
    try:
        geometry = Geometry(blocks, page_size, _merge(found))
    except ValueError as error:
        raise NotElasticError(f"its layers overlap: {error}") from error
    if geometry.extent > size:
        raise NotElasticError(f"its layers reach {geometry.extent - size} bytes beyond the cache of {size}")
    return Layout(geometry, size)


def _merge(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Runs of one stride that overlap or touch, as one."""
    merged: list[Run] = []
    for run in sorted(runs, key=lambda run: (run.stride, run.offset)):
        last = merged[-1] if merged else None
        if last is not None and last.stride == run.stride and run.offset <= last.offset + last.length:
            length = max(last.length, run.offset + run.length - last.offset)
            if length <= run.stride:
                merged[-1] = Run(last.offset, last.stride, length)
                continue
        merged.append(run)
    return tuple(merged)
