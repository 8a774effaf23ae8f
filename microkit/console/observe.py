"""What the console shows of a running system, read where it truly is: in the trace ring and the services' databases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol
from uuid import UUID

import orjson
import sqlalchemy as sa

from microkit.bus.letter import REDRIVE_GROUP
from microkit.console.desk import Document, Post
from microkit.db import Database
from microkit.errors import NotFound
from microkit.outbox import tables as outbox_tables
from microkit.page import MAX_PAGE, PageRequest
from microkit.saga.view import SagaStory, list_sagas, show_saga
from microkit.telemetry.ring import RecordedSpan, TraceRing

MOST_ROWS: Final = 500
"""So many of the latest rows of a table are looked through."""

_OUTBOX_STATE: Final = {
    outbox_tables.PENDING: "pending",
    outbox_tables.FAILING: "failing",
    outbox_tables.PUBLISHED: "published",
    outbox_tables.PARKED: "parked",
    outbox_tables.DEAD: "dead-letter",
}


class Observed(Protocol):
    """A running system as the console sees it."""

    @property
    def name(self) -> str: ...
    @property
    def ring(self) -> TraceRing: ...
    @property
    def databases(self) -> Mapping[str, Database]:
        """By service."""
        ...

    @property
    def posts(self) -> Sequence[Post]:
        """Where the services' events are."""
        ...

    async def services(self) -> list[Document]:
        """Each running copy of a service with its URL, its state and its parts."""
        ...


def trace(system: Observed, trace_id: str) -> Document:
    """The spans of one trace by their start; times in nanoseconds since the epoch. Eight digits of its id will do."""
    spans = system.ring.trace(trace_id)
    return {
        "trace_id": spans[0].trace_id if spans else trace_id,
        "services": list(dict.fromkeys(span.service for span in spans)),
        "spans": [_span(span) for span in spans],
    }


def recent_traces(system: Observed, limit: int = 20) -> list[Document]:
    """The traces that ended last, each by its first span."""
    firsts: dict[str, RecordedSpan] = {}
    for span in system.ring.recent(MOST_ROWS):
        first = firsts.get(span.trace_id)
        if first is None or span.start_ns < first.start_ns:
            firsts[span.trace_id] = span
    return [
        {"trace_id": trace_id, "service": span.service, "name": span.name, "start_ns": span.start_ns}
        for trace_id, span in list(firsts.items())[:limit]
    ]


def _span(span: RecordedSpan) -> Document:
    return {
        "span_id": span.span_id,
        "parent_id": span.parent_id,
        "service": span.service,
        "name": span.name,
        "kind": span.kind,
        "start_ns": span.start_ns,
        "end_ns": span.end_ns,
        "status": span.status,
        "status_description": span.status_description,
        "attributes": dict(span.attributes),
    }


async def events(system: Observed, trace_id: str | None) -> list[Document]:
    """The latest events that the services published, of one trace or of all, by their time."""
    found: list[Document] = []
    for service, database in system.databases.items():
        table = outbox_tables.outbox
        async with database.transaction(read_only=True) as tx:
            rows = (await tx.execute(sa.select(table).order_by(table.c.seq.desc()).limit(MOST_ROWS))).mappings()
            wanted = [row for row in rows if trace_id is None or _of_trace(row["headers"], trace_id)]
            found += [_event(service, dict(row)) for row in wanted]
    return sorted(found, key=lambda event: str(event["time"]))


def _event(service: str, row: Mapping[str, Any]) -> Document:
    try:
        payload = orjson.loads(row["payload"])
    except orjson.JSONDecodeError:
        payload = None
    return {
        "id": row["id"],
        "service": service,
        "type": row["type"],
        "topic": row["aggregatetype"],
        "key": row["aggregateid"],
        "payload": payload,
        "state": _OUTBOX_STATE.get(row["state"], str(row["state"])),
        "time": row["created_at"],
        "error": row["error"],
        "redriven_for": row["headers"].get(REDRIVE_GROUP) if isinstance(row["headers"], Mapping) else None,
    }


async def sagas(system: Observed, trace_id: str | None) -> list[Document]:
    """The latest sagas with their steps, of one trace or of all."""
    found: list[Document] = []
    for service, database in system.databases.items():
        async with database.transaction(read_only=True) as tx:
            latest = (await list_sagas(tx, PageRequest(limit=MAX_PAGE))).items
            wanted = [saga.id for saga in latest if trace_id is None or saga.trace_id == trace_id]
            found += [_saga(service, await show_saga(tx, saga_id)) for saga_id in wanted]
    return found


async def saga(system: Observed, saga_id: UUID) -> Document | None:
    """One saga with its steps."""
    for service, database in system.databases.items():
        async with database.transaction(read_only=True) as tx:
            try:
                return _saga(service, await show_saga(tx, saga_id))
            except NotFound:
                continue
    return None


def _saga(service: str, story: SagaStory) -> Document:
    return {"service": service, **story.model_dump(mode="json")}


def _of_trace(headers: Any, trace_id: str) -> bool:
    return trace_id in str(headers.get("traceparent", "")) if isinstance(headers, Mapping) else False
