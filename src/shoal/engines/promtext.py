"""Reading Prometheus text, as fast as one look at an engine every other second asks for."""

from __future__ import annotations

import re
from math import isfinite

# Possessive throughout: an endless label list in a broken page must cost linear time.
_SAMPLE = re.compile(
    r"""
    ^[ \t]*+ ([a-zA-Z_:][a-zA-Z0-9_:]*+) [ \t]*+
    (?: \{ (?: [^"}\n]++ | "(?:[^"\\\n]|\\.)*+" )*+ \} )?+
    [ \t]*+ (?<=[ \t}]) ([-+.0-9eE]++)
    (?: [ \t]++ -?[0-9.]++ )?+                  # a timestamp
    (?: [ \t]++ \# [ \t]*+ \{ [^\n]*+ )?+       # an exemplar
    [ \t\r]*+ $
    """,
    re.MULTILINE | re.VERBOSE,
)


def parse_samples(text: str) -> dict[str, float]:
    """Each metric's name with the sum over its label sets.

    A histogram appears as its `_bucket`, `_sum` and `_count` series; the sum over its buckets means nothing.
    Broken lines and values that are not finite are skipped; nothing is raised.
    """
    samples: dict[str, float] = {}
    for name, value in _SAMPLE.findall(text):
        try:
            total = samples.get(name, 0.0) + float(value)
        except ValueError:
            continue
        if isfinite(total):
            samples[name] = total
    return samples
