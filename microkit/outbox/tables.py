"""The tables behind ``tx.publish`` and the inbox, in the service's own database.

``outbox`` has the columns of Debezium's outbox event router (``id``, ``aggregatetype``, ``aggregateid``, ``type``,
``payload``), so that a connector can take the relay's place. All times are readings of the database's clock: a lease is
never judged by a process's own.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

metadata = sa.MetaData()

SHARDS: Final = 16
"""Keys are hashed into this many shards; each has its own lease, and so at most one relay at a time."""

PENDING: Final = 0
"""Waits for the relay, or was published to a bus that has not settled it yet."""
FAILING: Final = 1
"""The bus refused it; tried again at ``next_at``. Later rows of its key wait."""
PUBLISHED: Final = 2
"""Confirmed by the bus; kept for a while, then pruned."""
PARKED: Final = 3
"""Refused too often; ``error`` says why. Later rows of its key have gone on."""
DEAD: Final = 4
"""A dead letter of this service's own consumers, kept here because the bus keeps nothing."""

_time = sa.DateTime(timezone=True)
_big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # only INTEGER becomes SQLite's row id

outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("seq", _big, sa.Identity(always=True), primary_key=True),
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
    sqlite_autoincrement=True,  # a number that was pruned must not come back while its mark is under way
)
# Ordered by state first, so that the primary key can never look like a cheap way to the oldest pending row: with stale
# statistics the planner would walk a million published ones to reach it.
sa.Index(
    "ix_outbox_open",
    outbox.c.state,
    outbox.c.seq,
    postgresql_where=sa.text("state < 2"),
    sqlite_where=sa.text("state < 2"),
)
sa.Index(
    "ix_outbox_failing",
    outbox.c.aggregatetype,
    outbox.c.aggregateid,
    postgresql_where=sa.text("state = 1"),
    sqlite_where=sa.text("state = 1"),
)
sa.Index(
    "ix_outbox_kept",
    outbox.c.state,
    outbox.c.seq,
    postgresql_where=sa.text("state > 2"),
    sqlite_where=sa.text("state > 2"),
)

shard_lease = sa.Table(
    "outbox_shard",
    metadata,
    sa.Column("shard", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("owner", sa.Text),
    sa.Column("epoch", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("lease_until", _time),
)
"""Who may publish a shard's rows, until when. ``epoch`` is the fencing token: it grows with every new owner."""

relay_presence = sa.Table(
    "outbox_relay",
    metadata,
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("seen_until", _time, nullable=False),
)
"""The relays that run, so that each takes its fair share of the shards and no more."""

inbox = sa.Table(
    "inbox",
    metadata,
    sa.Column("consumer", sa.Text, primary_key=True),
    sa.Column("source", sa.Text, primary_key=True),
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("received_at", _time, nullable=False),
)
"""Messages whose effect is in this database. CloudEvents: an id is unique within its source."""
sa.Index("ix_inbox_received_at", inbox.c.received_at)
