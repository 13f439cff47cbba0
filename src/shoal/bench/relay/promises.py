"""What was promised of the relay, as checks over the rows of its benchmark. Pure.

The numbers are those of one machine, on which nginx, one worker, took 12 µs of CPU a request and 9.8 an event and
carried 71,800 requests a second. Where nginx was measured beside it the same promises are made in units of nginx, which
hold or not however fast a machine is.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..results import Check
from .summary import Row, medians

NGINX_REQUEST, NGINX_EVENT, NGINX_RATE = 12.0, 9.8, 71_800.0
REQUEST, EVENT, RATE, ADDED = 60.0, 20.0, 20_000.0, 150.0


def checks(rows: Sequence[Row], ours: str) -> list[Check]:
    """What is promised of the relay `ours`, as far as it was measured."""
    found: list[Check] = []
    middle: list[Row] = [row for row in medians(rows) if row["system"] == ours]
    for row in middle:
        load = f"{ours}, {row['load']}"
        if row["what"] == "median of streams":
            found.append(Check(f"{load}: CPU an event", row["cpu_us"], "µs", 20))
        elif row["number"] == 1:
            if "added_p50_us" in row:
                found.append(Check(f"{load}: added to the median", row["added_p50_us"], "µs", 150))
        else:
            found += [
                Check(f"{load}: requests a second", row["rate"], "requests/s", RATE, "at least"),
                Check(f"{load}: CPU a request", row["cpu_us"], "µs", REQUEST),
            ]
    found += _beside_nginx(middle, [row for row in medians(rows) if row["system"] == "nginx"])
    if middle:
        failed = sum(row["failed"] for row in middle)
        found.append(Check(f"{ours}: requests and streams that failed", failed, "requests", 0))
    for row in rows:
        if row["what"] == "aborts" and row["system"] == ours:
            found += _abort_checks(row)
    return found


def _beside_nginx(ours: Sequence[Row], nginx: Sequence[Row]) -> list[Check]:
    """The promises in units of nginx under the same load."""
    theirs = {row["load"]: row for row in nginx}
    found: list[Check] = []
    for row in ours:
        other = theirs.get(row["load"])
        if other is None:
            continue
        load = f"{row['system']}, {row['load']}"
        cpu = row["cpu_us"] / other["cpu_us"]
        if row["what"] == "median of streams":
            found.append(Check(f"{load}: CPU an event over nginx's", cpu, "×", round(EVENT / NGINX_EVENT, 2)))
        elif row["number"] > 1:
            part = row["rate"] / other["rate"]
            found += [
                Check(f"{load}: requests a second over nginx's", part, "×", round(RATE / NGINX_RATE, 2), "at least"),
                Check(f"{load}: CPU a request over nginx's", cpu, "×", REQUEST / NGINX_REQUEST),
            ]
    return found


def _unseen(row: Row) -> int:
    """Streams that reached the engine, none of which ends by itself, less those that it saw being cancelled."""
    return abs(int(row["reached_engine"]) - int(row["engine_saw_cancelled"]))


def _abort_checks(row: Row) -> list[Check]:
    load = f"{row['system']}, {row['number']} streams broken off"
    return [
        Check(f"{load}: descriptors more than before", row["fds_more"], "fds", 0),
        Check(f"{load}: requests still carried", row["carried"], "requests", 0),
        Check(f"{load}: streams the engine was left with", row["left_running"], "streams", 0),
        Check(f"{load}: ends that the engine did not see", _unseen(row), "streams", 0),
        # One object kept of each hundredth.
        Check(f"{load}: blocks of memory more than before", row["blocks_more"], "blocks", row["number"] // 100),
        # The smallest object kept of each would be five times as much in 100,000.
        Check(f"{load}: memory more than before", row["rss_more_mib"], "MiB", 1),
        Check(f"{load}: streams that failed before", row["failed"], "streams", 0),
    ]
