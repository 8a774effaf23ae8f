"""The Alembic environment of every service and of the framework: microkit hands it an open connection."""

from __future__ import annotations

from alembic import context

given = context.config.attributes
connection = given["connection"]

context.configure(
    connection=connection,
    target_metadata=given.get("tables"),
    version_table=given["version_table"],
    include_name=given.get("include_name"),
    transaction_per_migration=True,
    render_as_batch=connection.dialect.name == "sqlite",  # SQLite changes a table by copying it
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
