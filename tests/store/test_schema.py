"""Migrations: every way to this version's schema leads to the same schema, and a newer one is refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, Table, inspect, select, text, update

from shoal.store import StoreError, schema
from shoal.store.connect import connect, find_target
from shoal.store.tables import HEAD, VERSION_TABLE, metadata, schema_version

from . import records
from .conftest import MakeStore


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(schema._config())


REVISIONS = ["base", *(script.revision for script in _scripts().walk_revisions())]


def _engine(url: str | None, path: Path) -> Engine:
    return connect(find_target(url, path)).execution_options(shoal_write=True)


def _describe(connection: Connection) -> dict[str, Any]:
    """Everything about the tables that a database tells, in any order of making."""
    look = inspect(connection)
    return {
        table: {
            "columns": [{k: str(v) for k, v in column.items()} for column in look.get_columns(table)],
            "key": look.get_pk_constraint(table),
            "indexes": sorted(look.get_indexes(table), key=lambda index: str(index["name"])),
            "unique": look.get_unique_constraints(table),
            "foreign": look.get_foreign_keys(table),
        }
        for table in metadata.tables
    }


def test_the_head_constant_is_alembics_head() -> None:
    assert _scripts().get_heads() == [HEAD]


def test_migrations_make_the_same_schema_as_the_tables(url: str | None, tmp_path: Path) -> None:
    engine = _engine(url, tmp_path / "migrated.db")
    with engine.begin() as connection:
        schema.upgrade(connection)
        assert schema.current(connection) == HEAD
        migrated = _describe(connection)
        context = MigrationContext.configure(
            connection, opts={"version_table": VERSION_TABLE, "compare_server_default": True}
        )
        assert compare_metadata(context, metadata) == []
        metadata.drop_all(connection)
        schema_version.drop(connection)
    with engine.begin() as connection:
        schema.create(connection)
        assert _describe(connection) == migrated
    engine.dispose()


@pytest.mark.parametrize("revision", REVISIONS)
async def test_a_database_of_every_revision_opens(
    revision: str, url: str | None, make_store: MakeStore, tmp_path: Path
) -> None:
    path = tmp_path / "old.db"
    engine = _engine(url, path)
    with engine.begin() as connection:
        schema.upgrade(connection, revision)
        if revision == "base":  # Alembic leaves an empty version table
            assert schema.current(connection) is None
    engine.dispose()

    store = make_store(url, path=path)
    await store.open()
    store.save_model(records.model())
    assert await store.flush(30)
    assert (await store.load()).models == [records.model()]
    await store.close()
    engine = _engine(url, path)
    with engine.begin() as connection:
        assert schema.current(connection) == HEAD
    engine.dispose()


async def test_an_upgrade_keeps_what_was_saved_and_an_older_shoal_then_refuses(
    url: str | None, make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A made-up next revision stands for those to come: the way there is real, with real data."""
    store = make_store(url)
    await store.open()
    store.save_model(records.model("kept"))
    await store.close()

    scripts = tmp_path / "next"
    shutil.copytree(Path(schema.__file__).with_name("migrations"), scripts)
    (scripts / "versions" / "r9999_next.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n"
        f"revision = '9999'\ndown_revision = {HEAD!r}\n"
        "def upgrade():\n"
        "    with op.batch_alter_table('models') as table:\n"
        "        table.add_column(sa.Column('colour', sa.String(), nullable=False, server_default='blue'))\n"
    )
    with monkeypatch.context() as patch:
        patch.setattr(schema, "SCRIPTS", str(scripts))
        patch.setattr(schema, "HEAD", "9999")
        newer = make_store(url)
        await newer.open()
        assert (await newer.load()).models == [records.model("kept")]
        await newer.close()

    older = make_store(url)
    with pytest.raises(StoreError, match=r"newer Shoal .schema 9999, this version knows up to") as caught:
        await older.open()
    assert caught.value.status == 503
    engine = _engine(url, Path(store._path))
    with engine.begin() as connection:  # untouched
        assert schema.current(connection) == "9999"
        assert connection.execute(text("SELECT name, colour FROM models")).all() == [("kept", "blue")]
    engine.dispose()


async def test_a_failed_migration_leaves_the_database_as_it_was(
    url: str | None, make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(url)
    await store.open()
    store.save_model(records.model("kept"))
    await store.close()
    scripts = tmp_path / "next"
    shutil.copytree(Path(schema.__file__).with_name("migrations"), scripts)
    (scripts / "versions" / "r9999_next.py").write_text(
        f"from alembic import op\nrevision = '9999'\ndown_revision = {HEAD!r}\n"
        "def upgrade():\n    op.drop_table('models')\n    op.drop_table('there_is_none')\n"
    )
    with monkeypatch.context() as patch:
        patch.setattr(schema, "SCRIPTS", str(scripts))
        patch.setattr(schema, "HEAD", "9999")
        newer = make_store(url)
        with pytest.raises(StoreError, match=r"cannot be used: .*there_is_none"):
            await newer.open()
    again = make_store(url)
    await again.open()
    assert (await again.load()).models == [records.model("kept")]
    assert again.problem is None
    await again.close()


def test_a_version_table_names_one_revision(tmp_path: Path) -> None:
    engine = _engine(None, tmp_path / "x.db")
    with engine.begin() as connection:
        schema.prepare(connection, "x")
        schema.prepare(connection, "x")
        assert connection.scalars(select(schema_version.c.version_num)).all() == [HEAD]
        connection.execute(update(schema_version).values(version_num="9999"))
        with pytest.raises(StoreError, match="newer Shoal"):
            schema.prepare(connection, "x")
    engine.dispose()


def test_every_table_has_a_key() -> None:
    tables: list[Table] = list(metadata.tables.values())
    of_several = {table.name for table in tables if len(table.primary_key.columns) != 1}
    assert of_several == {"usage"}  # the upserts of all others rely on a key of one column


def test_importing_the_store_imports_no_database_library() -> None:
    code = (
        "import sys; import shoal.store; "
        "print([name for name in ('sqlalchemy', 'alembic', 'psycopg', 'sqlite3') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_making_and_opening_a_database_does_not_import_alembic(tmp_path: Path) -> None:
    code = (
        "import asyncio, pathlib, sys\nfrom shoal.store import Store\n"
        "async def main():\n"
        "    for _ in range(2):\n"
        f"        path = pathlib.Path({str(tmp_path / 'x.db')!r})\n"
        "        store = Store(None, path, history=1, events_kept=100, usage_kept=400)\n"
        "        await store.open()\n        await store.load()\n        await store.close()\n"
        "asyncio.run(main())\nprint('alembic' in sys.modules, 'sqlalchemy.orm' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout == "False False\n"
