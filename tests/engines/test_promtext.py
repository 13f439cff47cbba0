from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from shoal.engines.promtext import parse_samples
from shoal.engines.readings import read_vllm_metrics

LABEL_TEXT = st.text(st.characters(codec="utf-8"), max_size=12)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("up 1", {"up": 1.0}),
        ("vllm:num_requests_running 2.0", {"vllm:num_requests_running": 2.0}),
        ('m{a="x"} 3', {"m": 3.0}),
        ('m{a="x"}3', {"m": 3.0}),
        ('m{a="}",b="{ # \\" 7"} 3 1700000000000', {"m": 3.0}),
        ('m{a="x",} -1.5e3\r', {"m": -1500.0}),
        ("m {} 4", {"m": 4.0}),
        ('m_bucket{le="1"} 4 # {trace="a b"} 0.5 1.5', {"m_bucket": 4.0}),
        ("\t m\t5 ", {"m": 5.0}),
    ],
)
def test_forms_of_a_sample(line: str, expected: dict[str, float]) -> None:
    assert parse_samples(line) == expected


@pytest.mark.parametrize(
    "line",
    [
        "",
        "# HELP m 1",
        "m",
        "m5",
        "m NaN",
        "m +Inf",
        "m 1e999",
        "m --1",
        "m 1_0",
        "m ٣",
        "m 1 2 3",
        'm{a="x 1',
        'm{a="x" 1',
        "m} 1",
        "5m 1",
        "{} 1",
        "m e",
        "<html> 1",
    ],
)
def test_broken_lines_are_skipped_and_their_neighbours_are_not(line: str) -> None:
    assert parse_samples(f"before 1\n{line}\nafter 2\n") == {"before": 1.0, "after": 2.0}


def test_label_sets_are_summed() -> None:
    assert parse_samples('m{e="0"} 1\nm{e="1"} 2\nn 5\nm{e="2"} NaN\n') == {"m": 3.0, "n": 5.0}


def test_a_sum_that_overflows_keeps_the_last_finite_one() -> None:
    assert parse_samples("m 1e308\nm 1e308\n") == {"m": 1e308}


@given(st.text())
def test_nothing_raises_and_everything_is_finite(text: str) -> None:
    assert all(math.isfinite(value) for value in parse_samples(text).values())


@given(st.dictionaries(LABEL_TEXT, st.floats(-1e9, 1e9), max_size=8), st.booleans())
def test_reads_what_the_official_client_writes(values: dict[str, float], openmetrics: bool) -> None:
    registry = CollectorRegistry()
    gauge = Gauge("a_gauge", "with \n odd { help }", ["label"], registry=registry)
    for label, value in values.items():
        gauge.labels(label).set(value)
    Counter("calls", "calls", registry=registry).inc(7)
    Histogram("seconds", "seconds", registry=registry, buckets=(1, 2)).observe(1.5)
    page = (generate_openmetrics if openmetrics else generate_latest)(registry).decode()
    samples = parse_samples(page)
    assert samples["calls_total"] == 7
    assert samples["seconds_sum"] == 1.5
    assert samples["seconds_count"] == 1
    assert samples["seconds_bucket"] == 2
    if values:
        assert samples["a_gauge"] == pytest.approx(math.fsum(values.values()), abs=1e-3)


@pytest.mark.parametrize(
    "line", ["m{" + 'a="b",' * 300_000, "m" * 2_000_000, 'm{a="' + "\\" * 2_000_000, " " * 1_000_000]
)
def test_a_hostile_page_costs_linear_time(line: str) -> None:
    started = time.process_time()
    parse_samples(line)
    assert time.process_time() - started < 10


INFO = 'vllm:cache_config_info{block_size="16",cache_dtype="auto",%s} 1.0\n'


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ('num_gpu_blocks="1024",kv_cache_memory_bytes="2147483648"', 131072.0),
        ('num_gpu_blocks="1024",kv_cache_memory_bytes="None"', None),
        ('num_gpu_blocks="None",kv_cache_memory_bytes="2147483648"', None),
        ('num_gpu_blocks="0",kv_cache_memory_bytes="2147483648"', None),
        ('num_gpu_blocks="-1",kv_cache_memory_bytes="1e9"', None),
        ('num_gpu_blocks="1024",kv_cache_memory_bytes="0"', None),
        ("", None),
    ],
)
def test_what_a_token_takes_is_read_from_the_caches_configuration(labels: str, expected: float | None) -> None:
    assert read_vllm_metrics(INFO % labels).kv_token_bytes == expected
    assert read_vllm_metrics(f"# HELP x\nvllm:num_requests_running 1\n{INFO % labels}").kv_token_bytes == expected
