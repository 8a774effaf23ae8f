"""The tables of the saga engine: one row a saga, one row an ended attempt of a step, one row an operator's command.

``saga`` is the truth and all that the engine reads. ``saga_step`` is only ever added to: the history for people.
Its ``seq`` is the transition's; of a step that was put off there is none.

``next_at`` is when an engine must look at the saga again: at once, at the next attempt or, while ``lease_owner`` is
set, when its lease runs out. It is null in a saga that has ended or is stuck, so that the index over it holds what is
alive and finished sagas cost nothing. Moving on to the next step leaves ``next_at`` alone, which on PostgreSQL makes
it a heap-only update that touches no index.
"""

from __future__ import annotations

from enum import StrEnum

import sqlalchemy as sa


class Status(StrEnum):
    """Of a saga. ``completed`` and ``compensated`` are its ends; ``stuck`` waits for an operator, ``queued``, of which
    nothing has begun, for the saga that has its key."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPENSATING = "compensating"
    COMPLETED = "completed"
    COMPENSATED = "compensated"
    STUCK = "stuck"


ENDS = (Status.COMPLETED, Status.COMPENSATED)


class Direction(StrEnum):
    ACTION = "action"
    UNDO = "undo"


metadata = sa.MetaData()

saga = sa.Table(
    "saga",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("fingerprint", sa.String(16), nullable=False, comment="of the definition the saga began with"),
    sa.Column("state", sa.JSON, nullable=False),
    sa.Column("status", sa.String(12), nullable=False),
    sa.Column("direction", sa.String(6), nullable=False, comment="action or undo"),
    sa.Column("step", sa.String(100), nullable=True, comment="under way or next; null in a saga that has ended"),
    sa.Column("attempts", sa.Integer, nullable=False, comment="begun attempts of this step in this direction"),
    sa.Column("failure", sa.JSON(none_as_null=True), nullable=True, comment="why it is compensated"),
    sa.Column("error", sa.Text, nullable=True, comment="of the last attempt, where it failed"),
    sa.Column("seq", sa.Integer, nullable=False, comment="counts the transitions"),
    sa.Column("epoch", sa.BigInteger, nullable=False, comment="fencing token: counts the leases"),
    sa.Column("lease_owner", sa.String(64), nullable=True),
    sa.Column("next_at", sa.DateTime(timezone=True), nullable=True),
    sa.Column("context", sa.JSON, nullable=False, comment="trace, request id and tenant of whoever started it"),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, comment="when the current step began"),
    sa.Column("not_yet_since", sa.DateTime(timezone=True), nullable=True, comment="since when the step is put off"),
    sa.Column("key", sa.String(200), nullable=True, comment="that it has, or waits for, from its start to its end"),
    sa.Column("not_before", sa.DateTime(timezone=True), nullable=True, comment="when its rate allows it to begin"),
    sa.Column("decisions", sa.JSON(none_as_null=True), nullable=True, comment="by step: whether its condition holds"),
    sa.Column("parked_for", sa.String(20), nullable=True, comment="definition: it is gone; resumed when it is back"),
    postgresql_with={"fillfactor": 80},
)

_alive = sa.text("next_at IS NOT NULL")
_stuck = sa.text("status = 'stuck'")
sa.Index("ix_saga_due", saga.c.fingerprint, saga.c.next_at, postgresql_where=_alive, sqlite_where=_alive)
sa.Index("ix_saga_stuck", saga.c.created_at, postgresql_where=_stuck, sqlite_where=_stuck)
_queued = sa.text("status = 'queued'")
sa.Index("ix_saga_queued", saga.c.key, saga.c.created_at, postgresql_where=_queued, sqlite_where=_queued)
sa.Index("ix_saga_created", saga.c.created_at, saga.c.id)

saga_step = sa.Table(
    "saga_step",
    metadata,
    sa.Column("saga_id", sa.Uuid, sa.ForeignKey("saga.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("step", sa.String(100), nullable=False),
    sa.Column("direction", sa.String(6), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("status", sa.String(12), nullable=False, comment="done, refused, failed, timed-out"),
    sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("ended_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("error", sa.Text, nullable=True),
)

saga_operation = sa.Table(
    "saga_operation",
    metadata,
    sa.Column("saga_id", sa.Uuid, sa.ForeignKey("saga.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("epoch", sa.BigInteger, primary_key=True, autoincrement=False, comment="that it raised the saga to"),
    sa.Column("operation", sa.String(20), nullable=False),
    sa.Column("operator", sa.String(200), nullable=False),
    sa.Column("reason", sa.Text, nullable=True),
    sa.Column("status", sa.String(12), nullable=False, comment="of the saga before"),
    sa.Column("direction", sa.String(6), nullable=False, comment="of the saga before"),
    sa.Column("step", sa.String(100), nullable=False, comment="of the saga before"),
    sa.Column("done_at", sa.DateTime(timezone=True), nullable=False),
)
"""The audit trail. It is deleted with the saga, when that has ended and is older than the service keeps them."""


def _of_saga() -> sa.Column[object]:
    return sa.Column("saga_id", sa.Uuid, sa.ForeignKey("saga.id", ondelete="CASCADE"), primary_key=True)


saga_wait = sa.Table(
    "saga_wait",
    metadata,
    _of_saga(),
    sa.Column("place", sa.String(110), primary_key=True, comment="the step; step:undo where it waits in going back"),
    sa.Column("name", sa.String(100), nullable=False, comment="of the definition"),
    sa.Column("step", sa.String(100), nullable=False, comment="that the saga is at meanwhile: this one, or its group"),
    sa.Column("events", sa.Text, nullable=False, comment="their types, joined by |"),
    sa.Column("value", sa.Text, nullable=False, comment="by which the event is told"),
    sa.Column("status", sa.String(12), nullable=False, comment="waiting, arrived, done, timed-out"),
    sa.Column("since", sa.DateTime(timezone=True), nullable=False),
    sa.Column("due", sa.DateTime(timezone=True), nullable=False),
    sa.Column("arrived_at", sa.DateTime(timezone=True), nullable=True),
    sa.Column("type", sa.Text, nullable=True, comment="of the event that arrived, as the next two"),
    sa.Column("payload", sa.LargeBinary, nullable=True),
    sa.Column("headers", sa.JSON(none_as_null=True), nullable=True),
)
"""What sagas wait, or have waited, for. A row stays as long as its saga: it tells a second reply from a first."""
sa.Index("ix_saga_wait_value", saga_wait.c.name, saga_wait.c.place, saga_wait.c.value)

saga_mail = sa.Table(
    "saga_mail",
    metadata,
    sa.Column("name", sa.String(100), primary_key=True, comment="of the definition"),
    sa.Column("place", sa.String(110), primary_key=True),
    sa.Column("value", sa.Text, primary_key=True),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("headers", sa.JSON, nullable=False),
    sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("keep_until", sa.DateTime(timezone=True), nullable=False),
    sa.Column("only_begun", sa.Boolean, nullable=False, comment="for a saga only that had begun when it came"),
)
"""Events that came before any saga waited for them."""
sa.Index("ix_saga_mail_keep_until", saga_mail.c.keep_until)

saga_branch = sa.Table(
    "saga_branch",
    metadata,
    _of_saga(),
    sa.Column("place", sa.String(110), primary_key=True, comment="the branch; branch:undo for its compensation"),
    sa.Column("status", sa.String(12), nullable=False, comment="begun, failed, done, ..."),
    sa.Column("attempts", sa.Integer, nullable=False, comment="begun"),
    sa.Column("happened", sa.Boolean, nullable=False, comment="or may have: it is undone when the saga turns back"),
    sa.Column("changes", sa.JSON(none_as_null=True), nullable=True, comment="fields of the state, where it is done"),
    sa.Column("reason", sa.Text, nullable=True),
    sa.Column("type", sa.Text, nullable=True),
    sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("not_before", sa.DateTime(timezone=True), nullable=True, comment="when it is to be tried again"),
)
"""How far the branches of parallel groups are. ``status``: begun, waiting, failed, done, refused, given-up, skipped."""

saga_key = sa.Table(
    "saga_key",
    metadata,
    sa.Column("key", sa.String(200), primary_key=True),
    sa.Column("saga_id", sa.Uuid, nullable=False, comment="that has it"),
)
"""The keys that sagas have, from start to end. The row's lock keeps a start and an end from passing each other."""

saga_rate = sa.Table(
    "saga_rate",
    metadata,
    sa.Column("bucket", sa.String(302), primary_key=True, comment="the definition, or the definition/key"),
    sa.Column("full_at", sa.DateTime(timezone=True), nullable=False, comment="when no start is owed any more"),
)
"""The token buckets of definitions with a rate."""
