"""Wallets, payments, envelopes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "wallet",
        sa.Column("owner", sa.String(100), primary_key=True),
        sa.Column("address", sa.String(56), nullable=False, unique=True),
        sa.Column("sealed_seed", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "payment",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("owner", sa.String(100), nullable=False),
        sa.Column("bill_id", sa.Uuid, nullable=False),
        sa.Column("amount", sa.BigInteger),
        sa.Column("status", sa.String(12), nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("transaction_hash", sa.String(64)),
        sa.Column("ledger", sa.Integer),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("payment_of_owner", "payment", ["owner", "created_at", "id"])
    op.create_table(
        "envelope",
        sa.Column("hash", sa.String(64), primary_key=True),
        sa.Column("payment_id", sa.Uuid, sa.ForeignKey("payment.id"), nullable=False),
        sa.Column("address", sa.String(56), nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("max_time", sa.BigInteger, nullable=False),
        sa.Column("xdr", sa.Text, nullable=False),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("ledger", sa.Integer),
        sa.Column("result", sa.Text),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    under_way = sa.text("state = 'open'")
    may_be_paid = sa.text("state IN ('open', 'applied')")
    op.create_index(
        "envelope_under_way",
        "envelope",
        ["address"],
        unique=True,
        sqlite_where=under_way,
        postgresql_where=under_way,
    )
    op.create_index(
        "envelope_of_payment",
        "envelope",
        ["payment_id"],
        unique=True,
        sqlite_where=may_be_paid,
        postgresql_where=may_be_paid,
    )


def downgrade() -> None:
    op.drop_table("envelope")
    op.drop_table("payment")
    op.drop_table("wallet")
