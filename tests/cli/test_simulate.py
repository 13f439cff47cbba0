"""`shoal simulate`: what it prints, and what it says of what it cannot read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run

MODELS = """
rules: {patience: 5s}
models:
  llama: {weights: 16GiB, sleep_after: 5m}
  qwen: {weights: 60GiB}
"""


@pytest.fixture
def models(tmp_path: Path) -> str:
    """A file of two models, of which one fits beside nothing else on 70 GiB."""
    path = tmp_path / "models.yaml"
    path.write_text(MODELS)
    return str(path)


def _trace(tmp_path: Path, *lines: object) -> str:
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return str(path)


def test_a_trace_is_run_and_every_request_is_told_of(run: Run, models: str, tmp_path: Path) -> None:
    trace = _trace(
        tmp_path,
        {"at": 0, "model": "llama", "prompt_tokens": 8000, "output_tokens": 50},
        {"at": 100, "model": "qwen", "keep_alive": "-1s"},
        {"at": 1000, "model": "llama", "priority": "high", "keep_alive": 0},
    )
    got = run("simulate", "-m", models, "-d", "1x70GiB", "-t", trace, "--json")
    assert got.exit_code == 0, got.output
    report: dict[str, Any] = json.loads(got.stdout)
    assert (report["requests"], report["served"], report["refused"]) == (3, 3, 0)
    llama, qwen = report["models"]
    assert (llama["loads"], llama["sleeps"], llama["wakes"]) == (1, 2, 1)
    assert llama["wait_max"] == pytest.approx(60)
    assert (qwen["loads"], qwen["gave_way"]) == (1, 1)
    words = run("simulate", "-m", models, "-d", "1x70GiB", "-t", trace).stdout
    assert "3 requests" in words and "GAVE WAY" in words and "cuda:0" in words


def test_traffic_is_made_up_alike_for_a_seed_and_saved(run: Run, models: str, tmp_path: Path) -> None:
    saved = tmp_path / "saved.jsonl"
    command = ("simulate", "-m", models, "-d", "cuda:0=70GiB,cuda:1=70GiB", "--json")
    first = run(*command, "--generate", "200", "--for", "2h", "--save", str(saved))
    assert first.exit_code == 0, first.output
    assert len(saved.read_text().splitlines()) == 200
    assert run(*command, "-t", str(saved)).stdout == first.stdout
    other = run(*command, "--generate", "200", "--for", "2h", "--seed", "1")
    assert other.stdout != first.stdout


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['{"at": 1, "model": "llama"}', "{nonsense"], "line 2"),
        (['{"at": 1, "model": "llama", "promt_tokens": 3}'], "promt_tokens"),
        (['{"at": 5, "model": "llama"}', "", '{"at": 4, "model": "llama"}'], "line 3: `at` is 4, before the 5"),
        (['{"at": -1, "model": "llama"}'], "line 1: `at` is -1"),
        (['{"at": 1, "model": "llama", "output_tokens": -1}'], "line 1: tokens"),
        (['{"at": 1, "model": "llama", "keep_alive": "soon"}'], "line 1: 'soon' is not a duration"),
        (['{"at": 1, "model": "llama", "priority": "urgent"}'], "line 1"),
        (['{"at": 1, "model": "llama"}', '{"at": 2, "model": "mistral"}'], "line 2: there is no model mistral"),
    ],
)
def test_a_broken_trace_is_refused_with_its_line(
    run: Run, models: str, tmp_path: Path, lines: list[str], said: str
) -> None:
    got = run("simulate", "-m", models, "-d", "1x70GiB", "-t", _trace(tmp_path, *lines))
    assert got.exit_code == 1
    assert said in " ".join(got.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("-d", "1x70GiB"), 2, "--trace FILE or --generate N"),
        (("-d", "1x70GiB", "--generate", "5", "-t", "x"), 2, "either"),
        (("-d", "1x70GiB", "-t", "x", "--save", "y"), 2, "--save"),
        (("-d", "1x70GiB", "--generate", "5", "--for", "soon"), 2, "not a duration"),
        (("-d", "1x70GiB", "--generate", "5", "--for", "0s"), 2, "more than nothing"),
        (("-d", "1x70GiB", "--generate", "5", "--host-memory", "much"), 2, "not a size"),
        (("-d", "70GiB", "--generate", "5"), 1, "NAME=SIZE"),
        (("-d", "cuda:0=0", "--generate", "5"), 1, "no memory"),
        (("-d", "a=70GiB,a=70GiB", "--generate", "5"), 1, "name of its own"),
        (("-d", "a=70GiB,b=8GiB", "--generate", "5"), 1, "no model fits on b: it has 8.0 GiB"),
        (("-d", "1x70GiB", "-t", "/nonexistent/trace"), 1, "cannot be read"),
        (("-d", "1x70GiB", "--generate", "5", "--save", "/nonexistent/trace"), 1, "cannot be written"),
    ],
)
def test_wrong_arguments_are_refused_with_what_to_give(
    run: Run, models: str, arguments: tuple[str, ...], code: int, said: str
) -> None:
    got = run("simulate", "-m", models, *arguments)
    assert got.exit_code == code, got.output
    assert said in " ".join(got.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: {}", "models"),
        ("modles: {a: {weights: 1}}", "did you mean models"),
        ("models: {a: {wieghts: 1GiB}}", "did you mean weights"),
        ("models: {a: {weights: 1GiB}}\nrules: {patiance: 3}", "did you mean patience"),
        ("models: {a: {weights: 1GiB, sleep_after: often}}", "not a duration"),
        ("models: {a: {weights: 1GiB, asleep: 90GiB}}", "more than the 2.2 GiB awake"),
        ("models: {a: {weights: 1GiB, devices: [cuda:7]}}", "names the device cuda:7"),
        ("models: {a: {weights: 1GiB, devices: [cuda:0], tensor_parallel: 2}}", "fewer devices are named"),
        ("models: {a: {weights: 1GiB, floor_least: 1GiB}}", "above the floor"),
        (
            "models: {a: {weights: 50GiB, load_on_start: true}, b: {weights: 50GiB, load_on_start: true}}",
            "no such room",
        ),
    ],
)
def test_a_wrong_file_of_models_is_refused_with_its_fault(run: Run, tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(text)
    got = run("simulate", "-m", str(path), "-d", "1x70GiB", "--generate", "5")
    assert got.exit_code == 1
    assert said in " ".join(got.stderr.split())


def test_requests_that_can_never_be_served_are_refused_with_the_numbers(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text("models: {small: {weights: 1GiB}, giant: {weights: 90GiB}}")
    got = run("simulate", "-m", str(path), "-d", "2x70GiB", "-t", _trace(tmp_path, {"at": 0, "model": "giant"}))
    assert got.exit_code == 0
    assert "1 refused" in " ".join(got.stdout.split())
    assert "giant needs 91.2 GiB on a device; cuda:0 has 70.0 GiB" in " ".join(got.stdout.split())
