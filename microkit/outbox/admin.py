"""What an operator asks of the outbox: how it is, publish that again, take that row out of its parking place.

Commands call these on a service's database, beside relays that run. Nothing here needs the bus.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from microkit.db.clock import database_now
from microkit.db.database import Database
from microkit.db.transaction import Transaction
from microkit.outbox.tables import DEAD, FAILING, PARKED, PENDING, PUBLISHED, outbox, relay_presence, shard_lease
from microkit.outbox.writer import SIGNAL

_STEP: Final = 5_000
_NAMES: Final = {
    PENDING: "pending",
    FAILING: "failing",
    PUBLISHED: "published",
    PARKED: "parked",
    DEAD: "dead",
}


@dataclass(frozen=True, slots=True)
class TopicStatus:
    """The rows of one topic, counted by state. ``oldest`` is the age in seconds of the oldest row not yet published,
    ``None`` where there is none."""

    topic: str
    pending: int = 0
    failing: int = 0
    published: int = 0
    parked: int = 0
    dead: int = 0
    oldest: float | None = None


@dataclass(frozen=True, slots=True)
class ParkedRow:
    """A row that the bus refused ``attempts`` times, and with what ``error`` the last time."""

    id: str
    topic: str
    key: str
    type: str
    attempts: int
    error: str
    created_at: datetime
    parked_at: datetime


@dataclass(frozen=True, slots=True)
class RelayStatus:
    """A relay that gave a sign of life within its lease; ``shards`` of the keys are its to publish."""

    owner: str
    shards: int


@dataclass(frozen=True, slots=True)
class OutboxStatus:
    """``topics`` in alphabetical order; ``parked`` the latest rows that were parked; ``relays`` those that run."""

    topics: tuple[TopicStatus, ...]
    parked: tuple[ParkedRow, ...]
    relays: tuple[RelayStatus, ...]

    def total(self, state: str) -> int:
        """Rows of all topics in ``state``: pending, failing, published, parked or dead."""
        return sum(getattr(topic, state) for topic in self.topics)

    @property
    def oldest(self) -> float | None:
        """The age in seconds of the oldest row not yet published, ``None`` where there is none."""
        return max((topic.oldest for topic in self.topics if topic.oldest is not None), default=None)


async def outbox_status(database: Database, *, parked: int = 100) -> OutboxStatus:
    """Counts the outbox; it reads the whole table. At most ``parked`` of the rows that were parked are listed.

    Raises:
        DatabaseUnavailable: the database cannot be reached.
    """

    async def unit(tx: Transaction) -> OutboxStatus:
        return OutboxStatus(await _topics(tx), await _parked(tx, parked), await _relays(tx))

    return await database.run(unit, read_only=True)


async def replay(
    database: Database, *, since: datetime, topic: str | None = None, key: str | None = None, dry_run: bool = False
) -> int:
    """Has the relay publish again what was written since then and published already; how many rows that are.

    ``since`` has a zone. ``topic`` and ``key`` choose among the rows; ``dry_run`` only counts. Published rows are kept
    for ``RelayOptions.keep`` seconds, so nothing older can be replayed.

    The rows go out in their old order, with their old ids: a consumer whose inbox knows an id skips it. That is right
    after a broker lost messages. Rows of the same keys that are written meanwhile may come before replayed ones.

    Raises:
        ValueError: ``since`` has no zone.
    """
    if since.tzinfo is None:
        raise ValueError("since needs a zone, as 2026-01-31T12:00:00+00:00 has")
    chosen = [outbox.c.state == PUBLISHED, outbox.c.created_at >= since]
    chosen += [outbox.c.aggregatetype == topic] if topic is not None else []
    chosen += [outbox.c.aggregateid == key] if key is not None else []
    if dry_run:
        return await _count(database, chosen)
    return await _reopen(database, chosen)


async def unpark(
    database: Database, *, ids: Collection[str] | None = None, topic: str | None = None, dry_run: bool = False
) -> int:
    """Has the relay try parked rows again, with all their attempts; how many rows that are.

    ``ids`` are the ids of events; without it, all of ``topic``, or all there are. Later rows of their keys have gone
    out before them.
    """
    chosen = [sa.text("outbox.state > 2"), outbox.c.state == PARKED]
    chosen += [outbox.c.aggregatetype == topic] if topic is not None else []
    chosen += [outbox.c.id.in_(list(ids))] if ids is not None else []
    if dry_run:
        return await _count(database, chosen)
    return await _reopen(database, chosen)


async def _count(database: Database, chosen: list[Any]) -> int:
    async def unit(tx: Transaction) -> int:
        return int(await tx.scalar(sa.select(sa.func.count()).select_from(outbox).where(*chosen)) or 0)

    return await database.run(unit, read_only=True)


async def _reopen(database: Database, chosen: list[Any]) -> int:
    """Puts rows back to pending, the oldest first, in transactions that no writer has to wait long for."""
    database.share(SIGNAL)
    last = 0

    async def unit(tx: Transaction) -> tuple[int, int]:
        some = sa.select(outbox.c.seq).where(*chosen, outbox.c.seq > last).order_by(outbox.c.seq).limit(_STEP)
        seqs = list(await tx.scalars(some))
        if not seqs:
            return 0, last
        changed = await tx.execute(
            sa.update(outbox)
            .where(*chosen, outbox.c.seq.in_(some))
            .values(state=PENDING, attempts=0, next_at=None, done_at=None, error=None)
        )
        tx.wake(SIGNAL)
        return int(changed.rowcount), seqs[-1]  # type: ignore[attr-defined]  # an UPDATE's result is a CursorResult

    total = 0
    while True:
        number, reached = await database.run(unit)
        if reached == last:
            return total
        total, last = total + number, reached


async def _topics(tx: Transaction) -> tuple[TopicStatus, ...]:
    counted = await tx.execute(
        sa.select(
            outbox.c.aggregatetype,
            outbox.c.state,
            sa.func.count(),
            sa.func.min(outbox.c.created_at),
            database_now(),
        ).group_by(outbox.c.aggregatetype, outbox.c.state)
    )
    found: dict[str, dict[str, Any]] = {}
    for topic, state, number, oldest, now in counted:
        fields = found.setdefault(topic, {})
        fields[_NAMES[state]] = number
        if state in (PENDING, FAILING):
            fields["oldest"] = max(fields.get("oldest", 0.0), (now - oldest).total_seconds())
    return tuple(TopicStatus(topic, **fields) for topic, fields in sorted(found.items()))


async def _parked(tx: Transaction, most: int) -> tuple[ParkedRow, ...]:
    rows = await tx.execute(
        sa.select(outbox)
        .where(sa.text("outbox.state > 2"), outbox.c.state == PARKED)
        .order_by(outbox.c.seq.desc())
        .limit(most)
    )
    return tuple(
        ParkedRow(
            row.id,
            row.aggregatetype,
            row.aggregateid,
            row.type,
            row.attempts,
            row.error or "",
            row.created_at,
            row.done_at or row.created_at,
        )
        for row in rows
    )


async def _relays(tx: Transaction) -> tuple[RelayStatus, ...]:
    held = sa.and_(shard_lease.c.owner == relay_presence.c.owner, shard_lease.c.lease_until > database_now())
    rows = await tx.execute(
        sa.select(relay_presence.c.owner, sa.func.count(shard_lease.c.shard))
        .outerjoin_from(relay_presence, shard_lease, held)
        .where(relay_presence.c.seen_until > database_now())
        .group_by(relay_presence.c.owner)
        .order_by(relay_presence.c.owner)
    )
    return tuple(RelayStatus(owner, shards) for owner, shards in rows)
