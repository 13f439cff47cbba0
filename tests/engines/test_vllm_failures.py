"""Failures are told from logs that vLLM 0.32 wrote when it was started wrongly on purpose (`logs/`, shortened)."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.engines.vllm.failures import explain
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Exit, Failure

LOGS = Path(__file__).parent / "logs"
SPEC = ModelSpec(name="m", source="org/some-model")


def told(name: str, exit: Exit | None = None) -> Failure:
    return explain(SPEC, (LOGS / f"{name}.txt").read_text().splitlines(), exit or Exit(code=1))


@pytest.mark.parametrize(
    ("name", "code", "part"),
    [
        ("unknown_argument", "bad_argument", "--no-such-flag"),
        ("bad_value", "bad_argument", "--max-model-len"),
        ("indivisible_heads", "bad_argument", "must be divisible by tensor parallel size (2)"),
        ("no_such_path", "source_not_found", "org/some-model is not a model"),
        ("no_config", "source_not_found", "config.json"),
        ("no_tokenizer", "source_not_found", "tokenizer"),
        ("no_network", "source_unreachable", "hub could not be reached"),
        ("unsupported_architecture", "unsupported_architecture", "FooBarForCausalLM"),
        ("context_beyond_model", "context_too_long", "100000 tokens was asked for, but the model reaches 8192"),
        ("kv_cache_too_small", "context_too_long", "8192 tokens needs 0.18 GiB of KV cache"),
        ("kv_cache_too_big", "out_of_memory", "100.0 GiB of KV cache were asked for"),
        ("memory_share_too_big", "out_of_memory", "GiB free"),
        ("truncated_weights", "source_damaged", "incomplete metadata"),
        ("socket_taken", "port_taken", "taken"),
        ("port_taken", "port_taken", "taken"),
        ("worker_killed", "engine_crashed", "VllmWorker-0 died"),
    ],
)
def test_each_recorded_failure_is_named(name: str, code: str, part: str) -> None:
    failure = told(name)
    assert failure.code == code
    assert part in failure.message
    assert failure.message.endswith(".")
    assert "\n" not in failure.message
    assert failure.hint


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "out_of_memory"),
        (
            "Free memory on device cuda:0 (3.1/139.8 GiB) on startup is less than desired memory use (0.9, 125.8 GiB)",
            "out_of_memory",
        ),
        ("ValueError: No available memory for the cache blocks. Try increasing", "out_of_memory"),
        (
            "RuntimeError: warming up needs 4 MiB of KV cache on GPU-7d, but the memory broker on /m gave 0 MiB within",
            "out_of_memory",
        ),
        (
            "RuntimeError: warming up needs 4 MiB of KV cache on GPU-7d, which another program took; free memory",
            "out_of_memory",
        ),
        ("OSError: You are trying to access a gated repo.", "gated_model"),
        ("OSError: org/x is not a local folder and is not a valid model identifier listed on", "source_not_found"),
        ("RuntimeError: Cannot find any model weights with `/srv/m`", "source_not_found"),
    ],
)
def test_failures_that_need_a_gpu_or_the_hub(line: str, code: str) -> None:
    assert explain(SPEC, ["INFO starting", line, "more"], Exit(code=1)).code == code


def test_the_start_of_a_healthy_engine_names_no_cause() -> None:
    log = (LOGS / "start.txt").read_text().splitlines()
    failure = explain(SPEC, log, Exit(code=3))
    assert failure.code == "engine_crashed"
    assert "exited with code 3" in failure.message


def test_a_kill_by_the_system_points_at_memory() -> None:
    failure = explain(SPEC, [], Exit(signal=9))
    assert failure.code == "engine_crashed"
    assert "signal 9" in failure.message
    assert "memory" in failure.hint


def test_an_unknown_error_is_quoted() -> None:
    failure = explain(SPEC, ["(Worker pid=1) ERROR 01-01 [x.py:1] foo.bar.OddError: the moon is full"], Exit(code=1))
    assert "OddError: the moon is full" in failure.message


@given(st.lists(st.text(max_size=200), max_size=20), st.none() | st.integers(0, 255), st.none() | st.integers(1, 64))
def test_any_log_is_explained(lines: list[str], code: int | None, signal: int | None) -> None:
    failure = explain(SPEC, lines, Exit(code=code, signal=signal))
    assert failure.code
    assert failure.message


def test_braces_in_a_log_or_a_source_do_no_harm() -> None:
    spec = ModelSpec(name="m", source="/srv/{odd}/{0}")
    failure = explain(spec, ["safetensors.SafetensorError: header {x} of {y}"], Exit(code=1))
    assert failure.message == "A weight file of /srv/{odd}/{0} is damaged (header {x} of {y})."
