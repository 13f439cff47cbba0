"""How large weights are, by headers alone; and what is said of files that no engine could load."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.engines.vllm.sources import Source
from shoal.engines.vllm.tensors import Header, parse_header, read_header
from shoal.engines.vllm.weights import INDEX, MOST, Weights, read_weights
from shoal.errors import ShoalError
from tests.engines.checkpoints import header, safetensors, write

GIB = 2**30


def index(folder: Path, *names: str, **metadata: Any) -> None:
    weight_map = {f"layer.{number}": name for number, name in enumerate(names)}
    (folder / INDEX).write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))


def test_bytes_are_counted_by_dtype_and_no_weight_is_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    safetensors(file, BF16=60 * GIB, F32=400)  # a sparse file: reading it all would take minutes
    assert read_header(file) == Header({"BF16": 60 * GIB, "F32": 400}, 2)
    assert read_weights(tmp_path) == Weights("safetensors", 60 * GIB + 400, 1, {"BF16": 60 * GIB, "F32": 400})


def test_shards_of_an_index_are_added_and_others_left_out(tmp_path: Path) -> None:
    for name, size in (("a", 100), ("b", 50), ("consolidated", 999), ("stray", 7)):
        safetensors(tmp_path / f"{name}.safetensors", U8=size)
    index(tmp_path, "a.safetensors", "b.safetensors", "a.safetensors")
    assert read_weights(tmp_path) == Weights("safetensors", 150, 2, {"U8": 150})
    (tmp_path / INDEX).unlink()
    found = read_weights(tmp_path)
    assert found is not None
    assert found.size == 157, "without an index all but the second copy of the same weights"


def test_a_shard_that_is_missing_is_an_error_where_nothing_will_fetch_it(tmp_path: Path) -> None:
    safetensors(tmp_path / "a.safetensors", U8=100)
    index(tmp_path, "a.safetensors", "b.safetensors", total_size=150)
    with pytest.raises(ShoalError, match=r"lacks 1 of 2 files, b\.safetensors first") as caught:
        read_weights(tmp_path)
    assert caught.value.code == "weights_unreadable"
    assert read_weights(tmp_path, complete=False) == Weights("index", 150, 2)
    for total in (None, -1, 0, MOST + 1, "150", True):
        index(tmp_path, "a.safetensors", "b.safetensors", total_size=total)
        assert read_weights(tmp_path, complete=False) is None


def test_other_files_count_by_their_size_and_no_file_is_none(tmp_path: Path) -> None:
    assert read_weights(tmp_path) is None
    (tmp_path / "model.Q4_K_M.gguf").write_bytes(bytes(70))
    assert read_weights(tmp_path) == Weights("gguf", 70, 1)
    (tmp_path / "pytorch_model-1.bin").write_bytes(bytes(40))
    (tmp_path / "pytorch_model-2.bin").write_bytes(bytes(2))
    assert read_weights(tmp_path) == Weights("bin", 42, 2)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "which is no safetensors file"),
        (b"\0" * 7, "which is no safetensors file"),
        (bytes(100), "header has 0 bytes"),
        (b"\xff" * 100, "which cannot be"),
        ((93).to_bytes(8, "little") + bytes(92), "which cannot be"),
        ((4).to_bytes(8, "little") + b"nope", "not JSON"),
        ((4).to_bytes(8, "little") + b"[{}]", "not a JSON object"),
        ((6).to_bytes(8, "little") + b"\xff\xfe{}  ", "not JSON"),
        ((20_000).to_bytes(8, "little") + b"[" * 20_000, "not JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n", "git lfs pull"),
    ],
)
def test_what_is_no_header_is_said_clearly(content: bytes, says: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(ShoalError, match=says) as caught:
        read_weights(tmp_path)
    assert caught.value.code == "weights_unreadable"
    assert str(file) in caught.value.message


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        {"dtype": "BF16", "shape": [2], "data_offsets": [0]},
        {"dtype": "BF16", "shape": [2], "data_offsets": [4, 0]},
        {"dtype": "BF16", "shape": [2], "data_offsets": [-4, 0]},
        {"dtype": "BF16", "shape": [-2], "data_offsets": [0, 4]},
        {"dtype": "BF16", "shape": [2.0], "data_offsets": [0, 4]},
        {"dtype": "BF16", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": 16, "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "BF16", "shape": [10**30], "data_offsets": [0, 4]},
        {"dtype": "BF16", "shape": [2], "data_offsets": [0, 10**30]},
        {"dtype": "BF16", "shape": "22", "data_offsets": [0, 4]},
        {"dtype": "BF16"},
    ],
)
def test_a_tensor_that_cannot_be_is_refused(entry: Any, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    write(file, {"a": entry}, 4)
    with pytest.raises(ShoalError) as caught:
        read_header(file)
    assert caught.value.code == "weights_unreadable"


def test_a_file_that_was_cut_short_is_found_before_an_engine_loads_it(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    safetensors(file, BF16=1000)
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(ShoalError, match=r"cut short: its tensors have 1,000 bytes, and 999 are there"):
        read_header(file)
    safetensors(file, BF16=1000)  # fetched again: what was found before does not stick
    assert read_header(file).dtypes == {"BF16": 1000}


def test_tensors_over_one_another_are_refused(tmp_path: Path) -> None:
    entries = {name: {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} for name in "ab"}
    write(tmp_path / "model.safetensors", entries, 4)
    with pytest.raises(ShoalError, match="over one another"):
        read_header(tmp_path / "model.safetensors")


def test_a_dtype_of_another_time_counts_by_its_offsets(tmp_path: Path) -> None:
    write(tmp_path / "m.safetensors", {"a": {"dtype": "F3_X", "shape": [100], "data_offsets": [0, 38]}}, 38)
    assert read_header(tmp_path / "m.safetensors").dtypes == {"F3_X": 38}


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": []}}',
     '{"weight_map": {"a": "../b.safetensors"}}', '{"weight_map": {"a": "/b"}}', "[" * 100_000],
)  # fmt: skip
def test_an_index_that_cannot_be_used_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(ShoalError) as caught:
        read_weights(tmp_path)
    assert caught.value.code == "weights_unreadable"


@given(st.binary(max_size=200), st.integers(0, 2**64))
def test_no_bytes_crash_the_reader(text: bytes, data: int) -> None:
    found, code = Header({}, 0), "weights_unreadable"
    try:
        found = parse_header(Path("x"), text, data)
    except ShoalError as error:
        code = error.code
    assert code == "weights_unreadable"
    assert sum(found.dtypes.values()) <= data


@given(st.dictionaries(st.sampled_from(["F32", "BF16", "U8"]), st.integers(0, 2**40).map(lambda n: 4 * n), min_size=1))
def test_the_parts_add_up(dtypes: dict[str, int]) -> None:
    data = sum(dtypes.values())
    assert parse_header(Path("x"), json.dumps(header(dtypes)).encode(), data).dtypes == dtypes


@pytest.mark.parametrize(
    ("config", "dtype", "expected"),
    [
        ({"torch_dtype": "bfloat16"}, "auto", 100 + 100 + 8),  # a norm kept in 32 bits is loaded in 16
        ({"torch_dtype": "bfloat16"}, "float32", 400 + 8),
        ({"torch_dtype": "float32"}, "auto", 100 + 100 + 8),  # vLLM computes in 16 bits unless told otherwise
        ({}, "auto", 100 + 100 + 8),
        ({"dtype": "float16"}, "auto", 100 + 100 + 8),
        ({"quantization_config": {}}, "float32", 100 + 200 + 8),  # packed weights and scales stay as they are
        ({"text_config": {"quantization_config": {}}}, "auto", 100 + 200 + 8),
    ],
)
def test_floats_are_loaded_in_the_data_type_computed_in(
    config: dict[str, Any], dtype: str, expected: int, tmp_path: Path
) -> None:
    safetensors(tmp_path / "model.safetensors", BF16=100, F32=200, U8=8)
    assert Source("x", True, tmp_path, config).weight_bytes(dtype) == expected


def test_files_without_headers_scale_by_what_the_configuration_says(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(400))
    assert Source("x", True, tmp_path, {"torch_dtype": "float32"}).weight_bytes() == 200
    assert Source("x", True, tmp_path, {}).weight_bytes() == 400, "nothing is known: as they are"
