"""Sagas that wait for events, have keys, rates, conditions and branches; those due are found by definition first."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
locks = "both indexes are partial; the table, which retention keeps short, is read twice"

_ALIVE = sa.text("next_at IS NOT NULL")
_QUEUED = sa.text("status = 'queued'")
_TIME = sa.DateTime(timezone=True)
_COLUMNS = (
    ("key", sa.String(200), "that it has, or waits for, from its start to its end"),
    ("not_before", _TIME, "when its rate allows it to begin"),
    ("decisions", sa.JSON, "by step: whether its condition holds"),
    ("parked_for", sa.String(20), "definition: it is gone; resumed when it is back"),
)


def upgrade() -> None:
    op.drop_index("ix_saga_due", "saga")
    _due("fingerprint", "next_at")
    for name, kind, comment in _COLUMNS:
        op.add_column("saga", sa.Column(name, kind, comment=comment))
    op.create_index("ix_saga_queued", "saga", ["key", "created_at"], postgresql_where=_QUEUED, sqlite_where=_QUEUED)
    _events()
    _branches()
    _limits()


def downgrade() -> None:
    # What waits for another to end would wait for ever: nobody knows of keys any more.
    op.execute("UPDATE saga SET status = 'running', next_at = CURRENT_TIMESTAMP WHERE status = 'queued'")
    for table in ("saga_rate", "saga_key", "saga_branch", "saga_mail", "saga_wait"):
        op.drop_table(table)
    op.drop_index("ix_saga_queued", "saga")
    for name, _, _ in reversed(_COLUMNS):
        op.drop_column("saga", name)
    op.drop_index("ix_saga_due", "saga")
    _due("next_at")


def _due(*columns: str) -> None:
    op.create_index("ix_saga_due", "saga", list(columns), postgresql_where=_ALIVE, sqlite_where=_ALIVE)


def _of_saga() -> sa.Column[object]:
    return sa.Column("saga_id", sa.Uuid, sa.ForeignKey("saga.id", ondelete="CASCADE"), primary_key=True)


def _events() -> None:
    op.create_table(
        "saga_wait",
        _of_saga(),
        sa.Column(
            "place", sa.String(110), primary_key=True, comment="the step; step:undo where it waits in going back"
        ),
        sa.Column("name", sa.String(100), nullable=False, comment="of the definition"),
        sa.Column(
            "step", sa.String(100), nullable=False, comment="that the saga is at meanwhile: this one, or its group"
        ),
        sa.Column("events", sa.Text, nullable=False, comment="their types, joined by |"),
        sa.Column("value", sa.Text, nullable=False, comment="by which the event is told"),
        sa.Column("status", sa.String(12), nullable=False, comment="waiting, arrived, done, timed-out"),
        sa.Column("since", _TIME, nullable=False),
        sa.Column("due", _TIME, nullable=False),
        sa.Column("arrived_at", _TIME),
        sa.Column("type", sa.Text, comment="of the event that arrived, as the next two"),
        sa.Column("payload", sa.LargeBinary),
        sa.Column("headers", sa.JSON),
    )
    op.create_index("ix_saga_wait_value", "saga_wait", ["name", "place", "value"])
    op.create_table(
        "saga_mail",
        sa.Column("name", sa.String(100), primary_key=True, comment="of the definition"),
        sa.Column("place", sa.String(110), primary_key=True),
        sa.Column("value", sa.Text, primary_key=True),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("headers", sa.JSON, nullable=False),
        sa.Column("received_at", _TIME, nullable=False),
        sa.Column("keep_until", _TIME, nullable=False),
        sa.Column("only_begun", sa.Boolean, nullable=False, comment="for a saga only that had begun when it came"),
    )
    op.create_index("ix_saga_mail_keep_until", "saga_mail", ["keep_until"])


def _branches() -> None:
    op.create_table(
        "saga_branch",
        _of_saga(),
        sa.Column("place", sa.String(110), primary_key=True, comment="the branch; branch:undo for its compensation"),
        sa.Column("status", sa.String(12), nullable=False, comment="begun, failed, done, ..."),
        sa.Column("attempts", sa.Integer, nullable=False, comment="begun"),
        sa.Column("happened", sa.Boolean, nullable=False, comment="or may have: it is undone when the saga turns back"),
        sa.Column("changes", sa.JSON, comment="fields of the state, where it is done"),
        sa.Column("reason", sa.Text),
        sa.Column("type", sa.Text),
        sa.Column("updated_at", _TIME, nullable=False),
    )


def _limits() -> None:
    op.create_table(
        "saga_key",
        sa.Column("key", sa.String(200), primary_key=True),
        sa.Column("saga_id", sa.Uuid, nullable=False, comment="that has it"),
    )
    op.create_table(
        "saga_rate",
        sa.Column("bucket", sa.String(302), primary_key=True, comment="the definition, or the definition/key"),
        sa.Column("full_at", _TIME, nullable=False, comment="when no start is owed any more"),
    )
