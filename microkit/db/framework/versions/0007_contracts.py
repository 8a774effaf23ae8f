"""Which of the scripts that were run are steps that an older version does not survive."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "schema_contract",
        sa.Column("scripts", sa.String(32), primary_key=True, comment="the table with their revision"),
        sa.Column("revision", sa.String(32), primary_key=True),
        sa.Column(
            "needs", sa.String(32), nullable=False, comment="the revision that a version must know to survive it"
        ),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("applied_at", sa.DateTime(timezone=True), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("schema_contract")
