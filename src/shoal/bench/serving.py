"""A model behind `shoal serve` in a benchmark: its settings, and an interpreter for it that Shoal can start."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .rig import Rig


def interpreter(rig: Rig, folder: Path) -> Path:
    """The rig's interpreter as a file in `folder` that finds its packages by itself.

    What Shoal starts inherits nothing; where packages come by PYTHONPATH, it has to be told of them.
    """
    more = os.environ.get("PYTHONPATH", "")
    export = f'export PYTHONPATH="${{PYTHONPATH:+$PYTHONPATH:}}{more}"\n' if more else ""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\n{export}exec {rig.python} "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def model_settings(rig: Rig, python: Path, device: str, args: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    """Settings of the rig's model for the admin API, on `device`; `args` for vLLM besides those that it needs here."""
    made_up = ("--load-format", "dummy") if rig.dummy else ()
    return {
        "engine": "vllm",
        "source": str(rig.model),
        "environment": str(python),
        "devices": [device],
        "elastic": "required",
        "args": [*made_up, "--no-enable-prefix-caching", *args],
        "env": {"VLLM_USE_FLASHINFER_SAMPLER": "0"},
        **more,
    }
