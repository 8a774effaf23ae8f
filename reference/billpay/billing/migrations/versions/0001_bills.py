"""Bills, released reservations, reconciliation."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "bill",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("owner", sa.String(100), nullable=False),
        sa.Column("provider", sa.String(100), nullable=False),
        sa.Column("reference", sa.String(60), nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("payee", sa.String(56), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("status", sa.String(12), nullable=False),
        sa.Column("payment_id", sa.Uuid),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("bill_of_owner", "bill", ["owner", "created_at", "id"])
    op.create_table(
        "released",
        sa.Column("payment_id", sa.Uuid, primary_key=True),
        sa.Column("bill_id", sa.Uuid, nullable=False),
        sa.Column("released_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "reconciliation",
        sa.Column("payment_id", sa.Uuid, primary_key=True),
        sa.Column("bill_id", sa.Uuid, nullable=False),
        sa.Column("owner", sa.String(100), nullable=False),
        sa.Column("verdict", sa.String(20), nullable=False),
        sa.Column("paid", sa.BigInteger, nullable=False),
        sa.Column("billed", sa.BigInteger),
        sa.Column("transaction_hash", sa.String(64), nullable=False),
        sa.Column("ledger", sa.Integer, nullable=False),
        sa.Column("reconciled_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_reconciliation_bill_id", "reconciliation", ["bill_id"])


def downgrade() -> None:
    op.drop_table("reconciliation")
    op.drop_table("released")
    op.drop_table("bill")
