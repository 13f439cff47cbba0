"""How the commands write: names and messages are shown as they are, never read as markup or as terminal codes."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from shoal.units import format_bytes, format_seconds

STATE_STYLE = {
    "ready": "green",
    "starting": "yellow",
    "queued": "yellow",
    "waking": "yellow",
    "sleeping": "blue",
    "draining": "cyan",
    "stopping": "cyan",
    "failed": "bold red",
    "stopped": "dim",
    "unloaded": "dim",
}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|.)?")


def stdout() -> Console:
    """Standard output, with Rich's markup and emoji codes off."""
    return Console(markup=False, emoji=False, highlight=False)


def stderr() -> Console:
    """Standard error, likewise."""
    return Console(markup=False, emoji=False, highlight=False, stderr=True)


def plain(text: str) -> str:
    """`text` without terminal escapes and control characters: what an engine prints must not steer the terminal."""
    return _CONTROL.sub("", _ESCAPES.sub("", text))


def print_json(data: Any, *, line: bool = False) -> None:
    """JSON on standard output; with `line` on a single line, for streams."""
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    sys.stdout.write(json.dumps(data, ensure_ascii=not utf8, indent=None if line else 2) + "\n")
    sys.stdout.flush()


def table(columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> Table:
    """A table without lines that fits 80 columns by folding, so that nothing is cut off."""
    made = Table(box=None, pad_edge=False, header_style="bold", show_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column, overflow="fold", no_wrap=False)
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(plain(cell)) for cell in row))
    return made


def pairs(rows: Sequence[tuple[str, str | Text]]) -> Table:
    """Names and values, one pair a line."""
    made = Table(box=None, pad_edge=False, show_header=False, show_edge=False, padding=(0, 2, 0, 0))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(name, value if isinstance(value, Text) else Text(plain(value)))
    return made


def state_text(state: str) -> Text:
    """A state in its colour."""
    return Text(plain(state), style=STATE_STYLE.get(state, ""))


def age(since: float | None) -> str:
    """`"3 min 2 s"` since a time in Unix seconds."""
    return "" if since is None else format_seconds(max(0.0, time.time() - since))


def clock(at: float) -> str:
    """A local time of day, with the date if that is not today."""
    then = time.localtime(at)
    today = time.localtime()
    same = (then.tm_year, then.tm_yday) == (today.tm_year, today.tm_yday)
    return time.strftime("%H:%M:%S" if same else "%Y-%m-%d %H:%M:%S", then)


def progress_words(progress: Mapping[str, Any] | None) -> str:
    """`"loading weights, 40 %, about 12 s left"`."""
    if not progress:
        return ""
    words = f"{progress['phase']}, {progress['percent']} %"
    left = progress.get("seconds_left")
    return words if left is None else f"{words}, about {format_seconds(max(0.0, left))} left"


def instance_note(instance: Mapping[str, Any]) -> str:
    """What there is to say of an instance beyond its state: why it failed, what it waits for, how far it is."""
    failure = instance.get("failure")
    if failure:
        note = " ".join(part for part in (failure["message"], failure.get("hint", "")) if part)
    else:
        progress = instance.get("progress") if instance["state"] == "starting" else None
        note = progress_words(progress) or instance.get("reason") or ""
    again = instance.get("restart_at")
    if again:
        note = f"{note} (starts again in {format_seconds(max(0.0, again - time.time()))})".strip()
    return plain(str(note))


def memory_words(memory: Mapping[str, Any]) -> str:
    """What an instance holds, and of its KV cache what requests use and what it may keep."""
    held = sum(memory["held"].values())
    words = [format_bytes(held)] if held else []
    if memory["lease"] is not None:
        words.append(f"KV {format_bytes(memory['used'])} of {format_bytes(memory['lease'])}")
    if memory["waiting"]:
        words.append(f"{memory['waiting']} waiting")
    return ", ".join(words)


def bar(used: float, total: float, *, width: int = 12) -> Text:
    """`████░░░░` for a share of a whole."""
    share = min(1.0, max(0.0, used / total)) if total else 0.0
    full = round(share * width)
    style = "red" if share > 0.95 else "yellow" if share > 0.8 else "green"
    return Text.assemble(("█" * full, style), ("░" * (width - full), "dim"))
