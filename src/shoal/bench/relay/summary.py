"""Rows of the relay's benchmark: the median of passes, what a proxy adds to none, and how systems compare. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..stats import median, rounded
from .bodies import RATE

Row = Mapping[str, Any]

COSTS = {
    "requests": ("rate", "p50_us", "p99_us", "cpu_us"),
    "streams": ("cpu_us", "first_p50_us", "first_p99_us", "delay_p50_us", "delay_p99_us", "rss_mib"),
}
"""What is compared, by what was run. Larger is better for the rate, smaller for all else."""
_ADDED = ("p50_us", "p99_us", "first_p50_us", "first_p99_us", "delay_p50_us", "delay_p99_us")
_SHOWN = (
    ("rate", "{:.0f} requests/s"),
    ("p50_us", "p50 {:.0f} µs"),
    ("p99_us", "p99 {:.0f} µs"),
    ("added_p50_us", "added {:.0f} µs"),
    ("events_s", "{:.0f} events/s"),
    ("cpu_us", "CPU {:.1f} µs each"),
    ("proxy_core", "{:.2f} of its core"),
    ("first_p50_us", "first byte p50 {:.0f}"),
    ("first_p99_us", "p99 {:.0f} µs"),
    ("added_delay_p50_us", "added delay p50 {:.0f}"),
    ("added_delay_p99_us", "p99 {:.0f} µs"),
    ("rss_mib", "{:.0f} MiB"),
    ("failed", "{} failed"),
)


def load_name(row: Row) -> str:
    """What a row's load was, for people."""
    if row["what"] == "requests":
        return f"{row['number']} connection{'s' if row['number'] > 1 else ''}"
    return f"{row['number']} streams × {RATE} events/s, {row['model']}"


def medians(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """One row for each system and load, with the median of its passes, and what it adds to `direct`."""
    groups: dict[tuple[str, str, int, str], list[Row]] = {}
    for row in rows:
        if row["what"] in COSTS:
            groups.setdefault((row["what"], row["model"], row["number"], row["system"]), []).append(row)
    found: dict[tuple[str, str, int, str], dict[str, Any]] = {}
    for key, passes in groups.items():
        what, model, number, system = key
        measured = [part for part in passes[0] if isinstance(passes[0][part], float)]
        found[key] = {
            "what": f"median of {what}",
            "load": load_name(passes[0]),
            "model": model,
            "number": number,
            "system": system,
            "passes": len(passes),
            **{part: median([row[part] for row in passes]) for part in measured},
            "failed": sum(row["failed"] for row in passes),
        }
    for (what, model, number, system), middle in found.items():
        straight = found.get((what, model, number, "direct"))
        if straight is not None and system != "direct":
            middle |= {f"added_{part}": middle[part] - straight[part] for part in _ADDED if part in middle}
    return [rounded(row) for row in found.values()]


def ratios(middle: Sequence[Row], ours: str) -> list[dict[str, Any]]:
    """How `ours` compares with each other system: its value over theirs, for each measure that both have.

    Where the other could only be given fewer streams, that is the CPU time of each event alone.
    """
    found = []
    for mine in (row for row in middle if row["system"] == ours):
        parts = COSTS[str(mine["what"]).removeprefix("median of ")]
        for other in middle:
            same = other["load"] == mine["load"]
            fewer = mine["model"] == other["model"] and "streams" in mine["what"] and "streams" in other["what"]
            if other["system"] == ours or not (same or fewer):
                continue
            compared = parts if same else ("cpu_us",)
            values = {part: mine[part] / other[part] for part in compared if mine.get(part) and other.get(part)}
            if values:
                found.append(
                    rounded({"what": f"{ours} over {other['system']}", "load": mine["load"], "system": ours, **values})
                )
    return found


def lines(middle: Sequence[Row], compared: Sequence[Row]) -> Iterator[str]:
    """Medians and ratios for people."""
    for load in dict.fromkeys(row["load"] for row in middle):
        yield load
        for row in middle:
            if row["load"] == load:
                parts = [text.format(row[part]) for part, text in _SHOWN if part in row]
                yield f"  {row['system']:12} {', '.join(parts)}"
        for row in compared:
            if row["load"] == load:
                parts = [f"{part} {value:.3g}" for part, value in row.items() if isinstance(value, float)]
                yield f"  {row['what']}: {', '.join(parts)}"
