"""What the offline engine is given, and the made-up model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoal.bench import synthetic
from shoal.bench.offline import as_settings, digest, make_prompts

LLAMA = Path(__file__).parents[2] / "benchmarks" / "models" / "llama-3.1-8b" / "config.json"


def test_prompts_share_prefixes_and_nothing_else() -> None:
    load = {"count": 6, "length": 5, "shared": 8, "prefixes": 2, "seed": 1, "vocabulary": 1000}
    prompts = make_prompts(load)
    assert prompts == make_prompts(load)
    assert prompts != make_prompts({**load, "seed": 2})
    assert [len(one) for one in prompts] == [13] * 6
    assert len({tuple(one[:8]) for one in prompts}) == 2
    assert prompts[0][:8] == prompts[2][:8] != prompts[1][:8]
    assert len({tuple(one[8:]) for one in prompts}) == 6
    alone = make_prompts({"count": 3, "length": 4, "seed": 1, "vocabulary": 1000})
    assert [len(one) for one in alone] == [4] * 3


def test_a_digest_tells_answers_apart() -> None:
    assert digest([[1, 2], [3]]) == digest([(1, 2), (3,)])
    assert len({digest([[1, 2], [3]]), digest([[1], [2, 3]]), digest([[3], [1, 2]])}) == 3


def test_flags_become_settings() -> None:
    flags = ["--worker-cls", "a.b.C", "--kv-cache-memory-bytes", "42", "--gpu-memory-utilization", "0.02"]
    assert as_settings(flags) == {
        "worker_cls": "a.b.C",
        "kv_cache_memory_bytes": 42,
        "gpu_memory_utilization": 0.02,
    }


def test_the_shape_of_llama() -> None:
    assert synthetic.vocabulary(LLAMA) == 128256
    assert synthetic.token_bytes(LLAMA) == 128 * 1024


def test_a_synthetic_model_has_a_word_for_every_token(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"vocab_size": 50}))
    folder = synthetic.prepare(config, tmp_path / "made")
    words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert sorted(words.values()) == list(range(50))
    made = (folder / "tokenizer.json").stat().st_mtime_ns
    assert synthetic.prepare(config, folder) == folder
    assert (folder / "tokenizer.json").stat().st_mtime_ns == made
    config.write_text(json.dumps({"vocab_size": 60}))
    synthetic.prepare(config, folder)
    assert len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]) == 60


@pytest.mark.parametrize("content", [{}, {"vocab_size": "many"}, {"vocab_size": 1}])
def test_a_config_without_a_vocabulary_is_refused(tmp_path: Path, content: dict[str, object]) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="vocab_size"):
        synthetic.prepare(config, tmp_path / "made")
