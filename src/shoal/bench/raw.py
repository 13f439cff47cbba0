"""What a run saw, moment by moment and request by request, beside its results: for those who ask why a figure is so."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shoal.memory.tools import BrokerError, BrokerTool, DeviceBook

from .load import Served

FILE = "raw.jsonl.gz"
COLUMNS = ("model", "due", "sent", "first", "last", "end", "queued", "woken", "tokens")


def requests(served: Sequence[Served], start: float) -> list[list[float]]:
    """A row of `COLUMNS` for each request, in seconds: moments from `start` (monotonic) on, 0 for never, and spans."""
    rows = []
    for one in served:
        moments = (one.due, one.sent, one.first, one.last, one.end)
        times = [round(at - start, 4) if at else 0.0 for at in moments]
        rows.append([one.model, *times, round(one.queued, 4), round(one.woken, 4), one.tokens])
    return rows


def keep(folder: Path, row: dict[str, Any]) -> None:
    """Add a line to the folder's file."""
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / FILE, "at") as file:
        file.write(json.dumps(row) + "\n")


class BookWatch:
    """The broker's books, read every `interval` seconds on a thread; a context manager."""

    def __init__(self, socket: Path, interval: float = 0.1) -> None:
        self._found: list[tuple[float, list[DeviceBook]]] = []
        self._tool = BrokerTool(socket)
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="book-watch", daemon=True)

    def __enter__(self) -> BookWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._tool.close()

    def rows(self, start: float) -> list[dict[str, Any]]:
        """The devices and engines at each moment, in seconds from `start` (monotonic); sizes in MiB."""
        return [{"at": round(at - start, 3), "devices": [_device(book) for book in books]} for at, books in self._found]

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            try:
                self._found.append((time.monotonic(), list(self._tool.list().values())))
            except (BrokerError, OSError):  # it is no part of what is measured
                return


def _device(book: DeviceBook) -> dict[str, Any]:
    state = book.device
    sizes = {name: getattr(state, name) >> 20 for name in ("budget", "others", "held_back", "leased", "owed")}
    engines = {
        member.engine: [size >> 20 for size in (member.lease, member.backed, member.used, member.need)]
        for member in book.members
    }
    return {"key": state.key, **sizes, "free": None if state.free is None else state.free >> 20, "engines": engines}
