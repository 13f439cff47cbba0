"""What the kernel says of processes: whose they are, by their marks; who started them; what they hold."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

FLEET = "SHOAL_FLEET"
INSTANCE = "SHOAL_INSTANCE"
GENERATIONS = 16
"""How far below an engine's first process its others are looked for."""
LOOKS = 3
"""How often a process' ancestors are looked at, where one of them ends while they are."""


def is_shim(pid: int) -> bool:
    """Whether a process is a shim, by its command line."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        return False
    return words[-1].endswith(b"/launch.json") and any(word.endswith(b"/shim.py") for word in words)


def folder_of(pid: int, instance: str) -> Path | None:
    """The runtime folder in which a process of an instance was started, wherever it is now; None if it is gone."""
    with contextlib.suppress(OSError):
        folder = Path(f"/proc/{pid}/cwd").readlink()
        if folder.name == instance and folder.parent.name == "instances" and folder.is_dir():
            return folder
    return None


def pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def environ_of(pid: int) -> dict[str, str]:
    """The environment that a process was started with; empty if it is gone or not ours to read."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition(b"=") for entry in raw.split(b"\0") if entry)
    return {os.fsdecode(key): os.fsdecode(value) for key, _, value in pairs}


def marked(fleet: str) -> list[tuple[int, dict[str, str]]]:
    mark = f"{FLEET}={fleet}".encode()
    marked = []
    for pid in pids():
        try:
            raw = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if mark in raw:
            marked.append((pid, environ_of(pid)))
    return marked


def shim_over(pid: int, environ: dict[str, str]) -> int | None:
    """The living shim that a process with these marks descends from, or is; None if that is gone.

    A shim is its descendants' subreaper, so what it started stays below it while it lives. Marks alone do not tell two
    groups from each other: an engine that another Shoal has taken back keeps its own, and the Shoal that started it
    gives the same ones to the engine that it loads instead.
    """
    marks = environ.get(FLEET), environ.get(INSTANCE)
    for _ in range(LOOKS):  # one on the way up may end meanwhile, and what was below it has another parent then
        above = pid
        while above > 1 and not is_shim(above):
            above = parent_of(above)
        if above > 1:
            theirs = environ_of(above)
            return above if (theirs.get(FLEET), theirs.get(INSTANCE)) == marks else None
        if above >= 0:
            break
    return None


def stat_of(pid: int) -> list[str]:
    try:
        # The second field, the name in brackets, may itself hold blanks and brackets.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def session_of(pid: int) -> int:
    fields = stat_of(pid)
    return int(fields[3]) if fields else -1


def parent_of(pid: int) -> int:
    fields = stat_of(pid)
    return int(fields[1]) if fields else -1


def memory_of(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError):
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return sum(int(fields.get(name, "0 kB").split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))
    return 0
