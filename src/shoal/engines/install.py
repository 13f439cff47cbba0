"""Building one engine environment: a virtual environment, pip, and the repairs of its recipe."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from shoal.engines.pip_progress import InstallProgress, PipProgress
from shoal.engines.recipes import Recipe
from shoal.errors import ShoalError

Report = Callable[[InstallProgress], None]

_CAUSES = (
    (("No space left on device",), "the disk is full; free some space, or name another folder with SHOAL_ENGINES_DIR"),
    (
        ("Temporary failure in name resolution", "Failed to establish a new connection", "Network is unreachable"),
        "the package index cannot be reached; check the network and pip's settings (pip config list)",
    ),
    (
        ("No matching distribution found", "Could not find a version"),
        "a package has no build for this Python or machine; try another Python 3.11 or 3.12",
    ),
    (("Read timed out", "Connection broken", "IncompleteRead"), "the download broke off; run the same command again"),
)


@contextmanager
def locked(path: Path, report: Report) -> Iterator[None]:
    """Hold a file lock; say so if another process has it, and wait. The kernel frees it if its holder dies."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(InstallProgress("waiting", 0, "another install of it is running"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build(plan: Recipe, folder: Path, log_path: Path, report: Report) -> None:
    """Make the environment of `plan` in `folder`, which must not exist. Raises ShoalError (`engine_install_failed`).

    A virtual environment cannot be moved, so it is made where it will stay; the caller's record, written last,
    is what makes it count.
    """
    python = str(folder / "bin" / "python")
    with log_path.open("w", encoding="utf-8") as log:
        step = _Steps(plan, log, log_path)
        report(InstallProgress("creating", 0, "virtual environment"))
        step.run([sys.executable, "-m", "venv", str(folder)], "a virtual environment cannot be made")
        report(InstallProgress("creating", 1, "pip"))
        _install(plan, step, python, report, raw=_raw_progress(step, python))
        if plan.uninstall:
            report(InstallProgress("repairing", 91, "removing builds that do not fit"))
            step.run([python, "-m", "pip", "uninstall", "-y", *plan.uninstall], "packages cannot be removed")
        if plan.alias:
            _record_alias(folder, plan.alias, plan.alias_version)
        if plan.probe:
            report(InstallProgress("checking", 93, "the first import"))
            step.run([python, "-c", plan.probe], "the engine does not import")


def _raw_progress(step: _Steps, python: str) -> bool:
    """Whether pip can tell its progress in bytes, which came with 24.1; an older one is replaced if that can be."""
    try:
        step.run([python, "-m", "pip", "install", "--upgrade", "pip>=24.1"], "pip cannot be updated")
    except ShoalError:
        return False
    return True


def _install(plan: Recipe, step: _Steps, python: str, report: Report, *, raw: bool) -> None:
    # About two parts in seven of a finished environment are downloaded: wheels are compressed.
    arguments = [python, "-m", "pip", "install", "--progress-bar", "raw" if raw else "off", "--no-input"]
    for link in plan.find_links:
        arguments += ["--find-links", link]
    arguments += plan.requirements
    what = f"{' '.join(plan.requirements)} cannot be installed"
    progress = PipProgress(plan.size * 2 // 7, report)
    if plan.fallback_index is None:
        step.run(arguments, what, progress)
        return
    try:
        step.run(arguments, what, progress)
    except ShoalError:
        if "No matching distribution found" not in step.tail and "Could not find a version" not in step.tail:
            raise
        report(InstallProgress("downloading", 3, f"asking {plan.fallback_index} too"))
        step.run([*arguments, "--extra-index-url", plan.fallback_index], what, progress)


class _Steps:
    """Runs commands one after another into one log, and explains a failure in a sentence."""

    def __init__(self, plan: Recipe, log: IO[str], log_path: Path) -> None:
        self._plan = plan
        self._log = log
        self._log_path = log_path
        self.tail = ""

    def run(self, argv: Sequence[str], what: str, progress: PipProgress | None = None) -> None:
        self._log.write(f"$ {' '.join(argv)}\n")
        self._log.flush()
        lines: list[str] = []
        with subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
            errors="replace", env=_environ(), cwd="/",
        ) as process:  # fmt: skip
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    if not line.startswith("Progress "):
                        self._log.write(line)
                        lines = [*lines[-39:], line]
                    if progress is not None:
                        progress.feed(line)
            except BaseException:
                process.terminate()  # Ctrl-C: pip would go on behind our back
                raise
        self._log.flush()
        self.tail = "".join(lines)
        if process.returncode != 0:
            raise ShoalError(
                f"{self._plan.name}: {what}: {_cause(lines, process.returncode)}. Log: {self._log_path}",
                status=500,
                code="engine_install_failed",
            )


def _cause(lines: Sequence[str], code: int) -> str:
    text = "".join(lines)
    for marks, cause in _CAUSES:
        if any(mark in text for mark in marks):
            return cause
    errors = [line.strip() for line in lines if line.lstrip().upper().startswith("ERROR")]
    last = next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {code}")
    return (errors[-1] if errors else last).rstrip(".")


def _environ() -> dict[str, str]:
    """Our environment without what would bend another interpreter."""
    ours = ("PYTHON", "SHOAL_", "VIRTUAL_ENV", "PIP_TARGET", "PIP_USER", "PIP_REQUIRE_VIRTUALENV")
    environ = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return {**environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONUNBUFFERED": "1"}


def _record_alias(folder: Path, name: str, version: str) -> None:
    """Leave the trace of an installed distribution `name`, for `importlib.metadata`."""
    variables = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", scheme="venv", vars=variables))
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    (info / "INSTALLER").write_text("shoal\n", encoding="utf-8")
