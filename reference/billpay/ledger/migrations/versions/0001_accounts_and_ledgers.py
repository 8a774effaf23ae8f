"""Accounts, ledgers and transactions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "account",
        sa.Column("address", sa.String(56), primary_key=True),
        sa.Column("balance", sa.BigInteger, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("sequence_ledger", sa.Integer, nullable=False),
        sa.Column("sequence_time", sa.BigInteger, nullable=False),
        sa.Column("last_modified_ledger", sa.Integer, nullable=False),
        sa.Column("last_modified_time", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "ledger",
        sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("previous_hash", sa.String(64), nullable=False),
        sa.Column("close_time", sa.BigInteger, nullable=False),
        sa.Column("fee_pool", sa.BigInteger, nullable=False),
        sa.Column("succeeded", sa.Integer, nullable=False),
        sa.Column("failed", sa.Integer, nullable=False),
        sa.Column("operations", sa.Integer, nullable=False),
        sa.Column("operations_tried", sa.Integer, nullable=False),
        sa.Column("header_xdr", sa.Text, nullable=False),
    )
    op.create_table(
        "waiting",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("hash", sa.String(64), nullable=False, unique=True),
        sa.Column("source", sa.String(56), nullable=False),
        sa.Column("envelope_xdr", sa.Text, nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_waiting_source", "waiting", ["source"])
    op.create_table(
        "ledger_transaction",
        sa.Column("hash", sa.String(64), primary_key=True),
        sa.Column("ledger", sa.Integer, sa.ForeignKey("ledger.sequence"), nullable=False),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("close_time", sa.BigInteger, nullable=False),
        sa.Column("successful", sa.Boolean, nullable=False),
        sa.Column("code", sa.String(40), nullable=False),
        sa.Column("operation_codes", sa.Text, nullable=False),
        sa.Column("source", sa.String(56), nullable=False),
        sa.Column("source_sequence", sa.BigInteger, nullable=False),
        sa.Column("fee_charged", sa.BigInteger, nullable=False),
        sa.Column("max_fee", sa.BigInteger, nullable=False),
        sa.Column("envelope_xdr", sa.Text, nullable=False),
        sa.Column("result_xdr", sa.Text, nullable=False),
        sa.Column("memo_type", sa.String(10), nullable=False),
        sa.Column("memo", sa.Text),
        sa.Column("signatures", sa.Text, nullable=False),
        sa.Column("min_time", sa.BigInteger, nullable=False),
        sa.Column("max_time", sa.BigInteger, nullable=False),
    )
    op.create_index("ledger_transaction_place", "ledger_transaction", ["ledger", "place"], unique=True)
    op.create_index("ix_ledger_transaction_source", "ledger_transaction", ["source"])


def downgrade() -> None:
    op.drop_table("ledger_transaction")
    op.drop_table("waiting")
    op.drop_table("ledger")
    op.drop_table("account")
