"""Keys and virtual models of a running Shoal: changed by commands, saved, and told to the relays."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from shoal.errors import ConflictError
from shoal.fleet.effects import Effects
from shoal.fleet.keys import KeyBook, KeyRecord, KeySettings, NewKey, must_show_key
from shoal.fleet.manager import Manager
from shoal.fleet.records import Event
from shoal.fleet.snapshot import Access
from shoal.fleet.virtual import Virtual, VirtualBook, VirtualSpec
from shoal.paths import Paths, hold, make_runtime
from shoal.settings import Settings
from shoal.store import Saved, Store, StoreError

LOST = (
    "there may have been API keys that could not be read, so every request needs a valid one; restore the database, or "
    "make new ones with `shoal keys create`, then restart Shoal"
)
SAVING = 30.0
"""Seconds that saving a key may take where no Shoal runs."""


class AccessControl:
    """Who may use what, and under which names. Its methods are commands: call them through `Controller.do`."""

    def __init__(self, store: Store, manager: Manager, effects: Effects, *, exposed: bool) -> None:
        """`exposed`: others than this machine can connect, and are to be asked for a key."""
        self.keys = KeyBook()
        self.virtual = VirtualBook()
        self._store = store
        self._manager = manager
        self._effects = effects
        self._exposed = exposed
        self._lost = False

    @property
    def faults(self) -> list[str]:
        """What is not as it was declared, now, in a sentence each."""
        found = self.virtual.faults(self._manager.fleet.models)
        return [LOST, *found] if self._lost else found

    def restore(self, saved: Saved) -> None:
        """At start: know again what was known."""
        self.keys = KeyBook(saved.keys)
        self.virtual = VirtualBook(saved.virtual)
        self._lost = saved.keys_lost
        self.publish()

    def declare(self, specs: Mapping[str, VirtualSpec]) -> dict[str, list[str]]:
        """Make the virtual models of the configuration file exactly these."""
        names = self.virtual.declare(specs, self._effects.now())
        for name in (*names["added"], *names["changed"]):
            self._store.save_virtual(self.virtual.records[name])
        for name in names["removed"]:
            self._store.delete_virtual(name)
        self.publish()
        return names

    def create_key(self, settings: KeySettings) -> NewKey:
        """Make a key."""
        new = self.keys.create(settings, self._effects.now())
        self._keep(new.record, "made")
        return new

    def edit_key(self, name: str, changes: Mapping[str, Any]) -> KeyRecord:
        """Change some of a key's settings."""
        return self._keep(self.keys.edit(name, changes, self._effects.now()), "changed")

    def rotate_key(self, name: str, grace: float) -> NewKey:
        """Give a key another secret; the one that it has works for `grace` seconds more."""
        new = self.keys.rotate(name, grace, self._effects.now())
        self._keep(new.record, "rotated")
        return new

    def revoke_key(self, name: str) -> KeyRecord:
        """End a key for good."""
        before = self.keys.find(name, self._effects.now())
        record = self.keys.revoke(name, self._effects.now())
        return record if record is before else self._keep(record, "revoked")

    def put_virtual(self, spec: VirtualSpec) -> tuple[Virtual, bool]:
        """Add or replace a virtual model; whether it is new."""
        record, new = self.virtual.put(spec, self._manager.fleet.models, self._effects.now())
        self._store.save_virtual(record)
        self.publish()
        return record, new

    def remove_virtual(self, name: str) -> None:
        """Forget a virtual model."""
        self.virtual.remove(name)
        self._store.delete_virtual(name)
        self.publish()

    def refuse_model(self, name: str) -> None:
        """Raise ConflictError if a model cannot have this name because a virtual one has it."""
        if name in self.virtual.records:
            raise ConflictError(
                f"there is a virtual model {name}; take another name, or remove that one with `shoal virtual rm`",
                code="model_exists",
                param="name",
            )

    def publish(self) -> None:
        """Tell the relays how it all is now."""
        now = self._effects.now()
        required = must_show_key(self.keys.records.values(), exposed=self._exposed) or self._lost
        self._manager.set_access(lambda _: Access(self.keys.messages(now), required, self.virtual.served()))

    def _keep(self, record: KeyRecord, what: str) -> KeyRecord:
        self._store.save_key(record)
        event = key_event(record, what, self._effects.now())
        self._effects.add_event(event)
        self._effects.publish("message", event)
        self.publish()
        return record


def key_event(record: KeyRecord, what: str, now: float) -> Event:
    """What is remembered of a change to a key: never its secret."""
    return Event(now, "info", f"key_{what}", f"the API key {record.settings.name} ({record.prefix}-…) was {what}")


def new_store(settings: Settings, paths: Paths) -> Store:
    """The store that these settings have, not open yet."""
    return Store(
        settings.database_url,
        paths.database,
        history=settings.history,
        events_kept=settings.events_kept,
        usage_kept=settings.usage_kept,
    )


async def create_stored_key(settings: Settings, paths: Paths, key: KeySettings) -> NewKey:
    """Make a key where no Shoal runs: in its store, for its next start. Raises ShoalError: `already_running` if one
    runs with these folders after all, StoreError if the key cannot be saved, and what `KeyBook.create` raises."""
    make_runtime(paths)
    with hold(paths):
        store = new_store(settings, paths)
        await store.open()
        try:
            book = KeyBook((await store.load()).keys)
            new = book.create(key, time.time())
            store.save_key(new.record)
            store.add_event(key_event(new.record, "made", new.record.created_at))
            if not await store.flush(SAVING):
                raise StoreError(f"no key was made. {store.problem or 'The database did not answer in time.'}")
        finally:
            await store.close()
    return new
