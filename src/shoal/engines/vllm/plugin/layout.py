"""Where vLLM is to put its KV cache: in one range of addresses, each block in as few pieces as possible. Pure.

Reads vLLM's `KVCacheConfig` by its attributes, because its class changed with 0.29: before, each layer has a tensor of
its own, and they are rewritten here to share one (`offset` and `block_stride`); from then on there is one anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shoal.memory.pages import Geometry, Run

STATELESS = frozenset(
    {
        "AttentionSpec",
        "FullAttentionSpec",
        "MLAAttentionSpec",
        "SlidingWindowSpec",
        "SlidingWindowMLASpec",
        "ChunkedLocalAttentionSpec",
    }
)
"""Kinds of cache whose blocks hold tokens and nothing else, so that a free one may go. Any other kind stays fixed."""


class NotElasticError(ValueError):
    """This model's cache cannot be elastic; the message says why."""


@dataclass(frozen=True, slots=True)
class Layout:
    """`size` bytes for vLLM's one allocation, and where blocks lie in it."""

    geometry: Geometry
    size: int


def refuse_state(specs: Mapping[str, Any]) -> None:
    """Raises NotElasticError if a layer of `specs` (vLLM's `get_kv_cache_spec`) keeps more than tokens."""
    if not specs:
        raise NotElasticError("the model has no KV cache")
    for layer, spec in specs.items():
        for kind in _kinds(spec):
            if kind not in STATELESS:
                raise NotElasticError(f"layer {layer} keeps a {kind}, whose memory cannot be taken away block by block")


def plan(config: Any, page_size: int) -> Layout:
    """The layout of `config`, whose tensors are rewritten where vLLM has no layout of that kind itself.

    Raises NotElasticError.
    """
    tensors = config.kv_cache_tensors
    if not tensors:
        raise NotElasticError("the model has no KV cache")
    refuse_state({group.layer_names[0]: group.kv_cache_spec for group in config.kv_cache_groups if group.layer_names})
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
    pages = _page_sizes(config.kv_cache_groups)
    found = set()
    for tensor in tensors:
        if getattr(tensor, "host_resident", False):
            raise NotElasticError("a part of its cache lies in the host's memory")
        if tensor.size != size or config.num_blocks_of(tensor) != blocks:
            raise NotElasticError("its layers lie in blocks of different numbers or sizes")
        for index, layer in enumerate(tensor.layers):
            found.add(Run(tensor.offset + index * tensor.layer_stride, tensor.block_stride, pages[layer]))
    strides = {run.stride for run in found}
    if len(strides) == 1 and (stride := strides.pop()) * blocks == size:
        # Block after block, whatever gaps are in one.
        return Layout(Geometry.contiguous(blocks, stride, page_size), size)
    try:
        geometry = Geometry(blocks, page_size, _merge(found))
    except ValueError as error:
        raise NotElasticError(f"its layers overlap: {error}") from error
    if geometry.extent > size:
        raise NotElasticError(f"its layers reach {geometry.extent - size} bytes beyond the cache of {size}")
    return Layout(geometry, size)


def _page_sizes(groups: Iterable[Any]) -> dict[str, int]:
    """Bytes that each layer keeps of a block."""
    sizes = {}
    for group in groups:
        specs = getattr(group.kv_cache_spec, "kv_cache_specs", None)
        for layer in group.layer_names:
            sizes[layer] = int((specs[layer] if specs else group.kv_cache_spec).page_size_bytes)
    return sizes


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


def _kinds(spec: Any) -> list[str]:
    """The names of the kinds of cache in `spec`, or of what it is derived from that is known."""
    inner = getattr(spec, "kv_cache_specs", None)
    if isinstance(inner, Mapping):
        return [kind for each in inner.values() for kind in _kinds(each)]
    return [type(spec).__name__]
