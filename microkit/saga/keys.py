"""Semantic locks and rates: which saga may begin, and when. All of it in the transaction of whoever starts or ends one.

A saga takes its key when it is started and gives it back in the transaction that ends it. It holds one key at most and
takes it before anything else, so that sagas cannot wait for each other in a circle. The row of a key is locked by a
start and by an end: one of them is first, and neither overlooks the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from microkit.db import Transaction, database_now
from microkit.errors import Conflict, TooManyRequests
from microkit.saga.limits import Limits, Rate
from microkit.saga.tables import Status, saga, saga_key, saga_rate

SIGNAL: Final = "saga"
"""``Database.signal`` that wakes the engine of this process."""

# An update that changes nothing locks the row and tells who has it.
_TAKE: Final = {
    name: insert(saga_key)
    .on_conflict_do_update(index_elements=[saga_key.c.key], set_={"key": insert(saga_key).excluded.key})
    .returning(saga_key.c.saga_id)
    for name, insert in (("postgresql", postgresql.insert), ("sqlite", sqlite.insert))
}
_BUCKET: Final = {
    name: insert(saga_rate)
    .values(full_at=database_now())
    .on_conflict_do_update(index_elements=[saga_rate.c.bucket], set_={"bucket": insert(saga_rate).excluded.bucket})
    .returning(saga_rate.c.full_at, database_now())
    for name, insert in (("postgresql", postgresql.insert), ("sqlite", sqlite.insert))
}
_KEY: Final = sa.bindparam("of_key", type_=sa.String)
_HOLDER: Final = sa.select(saga_key.c.saga_id).where(saga_key.c.key == _KEY).with_for_update()
_FIRST: Final = (
    sa.select(saga.c.id)
    .where(saga.c.status == sa.literal_column("'queued'"), saga.c.key == _KEY)
    .order_by(saga.c.created_at, saga.c.id)
    .limit(1)
)
_PASS_ON: Final = sa.update(saga_key).where(saga_key.c.key == _KEY).values(saga_id=sa.bindparam("to_saga"))
_GIVE_BACK: Final = sa.delete(saga_key).where(saga_key.c.key == _KEY)
_ADMIT: Final = (
    sa.update(saga)
    .where(saga.c.id == sa.bindparam("to_saga"), saga.c.status == Status.QUEUED)
    .values(
        status=Status.RUNNING,
        next_at=sa.case((saga.c.not_before > database_now(), saga.c.not_before), else_=database_now()),
        updated_at=database_now(),
    )
    .returning(saga.c.id)
)


@dataclass(frozen=True, slots=True)
class Admission:
    """How a saga may begin: after ``wait`` seconds at the earliest, and when it has its key where it is ``queued``."""

    queued: bool = False
    wait: float = 0.0


async def admit(tx: Transaction, saga_id: UUID, name: str, key: str | None, limits: Limits) -> Admission:
    """Takes the key and a place in the rate for a saga that is about to be started.

    Raises:
        Conflict: with ``on_busy="refuse"``, another saga has the key.
        TooManyRequests: with ``on_busy="refuse"``, more have begun than the rate allows.
    """
    queued = False
    refuse = limits.on_busy == "refuse"
    if key is not None:
        holder = (await tx.execute(_TAKE[tx.dialect], {"key": key, "saga_id": saga_id})).scalar_one()
        queued = holder != saga_id
        if queued and refuse:
            raise Conflict(f"Saga {holder} is at work on {key!r} and has not ended; one saga at a time can be")
    if limits.rate is None:
        return Admission(queued)
    bucket = f"{name}/{key}" if limits.rate.each == "key" else name
    return Admission(queued, await _place(tx, bucket, limits.rate, refuse=refuse))


async def _place(tx: Transaction, bucket: str, rate: Rate, *, refuse: bool) -> float:
    """Takes a token; the seconds until there is one."""
    row = (await tx.execute(_BUCKET[tx.dialect], {"bucket": bucket})).one()
    full_at, now = row[0], row[1]
    full_at = max(full_at, now) + timedelta(seconds=rate.interval)
    wait: float = (full_at - now).total_seconds() - rate.burst * rate.interval
    if wait <= 1e-6:
        wait = 0.0
    elif refuse:
        raise TooManyRequests(
            f"{bucket}: {rate.starts:g} sagas may begin in {rate.per:g} s; one more in {wait:.1f} s",
            headers={"Retry-After": str(max(1, round(wait)))},
        )
    await tx.execute(sa.update(saga_rate).where(saga_rate.c.bucket == bucket).values(full_at=full_at))
    return wait


async def give_back(tx: Transaction, saga_id: UUID, key: str) -> None:
    """Gives a key back in the transaction that ends its saga; who has waited longest gets it, and goes on at once."""
    if (await tx.execute(_HOLDER, {"of_key": key})).scalar() != saga_id:
        return  # it never had it: it ended while it waited
    while (first := (await tx.execute(_FIRST, {"of_key": key})).scalar()) is not None:
        if (await tx.execute(_ADMIT, {"to_saga": first})).first() is not None:
            await tx.execute(_PASS_ON, {"of_key": key, "to_saga": first})
            tx.wake(SIGNAL)
            return
    await tx.execute(_GIVE_BACK, {"of_key": key})


async def holder_of(tx: Transaction, key: str) -> UUID | None:
    """The saga that has a key."""
    statement: sa.Select[Any] = sa.select(saga_key.c.saga_id).where(saga_key.c.key == key)
    found: UUID | None = (await tx.execute(statement)).scalar()
    return found
