"""Counts attempts a minute in the database, so that all instances count together and a restart forgets nothing.

An attempt is counted before it is made: a hundred guesses sent at once are counted as a hundred, not as none.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import case, delete, update
from sqlalchemy.dialects import postgresql, sqlite

from microkit.db import Transaction
from reference.billpay.user.tables import AttemptRow

WINDOW: Final = timedelta(minutes=1)


async def take(tx: Transaction, scope: str, limit: int, now: datetime) -> float | None:
    """Counts one attempt in ``scope``: ``None`` where it may be made, else how many seconds to wait."""
    insert = postgresql.insert if tx.dialect == "postgresql" else sqlite.insert
    over = AttemptRow.started_at <= now - WINDOW
    counted = await tx.execute(
        insert(AttemptRow)
        .values(scope=scope, count=1, started_at=now)
        .on_conflict_do_update(
            index_elements=[AttemptRow.scope],
            set_={
                "count": case((over, 1), else_=AttemptRow.count + 1),
                "started_at": case((over, now), else_=AttemptRow.started_at),
            },
        )
        .returning(AttemptRow.count, AttemptRow.started_at)
    )
    count, started_at = counted.one()
    if count <= limit:
        return None
    ends_at: datetime = started_at + WINDOW
    return max(1.0, (ends_at - now).total_seconds())


async def forgive(tx: Transaction, scope: str) -> None:
    """Forgets the attempts of an account whose owner has come."""
    await tx.execute(delete(AttemptRow).where(AttemptRow.scope == scope))


async def give_back(tx: Transaction, scope: str) -> None:
    """Uncounts one attempt that was no failure, leaving those of others at the same address."""
    await tx.execute(
        update(AttemptRow).where(AttemptRow.scope == scope, AttemptRow.count > 0).values(count=AttemptRow.count - 1)
    )


async def prune(tx: Transaction, now: datetime) -> None:
    """Removes what no longer counts."""
    await tx.execute(delete(AttemptRow).where(AttemptRow.started_at <= now - WINDOW))
