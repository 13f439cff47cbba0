"""Processes that a benchmark starts, each in a group of its own with its log in a file, and all of them ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

LAST_LINES = 30
KILLED = 10.0
"""Seconds that the kernel gets to clear away what was killed; a driver may take its time over a GPU's memory."""


def end_in_order() -> None:
    """From now on SIGTERM ends this process as an error does, so that what it started is ended too."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


class DiedError(RuntimeError):
    """A process ended that had to run. The message has the end of its log."""


@dataclass(slots=True)
class Running:
    """One process and where its output goes."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def check(self) -> None:
        """Raise DiedError if it ended."""
        code = self.process.poll()
        if code is not None:
            raise DiedError(f"{self.name} ended with {code}; the end of {self.log}:\n{tail(self.log)}")


class Processes:
    """The processes of one benchmark; a context manager that ends them, the last first."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: list[Running] = []

    def __enter__(self) -> Processes:
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(*self._running)

    def start(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        *,
        stdin: int = subprocess.DEVNULL,
        stdout: int | None = None,
        fds: Sequence[int] = (),
    ) -> Running:
        """Start `argv` with `env` over this process's own, and with the descriptors `fds`. Its output goes to a log,
        `stdout` elsewhere if given."""
        log = self._logs / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                list(argv),
                env={**os.environ, **(env or {})},
                stdin=stdin,
                stdout=output if stdout is None else stdout,
                stderr=subprocess.STDOUT if stdout is None else output,
                start_new_session=True,
                pass_fds=fds,
            )
        running = Running(name, process, log)
        self._running.append(running)
        return running

    def stop(self, *which: Running, patience: float = 10.0) -> None:
        """End these and all that they started: asked first, then killed."""
        for running in reversed(which):
            _signal(running, signal.SIGTERM)
        deadline = time.monotonic() + patience
        for running in which:
            _wait_gone(running, deadline)
            _signal(running, signal.SIGKILL)
            running.process.wait()
            _wait_gone(running, time.monotonic() + KILLED)
            for pipe in (running.process.stdin, running.process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            if running in self._running:
                self._running.remove(running)

    def __iter__(self) -> Iterator[Running]:
        return iter(list(self._running))


def tail(log: Path, lines: int = LAST_LINES) -> str:
    """The last lines of a log, or nothing if there is none."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def _signal(running: Running, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(running.process.pid, number)


def _wait_gone(running: Running, deadline: float) -> None:
    while _group_lives(running) and time.monotonic() < deadline:
        time.sleep(0.02)


def _group_lives(running: Running) -> bool:
    running.process.poll()
    try:
        os.killpg(running.process.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
