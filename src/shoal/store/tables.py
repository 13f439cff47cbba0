"""The database schema. A change here needs a migration beside it, and `HEAD` to name that migration."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, Index, Integer, MetaData, String, Table, Text

HEAD = "0007"
"""The newest revision under `migrations/versions`."""
KEYS_SINCE, USERS_SINCE = "0002", "0007"
"""The revisions that made their tables: a database of an older one never had any."""

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
    Column("seconds", Double),
    Index(None, "model", "id"),
)

# Those that were revoked stay: usage is told by their names.
api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("revoked_at", Double),
    Column("record", Text, nullable=False),
)

virtual_models = Table(
    "virtual_models",
    metadata,
    Column("name", String, primary_key=True),
    Column("spec", Text, nullable=False),
    Column("origin", String, nullable=False),
    Column("created_at", Double, nullable=False),
)

# One row a day (UTC, `2026-01-31`), key ("" for none) and model.
usage = Table(
    "usage",
    metadata,
    Column("day", String(10), primary_key=True),
    Column("key", String, primary_key=True),
    Column("model", String, primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("last_used", Double, nullable=False),
)

# The last report of each relay that is in `usage`: a report that comes again must not count again.
usage_reports = Table(
    "usage_reports",
    metadata,
    Column("relay", String, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("at", Double, nullable=False),
)

# What loads have shown, for each model, settings (a hash) and device.
profiles = Table(
    "profiles",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("model", String, nullable=False),
    Column("settings", String, nullable=False),
    Column("device", String, nullable=False),
    Column("measured_at", Double, nullable=False),
    Column("record", Text, nullable=False),
)

# What runs, saved under a name, and how it was applied last.
presets = Table(
    "presets",
    metadata,
    Column("name", String, primary_key=True),
    Column("preset", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("changed_at", Double, nullable=False),
    Column("last_run", Text, nullable=True),
    Column("scheduled_at", Double),
)

# Instances that take the place of others, one row a move.
moves = Table(
    "moves",
    metadata,
    Column("id", String, primary_key=True),
    Column("model", String, nullable=False),
    Column("state", String, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("record", Text, nullable=False),
)

# Who may sign in to the admin side, and who has.
admin_users = Table(
    "admin_users",
    metadata,
    Column("name", String, primary_key=True),
    Column("role", String, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("changed_at", Double, nullable=False),
    Column("password", Text, nullable=False),
)
admin_sessions = Table(
    "admin_sessions",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("user", String, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("seen_at", Double, nullable=False),
)

# A name of its own: a PostgreSQL database may hold another program's `alembic_version` too.
VERSION_TABLE = "shoal_schema"
schema_version = Table(
    VERSION_TABLE,
    MetaData(),
    Column("version_num", String(32), primary_key=True),
)
