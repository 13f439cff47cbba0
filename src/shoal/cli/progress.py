"""How far a load is: bars on a terminal, else a line whenever something changes. On standard error."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.text import Text

from shoal.cli.output import instance_note, plain, stderr
from shoal.units import format_seconds


class TimeLeft(ProgressColumn):
    """Counts down to the moment that the task's field `until` (monotonic seconds) names."""

    def render(self, task: Task) -> Text:
        """`about 12 s left`, or nothing while it is unknown."""
        until = task.fields.get("until")
        left = None if until is None else until - time.monotonic()
        return Text("" if left is None or left < 1 else f"about {format_seconds(left)} left", style="dim")


class Display:
    """Shows instances that start. With `quiet` it shows nothing."""

    def __init__(self, *, quiet: bool) -> None:
        self._console = stderr()
        self._quiet = quiet
        self._said: dict[str, str] = {}
        self._tasks: dict[str, TaskID] = {}
        self._bars: Progress | None = None
        if not quiet and self._console.is_terminal:
            self._bars = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f} %", markup=False),
                TimeLeft(),
                console=self._console,
                transient=True,
            )

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def show(self, instances: Sequence[Mapping[str, Any]]) -> None:
        """Bring the display up to what `instances` are now."""
        for one in instances:
            progress = one.get("progress") if one["state"] == "starting" else None
            percent = 100 if one["state"] == "ready" else progress["percent"] if progress else 0
            words = plain(progress["phase"] if progress else one["state"])
            if one["state"] != "ready" and not progress and (note := instance_note(one)):
                words = f"{one['state']}: {note}"
            if self._bars is not None:
                left = progress.get("seconds_left") if progress else None
                until = None if left is None else time.monotonic() + left
                if one["id"] not in self._tasks:
                    self._tasks[one["id"]] = self._bars.add_task("", total=100, until=None)
                self._bars.update(self._tasks[one["id"]], description=words, completed=percent, until=until)
            elif not self._quiet and self._said.get(one["id"]) != words:
                self._said[one["id"]] = words
                which = f"{one['id']}: " if len(instances) > 1 else ""
                self._console.print(f"{which}{words}" + (f" ({percent} %)" if progress else ""), soft_wrap=True)
