"""What runs, saved under a name."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table of presets."""
    op.create_table(
        "presets",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("preset", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("changed_at", sa.Double(), nullable=False),
        sa.Column("last_run", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("name", name="pk_presets"),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("presets")
