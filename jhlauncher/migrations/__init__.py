"""The steps from one version of the schema to the next, by Alembic. `jhlauncher.database` runs them."""
