"""What comes from Shoal and what is asked of it, in threads of their own: a terminal must not wait for a network."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import Any

from shoal.cli.top_acts import Act, View
from shoal.cli.top_state import EVENTS_KEPT
from shoal.client import Client
from shoal.errors import ShoalError

READ_EVERY = 3.0
"""Seconds between two readings of the traffic."""
_USE_EVERY = 10  # readings
_SILENCE = 40.0  # seconds: Shoal says every 15 that it is still there
_PATIENCE = 10.0  # seconds for an answer of a reading
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0  # seconds between two tries

Message = tuple[str, Any]


class Feed:
    """Follows the Shoal at `url`; `inbox` gets what `Fleet.take` takes, and for each act `done` or `refused`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.inbox: SimpleQueue[Message] = SimpleQueue()
        self._ended = threading.Event()
        self._fresh = threading.Event()

    def start(self) -> None:
        """Begin to follow. The threads end with the process: one that waits for an event cannot be told to stop."""
        for what in (self._follow, self._read):
            threading.Thread(target=what, name=f"top {what.__name__}", daemon=True).start()

    def stop(self) -> None:
        """Take in nothing more."""
        self._ended.set()
        self._fresh.set()

    def do(self, act: Act, before: View | None) -> None:
        """Carry an act out, beside others; `before` is how its model was seen last."""
        threading.Thread(target=self._do, args=(act, before), name="top act", daemon=True).start()

    def _do(self, act: Act, before: View | None) -> None:
        try:
            with Client(self.url) as client:
                answer = act.call(client)
                self.inbox.put(("done", (act, answer, before, list(client.warnings))))
        except ShoalError as error:
            self.inbox.put(("refused", (act, error.message)))

    def _follow(self) -> None:
        pause = _FIRST_PAUSE
        while not self._ended.is_set():
            try:
                with Client(self.url, timeout=_PATIENCE) as client:
                    for event in client.events_until_lost(silence=_SILENCE):
                        if self._ended.is_set():
                            return
                        self.inbox.put((event.kind, event.data))
                        if event.kind == "snapshot":
                            self._fresh.set()  # what happened meanwhile is read at once
                            pause = _FIRST_PAUSE
            except ShoalError as error:
                self.inbox.put(("lost", error.message))
            self._ended.wait(pause)
            pause = min(_LONGEST_PAUSE, 2 * pause)

    def _read(self) -> None:
        readings = 0
        with Client(self.url, timeout=_PATIENCE) as client:
            while not self._ended.is_set():
                fresh = self._fresh.is_set()
                self._fresh.clear()
                try:
                    if fresh:
                        self.inbox.put(("history", client.history(limit=EVENTS_KEPT)))
                    self.inbox.put(("status", client.status()))
                    self.inbox.put(("traffic", client.traffic()))
                    if fresh or readings % _USE_EVERY == 0:
                        self.inbox.put(("usage", client.usage(by=["model"])["usage"]))
                    readings += 1
                except ShoalError as error:
                    self.inbox.put(("unread", error.message))
                self._fresh.wait(READ_EVERY)
