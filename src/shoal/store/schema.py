"""Bring a database to this version's schema: make it, leave it, upgrade it, or refuse it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Connection, Integer, cast, func, insert, inspect, literal, select

from shoal.store.errors import StoreError
from shoal.store.tables import HEAD, VERSION_TABLE, metadata, schema_version

if TYPE_CHECKING:
    from alembic.config import Config

SCRIPTS = "shoal.store:migrations"
_LOCK = 0x5348_4F41  # any number that other programs are unlikely to lock


def prepare(connection: Connection, label: str) -> None:
    """Make the schema if there is none, upgrade an older one. Needs an open transaction that may write.

    Raises StoreError if the database is a newer Shoal's, or another program's.
    """
    if connection.dialect.name == "postgresql":  # SQLite's write transaction already keeps others out
        connection.execute(select(func.pg_advisory_xact_lock(cast(literal(_LOCK), Integer))))
    there = set(inspect(connection).get_table_names())
    if VERSION_TABLE not in there:
        foreign = sorted(there & set(metadata.tables))
        if foreign:
            raise StoreError(
                f"{label} has a table `{foreign[0]}` that Shoal did not make; "
                "let database_url name a database of Shoal's own"
            )
        create(connection)
    elif not is_current(connection, label):
        upgrade(connection)


def current(connection: Connection) -> str | None:
    """The revision that the database is at."""
    return connection.scalar(select(schema_version.c.version_num))


def create(connection: Connection) -> None:
    """Make every table in an empty database, without Alembic, whose import takes longer than all of this."""
    metadata.create_all(connection, checkfirst=False)
    schema_version.create(connection)
    connection.execute(insert(schema_version).values(version_num=HEAD))


def is_current(connection: Connection, label: str) -> bool:
    """Whether the schema is this version's; False: an older one's. Raises StoreError if it is a newer one's."""
    revision = current(connection)
    if revision == HEAD:
        return True
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    try:
        ScriptDirectory.from_config(_config()).get_revision(revision or "base")
    except CommandError:
        raise StoreError(
            f"{label} was written by a newer Shoal (schema {revision}, this version knows up to {HEAD}); "
            "start that version, or give this one another state folder or database_url"
        ) from None
    return False


def upgrade(connection: Connection, to: str = "head") -> None:
    """Run the migrations up to `to` inside the connection's transaction."""
    from alembic import command

    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, to)


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("path_separator", "os")
    config.set_main_option("script_location", SCRIPTS.replace("%", "%%"))
    return config
