"""The people who were enrolled from rosters."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "people",
        sa.Column("username", sa.String(255), primary_key=True),
        sa.Column("identity", sa.String(64), nullable=False, unique=True),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("emails", sa.JSON, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("caller", sa.String(300), nullable=False),
        sa.Column("mail", sa.String(16), nullable=False, server_default="none"),
        sa.Column("mail_error", sa.Text),
        sa.Column("mailed", sa.Float),
    )
