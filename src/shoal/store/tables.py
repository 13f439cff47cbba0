"""The database schema. A change here needs a migration beside it, and `HEAD` to name that migration."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, Index, Integer, MetaData, String, Table, Text

HEAD = "0001"
"""The newest revision under `migrations/versions`."""

_NAMES = {"pk": "pk_%(table_name)s", "ix": "ix_%(table_name)s_%(column_0_N_name)s"}
metadata = MetaData(naming_convention=_NAMES)

_Serial = BigInteger().with_variant(Integer(), "sqlite")  # SQLite counts by itself in INTEGER keys only

# No foreign keys between these: the history of a model stays after the model is gone. Columns named for a record
# hold JSON as text: it comes back as it was written, on any database.
models = Table(
    "models",
    metadata,
    Column("name", String, primary_key=True),
    Column("spec", Text, nullable=False),
    Column("origin", String, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("desired", Integer, nullable=False),
)

instances = Table(
    "instances",
    metadata,
    Column("id", String, primary_key=True),
    Column("model", String, nullable=False),
    Column("engine", String, nullable=False),
    Column("state", String, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("changed_at", Double, nullable=False),
    Column("record", Text, nullable=False),
    Index(None, "state", "changed_at"),
)

loads = Table(
    "loads",
    metadata,
    Column("id", _Serial, primary_key=True),
    Column("model", String, nullable=False),
    Column("instance", String, nullable=False),
    Column("engine", String, nullable=False),
    Column("environment", String, nullable=False),
    Column("version", String, nullable=False),
    Column("devices", Text, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("outcome", String, nullable=False),
    Column("phases", Text, nullable=False),
    Column("memory", Text, nullable=False),
    Index(None, "model", "id"),
)

events = Table(
    "events",
    metadata,
    Column("id", _Serial, primary_key=True),
    Column("at", Double, nullable=False),
    Column("level", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("model", String),
    Column("instance", String),
    Column("message", Text, nullable=False),
    Index(None, "model", "id"),
)

# A name of its own: a PostgreSQL database may hold another program's `alembic_version` too.
VERSION_TABLE = "shoal_schema"
schema_version = Table(
    VERSION_TABLE,
    MetaData(),
    Column("version_num", String(32), primary_key=True),
)
