"""Leases on sagas: claimed in batches, kept by heartbeats, given back. All on the database's clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from microkit.db import Transaction, database_now
from microkit.db.prepared import PreparedSelect
from microkit.saga.store import HELD, Held, held_from
from microkit.saga.tables import Direction, Status, saga

MOST: Final = 64
"""Sagas in one claim."""

STRANGER: Final = "definition"
"""What a saga is parked for whose definition nobody offers."""

# A volatile function cannot be compared with an index; asked for once, as a subquery, it can.
_NOW = sa.select(database_now()).scalar_subquery()

_LEASE = database_now(sa.bindparam("lease", type_=sa.Float))
_KNOWN = saga.c.fingerprint.in_(sa.bindparam("known", expanding=True))


@dataclass(frozen=True, slots=True)
class Turn:
    """What a definition may have of the next claim: its sagas come one after another behind ``served``, as a queue of
    many would number them, and are ``room`` at most. ``limit`` is how many sagas of ``name`` all engines together may
    have under lease."""

    fingerprint: str
    served: int
    room: int
    name: str = ""
    limit: int | None = None


def _texts(name: str) -> sa.BindParameter[Any]:
    return sa.bindparam(name, type_=postgresql.ARRAY(sa.Text))


def _numbers(name: str) -> sa.BindParameter[Any]:
    return sa.bindparam(name, type_=postgresql.ARRAY(sa.BigInteger))


_CLAIMED: Final = {
    "epoch": saga.c.epoch + 1,
    "attempts": saga.c.attempts + 1,
    "lease_owner": sa.bindparam("owner"),
    "next_at": _LEASE,
    "updated_at": database_now(),
}


def _claim() -> PreparedSelect:
    """PostgreSQL: the oldest of each definition, numbered; the lowest numbers of all of them; those not locked.

    The limits inside are constants, so that one plan, from index to index, is right for every claim.
    """
    turns = (
        sa.func.unnest(_texts("known"), _numbers("served"), _numbers("room"))
        .table_valued(sa.column("fingerprint", sa.Text), sa.column("served", sa.Integer), sa.column("room", sa.Integer))
        .render_derived(name="turns")
    )
    oldest = (
        sa.select(saga.c.id, saga.c.next_at, sa.func.row_number().over(order_by=saga.c.next_at).label("place"))
        .where(saga.c.fingerprint == turns.c.fingerprint, saga.c.next_at <= _NOW)
        .order_by(saga.c.next_at)
        .limit(sa.literal_column(str(MOST)))
        .lateral("oldest")
    )
    turn = (turns.c.served + oldest.c.place).label("turn")
    # Twice as many, since another engine may be claiming the same ones.
    first = (
        sa.select(oldest.c.id, oldest.c.next_at, turn)
        .select_from(turns.join(oldest, sa.true()))
        .where(oldest.c.place <= turns.c.room)
        .order_by(turn, oldest.c.next_at)
        .limit(sa.literal_column(str(2 * MOST)))
        .subquery("first")
    )
    free = (
        sa.select(saga.c.id)
        .join(first, first.c.id == saga.c.id)
        .where(saga.c.next_at <= _NOW)
        .order_by(first.c.turn, first.c.next_at)
        .limit(sa.bindparam("limit", type_=sa.Integer))
        .with_for_update(of=saga, skip_locked=True)
        .cte("free")
    )
    ids = sa.func.array(sa.select(free.c.id).scalar_subquery(), type_=postgresql.ARRAY(sa.Uuid))
    claimed = sa.update(saga).where(saga.c.id == sa.func.any(ids)).values(_CLAIMED).returning(*HELD).cte("claimed")
    return PreparedSelect(sa.select(*claimed.c), ["known", "served", "room", "limit", "owner", "lease"])


_CLAIM: Final = _claim()
_OLDEST: Final = (
    sa.select(saga.c.id, saga.c.next_at)
    .where(saga.c.fingerprint == sa.bindparam("fingerprint"), saga.c.next_at <= _NOW)
    .order_by(saga.c.next_at)
    .limit(sa.bindparam("limit", type_=sa.Integer))
)
_CLAIM_THESE: Final = (
    sa.update(saga)
    .where(saga.c.id.in_(sa.bindparam("ids", expanding=True)), saga.c.next_at <= _NOW)
    .values(_CLAIMED)
    .returning(*HELD)
)

_COUNTING: Final = sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(sa.bindparam("name"), 0)))
_LEASED: Final = (
    sa.select(saga.c.name, sa.func.count())
    .where(
        saga.c.next_at > _NOW, saga.c.lease_owner.is_not(None), saga.c.name.in_(sa.bindparam("names", expanding=True))
    )
    .group_by(saga.c.name)
)

_DUE: Final = sa.select(sa.func.count()).select_from(
    sa.select(saga.c.id)
    .where(saga.c.fingerprint == sa.bindparam("fingerprint"), saga.c.next_at <= _NOW)
    .limit(sa.bindparam("room", type_=sa.Integer))
    .subquery()
)

_EACH: Final = sa.func.unnest(_texts("known")).table_valued("fingerprint").render_derived(name="known")
_NEXT_OF_EACH: Final = (
    sa.select(saga.c.next_at)
    .where(saga.c.fingerprint == _EACH.c.fingerprint, saga.c.next_at.is_not(None))
    .order_by(saga.c.next_at)
    .limit(sa.literal_column("1"))
    .lateral("soonest")
)
_NEXT: Final = {
    "postgresql": sa.select(sa.func.min(_NEXT_OF_EACH.c.next_at), database_now()).select_from(
        _EACH.join(_NEXT_OF_EACH, sa.true())
    ),
    "sqlite": sa.select(sa.func.min(saga.c.next_at), database_now()).where(saga.c.next_at.is_not(None), _KNOWN),
}

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
    "parked_for": sa.bindparam("aside_for", type_=saga.c.parked_for.type),
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
_WELCOME = (
    sa.update(saga)
    .where(
        saga.c.status == sa.literal_column("'stuck'"),
        saga.c.parked_for == sa.bindparam("aside_for", type_=saga.c.parked_for.type),
        _KNOWN,
    )
    .values(
        status=sa.case((saga.c.direction == Direction.UNDO, Status.COMPENSATING), else_=Status.RUNNING),
        next_at=database_now(),
        error=None,
        parked_for=None,
        epoch=saga.c.epoch + 1,
        updated_at=database_now(),
    )
    .returning(saga.c.id, saga.c.name)
)
_OPEN = sa.select(saga.c.name, saga.c.status, sa.func.count(), sa.func.min(saga.c.created_at), database_now()).group_by(
    saga.c.name, saga.c.status
)
_SURVEY = sa.union_all(
    _OPEN.where(saga.c.next_at.is_not(None)), _OPEN.where(saga.c.status == sa.literal_column("'stuck'"))
)


async def claim(tx: Transaction, *, owner: str, lease: float, turns: Sequence[Turn], limit: int) -> list[Held]:
    """Takes a lease of ``lease`` seconds on up to ``limit`` sagas that are due, ``MOST`` at most: of each definition
    those that have been due the longest, and of all of them those with the lowest turns.

    Sagas whose lease ran out are due: their process is gone. The attempt that now begins is counted here, so that a
    step which ends the process each time is seen to.
    """
    limit = min(limit, MOST)
    if any(turn.limit is not None for turn in turns):
        turns = await _within_limits(tx, turns)
    if tx.dialect != "postgresql":
        return await _claim_one_by_one(tx, turns, {"owner": owner, "lease": lease}, limit)
    columns = {
        "known": [turn.fingerprint for turn in turns],
        "served": [turn.served for turn in turns],
        "room": [turn.room for turn in turns],
    }
    rows = await tx.fetch_alone(_CLAIM, {**columns, "owner": owner, "lease": lease, "limit": limit})
    return [held_from(row) for row in rows]


async def _within_limits(tx: Transaction, turns: Sequence[Turn]) -> list[Turn]:
    """Leaves each limited name the room that is left in all engines together. They count one after the other."""
    limited = sorted({turn.name for turn in turns if turn.limit is not None})
    if tx.dialect == "postgresql":  # SQLite has one writer
        for name in limited:
            await tx.execute(_COUNTING, {"name": f"microkit.saga:{name}"})
    leased = {name: int(count) for name, count in await tx.execute(_LEASED, {"names": limited})}
    names = Counter(turn.name for turn in turns)
    bounded = []
    for turn in turns:
        room = turn.room if turn.limit is None else min(turn.room, turn.limit - leased.get(turn.name, 0))
        if room <= 0:
            continue
        if turn.limit is not None:  # of two versions of one name the first takes what it can, the second what is left
            if names[turn.name] > 1:
                due = await tx.execute(_DUE, {"fingerprint": turn.fingerprint, "room": room})
                room = int(due.scalar_one())
            leased[turn.name] = leased.get(turn.name, 0) + room
        bounded.append(replace(turn, room=room))
    return bounded


async def _claim_one_by_one(
    tx: Transaction, turns: Sequence[Turn], parameters: Mapping[str, Any], limit: int
) -> list[Held]:
    """The same where statements cost little and one transaction writes at a time."""
    found: list[tuple[int, Any, UUID]] = []
    for turn in turns:
        oldest = {"fingerprint": turn.fingerprint, "limit": min(limit, turn.room)}
        rows = await tx.execute(_OLDEST, oldest)
        found += [(turn.served + place, next_at, saga_id) for place, (saga_id, next_at) in enumerate(rows)]
    ids = [saga_id for _, _, saga_id in sorted(found)[:limit]]
    if not ids:
        return []
    return [held_from(row) for row in await tx.execute(_CLAIM_THESE, {**parameters, "ids": ids})]


async def next_due(tx: Transaction, *, known: Collection[str]) -> float | None:
    """Seconds until the next saga is due, below 0 where one is; ``None`` where all have ended or are stuck."""
    row = (await tx.execute(_NEXT[tx.dialect], {"known": list(known)})).one()
    return None if row[0] is None else (row[0] - row[1]).total_seconds()


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
    await tx.execute(_PARK, {"held_id": held.id, "held_epoch": held.epoch, "reason": reason, "aside_for": None})


async def park_strangers(tx: Transaction, *, known: Collection[str], overdue: float, reason: str) -> list[Any]:
    """Sets sagas aside whose definition is not among ``known`` and that nobody took for ``overdue`` seconds."""
    parameters = {"known": list(known), "overdue": overdue, "reason": reason, "aside_for": STRANGER}
    return list(await tx.execute(_PARK_STRANGERS, parameters))


async def welcome(tx: Transaction, *, known: Collection[str]) -> list[Any]:
    """Has sagas go on that were set aside since nobody offered their definition, which is among ``known`` now."""
    return list(await tx.execute(_WELCOME, {"known": list(known), "aside_for": STRANGER}))


async def survey(tx: Transaction) -> list[tuple[str, str, int, float]]:
    """Sagas that have not ended: name, status, how many, and the age of the oldest in seconds."""
    return [
        (name, status, count, (now - oldest).total_seconds())
        for name, status, count, oldest, now in await tx.execute(_SURVEY)
    ]
