"""What people see of sagas: a list, newest first, or one with the history of its steps; how a stuck one goes on."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from pydantic import BaseModel

from microkit.db import Transaction, database_now
from microkit.errors import Conflict, NotFound
from microkit.page import Page, PageRequest, cursor_after
from microkit.saga.enrol import SIGNAL
from microkit.saga.tables import Direction, Status, saga, saga_step


class StepView(BaseModel):
    """An attempt of a step. ``status``: done, refused, failed, timed-out, lost, or under-way while it has not ended."""

    step: str
    direction: Direction
    attempt: int
    status: str
    started_at: datetime
    ended_at: datetime | None
    error: str | None


class FailureView(BaseModel):
    """Why a saga is compensated."""

    step: str
    reason: str
    type: str | None


class SagaView(BaseModel):
    """A saga. ``step`` is under way or next, ``None`` at the end; ``next_at`` when its next attempt is due;
    ``not_yet_since`` when the step first said that its turn had not come, if it did."""

    id: UUID
    name: str
    version: int
    status: Status
    direction: Direction
    step: str | None
    attempts: int
    failure: FailureView | None
    error: str | None
    trace_id: str | None
    created_at: datetime
    updated_at: datetime
    next_at: datetime | None
    not_yet_since: datetime | None


class SagaStory(SagaView):
    """A saga with its state and the history of its steps, in the order they happened."""

    state: Any
    steps: list[StepView]


async def list_sagas(
    tx: Transaction, page: PageRequest, *, name: str | None = None, status: Status | None = None
) -> Page[SagaView]:
    """Sagas, newest first.

    Raises:
        BadRequest: the cursor is not one of ours.
    """
    newest_first = (saga.c.created_at.desc(), saga.c.id.desc())
    statement = sa.select(saga).order_by(*newest_first).limit(page.limit + 1)
    if name is not None:
        statement = statement.where(saga.c.name == name)
    if status is not None:
        statement = statement.where(saga.c.status == status)
    after = page.after(tuple[datetime, UUID])
    if after is not None:
        created_at, id_ = after
        older = sa.or_(saga.c.created_at < created_at, sa.and_(saga.c.created_at == created_at, saga.c.id < id_))
        statement = statement.where(older)
    rows = (await tx.execute(statement)).mappings().all()
    shown = rows[: page.limit]
    more = len(rows) > page.limit
    return Page(
        items=[SagaView.model_validate(_saga(row)) for row in shown],
        next_cursor=cursor_after([shown[-1]["created_at"], shown[-1]["id"]]) if more else None,
    )


async def show_saga(tx: Transaction, saga_id: UUID) -> SagaStory:
    """One saga with its history.

    Raises:
        NotFound: there is none of this id.
    """
    row = (await tx.execute(sa.select(saga).where(saga.c.id == saga_id))).mappings().one_or_none()
    if row is None:
        raise NotFound(f"There is no saga {saga_id}")
    history = sa.select(saga_step).where(saga_step.c.saga_id == saga_id).order_by(saga_step.c.seq)
    steps = [StepView.model_validate(dict(step)) for step in (await tx.execute(history)).mappings()]
    if row["lease_owner"] is not None:
        steps.append(_under_way(row))
    return SagaStory.model_validate({**_saga(row), "state": row["state"], "steps": steps})


async def resume_saga(tx: Transaction, saga_id: UUID) -> None:
    """Lets a stuck saga go on with the step and in the direction that it was parked in, its attempts counted anew.

    Raises:
        NotFound: there is none of this id.
        Conflict: it is not stuck.
    """
    statement = (
        sa.update(saga)
        .where(saga.c.id == saga_id, saga.c.status == Status.STUCK)
        .values(
            status=sa.case((saga.c.direction == Direction.UNDO, Status.COMPENSATING), else_=Status.RUNNING),
            # What was tried before is still unknown: not a first attempt again.
            attempts=sa.case((saga.c.attempts > 0, 1), else_=0),
            epoch=saga.c.epoch + 1,
            next_at=database_now(),
            updated_at=database_now(),
            not_yet_since=None,
        )
        .returning(saga.c.id)
    )
    if (await tx.execute(statement)).first() is None:
        found = (await tx.execute(sa.select(saga.c.status).where(saga.c.id == saga_id))).scalar()
        if found is None:
            raise NotFound(f"There is no saga {saga_id}")
        raise Conflict(f"Saga {saga_id} is {found}, not stuck")
    tx.wake(SIGNAL)


def _saga(row: sa.RowMapping) -> dict[str, Any]:
    columns = {name: row[name] for name in SagaView.model_fields if name in row}
    waits = row["lease_owner"] is None
    return {**columns, "trace_id": _trace_id(row["context"]), "next_at": row["next_at"] if waits else None}


def _trace_id(context: Mapping[str, str]) -> str | None:
    parts = context.get("traceparent", "").split("-")
    return parts[1] if len(parts) > 1 else None


def _under_way(row: sa.RowMapping) -> StepView:
    return StepView(
        step=row["step"],
        direction=row["direction"],
        attempt=row["attempts"],
        status="under-way",
        started_at=row["updated_at"],
        ended_at=None,
        error=None,
    )
