"""What operators did to sagas."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "saga_operation",
        sa.Column("saga_id", sa.Uuid, sa.ForeignKey("saga.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("epoch", sa.BigInteger, primary_key=True, autoincrement=False, comment="that it raised the saga to"),
        sa.Column("operation", sa.String(20), nullable=False),
        sa.Column("operator", sa.String(200), nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("status", sa.String(12), nullable=False, comment="of the saga before"),
        sa.Column("direction", sa.String(6), nullable=False, comment="of the saga before"),
        sa.Column("step", sa.String(100), nullable=False, comment="of the saga before"),
        sa.Column("done_at", sa.DateTime(timezone=True), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("saga_operation")
