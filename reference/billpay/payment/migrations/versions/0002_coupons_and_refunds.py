"""The coupon that a payment was made with; refunds, which are payments of payments."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
locks = "no row has a refund yet, so the index is empty; the table is read once"
branch_labels = None
depends_on = None

_MAY_BE_MADE = sa.text("refund_of IS NOT NULL AND status <> 'failed'")


def upgrade() -> None:
    op.add_column("payment", sa.Column("coupon", sa.String(20)))
    op.add_column("payment", sa.Column("refund_of", sa.Uuid))
    op.add_column("payment", sa.Column("cause", sa.Text))
    op.create_index(
        "refund_of_payment",
        "payment",
        ["refund_of"],
        unique=True,
        sqlite_where=_MAY_BE_MADE,
        postgresql_where=_MAY_BE_MADE,
    )


def downgrade() -> None:
    op.drop_index("refund_of_payment", "payment")
    with op.batch_alter_table("payment") as payment:
        for column in ("cause", "refund_of", "coupon"):
            payment.drop_column(column)
