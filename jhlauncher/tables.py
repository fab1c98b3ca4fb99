"""What is stored, as SQLAlchemy knows it. A change here needs a migration in `jhlauncher.migrations`.

Times are seconds since 1970, UTC. Nothing here is a secret in clear: ``env`` and ``token`` are sealed with the signing
key and removed when the launch has ended, and ``request`` is a keyed hash.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData()

# SQLite counts rows by itself only for a plain INTEGER
_Serial = BigInteger().with_variant(Integer, "sqlite")

launches = Table(
    "launches",
    metadata,
    Column("seq", _Serial, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    # who asked for what
    Column("caller", String(300), nullable=False),
    Column("username", String(255), nullable=False),
    Column("server_name", String(255), nullable=False),
    Column("template", String(255)),
    Column("batch", String(32)),
    Column("idempotency_key", String(255)),
    Column("request", String(64), nullable=False),
    Column("spec", JSON, nullable=False),
    Column("env", Text),
    Column("rule", String(255), nullable=False),
    Column("lifetime", Float),
    # its place in the queue, and what it takes from the limits
    Column("share", String(300), nullable=False),
    Column("weight", Float, nullable=False),
    Column("limits", JSON, nullable=False),
    Column("cpu", Float, nullable=False),
    Column("memory", BigInteger, nullable=False),
    Column("gpu", Integer, nullable=False),
    # where it is
    Column("state", String(16), nullable=False),
    Column("owner", String(32)),
    Column("stop_by", String(300)),
    Column("error", JSON),
    Column("path", Text),
    Column("full_url", Text),
    Column("token", Text),
    Column("token_expires", Float),
    Column("events", Integer, nullable=False, server_default="0"),
    # when
    Column("created", Float, nullable=False),
    Column("started", Float),
    Column("ready", Float),
    Column("ended", Float),
    Column("not_before", Float),
    Column("due", Float),
    Column("wait_until", Float),
    Column("warned", Float),
    UniqueConstraint("caller", "idempotency_key"),
    Index("launches_state", "state", "share", "seq"),
    Index("launches_due", "due"),
    Index("launches_ended", "ended"),
    Index("launches_batch", "batch"),
    Index("launches_user", "username", "seq"),
)
Index(
    "launches_one_per_server",
    launches.c.username,
    launches.c.server_name,
    unique=True,
    sqlite_where=text("state IN ('queued', 'starting', 'ready')"),
    postgresql_where=text("state IN ('queued', 'starting', 'ready')"),
)

keys = Table(
    "launch_keys",
    metadata,
    Column("launch", String(32), ForeignKey("launches.id", ondelete="CASCADE"), primary_key=True),
    Column("key", String(300), primary_key=True),
    Index("launch_keys_key", "key"),
)
"""What a launch counts for in the limits: ``user:alice``, ``group:course-1``, ``all``."""

events = Table(
    "launch_events",
    metadata,
    Column("seq", _Serial, primary_key=True, autoincrement=True),
    Column("launch", String(32), ForeignKey("launches.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("time", Float, nullable=False),
    Column("name", String(32), nullable=False),
    Column("data", JSON, nullable=False),
    UniqueConstraint("launch", "number"),
)

batches = Table(
    "batches",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("caller", String(300), nullable=False),
    Column("group_name", String(255)),
    Column("idempotency_key", String(255)),
    Column("request", String(64), nullable=False),
    Column("created", Float, nullable=False),
    Column("items", JSON, nullable=False),
    UniqueConstraint("caller", "idempotency_key"),
    Index("batches_created", "created"),
    Index("batches_caller", "caller", "created"),
)
"""Requests for many launches; ``items`` says for each what became of it: a launch or an error."""

replicas = Table(
    "replicas",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("alive_until", Float, nullable=False),
)
"""The processes that work on launches."""

manager_services = Table(
    "manager_services",
    metadata,
    Column("seq", _Serial, primary_key=True, autoincrement=True),
    Column("key", String(32), nullable=False, unique=True),
    Column("credential", String(255), nullable=False),
    Column("servername", String(255), nullable=False),
    Column("start_id", String(255), nullable=False),
    Column("user_options", JSON, nullable=False),
    Column("jhub_user_id", BigInteger, nullable=False),
    Column("main", JSON, nullable=False),
    Column("objects", JSON, nullable=False),
    Column("secret", String(255), nullable=False),
    Column("state", String(16), nullable=False),
    Column("stop_pending", Boolean, nullable=False),
    Column("created", Float, nullable=False),
    UniqueConstraint("credential", "servername", "start_id"),
)
"""The services of the K8s Manager; ``objects`` names what may have been made for each in the cluster."""

manager_log_handlers = Table(
    "manager_log_handlers",
    metadata,
    Column("handler", String(16), primary_key=True),
    Column("configuration", JSON, nullable=False),
)
"""Where the K8s Manager logs to, beside its own output."""

people = Table(
    "people",
    metadata,
    Column("username", String(255), primary_key=True),
    Column("identity", String(64), nullable=False, unique=True),
    Column("name", String(255), nullable=False),
    Column("emails", JSON, nullable=False),
    Column("created", Float, nullable=False),
    Column("caller", String(300), nullable=False),
    Column("mail", String(16), nullable=False, server_default="none"),
    Column("mail_error", Text),
    Column("mailed", Float),
)
"""Those who were enrolled from rosters. ``identity`` is a keyed hash of what a roster knows them by; ``mail`` says how
far their invitation came: none, sending, sent or failed."""

userjobs = Table(
    "userjobs",
    metadata,
    Column("seq", _Serial, primary_key=True, autoincrement=True),
    Column("key", String(32), nullable=False, unique=True),
    Column("credential", String(255), nullable=False),
    Column("username", String(255), nullable=False),
    Column("service", String(63), nullable=False),
    Column("hostname", String(63), nullable=False),
    Column("account", String(64), nullable=False),
    Column("forwards", JSON, nullable=False),
    Column("target_node", String(255)),
    Column("job", JSON(none_as_null=True)),
    Column("idempotency_key", String(255)),
    Column("job_id", BigInteger),
    Column("state", String(32)),
    Column("reason", Text, nullable=False),
    Column("exit_code", Integer),
    Column("signal", Integer),
    Column("created", Float, nullable=False),
    Column("started", Float),
    Column("ended", Float),
    Column("exposed", Boolean, nullable=False),
    UniqueConstraint("credential", "username", "service"),
    Index("userjobs_state", "hostname", "state"),
)
"""Forwards to nodes of systems, and jobs there; ``forwards`` has wanted, remote and local port of each."""
