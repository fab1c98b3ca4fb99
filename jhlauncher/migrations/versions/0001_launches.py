"""The first schema: launches, their events and keys, batches, replicas."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

ACTIVE = sa.text("state IN ('queued', 'starting', 'ready')")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "launches",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column("caller", sa.String(300), nullable=False),
        sa.Column("username", sa.String(255), nullable=False),
        sa.Column("server_name", sa.String(255), nullable=False),
        sa.Column("template", sa.String(255)),
        sa.Column("batch", sa.String(32)),
        sa.Column("idempotency_key", sa.String(255)),
        sa.Column("request", sa.String(64), nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("env", sa.Text),
        sa.Column("rule", sa.String(255), nullable=False),
        sa.Column("lifetime", sa.Float),
        sa.Column("share", sa.String(300), nullable=False),
        sa.Column("weight", sa.Float, nullable=False),
        sa.Column("limits", sa.JSON, nullable=False),
        sa.Column("cpu", sa.Float, nullable=False),
        sa.Column("memory", sa.BigInteger, nullable=False),
        sa.Column("gpu", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("owner", sa.String(32)),
        sa.Column("stop_by", sa.String(300)),
        sa.Column("error", sa.JSON),
        sa.Column("path", sa.Text),
        sa.Column("full_url", sa.Text),
        sa.Column("token", sa.Text),
        sa.Column("token_expires", sa.Float),
        sa.Column("events", sa.Integer, nullable=False, server_default="0"),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("started", sa.Float),
        sa.Column("ready", sa.Float),
        sa.Column("ended", sa.Float),
        sa.Column("due", sa.Float),
        sa.Column("wait_until", sa.Float),
        sa.Column("warned", sa.Float),
        sa.UniqueConstraint("caller", "idempotency_key"),
    )
    op.create_index("launches_state", "launches", ["state", "share", "seq"])
    op.create_index("launches_due", "launches", ["due"])
    op.create_index("launches_ended", "launches", ["ended"])
    op.create_index("launches_batch", "launches", ["batch"])
    op.create_index("launches_user", "launches", ["username", "seq"])
    op.create_index(
        "launches_one_per_server",
        "launches",
        ["username", "server_name"],
        unique=True,
        sqlite_where=ACTIVE,
        postgresql_where=ACTIVE,
    )
    op.create_table(
        "launch_keys",
        sa.Column("launch", sa.String(32), sa.ForeignKey("launches.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("key", sa.String(300), primary_key=True),
    )
    op.create_index("launch_keys_key", "launch_keys", ["key"])
    op.create_table(
        "launch_events",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("launch", sa.String(32), sa.ForeignKey("launches.id", ondelete="CASCADE"), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
        sa.UniqueConstraint("launch", "number"),
    )
    op.create_table(
        "batches",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("caller", sa.String(300), nullable=False),
        sa.Column("idempotency_key", sa.String(255)),
        sa.Column("request", sa.String(64), nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("items", sa.JSON, nullable=False),
        sa.UniqueConstraint("caller", "idempotency_key"),
    )
    op.create_index("batches_created", "batches", ["created"])
    op.create_table(
        "replicas",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("alive_until", sa.Float, nullable=False),
    )
