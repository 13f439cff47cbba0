"""A look at the keys of a database that nobody has opened, without changing it in any way. Blocking."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import inspect
from sqlalchemy.exc import SQLAlchemyError

from shoal.fleet.keys import KeyRecord
from shoal.store import queries
from shoal.store.connect import connect, find_target
from shoal.store.errors import StoreError
from shoal.store.faults import why
from shoal.store.tables import api_keys


def peek_keys(url: str | None, path: Path) -> list[KeyRecord]:
    """The keys in the database that `url` names, or in the SQLite file `path`; none if there is no such file or table.

    Raises StoreError if it cannot be read.
    """
    target = find_target(url, path)
    if target.url.get_backend_name() == "sqlite" and (target.file is None or not target.file.exists()):
        return []
    engine = connect(target, read_only=True)
    try:
        with engine.begin() as connection:
            if not inspect(connection).has_table(api_keys.name):
                return []
            return queries.read_keys(connection)[0]
    except (OSError, SQLAlchemyError) as error:
        raise StoreError(f"the API keys in {target.label} cannot be read: {why(error, target.file)}") from None
    finally:
        engine.dispose()
