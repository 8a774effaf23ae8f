"""How a saga begins: one row, in the transaction of whoever starts it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from microkit import context
from microkit.db import Transaction, database_now
from microkit.errors import Conflict
from microkit.saga.tables import Direction, Status, saga
from microkit.telemetry.propagation import inject

SIGNAL = "saga"
"""``Database.signal`` that wakes the engine of this process."""

_NEW = {
    "status": Status.RUNNING,
    "direction": Direction.ACTION,
    "attempts": 0,
    "seq": 0,
    "epoch": 0,
    "next_at": database_now(),
    "created_at": database_now(),
    "updated_at": database_now(),
}
_INSERT = {
    "postgresql": postgresql.insert(saga).values(_NEW).on_conflict_do_nothing().returning(saga.c.id),
    "sqlite": sqlite.insert(saga).values(_NEW).on_conflict_do_nothing().returning(saga.c.id),
}
_NAME = sa.select(saga.c.name).where(saga.c.id == sa.bindparam("id"))


async def enrol(tx: Transaction, saga_id: UUID, columns: dict[str, Any]) -> None:
    """Adds a saga's row with the trace, request id and tenant of the caller, and wakes the engine after COMMIT.

    Raises:
        Conflict: a saga of another name has this id. One of the same name is left as it is.
    """
    work = context.current()
    carried = {"request_id": work.request_id or None, "tenant": work.tenant, **inject()}
    parameters = {
        "id": saga_id,
        "context": {key: value for key, value in carried.items() if value is not None},
        **columns,
    }
    if (await tx.execute(_INSERT[tx.dialect], parameters)).first() is None:
        found = (await tx.execute(_NAME, {"id": saga_id})).scalar()
        if found != columns["name"]:
            raise Conflict(f"{saga_id} is the id of a saga {found!r} already")
        return
    tx.wake(SIGNAL)
