"""Processes that are followed by their events."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_time = sa.DateTime(timezone=True)
_OPEN = sa.text("ended_at IS NULL")


def upgrade() -> None:
    op.create_table(
        "process",
        sa.Column("name", sa.String(100), primary_key=True),
        sa.Column("id", sa.String(255), primary_key=True, comment="what its events have in common"),
        sa.Column("began_at", _time, nullable=False, comment="when the first event happened, by its publisher's clock"),
        sa.Column("last_at", _time, nullable=False, comment="when the last one did"),
        sa.Column("last_event", sa.Text, nullable=False),
        sa.Column("ended_at", _time, comment="when the last event that ends it happened"),
        sa.Column("ended_by", sa.Text),
        sa.Column("ends", sa.Integer, nullable=False, comment="how many events said that it has ended"),
        sa.Column("heard_at", _time, nullable=False, comment="when the latest news came, by the database's clock"),
        sa.Column("stuck_at", _time, comment="when it counts as stuck if no other event comes"),
    )
    op.create_index("ix_process_open", "process", ["name", "stuck_at"], postgresql_where=_OPEN, sqlite_where=_OPEN)
    op.create_index("ix_process_began", "process", ["began_at", "name", "id"])
    op.create_index("ix_process_id", "process", ["id"])
    op.create_index("ix_process_heard", "process", ["heard_at"])
    op.create_table(
        "process_event",
        sa.Column("name", sa.String(100), primary_key=True),
        sa.Column("process_id", sa.String(255), primary_key=True),
        sa.Column("source", sa.Text, primary_key=True, comment="the service that published it"),
        sa.Column("event_id", sa.Text, primary_key=True),
        sa.Column("event", sa.Text, nullable=False, comment="its type"),
        sa.Column("happened_at", _time, nullable=False, comment="by its publisher's clock"),
        sa.Column("received_at", _time, nullable=False, comment="by the database's clock"),
        sa.Column("trace_id", sa.String(32)),
    )


def downgrade() -> None:
    op.drop_table("process_event")
    op.drop_table("process")
