"""Requests to many models, of which some are asked for far more often, and what was promised of them. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from .load import Served
from .results import Check
from .stats import percentile, rounded, summary

Row = Mapping[str, Any]
HELD = 0.001
"""Seconds until its model served from which on a request counts as one that was held."""
TOGETHER = 0.1
"""Seconds within which requests that were held for one model count as sent to it at once."""


def zipf(models: int, exponent: float) -> list[float]:
    """How often each model is asked for, as parts of all; the first the most. Raises ValueError if there are none."""
    if models < 1:
        raise ValueError("no models to ask for")
    parts = [(rank + 1) ** -exponent for rank in range(models)]
    return [part / sum(parts) for part in parts]


def arrivals(
    models: int, seconds: float, rate: float, *, exponent: float, every: float, burst: int, seed: int
) -> list[tuple[float, int]]:
    """When which model is asked, in order: at random at `rate` a second, by popularity, and every `every` seconds a
    `burst` of requests within a second to one model that any could be. The same numbers give the same."""
    rng = random.Random(seed)
    parts = zipf(models, exponent)
    found, at = [], 0.0
    while rate > 0 and (at := at + rng.expovariate(rate)) < seconds:
        found.append((at, rng.choices(range(models), parts)[0]))
    begin = every
    while 0 < begin < seconds:
        model = rng.randrange(models)
        found += [(begin + rng.random(), model) for _ in range(burst)]
        begin += every
    return sorted(found)


def described(served: Sequence[Served], tokens: int) -> dict[str, Any]:
    """What requests were like: those to models that were awake, those that were held until theirs was, and all. Of one
    that was never answered it is not known which it was: it counts in all alone.

    Of those that were held also how long it was until their model served, and from then on to the first token, without
    their time in the queue, in milliseconds; and with how many each came to its model at once, itself counted.
    """
    held = [one for one in served if one.woken >= HELD]
    good = [one for one in held if one.complete(tokens)]
    woken = [1e3 * one.woken for one in good]
    beyond = [1e3 * (one.first - one.due - one.queued - one.woken) for one in good]
    return {
        "all": summary(served, tokens),
        "awake": summary([one for one in served if one.first and one.woken < HELD], tokens),
        "held": summary(held, tokens),
        "held_until_awake": _parts(woken),
        "held_beyond": _parts(beyond),
        "held_together": _parts(together(held)),
    }


def together(held: Sequence[Served]) -> list[float]:
    """For each request, how many came to its model with it when that served: itself and those close to it in time."""
    found: list[float] = []
    group: list[tuple[int, float]] = []
    for at in sorted((one.model, one.due + one.queued + one.woken) for one in held):
        if group and (at[0] != group[-1][0] or at[1] - group[-1][1] > TOGETHER):
            found += [float(len(group))] * len(group)
            group = []
        group.append(at)
    return found + [float(len(group))] * len(group)


def _parts(values: Sequence[float]) -> dict[str, Any]:
    return rounded({"p50": percentile(values, 0.5), "p99": percentile(values, 0.99)}) if values else {}


def many_checks(rows: Sequence[Row]) -> list[Check]:
    """What is promised of many models that share a device by sleeping, as far as there are rows for it."""
    checks: list[Check] = []
    for row in rows:
        if row["what"] != "traffic" or row["system"] != "sleep":
            continue
        checks.append(Check("requests that were not answered", row["all"]["failed"], "requests", 0))
        if (calm := _beside(row, rows, "calm")) is not None and "ttft_p50" in calm["all"]:
            for key, most in (("p50", 1.1), ("p99", 1.5)):
                if f"ttft_{key}" in row["awake"]:
                    over = row["awake"][f"ttft_{key}"] / calm["all"][f"ttft_{key}"]
                    checks.append(Check(f"TTFT {key} of awake models over that in calm", over, "×", most))
        volleys = _beside(row, rows, "volleys")
        answered = volleys is not None and any("ttft_p99" in one for one in volleys["sizes"].values())
        if volleys is not None and answered and row["held_beyond"] and row.get("held_together"):
            count = row["held_together"]["p99"]
            over = row["held_beyond"]["p99"] / at_once(volleys["sizes"], count)
            name = f"held: time beyond queue and wake, p99, over TTFT p99 of {count:.0f} at once to an awake model"
            checks.append(Check(name, over, "×", 1.5))
    return checks


def at_once(sizes: Mapping[str, Row], count: float) -> float:
    """TTFT p99 in milliseconds of `count` requests sent at once, between the sizes that were measured; of more than
    the largest that of the largest. Raises ValueError if none was."""
    known = sorted((int(size), float(one["ttft_p99"])) for size, one in sizes.items() if "ttft_p99" in one)
    if not known:
        raise ValueError("no volley was answered")
    for (small, quick), (large, slow) in pairwise(known):
        if small <= count <= large:
            return quick + (slow - quick) * (count - small) / (large - small)
    return known[0 if count < known[0][0] else -1][1]


def _beside(row: Row, rows: Sequence[Row], what: str) -> Row | None:
    """The row of a kind that was measured with another: of the same system, else of any."""
    found = [one for one in rows if one["what"] == what]
    return next((one for one in found if one["system"] == row["system"]), found[0] if found else None)
