"""How a saga begins: one row, in the transaction of whoever starts it."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from microkit import context
from microkit.db import Transaction, database_now, jsontext
from microkit.db.prepared import PreparedSelect
from microkit.errors import Conflict
from microkit.message import IN_REPLY_TO
from microkit.saga.keys import SIGNAL, Admission, admit
from microkit.saga.limits import Limits
from microkit.saga.tables import Direction, Status, saga, saga_key
from microkit.telemetry.propagation import inject

__all__ = ["SIGNAL", "enrol"]

_NEW: Final = {
    "status": Status.RUNNING,
    "direction": Direction.ACTION,
    "attempts": 0,
    "seq": 0,
    "epoch": 0,
    "next_at": database_now(),
    "created_at": database_now(),
    "updated_at": database_now(),
}
_LATER: Final = {**_NEW, "next_at": database_now(sa.bindparam("wait", type_=sa.Float))}
_QUEUED: Final = {
    **_NEW,
    "status": Status.QUEUED,
    "next_at": None,
    "not_before": database_now(sa.bindparam("wait", type_=sa.Float)),
}


def _inserts(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: insert(saga).values(values).on_conflict_do_nothing().returning(saga.c.id)
        for name, insert in (("postgresql", postgresql.insert), ("sqlite", sqlite.insert))
    }


_INSERT: Final = _inserts(_NEW)
_INSERT_LATER: Final = _inserts(_LATER)
_INSERT_QUEUED: Final = _inserts(_QUEUED)


def _plain_insert() -> PreparedSelect:
    """PostgreSQL: a saga without key or rate, which most are, at a third of the cost."""
    given = {name: sa.bindparam(f"to_{name}", type_=saga.c[name].type) for name in _GIVEN}
    new = postgresql.insert(saga).values({**_NEW, **given}).on_conflict_do_nothing().returning(saga.c.id).cte("new")
    return PreparedSelect(sa.select(new.c.id), [f"to_{name}" for name in _GIVEN])


_GIVEN: Final = ("id", "name", "version", "fingerprint", "state", "step", "context")
_PLAIN: Final = _plain_insert()
_NAME: Final = sa.select(saga.c.name).where(saga.c.id == sa.bindparam("id"))


async def enrol(tx: Transaction, saga_id: UUID, columns: dict[str, Any], key: str | None, limits: Limits) -> None:
    """Adds a saga's row with the trace, request id and tenant of the caller, and wakes the engine after COMMIT.

    A saga whose ``key`` another one has is queued, or refused; one that is above its rate begins later, or is refused.

    Raises:
        Conflict: a saga of another name has this id, or another one has the key. One of the same name is left as it is.
        TooManyRequests: more have begun than the rate allows.
    """
    admission = Admission()
    if key is not None or limits.rate is not None:
        if await _is_there(tx, saga_id, columns["name"]):
            return
        admission = await admit(tx, saga_id, columns["name"], key, limits)
    work = context.current()
    carried = {"request_id": work.request_id or None, "tenant": work.tenant, **inject()}
    carried["in_reply_to"] = (work.event_headers or {}).get(IN_REPLY_TO)  # a saga may be what answers
    parameters = {
        "id": saga_id,
        "context": {name: value for name, value in carried.items() if value is not None},
        **columns,
    }
    statement = _INSERT
    if key is not None:
        parameters["key"] = key
    if admission.queued or admission.wait:
        statement = _INSERT_QUEUED if admission.queued else _INSERT_LATER
        parameters["wait"] = admission.wait
    if not await _inserted(tx, statement, parameters):
        await _is_there(tx, saga_id, columns["name"])
        if key is not None and not admission.queued:  # it began, and maybe ended, meanwhile
            await _give_back_unused(tx, saga_id, key)
        return
    tx.wake(SIGNAL)


async def _inserted(tx: Transaction, statement: dict[str, Any], parameters: dict[str, Any]) -> bool:
    """Whether there was none of this id."""
    if statement is not _INSERT or tx.dialect != "postgresql" or set(parameters) != set(_GIVEN):
        return (await tx.execute(statement[tx.dialect], parameters)).first() is not None
    texts = {name: jsontext.dumps(parameters[name]) for name in ("state", "context")}
    rows = await tx.fetch(_PLAIN, {f"to_{name}": value for name, value in {**parameters, **texts}.items()})
    return bool(rows)


async def _is_there(tx: Transaction, saga_id: UUID, name: str) -> bool:
    found = (await tx.execute(_NAME, {"id": saga_id})).scalar()
    if found is not None and found != name:
        raise Conflict(f"{saga_id} is the id of a saga {found!r} already")
    return found is not None


async def _give_back_unused(tx: Transaction, saga_id: UUID, key: str) -> None:
    at_work = sa.select(saga.c.id).where(
        saga.c.id == saga_id, saga.c.key == key, saga.c.status.not_in([Status.COMPLETED, Status.COMPENSATED])
    )
    if (await tx.execute(at_work)).first() is None:
        await tx.execute(sa.delete(saga_key).where(saga_key.c.key == key, saga_key.c.saga_id == saga_id))
