"""Jobs on systems with Slurm, and forwards to them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the table."""
    serial = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "userjobs",
        sa.Column("seq", serial, primary_key=True, autoincrement=True),
        sa.Column("key", sa.String(32), nullable=False, unique=True),
        sa.Column("credential", sa.String(255), nullable=False),
        sa.Column("username", sa.String(255), nullable=False),
        sa.Column("service", sa.String(63), nullable=False),
        sa.Column("hostname", sa.String(63), nullable=False),
        sa.Column("account", sa.String(64), nullable=False),
        sa.Column("forwards", sa.JSON, nullable=False),
        sa.Column("target_node", sa.String(255)),
        sa.Column("job", sa.JSON),
        sa.Column("idempotency_key", sa.String(255)),
        sa.Column("job_id", sa.BigInteger),
        sa.Column("state", sa.String(32)),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("exit_code", sa.Integer),
        sa.Column("signal", sa.Integer),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("started", sa.Float),
        sa.Column("ended", sa.Float),
        sa.Column("exposed", sa.Boolean, nullable=False),
        sa.UniqueConstraint("credential", "username", "service"),
        sa.Index("userjobs_state", "hostname", "state"),
    )
