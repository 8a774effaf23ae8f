"""The tables of processes: one row a process, one row an event of it.

Both are written by the consumer that follows the events, in one transaction with its mark in the inbox. A process is
stuck from ``stuck_at`` on, on the database's clock, without anybody having to write that down.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

metadata = sa.MetaData()

LONGEST_ID: Final = 255

_time = sa.DateTime(timezone=True)

process = sa.Table(
    "process",
    metadata,
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("id", sa.String(LONGEST_ID), primary_key=True, comment="what its events have in common"),
    sa.Column("began_at", _time, nullable=False, comment="when the first event happened, by its publisher's clock"),
    sa.Column("last_at", _time, nullable=False, comment="when the last one did"),
    sa.Column("last_event", sa.Text, nullable=False),
    sa.Column("ended_at", _time, nullable=True, comment="when the last event that ends it happened"),
    sa.Column("ended_by", sa.Text, nullable=True),
    sa.Column("ends", sa.Integer, nullable=False, comment="how many events said that it has ended"),
    sa.Column("heard_at", _time, nullable=False, comment="when the latest news came, by the database's clock"),
    sa.Column("stuck_at", _time, nullable=True, comment="when it counts as stuck if no other event comes"),
)

_open = sa.text("ended_at IS NULL")
sa.Index("ix_process_open", process.c.name, process.c.stuck_at, postgresql_where=_open, sqlite_where=_open)
sa.Index("ix_process_began", process.c.began_at, process.c.name, process.c.id)
sa.Index("ix_process_id", process.c.id)
sa.Index("ix_process_heard", process.c.heard_at)

process_event = sa.Table(
    "process_event",
    metadata,
    # No foreign key: an event is written first, because what it says of the process counts only if it is new.
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("process_id", sa.String(LONGEST_ID), primary_key=True),
    sa.Column("source", sa.Text, primary_key=True, comment="the service that published it"),
    sa.Column("event_id", sa.Text, primary_key=True),
    sa.Column("event", sa.Text, nullable=False, comment="its type"),
    sa.Column("happened_at", _time, nullable=False, comment="by its publisher's clock"),
    sa.Column("received_at", _time, nullable=False, comment="by the database's clock"),
    sa.Column("trace_id", sa.String(32), nullable=True),
)
