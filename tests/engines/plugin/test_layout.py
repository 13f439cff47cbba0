"""Where vLLM's cache is put, for its configurations of both eras."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.engines.vllm.plugin.layout import Layout, NotElasticError, gpu_page, plan, refuse_others
from shoal.memory.pages import Run

PAGE = 2 << 20


@dataclass(frozen=True)
class FullAttentionSpec:
    """Named as vLLM's, because its name is what is looked at; so are those below."""

    block_size: int = 16
    page_size_bytes: int = 65536


@dataclass(frozen=True)
class MLAAttentionSpec(FullAttentionSpec):
    pass


@dataclass(frozen=True)
class SlidingWindowSpec(FullAttentionSpec):
    pass


@dataclass(frozen=True)
class MambaSpec(FullAttentionSpec):
    pass


@dataclass
class SplitTensor:
    """vLLM's KVCacheTensor up to 0.28."""

    size: int
    shared_by: list[str]
    offset: int = 0
    block_stride: int = 0


@dataclass
class NamedTensor:
    """vLLM's KVCacheTensor from 0.29 on."""

    size: int
    layers: list[str]
    layer_stride: int
    block_stride: int
    offset: int = 0
    host_resident: bool = False


@dataclass
class Group:
    layer_names: list[str]
    kv_cache_spec: FullAttentionSpec


@dataclass
class Config:
    num_blocks: int
    kv_cache_tensors: list[SplitTensor] | list[NamedTensor]
    kv_cache_groups: list[Group] = field(default_factory=list)


def split(blocks: int, parts: list[int]) -> Config:
    """A tensor for each layer, of `parts` bytes a block."""
    names = [f"layer.{index}" for index in range(len(parts))]
    tensors = [SplitTensor(part * blocks, [name]) for part, name in zip(parts, names, strict=True)]
    return Config(blocks, tensors, [Group(names, FullAttentionSpec(page_size_bytes=parts[0]))])


def named(blocks: int, layers: int, page: int, *, blocks_first: bool, tensors: int = 1, gap: int = 0) -> Config:
    """`layers` layers in each of `tensors` tensors over one allocation; `gap` bytes are unused behind each block."""
    packed = layers * tensors * page + gap
    size = blocks * (packed if blocks_first else layers * tensors * page)
    made, names = [], []
    for number in range(tensors):
        some = [f"layer.{number * layers + index}" for index in range(layers)]
        names += some
        if blocks_first:
            made.append(NamedTensor(size, some, page, packed, number * layers * page))
        else:
            made.append(NamedTensor(size, some, page * blocks, page, number * layers * page * blocks))
    return Config(blocks, made, [Group(names, FullAttentionSpec(page_size_bytes=page))])


def stretches(config: Config) -> Iterator[tuple[str, int, int, int]]:
    """Layer, block, first byte and end of everything that vLLM will touch, by its own reading of the configuration."""
    page = config.kv_cache_groups[0].kv_cache_spec.page_size_bytes
    for tensor in config.kv_cache_tensors:
        for block in range(config.num_blocks):
            if isinstance(tensor, SplitTensor):
                yield tensor.shared_by[0], block, tensor.offset + block * tensor.block_stride, -1
            else:
                for index, layer in enumerate(tensor.layers):
                    start = tensor.offset + index * tensor.layer_stride + block * tensor.block_stride
                    yield layer, block, start, start + page


def holds(layout: Layout, touched: list[tuple[str, int, int, int]]) -> None:
    """Each block's bytes lie in the geometry's block and in the allocation, and no two layers share a byte."""
    geometry = layout.geometry
    assert geometry.extent <= layout.size
    for layer, block, start, end in touched:
        assert any(low <= start and end <= high for low, high in geometry.spans(block)), (layer, block)
        assert 0 <= start < end <= layout.size
    # That blocks do not overlap is the geometry's own invariant; that layers do not is vLLM's, and must survive.
    ends = sorted((start, end) for _, _, start, end in touched)
    assert all(one[1] <= other[0] for one, other in pairwise(ends))


@settings(deadline=None)
@given(st.integers(1, 40), st.lists(st.integers(1, 300000), min_size=1, max_size=12), st.sampled_from([4096, PAGE]))
def test_layers_of_their_own_become_slices_of_each_block(blocks: int, parts: list[int], page_size: int) -> None:
    config = split(blocks, parts)
    layout = plan(config, page_size)
    stride = sum(parts)
    assert layout.size == stride * blocks
    assert layout.geometry.runs == (Run(0, stride, stride),)
    assert [tensor.shared_by for tensor in split_tensors(config)] == [[f"layer.{i}"] for i in range(len(parts))]
    assert all(tensor.block_stride == stride for tensor in split_tensors(config))
    assert all(tensor.size == layout.size for tensor in split_tensors(config))
    sizes = dict(zip((f"layer.{index}" for index in range(len(parts))), parts, strict=True))
    holds(layout, [(layer, block, start, start + sizes[layer]) for layer, block, start, _ in stretches(config)])


def split_tensors(config: Config) -> list[SplitTensor]:
    return [tensor for tensor in config.kv_cache_tensors if isinstance(tensor, SplitTensor)]


@pytest.mark.parametrize(
    ("config", "page"),
    [
        (split(8, [2**16] * 32), 4 << 20),  # Llama-3.1-8B
        (split(8, [2**16] * 36), 4 << 20),  # Qwen3-8B: 2.25 MiB
        (split(8, [2**15] * 32), None),  # one of two shards
        (named(8, 32, 2**16, blocks_first=True), 4 << 20),
        (named(8, 32, 2**15, blocks_first=True, tensors=2), 4 << 20),
        (named(8, 31, 2**16, blocks_first=True), None),
        (named(8, 32, 2**16, blocks_first=False), 4 << 20),
    ],
)
def test_large_blocks_share_a_page_with_one_other(config: Config, page: int | None) -> None:
    assert gpu_page(config) == page
    blocks = plan(config, page or PAGE).geometry.block_size
    assert (blocks >= 2 << 20) == (page is not None)
    assert gpu_page(config) == page, "also of what was rewritten"


def test_what_is_in_one_piece_already_stays_as_it_is() -> None:
    config = split(10, [100, 200])
    first = plan(config, 4096)
    tensors = list(config.kv_cache_tensors)
    assert plan(config, 4096) == first
    assert config.kv_cache_tensors == tensors


@settings(deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 10),
    st.sampled_from([512, 4096, 12288, 65536, 100000]),
    st.booleans(),
    st.integers(1, 3),
    st.sampled_from([0, 1, 4096]),
)
def test_every_byte_of_every_layer_lies_in_its_block(
    blocks: int, layers: int, page: int, blocks_first: bool, tensors: int, gap: int
) -> None:
    config = named(blocks, layers, page, blocks_first=blocks_first, tensors=tensors, gap=gap)
    layout = plan(config, 4096)
    assert layout.geometry.blocks == blocks
    assert layout.size == config.kv_cache_tensors[0].size
    holds(layout, list(stretches(config)))


def test_blocks_outermost_are_one_run_each() -> None:
    layout = plan(named(100, 32, 65536, blocks_first=True), PAGE)
    assert layout.geometry.runs == (Run(0, PAGE, PAGE),)
    assert layout.geometry.pages_of(7)[0] == (7, 1)


def test_layers_outermost_are_one_run_a_layer() -> None:
    layout = plan(named(100, 30, 12288, blocks_first=False), 4096)
    assert layout.geometry.runs == tuple(Run(index * 1228800, 12288, 12288) for index in range(30))


def test_a_single_layer_is_the_same_in_both_orders() -> None:
    one, other = (plan(named(9, 1, 4096, blocks_first=first), 4096) for first in (True, False))
    assert one == other


def test_two_tensors_over_the_same_bytes_are_one_run() -> None:
    config = named(10, 4, 4096, blocks_first=False)
    config.kv_cache_tensors = [*config.kv_cache_tensors, *config.kv_cache_tensors]
    assert len(plan(config, 4096).geometry.runs) == 4


@settings(deadline=None)
@given(
    st.integers(1, 8),
    st.lists(
        st.builds(
            NamedTensor,
            size=st.just(8 * 4096),
            layers=st.lists(st.just("layer"), min_size=1, max_size=3),
            layer_stride=st.sampled_from([0, 2048, 4096, 8192, 16384]),
            block_stride=st.sampled_from([1024, 2048, 4096, 8192]),
            offset=st.sampled_from([0, 1024, 2048, 4096, 8192, 16384]),
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_whatever_is_accepted_is_right(blocks: int, tensors: list[NamedTensor]) -> None:
    config = Config(blocks, tensors, [Group(["layer"], FullAttentionSpec(page_size_bytes=2048))])
    try:
        layout = plan(config, 4096)
    except NotElasticError:
        return
    assert layout.geometry.extent <= layout.size
    for _, block, start, end in stretches(config):
        assert any(low <= start and end <= high for low, high in layout.geometry.spans(block))


def broken(change: Callable[[Config], None], *, blocks_first: bool = True, tensors: int = 2) -> Config:
    config = named(10, 4, 4096, blocks_first=blocks_first, tensors=tensors)
    change(config)
    return config


def _on_host(config: Config) -> None:
    config.kv_cache_tensors[1].host_resident = True  # type: ignore[union-attr]


def _other_size(config: Config) -> None:
    config.kv_cache_tensors[1].size += 4096


def _beyond(config: Config) -> None:
    config.kv_cache_tensors[1].offset += 4096


def _overlapping(config: Config) -> None:
    config.kv_cache_tensors[1].offset -= 1000


def _two_groups(config: Config) -> None:
    config.kv_cache_groups *= 2


def _none(config: Config) -> None:
    config.kv_cache_tensors = []


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (broken(_none), "no KV cache"),
        (broken(_two_groups), "2 groups"),
        (broken(_on_host), "host's memory"),
        (broken(_other_size), "different sizes"),
        (broken(_beyond, blocks_first=False), "beyond the cache"),
        (broken(_overlapping, blocks_first=False), "overlap"),
        (Config(10, [SplitTensor(1005, ["a"])], [Group(["a"], FullAttentionSpec())]), "not a whole number"),
        (
            Config(
                10,
                [SplitTensor(3000, ["a"], 0, 300), SplitTensor(2000, ["b"], 300, 200)],
                [Group(["a", "b"], FullAttentionSpec())],
            ),
            "different sizes",
        ),
        (Config(10, [SplitTensor(4000, ["a"], 0, 300)], [Group(["a"], FullAttentionSpec())]), "different sizes"),
    ],
)
def test_what_cannot_be_elastic_is_refused_and_why(config: Config, reason: str) -> None:
    before = list(config.kv_cache_tensors)
    with pytest.raises(NotElasticError, match=reason):
        plan(config, 4096)
    assert config.kv_cache_tensors == before, "a configuration that is refused has to stay as it was"


@pytest.mark.parametrize(
    ("specs", "reason"),
    [
        ({}, "no KV cache"),
        ({"a": FullAttentionSpec(), "b": SlidingWindowSpec()}, "layer b keeps a SlidingWindowSpec"),
        ({"a": MambaSpec()}, "layer a keeps a MambaSpec"),
        ({"a": FullAttentionSpec(), "b": FullAttentionSpec(block_size=32)}, "different shapes"),
        ({"a": FullAttentionSpec(), "b": FullAttentionSpec(page_size_bytes=4096)}, "different shapes"),
    ],
)
def test_kinds_of_cache_that_are_not_known_are_refused(specs: dict[str, FullAttentionSpec], reason: str) -> None:
    with pytest.raises(NotElasticError, match=reason):
        refuse_others(specs)


@pytest.mark.parametrize("spec", [FullAttentionSpec(), MLAAttentionSpec()])
def test_caches_of_whole_requests_are_welcome(spec: FullAttentionSpec) -> None:
    refuse_others({"a": spec, "b": spec})
