"""How long what an event tells of took; what presets' schedules have done."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; what was kept before has nothing in them."""
    op.add_column("events", sa.Column("seconds", sa.Double(), nullable=True))
    op.add_column("presets", sa.Column("scheduled_at", sa.Double(), nullable=True))


def downgrade() -> None:
    """Drop them."""
    op.drop_column("presets", "scheduled_at")
    op.drop_column("events", "seconds")
