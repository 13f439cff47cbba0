"""Which checks are made of which rows, and when they hold."""

from __future__ import annotations

from typing import Any

from shoal.bench.phases import parse
from shoal.bench.promises import burst_checks, elastic_checks, reclaim_checks
from shoal.bench.results import Check


def row(
    system: str, phase: str, mean: float, p99: float, models: tuple[float, ...] = (), failed: int = 0
) -> dict[str, Any]:
    known = parse(phase)
    return {
        "system": system,
        "phase": str(known),
        "peak": known.peak,
        "tokens": known.tokens,
        "together": known.together,
        "all": {"ttft_mean": mean, "ttft_p99": p99, "failed": failed},
        "models": [{"ttft_mean": one} for one in models],
        "died": [],
    }


def held(checks: list[Check]) -> dict[str, bool]:
    return {check.name.partition(": ")[2]: check.holds for check in checks}


def test_where_stock_saturates_much_is_promised() -> None:
    rows = [row("stock", "56", 560, 3000), row("shoal", "56", 40, 100), row("alone", "56", 36, 80)]
    assert held(burst_checks(rows)) == {
        "failed requests": True,
        "engines that died": True,
        "TTFT mean, times better than stock": True,
        "TTFT p99, times better than stock": True,
        "TTFT mean over that of a model alone": True,
        "TTFT p99 over that of a model alone": False,
    }


def test_elsewhere_to_be_no_worse_and_to_starve_nobody() -> None:
    rows = [row("stock", "24+", 100, 200), row("shoal", "24+", 104, 190, (90, 100, 120), failed=1)]
    assert held(burst_checks(rows)) == {
        "failed requests": False,
        "engines that died": True,
        "TTFT mean over stock's": False,
        "TTFT p99 over stock's": True,
        "slowest model's mean TTFT over the fastest's": False,
    }
    apart = [row("shoal", "20", 20, 30, (10, 30))]
    assert set(held(burst_checks(apart))) == {"failed requests", "engines that died"}


def test_a_later_row_replaces_an_earlier_and_without_shoal_there_is_nothing_to_check() -> None:
    rows = [row("shoal", "20", 20, 30, failed=3), row("shoal", "20", 20, 30)]
    assert all(held(burst_checks(rows)).values())
    assert burst_checks([row("stock", "56", 1, 1)]) == []


def load(system: str, state: str, rate: float, tokens: str = "a", kind: str = "mixed") -> dict[str, Any]:
    return {
        "what": "load",
        "system": system,
        "state": state,
        "load": "L",
        "kind": kind,
        "seed": 0,
        "out_tokens_s": rate,
        "tokens_hash": tokens,
    }


def test_throughput_is_the_median_of_pairs_and_tokens_have_to_be_the_same() -> None:
    rows = [load("stock", "warm", rate) for rate in (100, 50, 200)]
    rows += [load("shoal", "cold", rate) for rate in (99, 50, 150)]
    checks = {check.name: check for check in elastic_checks(rows)}
    assert checks["L: throughput of stock's, growing from nothing"].value == 0.99
    assert not checks["L: throughput of stock's, growing from nothing"].holds
    assert checks["L: runs with other tokens than stock's"].holds
    other = elastic_checks([*rows, load("shoal", "warm", 100, "b")])
    assert {check.name: check.holds for check in other}["L: runs with other tokens than stock's"] is False


def test_less_is_promised_of_prefill() -> None:
    checks = elastic_checks([load("stock", "warm", 100, kind="prefill"), load("shoal", "cold", 99, kind="prefill")])
    assert all(check.holds for check in checks)


def test_idle_engines_and_waits() -> None:
    rows: list[dict[str, Any]] = [
        {"what": "start"},
        {"what": "pressure", "left_bytes": 65 << 20, "hit_rate": 0.99},
        {"what": "give back", "seconds_for_32_gib": 0.5},
        {"what": "memory", "waits": {"steps_needing": 4, "p99_us": 150.0}},
        {"what": "memory", "waits": {"steps_needing": 0, "p99_us": 0.0}},
        {"what": "memory", "waits": {"steps_needing": 9, "p99_us": 90.0}},
    ]
    assert [check.holds for check in elastic_checks(rows)] == [False, True, True, True]


def test_reclaiming() -> None:
    rows = [
        {"what": "bare", "gib": 8, "grant_s": 0.1, "usable_s": 0.2},
        {"what": "bare", "gib": 8, "grant_s": 0.2, "usable_s": None},
        {"what": "bare", "gib": 8, "grant_s": 0.1, "usable_s": 0.3},
        {"what": "neighbour", "failed": 0, "ttft_ratio": 1.1},
        {"what": "afterwards", "out_of_order": 0},
    ]
    checks = reclaim_checks(rows)
    assert [(check.value, check.holds) for check in checks[:2]] == [(200, True), (300, False)]
    assert all(check.holds for check in checks[2:])
    assert reclaim_checks([]) == []
