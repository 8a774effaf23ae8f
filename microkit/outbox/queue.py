"""The outbox as a queue: the statements of the relay, for both databases.

States stand in the SQL as numbers, not as parameters: a prepared statement uses a partial index only where it can see
that the condition fits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from microkit.db.clock import database_now
from microkit.db.jsontext import loads
from microkit.db.prepared import PreparedSelect
from microkit.db.transaction import Transaction
from microkit.message import Message
from microkit.outbox.tables import FAILING, PARKED, PUBLISHED, outbox

_OPEN: Final = sa.text("outbox.state < 2")
_PENDING: Final = sa.text("outbox.state <= 0")
_FAILING: Final = sa.text("outbox.state = 1")
_COUNTED: Final = 100_000
_LONGEST_ERROR: Final = 2000
_other = outbox.alias("failing")
_KEY_FAILS: Final = sa.exists().where(
    sa.text("failing.state = 1"),
    _other.c.aggregatetype == outbox.c.aggregatetype,
    _other.c.aggregateid == outbox.c.aggregateid,
)
_COLUMNS: Final = (
    outbox.c.seq,
    outbox.c.aggregatetype,
    outbox.c.aggregateid,
    outbox.c.payload,
    outbox.c.headers,
    outbox.c.shard,
    outbox.c.attempts,
)


class Row(NamedTuple):
    """An event that waits in the outbox."""

    seq: int
    message: Message
    shard: int
    attempts: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that the bus refused: tried again after ``delay`` seconds, or parked where that is ``None``."""

    row: Row
    error: str
    delay: float | None


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits: rows not published or not settled (counted up to 100,000), the age of the oldest in seconds, and the
    rows that were parked."""

    waiting: int = 0
    oldest: float = 0.0
    failing: int = 0
    parked: int = 0


def _among(column: sa.ColumnElement[Any], name: str, dialect: str) -> sa.ColumnElement[bool]:
    """``column`` is one of a list bound as one parameter, so that the statement is the same for any number."""
    if dialect == "postgresql":
        return column == sa.any_(sa.bindparam(name, type_=ARRAY(sa.BigInteger)))
    return column.in_(sa.select(sa.func.json_each(sa.bindparam(name, type_=sa.JSON)).table_valued("value").c.value))


def _oldest(dialect: str, *conditions: Any) -> sa.Select[Any]:
    return (
        sa.select(*_COLUMNS)
        .where(_OPEN, *conditions, _among(outbox.c.shard, "shards", dialect))
        .order_by(outbox.c.state, outbox.c.seq)
    )


class Queue:
    """The relay's statements in one dialect. ``batch`` is the most rows that one claim gives."""

    def __init__(self, dialect: str, batch: int) -> None:
        limit: sa.ColumnElement[int] = sa.literal_column(str(int(batch)), sa.Integer)
        pending = _oldest(dialect, _PENDING, ~_KEY_FAILS)
        self.first = pending.limit(limit)
        self.next = pending.where(~_among(outbox.c.seq, "held", dialect)).limit(limit)
        self._first = PreparedSelect(self.first, ["shards"])
        self._next = PreparedSelect(self.next, ["shards", "held"])
        due = _oldest(dialect, _FAILING, outbox.c.next_at <= database_now()).limit(limit)
        self._due = PreparedSelect(due, ["shards"])
        self._published = (
            sa.update(outbox)
            .where(_OPEN, _among(outbox.c.seq, "seqs", dialect))
            .values(state=PUBLISHED, done_at=database_now(), error=None)
        )

    async def pending(self, tx: Transaction, shards: Collection[int], held: Collection[int]) -> list[Row]:
        """The oldest pending rows of the shards, without those ``held`` and those whose key is failing."""
        parameters: dict[str, Any] = {"shards": list(shards)}
        if held:
            return _rows(await tx.fetch(self._next, {**parameters, "held": list(held)}))
        return _rows(await tx.fetch(self._first, parameters))

    async def due(self, tx: Transaction, shards: Collection[int]) -> list[Row]:
        """Rows that failed and are to be tried again now."""
        return _rows(await tx.fetch(self._due, {"shards": list(shards)}))

    async def published(self, tx: Transaction, seqs: Sequence[int], fence: sa.ColumnElement[bool]) -> int:
        """Marks rows as done; how many were. Fewer than given: a lease was lost meanwhile."""
        if not seqs:
            return 0
        marked = await tx.execute(self._published.where(fence), {"seqs": list(seqs)})
        return int(marked.rowcount)  # type: ignore[attr-defined]  # an UPDATE's result is a CursorResult

    async def refused(self, tx: Transaction, refusals: Sequence[Refusal], fence: sa.ColumnElement[bool]) -> None:
        """Marks rows as failing or parked."""
        for refusal in refusals:
            parked = refusal.delay is None
            await tx.execute(
                sa.update(outbox)
                .where(outbox.c.seq == refusal.row.seq, fence)
                .values(
                    state=PARKED if parked else FAILING,
                    attempts=refusal.row.attempts + 1,
                    next_at=None if refusal.delay is None else database_now(plus=refusal.delay),
                    done_at=database_now() if parked else None,
                    error=_storable(refusal.error),
                )
            )


async def backlog(tx: Transaction) -> Backlog:
    """Counts what waits."""
    some = sa.select(outbox.c.state).where(_OPEN).limit(_COUNTED).subquery()
    waiting, failing = (
        await tx.execute(sa.select(sa.func.count(), sa.func.count().filter(some.c.state == 1)).select_from(some))
    ).one()
    parked = await tx.scalar(
        sa.select(sa.func.count()).select_from(outbox).where(sa.text("outbox.state > 2"), outbox.c.state == PARKED)
    )
    oldest = (
        await tx.execute(
            sa.select(outbox.c.created_at, database_now())
            .where(_OPEN)
            .order_by(outbox.c.state, outbox.c.seq)
            .limit(sa.literal_column("1"))
        )
    ).first()
    return Backlog(waiting, _seconds(*oldest) if oldest else 0.0, failing, parked or 0)


async def prune(tx: Transaction, older_than: float, after: int = 0, most: int = 5000) -> int | None:
    """Deletes rows that were published more than ``older_than`` seconds ago, among the ``most`` that come ``after`` a
    number; the number to go on after, ``None`` when the rest is younger.

    Rows are published nearly in the order of their numbers, so it ends where it meets published rows and none is old:
    a million kept rows cost no more to look at than one. An index over ``done_at`` would be paid for at every mark.
    """
    window = (
        sa.select(outbox.c.seq, outbox.c.state, outbox.c.done_at)
        .where(outbox.c.seq > after)
        .order_by(outbox.c.seq)
        .limit(most)
        .subquery()
    )
    published = window.c.state == PUBLISHED
    old = sa.and_(published, window.c.done_at < database_now(plus=-older_than))
    seen = sa.select(sa.func.max(window.c.seq), sa.func.count().filter(old), sa.func.count().filter(published))
    last, to_go, kept = (await tx.execute(seen.select_from(window))).one()
    if to_go:
        await tx.execute(sa.delete(outbox).where(outbox.c.seq.in_(sa.select(window.c.seq).where(old))))
        return int(last)
    return None if last is None or kept else int(last)


def _rows(found: Iterable[Any]) -> list[Row]:
    return [
        Row(seq, Message(topic, key, payload, headers if type(headers) is dict else loads(headers)), shard, attempts)
        for seq, topic, key, payload, headers, shard, attempts in found
    ]


def _seconds(then: datetime, now: datetime) -> float:
    return max(0.0, (now - then).total_seconds())


def _storable(text: str) -> str:
    """PostgreSQL's text holds neither a NUL nor half a surrogate pair."""
    return text[:_LONGEST_ERROR].encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
