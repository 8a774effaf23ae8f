"""``microkit outbox``: how the outboxes are, and publishing again."""

from __future__ import annotations

import asyncio

from microkit.cli.instants import read_since
from microkit.cli.printing import clock, print_json, print_table, say, seconds, short
from microkit.cli.where import Where
from microkit.console.desk import Document, Rows


def status(where: Where, *, json: bool) -> None:
    """Prints how each outbox is."""
    found = asyncio.run(_status(where))
    if json:
        print_json({"outboxes": found})
        return
    print_table(
        "Outboxes",
        ("service", "topic", "pending", "failing", "published", "parked", "dead", "oldest unpublished"),
        [
            (outbox["service"], topic["topic"], topic["pending"], topic["failing"], topic["published"],
             topic["parked"], topic["dead"], seconds(topic["oldest"]))
            for outbox in found
            for topic in outbox["topics"] or [_EMPTY]
        ],
    )  # fmt: skip
    print_table(
        "Relays at work",
        ("service", "relay", "shards"),
        [
            (outbox["service"], relay["owner"], relay["shards"])
            for outbox in found
            for relay in outbox["relays"] or [{"owner": "none: nothing is published", "shards": ""}]
        ],
    )
    parked = [(outbox["service"], row) for outbox in found for row in outbox["parked"]]
    if parked:
        print_table(
            "Parked, because the bus refused them",
            ("service", "event", "topic", "key", "attempts", "error", "parked (UTC)"),
            [
                (service, row["id"], row["topic"], row["key"], row["attempts"], short(row["error"]),
                 clock(str(row["parked_at"])))
                for service, row in parked
            ],
        )  # fmt: skip
        say("When the cause is gone: microkit outbox unpark")


def replay(where: Where, since: str, rows: Rows, *, json: bool) -> None:
    """Has the relay publish again what was written since then.

    Raises:
        ConfigurationError: ``since`` is no instant.
    """
    begin = read_since(since)
    chosen = Rows(rows.service, rows.topic, rows.key, begin, rows.dry_run)
    found = asyncio.run(_replay(where, chosen))
    if json:
        print_json({"since": begin.isoformat(), "dry_run": rows.dry_run, "outboxes": found})
        return
    _print_counts(f"Published since {begin:%Y-%m-%d %H:%M:%S} UTC", found, "published again", dry_run=rows.dry_run)


def unpark(where: Where, rows: Rows, *, json: bool) -> None:
    """Has the relay try parked rows again."""
    found = asyncio.run(_unpark(where, rows))
    if json:
        print_json({"dry_run": rows.dry_run, "outboxes": found})
        return
    _print_counts("Parked rows", found, "tried again", dry_run=rows.dry_run)


_EMPTY: Document = {
    "topic": "", "pending": 0, "failing": 0, "published": 0, "parked": 0, "dead": 0, "oldest": None
}  # fmt: skip


def _print_counts(title: str, found: list[Document], what: str, *, dry_run: bool) -> None:
    print_table(
        title,
        ("service", f"would be {what}" if dry_run else f"will be {what}"),
        [(outbox["service"], outbox["rows"]) for outbox in found],
    )


async def _status(where: Where) -> list[Document]:
    async with where.desk("outbox") as desk:
        return await desk.outbox(where.service)


async def _replay(where: Where, rows: Rows) -> list[Document]:
    async with where.desk("outbox") as desk:
        return await desk.replay(rows)


async def _unpark(where: Where, rows: Rows) -> list[Document]:
    async with where.desk("outbox") as desk:
        return await desk.unpark(rows)
