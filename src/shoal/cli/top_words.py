"""Numbers and names in few characters, for tables in a terminal. Pure."""

from __future__ import annotations

import re
import time

from rich.cells import cell_len, set_cell_size

from shoal.cli.output import plain

# They would turn the text around a name, and some terminals obey them.
_DIRECTIONS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_SPACES = re.compile(r"\s+")


def label(text: str) -> str:
    """A name or a sentence as one line of plain text: no terminal codes, no line ends, no marks of direction."""
    return _SPACES.sub(" ", _DIRECTIONS.sub("", plain(text))).strip()


def fit(text: str, width: int) -> str:
    """`text` in exactly `width` cells: filled up, or cut with an ellipsis. A wide character counts as two."""
    if width <= 0:
        return ""
    if cell_len(text) > width:
        text = set_cell_size(text, width - 1).rstrip() + "…"
    return set_cell_size(text, width)


def right(text: str, width: int) -> str:
    """The same, at the right."""
    return " " * max(0, width - cell_len(text)) + text if cell_len(text) <= width else fit(text, width)


def wrapped(text: str, width: int, most: int) -> list[str]:
    """`text` in at most `most` lines of at most `width` cells, broken between words; the last line may be cut."""
    lines: list[str] = []
    for word in text.split():
        if lines and (cell_len(lines[-1]) + 1 + cell_len(word) <= width or len(lines) == most):
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return [fit(line, width).rstrip() for line in lines]


def size(n: float) -> str:
    """Bytes in at most five characters: `12.3G`."""
    value = float(max(0, n))
    if not value:
        return "0"
    for unit in ("B", "K", "M", "G", "T"):
        if value < 999.5 or unit == "T":
            break
        value /= 1024
    return f"{value:.1f}{unit}" if value < 99.95 and unit not in "BK" else f"{value:.0f}{unit}"


def of(used: float, total: float) -> str:
    """`50.1 of 80.0 GiB`: both in the unit of the whole."""
    unit, factor = next(
        (unit, factor) for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 1024), ("B", 1))
        if total >= factor or factor == 1
    )  # fmt: skip
    digits = 0 if factor <= 1024 else 1
    return f"{used / factor:.{digits}f} of {total / factor:.{digits}f} {unit}"


def rate(per_second: float) -> str:
    """A rate; a dash for none."""
    if per_second <= 0:
        return "-"
    if per_second < 9.95:
        return f"{per_second:.1f}"
    return f"{per_second:.0f}" if per_second < 9999.5 else f"{per_second / 1000:.0f}k"


def brief(seconds: float) -> str:
    """A short time in at most five characters: `88ms`, `1.2s`, `12s`, `3m`."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f}ms"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    return f"{seconds:.0f}s" if seconds < 99.5 else f"{seconds / 60:.0f}m"


def ago(seconds: float) -> str:
    """How long ago, in one unit and at most four characters."""
    if seconds < 10:
        return "now"
    for unit, length, end in (("s", 1, 60), ("m", 60, 3600), ("h", 3600, 86400)):
        if seconds < end:
            return f"{int(seconds // length)}{unit}"
    return f"{min(999, int(seconds // 86400))}d"


def clock(at: float) -> str:
    """A local time of day."""
    return time.strftime("%H:%M:%S", time.localtime(at))
