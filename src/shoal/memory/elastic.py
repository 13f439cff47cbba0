"""What an engine is told about its elastic memory, and how that crosses into its process. Pure.

Both sides are here, so that each variable's name is written once: `ElasticTerms.environment` for whoever starts the
engine, `ElasticTerms.read` for what runs inside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PATIENCE = 60.0
"""Seconds that a request which nothing else stands in the way of waits for memory before it ends with an error."""

FIXED = 4 << 30

Mode = Literal["auto", "required"]


@dataclass(frozen=True, slots=True)
class ElasticTerms:
    """What one engine is told. Sizes in bytes, for each of its devices.

    `socket` is the broker's; `engine` the name it is known under there. `mode` says what becomes of a model whose cache
    cannot be elastic: ``auto`` runs it with a KV cache of `fixed` bytes, ``required`` refuses it. `page` is what the
    driver gives and takes at once, a multiple of its granularity; what suits the model's blocks, if it is None. A
    larger page makes growth and sleep cheaper, and what cannot be given back for the sake of one block on it more.
    """

    socket: Path
    engine: str
    floor: int = 0
    ceiling: int | None = None
    priority: int = 100
    mode: Mode = "auto"
    fixed: int = FIXED
    patience: float = PATIENCE
    page: int | None = None

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> ElasticTerms:
        """The terms in an engine's environment. Raises ValueError with the variable's name."""
        socket = environ.get("SHOAL_MEMORY_SOCKET")
        if not socket:
            raise ValueError(
                "SHOAL_MEMORY_SOCKET is not set: it names the memory broker's socket; `shoal memory env` prints what "
                "an engine needs"
            )
        ceiling = environ.get("SHOAL_MEMORY_CEILING")
        mode = environ.get("SHOAL_MEMORY_ELASTIC", "auto")
        if mode not in ("auto", "required"):
            raise ValueError(f"SHOAL_MEMORY_ELASTIC is {mode!r}; it has to be auto or required")
        return cls(
            socket=Path(socket),
            engine=environ.get("SHOAL_MEMORY_ENGINE") or "",
            floor=_whole(environ, "SHOAL_MEMORY_FLOOR", 0),
            ceiling=None if not ceiling else _whole(environ, "SHOAL_MEMORY_CEILING", 0),
            priority=_whole(environ, "SHOAL_MEMORY_PRIORITY", 100),
            mode="required" if mode == "required" else "auto",
            fixed=_whole(environ, "SHOAL_MEMORY_FIXED", FIXED),
            patience=_seconds(environ, "SHOAL_MEMORY_PATIENCE", PATIENCE),
            page=_whole(environ, "SHOAL_MEMORY_PAGE", 0) or None,
        )

    def environment(self) -> dict[str, str]:
        """The variables that `read` understands."""
        env = {
            "SHOAL_MEMORY_SOCKET": str(self.socket),
            "SHOAL_MEMORY_ENGINE": self.engine,
            "SHOAL_MEMORY_FLOOR": str(self.floor),
            "SHOAL_MEMORY_PRIORITY": str(self.priority),
            "SHOAL_MEMORY_ELASTIC": self.mode,
            "SHOAL_MEMORY_FIXED": str(self.fixed),
            "SHOAL_MEMORY_PATIENCE": f"{self.patience:g}",
        }
        if self.ceiling is not None:
            env["SHOAL_MEMORY_CEILING"] = str(self.ceiling)
        if self.page is not None:
            env["SHOAL_MEMORY_PAGE"] = str(self.page)
        return env


def _whole(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name)
    if not text:
        return default
    if not text.isdecimal():
        raise ValueError(f"{name} is {text!r}; it has to be a whole number")
    return int(text)


def _seconds(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name)
    try:
        seconds = float(text) if text else default
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{name} is {text!r}; it has to be a number of seconds above zero")
    return seconds
