"""The Alembic environment of every service and of the framework: microkit hands it an open connection.

Without a connection it writes the SQL instead.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import nullcontext
from typing import Any

import sqlalchemy as sa
from alembic import context
from alembic.runtime.migration import MigrationContext, MigrationInfo

from microkit.db.contracts import contracts

given = context.config.attributes
connection = given["connection"]


def remember(ctx: MigrationContext, step: MigrationInfo, heads: Collection[Any], run_args: Mapping[str, Any]) -> None:
    """Writes down, in the script's own transaction, that an older version does not survive it."""
    scripts, declared = given["version_table"], given["contracts"]
    for revision in step.up_revision_ids:
        if revision not in declared:
            continue
        if step.is_upgrade:
            script = declared[revision]
            row = {"scripts": scripts, "revision": revision, "needs": script.needs, "reason": script.contract}
            ctx.execute(sa.insert(contracts).values(**row, applied_at=sa.func.now()))
        else:
            mine = (contracts.c.scripts == scripts) & (contracts.c.revision == revision)
            ctx.execute(sa.delete(contracts).where(mine))


context.configure(
    connection=connection,
    dialect_name=given.get("dialect"),
    output_buffer=given.get("output"),
    target_metadata=given.get("tables"),
    version_table=given["version_table"],
    include_name=given.get("include_name"),
    transaction_per_migration=True,
    render_as_batch=connection is not None and connection.dialect.name == "sqlite",  # SQLite changes a table by copying
    compare_type=True,
    on_version_apply=remember,
)
if connection is not None and connection.dialect.name == "sqlite":
    # All scripts are one transaction, and nothing there has to be outside of it: a script may say so for PostgreSQL.
    setattr(context.get_context(), "autocommit_block", nullcontext)  # noqa: B010  mypy lets no method be assigned
with context.begin_transaction():
    context.run_migrations()
