"""What sagas wait for, and the events that come: one of the two is first, and neither overlooks the other.

Both sides lock the *address*, which is the definition's name, the place in it and the value that the event is told by,
before they look: on PostgreSQL by an advisory lock of the transaction, on SQLite there is one writer anyway. Whoever
moves a saga locks its address before its row, so that an event and an engine never wait for each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from hashlib import blake2b
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from microkit.db import Transaction, database_now
from microkit.message import Message
from microkit.saga.keys import SIGNAL
from microkit.saga.tables import ENDS, Direction, saga, saga_mail, saga_wait

LONGEST_VALUE: Final = 500
UNDO: Final = ":undo"


class Waiting(StrEnum):
    """Of a wait. ``arrived`` is for the engine to take note of."""

    WAITING = "waiting"
    ARRIVED = "arrived"
    TIMED_OUT = "timed-out"


class Fate(StrEnum):
    """What becomes of an event: a saga goes on with it, it is kept for one that will wait, its saga waits no more, its
    saga has one already, it is too old to be kept, or there is no such saga."""

    DELIVERED = "delivered"
    KEPT = "kept"
    LATE = "late"
    TWICE = "twice"
    EXPIRED = "expired"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Address:
    """Where an event goes: ``place`` is a step, or ``step:undo`` where a compensation waits."""

    name: str
    place: str
    value: str


@dataclass(frozen=True, slots=True)
class Wait:
    """``left``: seconds until the time is over. ``fresh``: the saga begins to wait with this."""

    left: float
    fresh: bool
    message: Message | None


def place_of(step: str, direction: Direction) -> str:
    return f"{step}{UNDO}" if direction is Direction.UNDO else step


def told_by(value: object) -> str:
    """The text that a field's value is compared as.

    Raises:
        ValueError: it is none, or too long to be looked up.
    """
    text = str(value.value if isinstance(value, Enum) else value)
    if value is None or not 0 < len(text) <= LONGEST_VALUE or "\x00" in text:
        raise ValueError(f"{text[:40]!r} tells no saga from another: it takes a value of 1 to {LONGEST_VALUE} letters")
    return text


async def lock(tx: Transaction, address: Address) -> None:
    """Keeps others from this address until the end of the transaction."""
    if tx.dialect == "postgresql":
        text = f"saga\0{address.name}\0{address.place}\0{address.value}".encode("utf-8", "surrogatepass")
        number = int.from_bytes(blake2b(text, digest_size=8).digest(), signed=True)
        await tx.execute(_LOCK, {"number": number})


_LOCK: Final = sa.select(sa.func.pg_advisory_xact_lock(sa.bindparam("number", type_=sa.BigInteger)))
_OWN: Final = sa.and_(saga_wait.c.saga_id == sa.bindparam("of_saga"), saga_wait.c.place == sa.bindparam("of_place"))
_LOOK: Final = sa.select(saga_wait, database_now().label("now")).where(_OWN)
_STATUS: Final = sa.select(saga_wait.c.status).where(_OWN)
_DUE: Final = database_now(sa.bindparam("timeout", type_=sa.Float))
_BEGIN: Final = sa.insert(saga_wait).values(status=Waiting.WAITING, since=database_now(), due=_DUE)
_AGAIN: Final = sa.update(saga_wait).where(_OWN).values(due=_DUE)
_CLOSE: Final = sa.update(saga_wait).where(_OWN).values(status=sa.bindparam("to_status"))
_MAIL: Final = sa.and_(
    saga_mail.c.name == sa.bindparam("of_name"),
    saga_mail.c.place == sa.bindparam("of_place"),
    saga_mail.c.value == sa.bindparam("of_value"),
)
_BEGUN: Final = sa.select(saga.c.created_at).where(saga.c.id == sa.bindparam("of_saga")).scalar_subquery()
_TAKE: Final = (
    sa.delete(saga_mail)
    .where(
        _MAIL,
        saga_mail.c.keep_until > database_now(),
        sa.or_(sa.not_(saga_mail.c.only_begun), saga_mail.c.received_at >= _BEGUN),
    )
    .returning(saga_mail.c.type, saga_mail.c.payload, saga_mail.c.headers)
)
_ARRIVE: Final = (
    sa.update(saga_wait)
    .where(_OWN)
    .values(
        status=Waiting.ARRIVED,
        arrived_at=database_now(),
        type=sa.bindparam("to_type"),
        payload=sa.bindparam("to_payload"),
        headers=sa.bindparam("to_headers", type_=saga_wait.c.headers.type),
    )
)
_THOSE: Final = (
    sa.select(saga_wait.c.saga_id, saga_wait.c.step, saga_wait.c.status)
    .where(
        saga_wait.c.name == sa.bindparam("of_name"),
        saga_wait.c.place == sa.bindparam("of_place"),
        saga_wait.c.value == sa.bindparam("of_value"),
    )
    .order_by(saga_wait.c.saga_id)
)
_SAGA: Final = (
    sa.select(saga.c.status, saga.c.step, saga.c.direction)
    .where(saga.c.id == sa.bindparam("of_saga"))
    .with_for_update()
)
# One that is held looks for what arrived when it lets go; for a stuck one it is there when it is resumed.
_WAKE: Final = (
    sa.update(saga)
    .where(saga.c.id == sa.bindparam("of_saga"), saga.c.lease_owner.is_(None), saga.c.next_at.is_not(None))
    .values(next_at=database_now())
)
_KEEP: Final = {
    name: insert(saga_mail)
    .values(received_at=database_now(), keep_until=database_now(sa.bindparam("keep", type_=sa.Float)))
    .on_conflict_do_nothing()
    .returning(saga_mail.c.place)
    for name, insert in (("postgresql", postgresql.insert), ("sqlite", sqlite.insert))
}


async def look(tx: Transaction, saga_id: UUID, address: Address) -> Wait | None:
    """What a saga waits for at ``address``, which is locked; ``None`` where it has not begun to."""
    row = (await tx.execute(_LOOK, {"of_saga": saga_id, "of_place": address.place})).mappings().first()
    if row is None:
        return None
    message = None
    if row["payload"] is not None:
        message = _message(row["type"], row["payload"], row["headers"])
    return Wait((row["due"] - row["now"]).total_seconds(), False, message)


async def wait_of(tx: Transaction, saga_id: UUID, place: str) -> Waiting | None:
    """How far a saga's wait at ``place`` is; ``None`` where it has not begun."""
    status = (await tx.execute(_STATUS, {"of_saga": saga_id, "of_place": place})).scalar()
    return None if status is None else Waiting(status)


async def begin(tx: Transaction, saga_id: UUID, address: Address, *, step: str, events: str, within: float) -> Wait:
    """Begins to wait at ``address``, which is locked; what came early is taken. ``step`` is where the saga's row is."""
    own = {"of_saga": saga_id, "of_place": address.place}
    values = {"saga_id": saga_id, "place": address.place, "name": address.name, "value": address.value}
    await tx.execute(_BEGIN, {**values, "step": step, "events": events, "timeout": within})
    found = (await tx.execute(_TAKE, {**own, "of_name": address.name, "of_value": address.value})).first()
    if found is None:
        return Wait(within, True, None)
    message = _message(*found)
    await _arrive(tx, own, message)
    return Wait(within, True, message)


async def wait_again(tx: Transaction, saga_id: UUID, place: str, *, within: float) -> None:
    """The time begins anew, since what is awaited was asked for again."""
    await tx.execute(_AGAIN, {"of_saga": saga_id, "of_place": place, "timeout": within})


async def time_out(tx: Transaction, saga_id: UUID, place: str) -> None:
    """The time is over: what comes now is late."""
    await tx.execute(_CLOSE, {"of_saga": saga_id, "of_place": place, "to_status": Waiting.TIMED_OUT})


async def deliver(tx: Transaction, address: Address, message: Message, *, keep: float | None) -> Fate:
    """Hands an event to the sagas that wait for it, and has them go on; or keeps it, for ``keep`` seconds where that is
    not ``None``."""
    await lock(tx, address)
    of = {"of_name": address.name, "of_place": address.place, "of_value": address.value}
    fate = Fate.UNKNOWN
    over = False
    for saga_id, step, status in (await tx.execute(_THOSE, of)).all():
        now = (await tx.execute(_SAGA, {"of_saga": saga_id})).first()
        over = over or now is None or now[0] in ENDS
        direction = Direction.UNDO if address.place.endswith(UNDO) else Direction.ACTION
        if status != Waiting.WAITING:
            fate = fate if fate is Fate.DELIVERED else Fate.LATE if status == Waiting.TIMED_OUT else Fate.TWICE
        elif now is None or now[0] in ENDS or (now[1], now[2]) != (step, direction):
            fate = fate if fate is Fate.DELIVERED else Fate.LATE
        else:
            own = {"of_saga": saga_id, "of_place": address.place}
            await _arrive(tx, own, message)
            await tx.execute(_WAKE, {"of_saga": saga_id})
            tx.wake(SIGNAL)
            fate = Fate.DELIVERED
    if keep is None or not (fate is Fate.UNKNOWN or (over and fate is not Fate.DELIVERED)):
        return fate
    return await _keep(tx, address, message, keep, fate)


async def _keep(tx: Transaction, address: Address, message: Message, keep: float, fate: Fate) -> Fate:
    """For a saga that will wait for it. Where others have waited for such a one and ended, it may be a copy of theirs:
    then it is for one only that had begun when it came."""
    values = {
        "name": address.name,
        "place": address.place,
        "value": address.value,
        "type": message.type,
        "payload": message.value,
        "headers": dict(message.headers),
        "only_begun": fate is not Fate.UNKNOWN,
        "keep": keep,
    }
    gone = {"of_name": address.name, "of_place": address.place, "of_value": address.value}
    await tx.execute(sa.delete(saga_mail).where(_MAIL, saga_mail.c.keep_until <= database_now()), gone)
    kept = (await tx.execute(_KEEP[tx.dialect], values)).first()
    if fate is not Fate.UNKNOWN:
        return fate
    return Fate.TWICE if kept is None else Fate.KEPT


async def _arrive(tx: Transaction, own: Mapping[str, Any], message: Message) -> None:
    what = {"to_type": message.type, "to_payload": message.value, "to_headers": dict(message.headers)}
    await tx.execute(_ARRIVE, {**own, **what})


def _message(kind: str, payload: bytes, headers: Mapping[str, str]) -> Message:
    return Message(kind.rpartition(".")[0], headers.get("ce_partitionkey", ""), payload, headers)
