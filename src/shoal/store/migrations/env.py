"""Run by Alembic: upgrade the connection that `schema.upgrade` hands over, inside its transaction."""

from alembic import context

from shoal.store.tables import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,  # SQLite cannot alter a table in place
)
with context.begin_transaction():
    context.run_migrations()
