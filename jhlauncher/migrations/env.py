"""How Alembic runs the steps: on the connection that `jhlauncher.database` hands over."""

from alembic import context

from jhlauncher.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite changes a table by making a new one
)
with context.begin_transaction():
    context.run_migrations()
