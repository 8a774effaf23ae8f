"""What an event does to the process that it tells of.

Events come from several topics, so in any order; a process is what its events say, whatever order they came in. A copy
is sorted out by the inbox, and one that outlives its mark there by the event's own row.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from microkit.choreography.metrics import ProcessMetrics
from microkit.choreography.process import Process
from microkit.choreography.tables import LONGEST_ID, process, process_event
from microkit.db import Transaction, database_now
from microkit.errors import DeadLetter
from microkit.message import Event, Message

_EVENT = {
    "postgresql": postgresql.insert(process_event).values(received_at=database_now()).on_conflict_do_nothing(),
    "sqlite": sqlite.insert(process_event).values(received_at=database_now()).on_conflict_do_nothing(),
}


def _upsert(insert: Any) -> Any:
    new = insert.excluded
    earlier = sa.case((new.began_at < process.c.began_at, new.began_at), else_=process.c.began_at)
    is_last = new.last_at >= process.c.last_at
    is_end = sa.and_(
        new.ended_at.is_not(None), sa.or_(process.c.ended_at.is_(None), new.ended_at >= process.c.ended_at)
    )
    ended = sa.or_(new.ended_at.is_not(None), process.c.ended_at.is_not(None))
    return insert.on_conflict_do_update(
        index_elements=[process.c.name, process.c.id],
        set_={
            "began_at": earlier,
            "last_at": sa.case((is_last, new.last_at), else_=process.c.last_at),
            "last_event": sa.case((is_last, new.last_event), else_=process.c.last_event),
            "ended_at": sa.case((is_end, new.ended_at), else_=process.c.ended_at),
            "ended_by": sa.case((is_end, new.ended_by), else_=process.c.ended_by),
            "ends": process.c.ends + new.ends,
            "heard_at": new.heard_at,
            "stuck_at": sa.case((ended, None), else_=new.stuck_at),
        },
    ).returning(process.c.began_at, process.c.ended_at, process.c.ends)


_STUCK_AT = sa.case(
    (sa.bindparam("stuck_after", type_=sa.Float).is_(None), None),
    else_=database_now(sa.bindparam("stuck_after", type_=sa.Float)),
)
_VALUES = {"heard_at": database_now(), "stuck_at": _STUCK_AT}
_PROCESS = {
    "postgresql": _upsert(postgresql.insert(process).values(_VALUES)),
    "sqlite": _upsert(sqlite.insert(process).values(_VALUES)),
}


def follower(definition: Process) -> Callable[..., Awaitable[None]]:
    """The handler of the events of ``definition``. It takes a transaction, so that what it notes is noted once."""

    async def follow(event: Event, message: Message, tx: Transaction, metrics: ProcessMetrics) -> None:
        await note(tx, definition, event, message, metrics)

    return follow


async def note(tx: Transaction, definition: Process, event: Event, message: Message, metrics: ProcessMetrics) -> None:
    """Adds an event to its process. A copy, and an event that tells of none, change nothing.

    Raises:
        DeadLetter: what it says is too long, or is no text, to be a process's id.
    """
    id_ = definition.id_of(event)
    if id_ is None:
        return
    if not 0 < len(id_) <= LONGEST_ID or not id_.isprintable():
        raise DeadLetter("bad-process-id", f"the id of a {definition.name} has 1 to {LONGEST_ID} printable characters")
    happened = _time_of(message)
    added = await tx.execute(
        _EVENT[tx.dialect],
        {
            "name": definition.name,
            "process_id": id_,
            "source": message.headers.get("ce_source", ""),
            "event_id": message.id,
            "event": event.event_type,
            "happened_at": happened,
            "trace_id": _trace_of(message),
        },
    )
    if not added.rowcount:  # type: ignore[attr-defined]  # an INSERT's result is a CursorResult
        return
    ends = type(event) in definition.ends
    row = await tx.execute(
        _PROCESS[tx.dialect],
        {
            "name": definition.name,
            "id": id_,
            "began_at": happened,
            "last_at": happened,
            "last_event": event.event_type,
            "ended_at": happened if ends else None,
            "ended_by": event.event_type if ends else None,
            "ends": int(ends),
            "stuck_after": None if ends else definition.stuck_after,
        },
    )
    began_at, ended_at, count = row.one()
    if ends and count == 1:
        seconds = max(0.0, (ended_at - began_at).total_seconds())
        tx.after_commit(lambda: metrics.ended(definition.name, event.event_type, seconds))


def _time_of(message: Message) -> datetime:
    """When it happened, as its publisher says; now if it does not say so."""
    try:
        found = datetime.fromisoformat(message.headers.get("ce_time", ""))
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return datetime.now(UTC)


def _trace_of(message: Message) -> str | None:
    parts = message.headers.get("traceparent", "").split("-")
    return parts[1] if len(parts) == 4 and len(parts[1]) == 32 else None
