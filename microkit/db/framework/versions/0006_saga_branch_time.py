"""When a branch of a parallel group is to be tried again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    when = sa.Column("not_before", sa.DateTime(timezone=True), comment="when it is to be tried again")
    op.add_column("saga_branch", when)


def downgrade() -> None:
    op.drop_column("saga_branch", "not_before")
