"""What people see of sagas: a list, newest first, or one with the history of its steps and of what operators did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from pydantic import BaseModel

from microkit.db import Transaction
from microkit.errors import NotFound
from microkit.page import Page, PageRequest, cursor_after
from microkit.saga.tables import (
    ENDS,
    Direction,
    Status,
    saga,
    saga_branch,
    saga_key,
    saga_operation,
    saga_step,
    saga_wait,
)


class StepView(BaseModel):
    """An attempt of a step. ``status``: done, refused, failed, timed-out, lost, skipped (by an operator), or under-way
    while it has not ended."""

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


class OperationView(BaseModel):
    """What an operator did: ``resume``, ``retry-step``, ``skip-step`` or ``compensate``, to a saga that had ``status``
    and was at ``step`` in ``direction``. ``epoch`` is the fencing token that it raised the saga to."""

    operation: str
    operator: str
    reason: str | None
    status: Status
    direction: Direction
    step: str
    epoch: int
    done_at: datetime


class WaitView(BaseModel):
    """What a saga waits, or has waited, for: one of ``events``, told by ``value``, at ``place`` (a step; ``step:undo``
    in going back). ``status``: waiting, arrived, done or timed-out; ``due`` when its time is over; ``type`` that of the
    event that arrived."""

    place: str
    events: list[str]
    value: str
    status: str
    since: datetime
    due: datetime
    arrived_at: datetime | None
    type: str | None


class BranchView(BaseModel):
    """How far a branch of a parallel group is; ``place`` is ``branch:undo`` for its compensation. ``happened``: it has
    had its effect, or may have."""

    place: str
    status: str
    attempts: int
    happened: bool
    reason: str | None
    updated_at: datetime


class SagaView(BaseModel):
    """A saga. ``step`` is under way or next, ``None`` at the end; ``next_at`` when its next attempt is due, or its wait
    for an event is over; ``not_yet_since`` when the step first said that its turn had not come, if it did; ``epoch``
    counts the leases and the operations: whoever acts on what they saw names it. ``key`` is what one saga at a time is
    at work on; one that is queued waits for it. ``not_before`` is when its rate allows it to begin."""

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
    epoch: int
    key: str | None
    not_before: datetime | None


class SagaStory(SagaView):
    """A saga with its state, the history of its steps, the operations on it, what it waits and has waited for, and the
    branches of its parallel groups, each in the order they happened.

    ``behind`` is the saga that has its key, where that is another; ``left_out`` the steps whose condition said no.
    """

    state: Any
    steps: list[StepView]
    operations: list[OperationView]
    waits: list[WaitView]
    branches: list[BranchView]
    behind: UUID | None
    left_out: list[str]


async def list_sagas(
    tx: Transaction,
    page: PageRequest,
    *,
    name: str | None = None,
    status: Status | None = None,
    since: datetime | None = None,
) -> Page[SagaView]:
    """Sagas, newest first; ``since``: those that began then or later.

    Raises:
        BadRequest: the cursor is not one of ours.
    """
    newest_first = (saga.c.created_at.desc(), saga.c.id.desc())
    statement = sa.select(saga).order_by(*newest_first).limit(page.limit + 1)
    if name is not None:
        statement = statement.where(saga.c.name == name)
    if status is not None:
        statement = statement.where(saga.c.status == status)
    if since is not None:
        statement = statement.where(saga.c.created_at >= since)
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
    operations = sa.select(saga_operation).where(saga_operation.c.saga_id == saga_id).order_by(saga_operation.c.epoch)
    done = [OperationView.model_validate(dict(each)) for each in (await tx.execute(operations)).mappings()]
    return SagaStory.model_validate(
        {
            **_saga(row),
            "state": row["state"],
            "steps": steps,
            "operations": done,
            "waits": [_wait(each) for each in await _of(tx, saga_wait, saga_id, saga_wait.c.since)],
            "branches": [dict(each) for each in await _of(tx, saga_branch, saga_id, saga_branch.c.updated_at)],
            "behind": await _behind(tx, row),
            "left_out": sorted(name for name, needed in (row["decisions"] or {}).items() if not needed),
        }
    )


async def _of(tx: Transaction, table: sa.Table, saga_id: UUID, by: sa.Column[Any]) -> Sequence[sa.RowMapping]:
    chosen = sa.select(table).where(table.c.saga_id == saga_id).order_by(by, table.c.place)
    return (await tx.execute(chosen)).mappings().all()


def _wait(row: sa.RowMapping) -> dict[str, Any]:
    return {**row, "events": row["events"].split("|")}


async def _behind(tx: Transaction, row: sa.RowMapping) -> UUID | None:
    """The saga that has the key, where that is another one and this one has not ended."""
    if row["key"] is None or row["status"] in ENDS:
        return None
    holder = await tx.scalar(sa.select(saga_key.c.saga_id).where(saga_key.c.key == row["key"]))
    return None if holder == row["id"] else holder


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
