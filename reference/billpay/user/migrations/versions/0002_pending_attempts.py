"""Attempts that failed and attempts that are under way are told apart."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
contract = "the table of attempts is made anew: a version that counts in the old columns cannot sign anybody in"
needs = "0002"
forgets = "attempt: what is lost would be gone in a minute"


def upgrade() -> None:
    _made_anew(sa.Column("failures", sa.Integer, nullable=False), sa.Column("pending", sa.Integer, nullable=False))


def downgrade() -> None:
    _made_anew(sa.Column("count", sa.Integer, nullable=False))


def _made_anew(*counts: sa.Column[int]) -> None:
    """Nothing is lost that would not be gone in a minute."""
    op.drop_table("attempt")
    scope = sa.Column("scope", sa.String(400), primary_key=True)
    op.create_table("attempt", scope, *counts, sa.Column("started_at", sa.DateTime(timezone=True), nullable=False))
    op.create_index("ix_attempt_started_at", "attempt", ["started_at"])
