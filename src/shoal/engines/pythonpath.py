"""The `PYTHONPATH` of an engine: a folder that holds the `shoal` package and nothing else.

Shoal's own site-packages must never reach an engine, whose libraries have versions of their own. What runs inside
an engine imports the standard library and what vLLM itself brings.
"""

from __future__ import annotations

import uuid
from pathlib import Path

import shoal

PACKAGE = Path(shoal.__file__).resolve().parent


def python_path(directory: Path) -> Path:
    """`directory`, made so that it holds only a link to the `shoal` package. Any number of callers at once.

    Raises ValueError if it holds anything else: all of it would enter the engine.
    """
    directory.mkdir(parents=True, exist_ok=True)
    link = directory / "shoal"
    others = [entry.name for entry in directory.iterdir() if entry != link and not entry.name.startswith(".shoal-")]
    if others:
        raise ValueError(f"{directory} is for a link to the shoal package alone, but holds {', '.join(sorted(others))}")
    if not (link.is_symlink() and link.readlink() == PACKAGE):
        temporary = directory / f".shoal-{uuid.uuid4().hex}"
        temporary.symlink_to(PACKAGE, target_is_directory=True)
        temporary.replace(link)  # at once, so that an engine that starts now finds one or the other
    return directory
