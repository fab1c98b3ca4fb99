"""Classes: starts that are put off, and whom a batch is for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the columns."""
    op.add_column("launches", sa.Column("not_before", sa.Float))
    op.add_column("batches", sa.Column("group_name", sa.String(255)))
    op.create_index("batches_caller", "batches", ["caller", "created"])
