"""What a process and those it started use: CPU time, memory, descriptors."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Usage:
    """A family of processes at one moment: seconds of user and system time so far, resident bytes, descriptors."""

    cpu: float = 0.0
    rss: int = 0
    fds: int = 0


def family(roots: Sequence[int]) -> list[psutil.Process]:
    """The processes `roots` and all their descendants, each once. Raises psutil.NoSuchProcess if a root is gone."""
    found: dict[int, psutil.Process] = {}
    for root in roots:
        process = psutil.Process(root)
        found |= {one.pid: one for one in (process, *process.children(recursive=True))}
    return list(found.values())


def read(processes: Sequence[psutil.Process]) -> Usage:
    """What they use now. One that ended meanwhile counts as nothing."""
    cpu, rss, fds = 0.0, 0, 0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess), process.oneshot():
            times, resident, descriptors = process.cpu_times(), process.memory_info().rss, process.num_fds()
            cpu += times.user + times.system
            rss += resident
            fds += descriptors
    return Usage(cpu, rss, fds)


def micros_each(seconds: float, number: int) -> float:
    """Microseconds of `seconds` that each of `number` took. Raises ValueError if there was none."""
    if number < 1:
        raise ValueError("nothing was served, so there is no cost of each")
    return 1e6 * seconds / number
