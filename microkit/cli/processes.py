"""How processes are printed: flows that nobody orchestrates, beside the sagas in ``microkit saga``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from microkit.choreography.view import ProcessStory, ProcessView, Standing, list_processes, show_processes
from microkit.cli.printing import clock, print_table, say
from microkit.cli.where import Store
from microkit.page import MAX_PAGE, PageRequest

_HEADINGS = ("process", "service", "name", "status", "last event", "began (UTC)", "last news (UTC)", "stuck (UTC)")


async def find(
    store: Store, *, stuck: bool, name: str | None, since: datetime | None, limit: int
) -> list[tuple[str, ProcessView]]:
    """Up to ``limit`` and one more, those that began last first, each with the service that follows it."""
    found: list[tuple[str, ProcessView]] = []
    cursor = None
    while len(found) <= limit:
        request = PageRequest(limit=min(MAX_PAGE, limit + 1), cursor=cursor)
        async with store.database.transaction(read_only=True) as tx:
            page = await list_processes(tx, request, name=name, stuck=stuck, since=since)
        found += [(store.service, each) for each in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    return found


async def stories(stores: Sequence[Store], id_: str) -> list[tuple[str, ProcessStory]]:
    """The processes of this id, each with the service that follows it."""
    found: list[tuple[str, ProcessStory]] = []
    for store in stores:
        async with store.database.transaction(read_only=True) as tx:
            found += [(store.service, story) for story in await show_processes(tx, id_, store.processes)]
    return found


def print_list(found: Sequence[tuple[str, ProcessView]]) -> None:
    """A table of processes."""
    rows = [
        (
            each.id,
            service,
            each.name,
            each.status,
            _short(each.last_event),
            _time(each.began_at),
            _time(each.heard_at),
            _time(each.stuck_at),
        )
        for service, each in found
    ]
    print_table("Processes", _HEADINGS, rows)


def print_story(service: str, story: ProcessStory) -> None:
    """Where a process is, and its events."""
    facts: list[tuple[str, object]] = [
        ("name", story.name),
        ("service", service),
        ("status", story.status),
        ("last event", story.last_event),
        ("ended by", story.ended_by),
        ("awaits", " or ".join(story.awaits)),
        ("missing", ", ".join(story.missing)),
        ("began (UTC)", _time(story.began_at)),
        ("ended (UTC)", _time(story.ended_at)),
        ("last news (UTC)", _time(story.heard_at)),
        ("stuck since (UTC)" if story.status is Standing.STUCK else "stuck from (UTC)", _time(story.stuck_at)),
        ("trace", next((each.trace_id for each in story.events if each.trace_id), None)),
    ]
    print_table(f"Process {story.id}", ("what", "value"), [fact for fact in facts if fact[1] not in (None, "")])
    print_table(
        "Events",
        ("event", "from", "happened (UTC)", "came (UTC)", "", "event id"),
        [
            (
                _short(each.event),
                each.source,
                _time(each.happened_at),
                _time(each.received_at),
                "late" if each.late else "",
                each.event_id,
            )
            for each in story.events
        ],
    )
    if story.status is Standing.STUCK:
        say("No event came in the time it may take. Whose turn is it? Look at that service, and at `microkit dlq ls`.")


def document(service: str, process: ProcessView) -> dict[str, Any]:
    """A process as JSON."""
    return {"service": service, **process.model_dump(mode="json")}


def _short(event: str) -> str:
    return event.rpartition(".")[2]


def _time(time: datetime | None) -> str:
    return clock(time.isoformat()) if time else ""
