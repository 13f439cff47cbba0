"""What a benchmark leaves behind: machine, versions, command, date, rows, and checks of what was promised."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import psutil

import shoal


@dataclass(frozen=True, slots=True)
class Check:
    """One promise: `value` has to be at most, or at least, `target`. Both in `unit`."""

    name: str
    value: float
    unit: str
    target: float
    sense: Literal["at most", "at least"] = "at most"

    @property
    def holds(self) -> bool:
        """Whether the promise was kept."""
        return self.value <= self.target if self.sense == "at most" else self.value >= self.target


def machine() -> dict[str, Any]:
    """The machine, as far as numbers depend on it. Memory in bytes."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model or platform.machine(),
        "cores": os.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def write(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    checks: Iterable[Check],
    *,
    packages: Sequence[str] = ("shoal",),
    quick: bool = False,
    label: str = "",
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write a result to `folder/results/DATE[-label].json` (a rehearsal to `…-quick.json`); the file.

    `extra` is what else the machine is told by, such as its GPU. One of the same day and label is replaced.
    """
    now = datetime.datetime.now(datetime.UTC)
    result = {
        "date": now.isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "machine": {**machine(), **(extra or {})},
        "versions": {name: _version(name) for name in packages},
        "quick": quick,
        "rows": list(rows),
        "checks": [{**asdict(check), "holds": check.holds} for check in checks],
    }
    name = "-".join(part for part in (f"{now:%Y-%m-%d}", label, "quick" if quick else "") if part)
    path = folder / "results" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def rows_of(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The rows of several results, in that order: a benchmark longer than one sitting."""
    return [row for path in paths for row in json.loads(path.read_text())["rows"]]


def merge(
    paths: Sequence[Path], folder: Path, judge: Callable[[list[dict[str, Any]]], list[Check]], *, label: str
) -> None:
    """Make one result in `folder` of several of the same machine, and print where it is and its checks."""
    rows = rows_of(paths)
    checks = judge(rows)
    print(write(folder, rows, checks, label=label, extra=json.loads(paths[0].read_text())["machine"]))  # noqa: T201
    show(checks)


def show(checks: Iterable[Check]) -> None:
    """Print each check on a line."""
    for check in checks:
        sign = "holds" if check.holds else "DOES NOT HOLD"
        print(f"{check.name}: {check.value:.4g} {check.unit} ({check.sense} {check.target:g}: {sign})", flush=True)  # noqa: T201


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        # Run from a source tree, by PYTHONPATH.
        return shoal.__version__ if package == "shoal" else "unknown"


def report(benchmarks: Path) -> bool:
    """Print every check of every benchmark in one table, as the newest result that has it says; whether all hold."""
    from rich.console import Console
    from rich.table import Table

    table = Table("benchmark", "check", "measured", "promised", "holds", "date", title="Checks of every benchmark")
    good = True
    for folder in sorted(path.parent for path in benchmarks.glob("*/run.py")):
        results = sorted(path for path in folder.glob("results/*.json") if "quick" not in path.stem)
        if not results:
            table.add_row(folder.name, "no result yet", "", "", "", "")
            continue
        newest: dict[str, tuple[str, dict[str, Any]]] = {}
        for result in sorted((json.loads(path.read_text()) for path in results), key=lambda one: str(one["date"])):
            newest |= {check["name"]: (result["date"], check) for check in result["checks"]}
        for date, check in newest.values():
            good = good and check["holds"]
            table.add_row(
                folder.name,
                check["name"],
                f"{check['value']:.4g} {check['unit']}",
                f"{check['sense']} {check['target']:g}",
                "yes" if check["holds"] else "NO",
                date[:10],
            )
    Console().print(table)
    return good


if __name__ == "__main__":
    sys.exit(0 if report(Path(sys.argv[1])) else 1)
