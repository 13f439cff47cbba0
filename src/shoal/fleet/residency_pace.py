"""How soon another model may give way on a device. Pure."""

from __future__ import annotations

from collections.abc import Collection
from math import inf

from shoal.fleet.residency import Rules

FREE = 4
"""So many may always give way one right after the other."""


def pace(gave_way: Collection[float], rules: Rules, now: float) -> tuple[int, float]:
    """How many of these gave way within `switch_window`, and from when on another one may.

    A fifth of `switches` may follow each other at once; then they come evenly, together never more than `switches` in
    any window. Without that a steady demand would use them up in half of it, and whoever waits then would wait for all
    of the other half.
    """
    # By the very sum that is looked at again: a difference may round to another side of now.
    lately = sorted(until for at in gave_way if (until := at + rules.switch_window) > now)
    if len(lately) >= rules.switches:
        return len(lately), lately[-rules.switches]
    most = at_once(rules)
    if len(lately) < most or most == rules.switches:
        return len(lately), -inf
    apart = rules.switch_window / (rules.switches - most)
    return len(lately), lately[-1] - rules.switch_window + apart


def at_once(rules: Rules) -> int:
    """How many may give way one right after the other."""
    return min(rules.switches, max(FREE, rules.switches // 5))
