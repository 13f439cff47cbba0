"""Medians, ratios, and which checks are made of which rows."""

from __future__ import annotations

from shoal.bench.relay.promises import checks
from shoal.bench.relay.summary import Row, lines, medians, ratios


def asked(system: str, number: int, rate: float, p50: float, cpu: float | None = None, failed: int = 0) -> Row:
    row = {
        "what": "requests",
        "system": system,
        "pass": 0,
        "model": "answers",
        "number": number,
        "rate": rate,
        "p50_us": p50,
        "p99_us": 2 * p50,
        "failed": failed,
    }
    return row if cpu is None else {**row, "cpu_us": cpu}


def streamed(system: str, cpu: float | None, delay: float = 100.0, number: int = 100) -> Row:
    row = {
        "what": "streams",
        "system": system,
        "pass": 0,
        "model": "spread",
        "number": number,
        "delay_p50_us": delay,
        "delay_p99_us": 3 * delay,
        "failed": 0,
    }
    return row if cpu is None else {**row, "cpu_us": cpu}


ROWS = [
    *(asked("direct", 1, 40_000.0, p50) for p50 in (20.0, 24.0, 900.0)),
    *(asked("native", 1, 5_000.0, p50, 50.0) for p50 in (170.0, 174.0, 180.0)),
    *(asked("native", 64, rate, 3_000.0, 45.0) for rate in (21_000.0, 20_000.0, 3.0)),
    *(asked("nginx", 64, 40_000.0, 1_000.0, 20.0) for _ in range(3)),
    streamed("direct", None, 100.0),
    streamed("native", 19.0, 150.0),
    streamed("litellm", 950.0, 2_000.0, number=10),
    {"what": "left out", "system": "vllm-router", "why": "it died"},
]


def test_the_median_of_passes_and_what_is_added_to_none() -> None:
    middle = {(row["system"], row["load"]): row for row in medians(ROWS)}
    assert middle["direct", "1 connection"]["p50_us"] == 24
    assert middle["native", "1 connection"]["added_p50_us"] == 150
    assert middle["native", "64 connections"]["rate"] == 20_000
    assert middle["native", "64 connections"]["passes"] == 3
    assert "added_p50_us" not in middle["native", "64 connections"], "direct was not run so"
    assert "added_p50_us" not in middle["direct", "1 connection"]
    assert middle["native", "100 streams × 50 events/s, spread"]["added_delay_p50_us"] == 50
    assert not any(system == "vllm-router" for system, _ in middle)


def test_ratios_to_each_other_system_and_of_fewer_streams_the_cost_alone() -> None:
    found = {(row["what"], row["load"]): row for row in ratios(medians(ROWS), "native")}
    beside = found["native over nginx", "64 connections"]
    assert (beside["rate"], beside["cpu_us"], beside["p50_us"]) == (0.5, 2.25, 3)
    assert found["native over direct", "1 connection"]["p50_us"] == 7.25
    fewer = found["native over litellm", "100 streams × 50 events/s, spread"]
    assert fewer["cpu_us"] == 0.02
    assert "delay_p50_us" not in fewer
    assert ratios(medians(ROWS), "aiohttp") == []


def test_all_is_said() -> None:
    middle = medians(ROWS)
    said = "\n".join(lines(middle, ratios(middle, "native")))
    for part in (
        "1 connection\n",
        "  nginx        40000 requests/s",
        "CPU 19.0 µs each",
        "native over nginx: rate 0.5",
    ):
        assert part in said


def test_what_is_promised_holds_at_its_bounds_and_not_beyond() -> None:
    assert {check.name: check.holds for check in checks(ROWS, "native")} == {
        "native, 1 connection: added to the median": True,
        "native, 64 connections: requests a second": True,
        "native, 64 connections: CPU a request": True,
        "native, 100 streams × 50 events/s, spread: CPU an event": True,
        "native, 64 connections: requests a second over nginx's": True,
        "native, 64 connections: CPU a request over nginx's": True,
        "native: requests and streams that failed": True,
    }
    worse = [
        asked("direct", 1, 40_000.0, 20.0),
        asked("native", 1, 5_000.0, 170.1, 50.0),
        asked("native", 64, 19_999.0, 3_000.0, 60.1, failed=1),
        streamed("native", 20.1),
    ]
    assert not any(check.holds for check in checks(worse, "native"))
    nginx = [asked("nginx", 64, 72_000.0, 1_000.0, 11.9), streamed("nginx", 9.8)]
    assert len(checks([*worse, *nginx], "native")) == len(checks(worse, "native")) + 3
    assert not any(check.holds for check in checks([*worse, *nginx], "native"))


def test_on_a_slow_machine_the_promises_in_units_of_nginx_still_hold() -> None:
    rows = [
        asked("nginx", 64, 20_000.0, 1_000.0, 40.0),
        asked("native", 64, 6_000.0, 3_000.0, 160.0),
        streamed("nginx", 20.0),
        streamed("native", 40.0),
    ]
    found = {check.name.partition(": ")[2]: check.holds for check in checks(rows, "native")}
    assert [name for name, holds in found.items() if holds] == [
        "requests a second over nginx's",
        "CPU a request over nginx's",
        "CPU an event over nginx's",
        "requests and streams that failed",
    ]


def test_without_a_row_there_is_no_check() -> None:
    assert checks([asked("nginx", 64, 1.0, 1.0)], "native") == []
    assert [check.unit for check in checks([asked("native", 1, 5.0, 200.0, 9.0)], "native")] == ["requests"]


def test_streams_that_are_broken_off_may_leave_nothing() -> None:
    row = {
        "what": "aborts",
        "system": "native",
        "number": 100_000,
        "fds_more": 0,
        "carried": 0,
        "left_running": 0,
        "reached_engine": 88_902,
        "engine_saw_cancelled": 88_902,
        "blocks_more": 12,
        "rss_more_mib": -0.5,
        "failed": 0,
    }
    clean = checks([row], "native")
    assert len(clean) == 7
    assert all(check.holds for check in clean)
    dirty = {**row, "fds_more": 1, "carried": 1, "left_running": 1, "rss_more_mib": 1.5, "failed": 1}
    dirty["blocks_more"] = 1001
    dirty["engine_saw_cancelled"] = 88_901
    assert not any(check.holds for check in checks([dirty], "native"))
    assert checks([row], "aiohttp") == []
