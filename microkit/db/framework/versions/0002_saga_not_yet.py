"""Since when a saga's step says that its turn has not come."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    since = sa.Column("not_yet_since", sa.DateTime(timezone=True), comment="since when the step is put off")
    op.add_column("saga", since)
    _say_of_seq("counts the transitions")


def downgrade() -> None:
    op.drop_column("saga", "not_yet_since")
    _say_of_seq("of the last row in saga_step")


def _say_of_seq(comment: str) -> None:
    if op.get_bind().dialect.name == "postgresql":  # SQLite keeps no comments
        op.alter_column("saga", "seq", existing_type=sa.Integer, existing_nullable=False, comment=comment)
