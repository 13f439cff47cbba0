"""What is still to be written. Pure: no I/O, no clock, no threads."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.fleet.keys import KeyRecord
from shoal.fleet.moves import Move
from shoal.fleet.presets import PresetRecord
from shoal.fleet.profiles import Profile
from shoal.fleet.records import Event, LoadRecord
from shoal.fleet.sessions import Session
from shoal.fleet.state import Instance, Model
from shoal.fleet.users import User
from shoal.fleet.virtual import Virtual

Key = tuple[str, str]
"""`("model", name)`, `("instance", id)`, `("key", id)`, `("virtual", name)`, `("profile", id)`,
`("preset", name)`, `("move", id)`, `("user", name)` or `("session", id)`."""

Change = Model | Instance | KeyRecord | Virtual | Profile | PresetRecord | Move | User | Session | None
"""The newest version of a record; None deletes it."""

KINDS = {
    "model": "models",
    "instance": "instances",
    "key": "API keys",
    "virtual": "virtual models",
    "profile": "profiles",
    "preset": "presets",
    "move": "moves",
    "user": "users",
    "session": "sessions",
}
"""Each kind of record, and what several are called."""


@dataclass(slots=True)
class Batch:
    """Changes that one transaction writes."""

    records: dict[Key, Change] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    loads: list[LoadRecord] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.records) + len(self.events) + len(self.loads)

    def kinds(self) -> list[str]:
        """The kinds of what is in it, for a sentence: `["models", "events"]`."""
        kinds = {kind for kind, _ in self.records}
        found = [words for kind, words in KINDS.items() if kind in kinds]
        return found + ["loads"] * bool(self.loads) + ["events"] * bool(self.events)


class Pending:
    """Changes in order, only the newest version of each record. Keeps at most `most` of each kind.

    Beyond that the oldest events and loads, and instances that have ended or are to be deleted, are dropped and
    counted; models, keys and living instances never are.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.dropped = 0
        self._batch = Batch()

    def __len__(self) -> int:
        return len(self._batch)

    def peek(self) -> Batch:
        """Everything that waits; not to be changed."""
        return self._batch

    def put(self, key: Key, change: Change) -> None:
        """The newest version of a record."""
        self._batch.records[key] = change
        self._bound()

    def add_event(self, event: Event) -> None:
        """One more event."""
        self._batch.events.append(event)
        self._bound()

    def add_load(self, load: LoadRecord) -> None:
        """One more load."""
        self._batch.loads.append(load)
        self._bound()

    def take(self) -> Batch:
        """Everything that waits, to be written; `put_back` it if that fails."""
        batch, self._batch = self._batch, Batch()
        return batch

    def put_back(self, batch: Batch) -> None:
        """Let `batch` wait again, before what came since; a newer version of a record wins."""
        since = self._batch
        self._batch = Batch(batch.records | since.records, batch.events + since.events, batch.loads + since.loads)
        self._bound()

    def _bound(self) -> None:
        batch = self._batch
        excess_events, excess_loads = len(batch.events) - self.most, len(batch.loads) - self.most
        if excess_events > 0:
            del batch.events[:excess_events]
            self.dropped += excess_events
        if excess_loads > 0:
            del batch.loads[:excess_loads]
            self.dropped += excess_loads
        if (excess := len(batch.records) - self.most) > 0:
            for key in [key for key, change in batch.records.items() if key[0] == "instance" and _over(change)][
                :excess
            ]:
                del batch.records[key]
                self.dropped += 1


def _over(change: Change) -> bool:
    return change is None or (isinstance(change, Instance) and change.state.ended)
