"""Coupons, what they take off bills, and bills whose payment is refunded."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("bill", sa.Column("discount", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("bill", sa.Column("coupon", sa.String(20)))
    op.add_column("bill", sa.Column("refund_id", sa.Uuid))
    op.create_table(
        "coupon",
        sa.Column("code", sa.String(20), primary_key=True),
        sa.Column("percent", sa.Integer, nullable=False),
        sa.Column("owner", sa.String(100)),
        sa.Column("status", sa.String(12), nullable=False),
        sa.Column("payment_id", sa.Uuid, unique=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "returned",
        sa.Column("payment_id", sa.Uuid, primary_key=True),
        sa.Column("code", sa.String(20), nullable=False),
        sa.Column("returned_at", sa.DateTime(timezone=True), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("returned")
    op.drop_table("coupon")
    with op.batch_alter_table("bill") as bill:
        for column in ("refund_id", "coupon", "discount"):
            bill.drop_column(column)
