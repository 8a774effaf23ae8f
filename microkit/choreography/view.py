"""What people see of processes: a list, those that began last first, or all of one id with the events of each."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel

from microkit.choreography.process import Process
from microkit.choreography.tables import process, process_event
from microkit.db import Transaction, database_now
from microkit.page import Page, PageRequest, cursor_after


class Standing(StrEnum):
    """``stuck``: it has not ended, and had no event for longer than it may."""

    RUNNING = "running"
    STUCK = "stuck"
    ENDED = "ended"


class EventView(BaseModel):
    """An event of a process: of which type, from which service, when by its publisher's clock and when it came here.
    ``late``: others that happened after it had come before it."""

    event: str
    event_id: str
    source: str
    happened_at: datetime
    received_at: datetime
    trace_id: str | None
    late: bool


class ProcessView(BaseModel):
    """A process. ``id`` is what its events have in common; ``stuck_at`` when it counts, or began to count, as stuck."""

    name: str
    id: str
    status: Standing
    last_event: str
    began_at: datetime
    last_at: datetime
    ended_at: datetime | None
    ended_by: str | None
    heard_at: datetime
    stuck_at: datetime | None


class ProcessStory(ProcessView):
    """A process with its events, by when they happened.

    ``missing`` are expected ones that have not come though later ones have; ``awaits`` those that may come next, none
    once it has ended. Both are empty where the definition is not at hand.
    """

    events: list[EventView]
    missing: list[str]
    awaits: list[str]


_STUCK = process.c.stuck_at <= sa.select(database_now()).scalar_subquery()
_STATUS = sa.case(
    (process.c.ended_at.is_not(None), sa.literal(Standing.ENDED.value)),
    (_STUCK, sa.literal(Standing.STUCK.value)),
    else_=sa.literal(Standing.RUNNING.value),
).label("status")


async def list_processes(
    tx: Transaction,
    page: PageRequest,
    *,
    name: str | None = None,
    stuck: bool = False,
    since: datetime | None = None,
) -> Page[ProcessView]:
    """Processes, those that began last first; ``since``: those that began then or later.

    Raises:
        BadRequest: the cursor is not one of ours.
    """
    order = (process.c.began_at.desc(), process.c.name.desc(), process.c.id.desc())
    statement = sa.select(process, _STATUS).order_by(*order).limit(page.limit + 1)
    if name is not None:
        statement = statement.where(process.c.name == name)
    if stuck:
        statement = statement.where(process.c.ended_at.is_(None), _STUCK)
    if since is not None:
        statement = statement.where(process.c.began_at >= since)
    after = page.after(tuple[datetime, str, str])
    if after is not None:
        began_at, *rest = after
        same = sa.tuple_(process.c.name, process.c.id) < sa.tuple_(*map(sa.literal, rest))
        before = sa.or_(process.c.began_at < began_at, sa.and_(process.c.began_at == began_at, same))
        statement = statement.where(before)
    rows = (await tx.execute(statement)).mappings().all()
    shown, more = rows[: page.limit], len(rows) > page.limit
    return Page(
        items=[ProcessView.model_validate(dict(row)) for row in shown],
        next_cursor=cursor_after([shown[-1][column] for column in ("began_at", "name", "id")]) if more else None,
    )


async def show_processes(tx: Transaction, id_: str, definitions: Sequence[Process] = ()) -> list[ProcessStory]:
    """The processes of this id, one of each name that there is; none where nothing was heard of it."""
    known = {each.name: each for each in definitions}
    heads = await tx.execute(sa.select(process, _STATUS).where(process.c.id == id_).order_by(process.c.name))
    found = []
    for head in heads.mappings().all():
        rows = (await tx.execute(_events(head["name"], id_))).mappings().all()
        events = _in_order(rows)
        definition, seen = known.get(head["name"]), [each.event for each in events]
        found.append(
            ProcessStory.model_validate(
                {
                    **head,
                    "events": events,
                    "missing": definition.missing(seen) if definition else [],
                    "awaits": definition.awaited(seen) if definition and head["ended_at"] is None else [],
                }
            )
        )
    return found


def _events(name: str, id_: str) -> sa.Select[Any]:
    chosen = sa.select(process_event).where(process_event.c.name == name, process_event.c.process_id == id_)
    return chosen.order_by(process_event.c.happened_at, process_event.c.received_at)


def _in_order(rows: Sequence[sa.RowMapping]) -> list[EventView]:
    """Events by when they happened; late is one that came after another which happened later."""
    found: list[EventView] = []
    soonest: datetime | None = None
    for row in reversed(rows):
        late = soonest is not None and row["received_at"] > soonest
        found.append(EventView.model_validate({**row, "late": late}))
        soonest = row["received_at"] if soonest is None else min(soonest, row["received_at"])
    return found[::-1]
