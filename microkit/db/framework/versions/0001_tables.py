"""The tables of outbox, inbox, sagas and idempotency keys. What each is for stands beside its owner's declaration."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_time = sa.DateTime(timezone=True)
_number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    _outbox()
    _inbox()
    _saga()
    _idempotency()


def downgrade() -> None:
    for table in ("idempotency", "saga_step", "saga", "inbox", "outbox_relay", "outbox_shard", "outbox"):
        op.drop_table(table)


def _index(name: str, table: str, *columns: str, where: str | None = None) -> None:
    condition = None if where is None else sa.text(where)
    op.create_index(name, table, list(columns), postgresql_where=condition, sqlite_where=condition)


def _outbox() -> None:
    op.create_table(
        "outbox",
        sa.Column("seq", _number, sa.Identity(always=True), primary_key=True),
        sa.Column("id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("aggregatetype", sa.Text, nullable=False),
        sa.Column("aggregateid", sa.Text, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("headers", sa.JSON, nullable=False),
        sa.Column("shard", sa.SmallInteger, nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("attempts", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("next_at", _time),
        sa.Column("created_at", _time, nullable=False),
        sa.Column("done_at", _time),
        sa.Column("error", sa.Text),
        sqlite_autoincrement=True,
    )
    _index("ix_outbox_open", "outbox", "state", "seq", where="state < 2")
    _index("ix_outbox_failing", "outbox", "aggregatetype", "aggregateid", where="state = 1")
    _index("ix_outbox_kept", "outbox", "state", "seq", where="state > 2")
    op.create_table(
        "outbox_shard",
        sa.Column("shard", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("owner", sa.Text),
        sa.Column("epoch", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("lease_until", _time),
    )
    op.create_table(
        "outbox_relay",
        sa.Column("owner", sa.Text, primary_key=True),
        sa.Column("seen_until", _time, nullable=False),
    )


def _inbox() -> None:
    op.create_table(
        "inbox",
        sa.Column("consumer", sa.Text, primary_key=True),
        sa.Column("source", sa.Text, primary_key=True),
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("received_at", _time, nullable=False),
    )
    _index("ix_inbox_received_at", "inbox", "received_at")


def _saga() -> None:
    op.create_table(
        "saga",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("fingerprint", sa.String(16), nullable=False, comment="of the definition the saga began with"),
        sa.Column("state", sa.JSON, nullable=False),
        sa.Column("status", sa.String(12), nullable=False),
        sa.Column("direction", sa.String(6), nullable=False, comment="action or undo"),
        sa.Column("step", sa.String(100), comment="under way or next; null in a saga that has ended"),
        sa.Column("attempts", sa.Integer, nullable=False, comment="begun attempts of this step in this direction"),
        sa.Column("failure", sa.JSON(none_as_null=True), comment="why it is compensated"),
        sa.Column("error", sa.Text, comment="of the last attempt, where it failed"),
        sa.Column("seq", sa.Integer, nullable=False, comment="of the last row in saga_step"),
        sa.Column("epoch", sa.BigInteger, nullable=False, comment="fencing token: counts the leases"),
        sa.Column("lease_owner", sa.String(64)),
        sa.Column("next_at", _time),
        sa.Column("context", sa.JSON, nullable=False, comment="trace, request id and tenant of whoever started it"),
        sa.Column("created_at", _time, nullable=False),
        sa.Column("updated_at", _time, nullable=False, comment="when the current step began"),
        postgresql_with={"fillfactor": 80},
    )
    _index("ix_saga_due", "saga", "next_at", where="next_at IS NOT NULL")
    _index("ix_saga_stuck", "saga", "created_at", where="status = 'stuck'")
    _index("ix_saga_created", "saga", "created_at", "id")
    op.create_table(
        "saga_step",
        sa.Column("saga_id", sa.Uuid, sa.ForeignKey("saga.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("step", sa.String(100), nullable=False),
        sa.Column("direction", sa.String(6), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("status", sa.String(12), nullable=False, comment="done, refused, failed, timed-out"),
        sa.Column("started_at", _time, nullable=False),
        sa.Column("ended_at", _time, nullable=False),
        sa.Column("error", sa.Text),
    )


def _idempotency() -> None:
    op.create_table(
        "idempotency",
        sa.Column("scope", sa.String(300), primary_key=True),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("fingerprint", sa.LargeBinary(32), nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("headers", sa.Text, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("expires_at", _time, nullable=False),
    )
    _index("ix_idempotency_expires_at", "idempotency", "expires_at")
