"""What was promised of elastic memory, as checks over the rows of its benchmarks. Pure.

A check is made of the rows that are there; a row that is missing makes no check, and the report shows what was checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .results import Check
from .stats import median, ratios

Row = Mapping[str, Any]

SATURATED = 56
"""From this peak on, a third of the memory no longer serves a model's burst of 256 tokens in and out."""


def burst_checks(rows: Sequence[Row]) -> list[Check]:
    """Shoal against a third of the memory each (stock) and against a model that is alone, phase by phase."""
    latest = {(row["phase"], row["system"]): row for row in rows}
    checks: list[Check] = []
    for phase in dict.fromkeys(row["phase"] for row in rows):
        ours, stock, alone = (latest.get((phase, system)) for system in ("shoal", "stock", "alone"))
        if ours is None:
            continue
        name = f"burst {phase}"
        checks += [
            Check(f"{name}: failed requests", ours["all"]["failed"], "requests", 0),
            Check(f"{name}: engines that died", len(ours["died"]), "engines", 0),
        ]
        saturated = ours["tokens"] == 256 and not ours["together"] and ours["peak"] >= SATURATED
        if stock is not None and _served(ours) and _served(stock):
            checks += _against_stock(name, ours["all"], stock["all"], saturated=saturated)
        if alone is not None and saturated and _served(ours) and _served(alone):
            checks += [
                Check(f"{name}: TTFT {key} over that of a model alone", _over(ours, alone, key), "×", 1.15)
                for key in ("mean", "p99")
            ]
        means = [model["ttft_mean"] for model in ours["models"] if "ttft_mean" in model]
        if len(means) > 1 and (ours["together"] or ours["tokens"] > 256):
            checks.append(
                Check(f"{name}: slowest model's mean TTFT over the fastest's", max(means) / min(means), "×", 1.3)
            )
    return checks


def _against_stock(name: str, ours: Row, stock: Row, *, saturated: bool) -> list[Check]:
    checks = []
    for key, target in (("mean", 14.0), ("p99", 30.0)):
        mine, other = ours[f"ttft_{key}"], stock[f"ttft_{key}"]
        if saturated:
            checks.append(Check(f"{name}: TTFT {key}, times better than stock", other / mine, "×", target, "at least"))
        else:
            checks.append(Check(f"{name}: TTFT {key} over stock's", mine / other, "×", 1.03))
    return checks


def _served(row: Row) -> bool:
    return "ttft_mean" in row["all"]


def _over(ours: Row, other: Row, key: str) -> float:
    return float(ours["all"][f"ttft_{key}"] / other["all"][f"ttft_{key}"])


THROUGHPUT = {"prefill": 0.99}
"""Part of stock's throughput that is promised, by kind of load; 0.995 where it is not named."""


def elastic_checks(rows: Sequence[Row]) -> list[Check]:
    """Shoal against stock on one offline engine: throughput, tokens, idle memory, waits."""
    checks: list[Check] = []
    loads = [row for row in rows if row["what"] == "load"]
    for load in dict.fromkeys(row["load"] for row in loads):
        mine = [row for row in loads if row["load"] == load]
        target = THROUGHPUT.get(mine[0]["kind"], 0.995)
        for state in ("cold", "warm"):
            ours = [row["out_tokens_s"] for row in mine if row["system"] == "shoal" and row["state"] == state]
            # A load with shared prefixes has other prompts each time, so stock too ran it once for each state.
            stock = [
                row["out_tokens_s"]
                for row in mine
                if row["system"] == "stock" and (row["state"] == state or row["kind"] != "shared prefixes")
            ]
            if pairs := ratios(ours, stock):
                name = "growing from nothing" if state == "cold" else "warm"
                checks.append(Check(f"{load}: throughput of stock's, {name}", median(pairs), "×", target, "at least"))
        theirs = {row["seed"]: row["tokens_hash"] for row in mine if row["system"] == "stock"}
        known = [row for row in mine if row["seed"] in theirs]
        if any(row["system"] == "shoal" for row in known):
            other = sum(row["tokens_hash"] != theirs[row["seed"]] for row in known)
            checks.append(Check(f"{load}: runs with other tokens than stock's", other, "runs", 0))
    for row in rows:
        if row["what"] == "pressure":
            checks += [
                Check("idle: KV held 2 s after a neighbour asks for all", row["left_bytes"] / 2**20, "MiB", 64),
                Check(
                    "idle without pressure: cached prefixes still there", row["hit_rate"], "of tokens", 0.9, "at least"
                ),
            ]
        elif row["what"] == "give back":
            checks.append(Check("giving back to a neighbour, for 32 GiB", row["seconds_for_32_gib"], "s", 1.0))
    waits = [row["waits"]["p99_us"] for row in rows if row["what"] == "memory" and row["waits"]["steps_needing"]]
    if waits:
        checks.append(Check("a step that needs memory waits for it, p99", max(waits), "µs", 200))
    # The last of each name: later rounds replace earlier ones.
    return list({check.name: check for check in checks}.values())


def reclaim_checks(rows: Sequence[Row]) -> list[Check]:
    """An idle engine's cached prefixes, and the neighbour that needs the memory."""
    checks: list[Check] = []
    bare = [row for row in rows if row["what"] == "bare"]
    if bare:
        size = max(row["gib"] for row in bare)
        checks.append(
            Check(f"{size:g} GiB of cached prefixes reclaimed", max(row["grant_s"] for row in bare) * 1e3, "ms", 250)
        )
        usable = [row["usable_s"] for row in bare if row.get("usable_s") is not None]
        if usable:
            checks.append(Check(f"{size:g} GiB of cached prefixes reclaimed and usable", max(usable) * 1e3, "ms", 250))
    for row in rows:
        if row["what"] == "neighbour":
            checks += [
                Check("the neighbour's failed requests", row["failed"], "requests", 0),
                Check("the neighbour's TTFT over that on an empty device", row["ttft_ratio"], "×", 1.15),
            ]
        elif row["what"] == "afterwards":
            checks.append(Check("prefixes lost out of order of age", row["out_of_order"], "prompts", 0))
    return checks
