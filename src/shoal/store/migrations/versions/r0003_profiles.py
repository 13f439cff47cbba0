"""What loads of models have shown."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table of profiles."""
    op.create_table(
        "profiles",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("settings", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("measured_at", sa.Double(), nullable=False),
        sa.Column("record", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_profiles"),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("profiles")
