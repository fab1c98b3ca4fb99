"""The K8s Manager: its services and log handlers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "manager_services",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("key", sa.String(32), nullable=False, unique=True),
        sa.Column("credential", sa.String(255), nullable=False),
        sa.Column("servername", sa.String(255), nullable=False),
        sa.Column("start_id", sa.String(255), nullable=False),
        sa.Column("user_options", sa.JSON, nullable=False),
        sa.Column("jhub_user_id", sa.BigInteger, nullable=False),
        sa.Column("main", sa.JSON, nullable=False),
        sa.Column("objects", sa.JSON, nullable=False),
        sa.Column("secret", sa.String(255), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("stop_pending", sa.Boolean, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.UniqueConstraint("credential", "servername", "start_id"),
    )
    op.create_table(
        "manager_log_handlers",
        sa.Column("handler", sa.String(16), primary_key=True),
        sa.Column("configuration", sa.JSON, nullable=False),
    )
