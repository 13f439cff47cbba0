"""The relay's log: what is said of one instance again and again is said once a second, with how often it was.

An engine that dies breaks off every request that it ran; a line for each would be hundreds that tell the same.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

PERIOD = 1.0
"""Seconds in which warnings that are alike are one."""
Kind = tuple[str, str, object]
"""Logger, message before its arguments are put in, and the first of those: what, and whom it is about."""


@dataclass(slots=True)
class _Said:
    since: float
    more: int = 0
    last: logging.LogRecord | None = None


class Repeats(logging.StreamHandler[TextIO]):
    """Writes what is logged. Of warnings that are alike the first is written at once; those that follow within
    `PERIOD` are counted, and `tell` writes the last of them with their number."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self._clock = clock
        self._said: dict[Kind, _Said] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Write or count it. Called with the handler's lock, as `tell` takes it."""
        if record.levelno == logging.WARNING and isinstance(record.args, tuple) and record.args:
            now = self._clock()
            kind = (record.name, str(record.msg), record.args[0])
            said = self._said.get(kind)
            if said is not None and (said.more or now - said.since < PERIOD):
                said.more += 1
                said.last = record
                return
            self._said[kind] = _Said(now)
        super().emit(record)

    def tell(self, *, all_: bool = False) -> None:
        """To be called about once a second, and with `all_` at the end: write what was counted."""
        self.acquire()
        try:
            now = self._clock()
            for kind, said in list(self._said.items()):
                if not all_ and now - said.since < PERIOD:
                    continue
                if said.last is None:
                    del self._said[kind]  # whom it is about may never be heard of again
                    continue
                told = copy.copy(said.last)
                told.msg, told.args = f"{said.last.getMessage()} (one of {said.more} more)", ()
                self._said[kind] = _Said(now)
                super().emit(told)
        finally:
            self.release()
