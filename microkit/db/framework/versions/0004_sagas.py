"""Sagas that are due are found by their definition first, so that none is passed over for another's."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_ALIVE = sa.text("next_at IS NOT NULL")


def upgrade() -> None:
    op.drop_index("ix_saga_due", "saga")
    _due("fingerprint", "next_at")


def downgrade() -> None:
    op.drop_index("ix_saga_due", "saga")
    _due("next_at")


def _due(*columns: str) -> None:
    op.create_index("ix_saga_due", "saga", list(columns), postgresql_where=_ALIVE, sqlite_where=_ALIVE)
