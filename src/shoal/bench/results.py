"""What a benchmark leaves behind: machine, versions, command, date, rows, and checks of what was promised."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import psutil


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
) -> Path:
    """Write a result to `folder/results/DATE.json` (a rehearsal to `…-quick.json`); the file."""
    now = datetime.datetime.now(datetime.UTC)
    result = {
        "date": now.isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "machine": machine(),
        "versions": {name: metadata.version(name) for name in packages},
        "quick": quick,
        "rows": list(rows),
        "checks": [{**asdict(check), "holds": check.holds} for check in checks],
    }
    path = folder / "results" / f"{now:%Y-%m-%d}{'-quick' if quick else ''}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def report(benchmarks: Path) -> bool:
    """Print every check of the newest result of every benchmark in one table; whether all hold."""
    from rich.console import Console
    from rich.table import Table

    table = Table("benchmark", "check", "measured", "promised", "holds", "date", title="Checks of every benchmark")
    good = True
    for folder in sorted(path.parent for path in benchmarks.glob("*/run.py")):
        results = sorted(path for path in folder.glob("results/*.json") if "quick" not in path.stem)
        if not results:
            table.add_row(folder.name, "no result yet", "", "", "", "")
            continue
        result = json.loads(results[-1].read_text())
        for check in result["checks"]:
            good = good and check["holds"]
            table.add_row(
                folder.name,
                check["name"],
                f"{check['value']:.4g} {check['unit']}",
                f"{check['sense']} {check['target']:g}",
                "yes" if check["holds"] else "NO",
                result["date"][:10],
            )
    Console().print(table)
    return good


if __name__ == "__main__":
    sys.exit(0 if report(Path(sys.argv[1])) else 1)
