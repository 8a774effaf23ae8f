"""Leases on sagas: claimed in batches, kept by heartbeats, given back. All on the database's clock."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from microkit.db import Transaction, database_now
from microkit.saga.store import HELD, Held, held_from
from microkit.saga.tables import Status, saga

# A volatile function cannot be compared with an index; asked for once, as a subquery, it can.
_NOW = sa.select(database_now()).scalar_subquery()

_LEASE = database_now(sa.bindparam("lease", type_=sa.Float))
_KNOWN = saga.c.fingerprint.in_(sa.bindparam("known", expanding=True))

_DUE = (
    sa.select(saga.c.id)
    .where(saga.c.next_at <= _NOW, _KNOWN)
    .order_by(saga.c.next_at)
    .limit(sa.bindparam("limit", type_=sa.Integer))
    .with_for_update(skip_locked=True)
    .cte("due")
)
_CLAIM = (
    sa.update(saga)
    .where(saga.c.id.in_(sa.select(_DUE.c.id)))
    .values(
        epoch=saga.c.epoch + 1,
        attempts=saga.c.attempts + 1,
        lease_owner=sa.bindparam("owner"),
        next_at=_LEASE,
        updated_at=database_now(),
    )
    .returning(*HELD)
)
_NEXT = (
    sa.select(saga.c.next_at, database_now())
    .where(saga.c.next_at.is_not(None), _KNOWN)
    .order_by(saga.c.next_at)
    .limit(1)
)

_OWN = saga.c.lease_owner == sa.bindparam("owner")

# In the order of the ids, as every other statement that locks several sagas: no two of them can wait for each other.
_BEATING = (
    sa.select(saga.c.id)
    .where(saga.c.id.in_(sa.bindparam("ids", expanding=True)), _OWN)
    .order_by(saga.c.id)
    .with_for_update()
    .cte("beating")
)
_HEARTBEAT = sa.update(saga).where(saga.c.id.in_(sa.select(_BEATING.c.id))).values(next_at=_LEASE).returning(saga.c.id)
_RELEASE = (
    sa.update(saga)
    .where(saga.c.next_at.is_not(None), _OWN)
    .values(
        next_at=database_now(),
        lease_owner=None,
        attempts=saga.c.attempts - sa.case((saga.c.id.in_(sa.bindparam("unbegun", expanding=True)), 1), else_=0),
    )
)
_RELOAD = sa.select(*HELD).where(saga.c.id == sa.bindparam("id"), saga.c.epoch == sa.bindparam("epoch"), _OWN)

_ASIDE = {
    "status": Status.STUCK,
    "next_at": None,
    "lease_owner": None,
    "epoch": saga.c.epoch + 1,
    "error": sa.bindparam("reason"),
    "updated_at": database_now(),
}
_PARK = (
    sa.update(saga)
    .where(saga.c.id == sa.bindparam("held_id"), saga.c.epoch == sa.bindparam("held_epoch"))
    .values(_ASIDE)
)
_LONG_AGO = sa.select(database_now(-sa.bindparam("overdue", type_=sa.Float))).scalar_subquery()
_PARK_STRANGERS = (
    sa.update(saga).where(saga.c.next_at <= _LONG_AGO, sa.not_(_KNOWN)).values(_ASIDE).returning(saga.c.id, saga.c.name)
)
_OPEN = sa.select(saga.c.name, saga.c.status, sa.func.count(), sa.func.min(saga.c.created_at), database_now()).group_by(
    saga.c.name, saga.c.status
)
_OPEN_ALIVE = _OPEN.where(saga.c.next_at.is_not(None))
_OPEN_STUCK = _OPEN.where(saga.c.status == sa.literal_column("'stuck'"))


async def claim(tx: Transaction, *, owner: str, lease: float, known: Collection[str], limit: int) -> list[Held]:
    """Takes a lease of ``lease`` seconds on up to ``limit`` sagas that are due, the longest due first.

    Sagas whose lease ran out are due: their process is gone. The attempt that now begins is counted here, so that a
    step which ends the process each time is seen to.
    """
    rows = await tx.execute(_CLAIM, {"owner": owner, "lease": lease, "known": list(known), "limit": limit})
    return [held_from(row) for row in rows]


async def next_due(tx: Transaction, *, known: Collection[str]) -> float | None:
    """Seconds until the next saga is due, below 0 where one is; ``None`` where all have ended or are stuck."""
    row = (await tx.execute(_NEXT, {"known": list(known)})).first()
    return None if row is None else (row[0] - row[1]).total_seconds()


async def heartbeat(tx: Transaction, *, owner: str, lease: float, ids: Collection[UUID]) -> set[UUID]:
    """Extends the leases on ``ids`` to ``lease`` seconds from now; those that are still held."""
    rows = await tx.execute(_HEARTBEAT, {"owner": owner, "lease": lease, "ids": list(ids)})
    return {row[0] for row in rows}


async def release(tx: Transaction, *, owner: str, unbegun: Collection[UUID]) -> None:
    """Gives back all leases of ``owner``, for others to go on at once. Of ``unbegun`` no attempt was made."""
    await tx.execute(_RELEASE, {"owner": owner, "unbegun": list(unbegun)})


async def reload(tx: Transaction, *, owner: str, held: Held) -> Held | None:
    """The saga as it stands, if the lease under which ``held`` was read is still held."""
    row = (await tx.execute(_RELOAD, {"owner": owner, "id": held.id, "epoch": held.epoch})).first()
    return None if row is None else held_from(row)


async def park(tx: Transaction, *, held: Held, reason: str) -> None:
    """Sets a saga aside that cannot be gone on with."""
    await tx.execute(_PARK, {"held_id": held.id, "held_epoch": held.epoch, "reason": reason})


async def park_strangers(tx: Transaction, *, known: Collection[str], overdue: float, reason: str) -> list[Any]:
    """Sets sagas aside whose definition is not among ``known`` and that nobody took for ``overdue`` seconds."""
    parameters = {"known": list(known), "overdue": overdue, "reason": reason}
    return list(await tx.execute(_PARK_STRANGERS, parameters))


async def survey(tx: Transaction) -> list[tuple[str, str, int, float]]:
    """Sagas that have not ended: name, status, how many, and the age of the oldest in seconds."""
    rows = [*await tx.execute(_OPEN_ALIVE), *await tx.execute(_OPEN_STUCK)]
    return [(name, status, count, (now - oldest).total_seconds()) for name, status, count, oldest, now in rows]
