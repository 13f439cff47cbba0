"""Marks beside a SQLite file that it holds users, or keys that work: where they are and these are not, some were lost.

A database that was restored as an empty file looks like that of a first start, which lets everybody in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path

from sqlalchemy import Connection, func, select

from shoal.store.tables import admin_users, api_keys

_WORDS = {"user": "users", "key": "keys"}
_COUNTS = {
    "user": select(func.count()).select_from(admin_users),
    "key": select(func.count()).select_from(api_keys).where(api_keys.c.revoked_at.is_(None)),
}


class Marks:
    """Those of one file, by kind: `user`, `key`. Without a file there are none."""

    def __init__(self, file: Path | None) -> None:
        self._file = file

    def present(self) -> set[str]:
        """The kinds that are marked."""
        return {kind for kind in _WORDS if (path := self._path(kind)) is not None and path.exists()}

    def add(self, kinds: Collection[str]) -> None:
        """Mark these kinds. Raises OSError."""
        for kind in kinds:
            path, words = self._path(kind), _WORDS[kind]
            if path is not None and not path.exists():
                path.write_bytes(f"While this is here, a database without {words} has lost them.\n".encode())

    def add_quietly(self, kinds: Collection[str]) -> None:
        """As `add`, where nothing can be done about it: what is not marked is only guarded less."""
        with contextlib.suppress(OSError):
            self.add(kinds)

    def follow(self, connection: Connection, kinds: Collection[str]) -> None:
        """Have marks of these kinds as the transaction leaves the tables. Raises OSError.

        Before it is committed: of a process that is killed in between, a mark too many closes the door, and one too few
        is made at the next start.
        """
        if self._file is None:
            return
        for kind in sorted(_COUNTS.keys() & kinds):
            if connection.scalar(_COUNTS[kind]):
                self.add([kind])
            elif (path := self._path(kind)) is not None:
                path.unlink(missing_ok=True)

    def _path(self, kind: str) -> Path | None:
        return None if self._file is None else self._file.with_name(f"{self._file.stem}-has-{_WORDS[kind]}")
