"""What survives a restart: models, instances, keys, usage, loads and events, in SQLite or PostgreSQL.

Importing this is cheap: SQLAlchemy is imported when a store opens, Alembic only when a schema has to be upgraded.
"""

from shoal.store.errors import StoreError
from shoal.store.saved import Saved
from shoal.store.store import Store

__all__ = ["Saved", "Store", "StoreError"]
