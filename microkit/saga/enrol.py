"""How a saga begins: one row, in the transaction of whoever starts it."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from microkit import context
from microkit.db import PreparedInsert, Transaction, database_now
from microkit.db.gathered import GatheredInsert
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


_GIVEN: Final = ("id", "name", "version", "fingerprint", "state", "step", "context")
_JSON: Final = ("state", "context")


def _plain_insert() -> GatheredInsert:
    """PostgreSQL: a saga with a new id, without key or rate, as most are. Nobody else's can be in its way."""
    one = PreparedInsert(sa.insert(saga).values(_NEW), _GIVEN)
    constant = {name: sa.literal(value) if isinstance(value, str | int) else value for name, value in _NEW.items()}
    kinds = {
        name: sa.Text() if isinstance(saga.c[name].type, sa.JSON | sa.String) else saga.c[name].type for name in _GIVEN
    }
    arrays = [sa.bindparam(name, type_=postgresql.ARRAY(kind)) for name, kind in kinds.items()]
    columns = [sa.column(name, kind) for name, kind in kinds.items()]
    given = sa.func.unnest(*arrays).table_valued(*columns).render_derived(name="given")
    values = [sa.cast(given.c[name], sa.JSON) if name in _JSON else given.c[name] for name in _GIVEN]
    rows = sa.select(*values, *constant.values())
    new = (
        sa.insert(saga).from_select([*_GIVEN, *constant], rows, include_defaults=False).returning(saga.c.id).cte("new")
    )
    return GatheredInsert(one, PreparedSelect(sa.select(new.c.id), _GIVEN), _GIVEN, frozenset(_JSON))


_PLAIN: Final = _plain_insert()
_NAME: Final = sa.select(saga.c.name).where(saga.c.id == sa.bindparam("id"))


async def enrol(
    tx: Transaction, saga_id: UUID, columns: dict[str, Any], key: str | None, limits: Limits, *, new: bool = False
) -> None:
    """Adds a saga's row with the trace, request id and tenant of the caller, and wakes the engine after COMMIT.

    ``new`` says that nobody else can have this id: then it may be inserted with the transaction's end.

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
    if new and key is None and not admission.wait and tx.dialect == "postgresql":
        await tx.insert_once(_PLAIN, parameters)
        tx.wake(SIGNAL)
        return
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
    return (await tx.execute(statement[tx.dialect], parameters)).first() is not None


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
