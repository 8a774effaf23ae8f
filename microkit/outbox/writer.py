"""Writes a transaction's events into its outbox, just before COMMIT."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final
from zlib import crc32

import sqlalchemy as sa

from microkit.db.clock import database_now
from microkit.db.database import Database
from microkit.db.prepared import PreparedInsert
from microkit.db.transaction import Published, Transaction
from microkit.message import Message
from microkit.outbox.tables import SHARDS, outbox

SIGNAL: Final = "outbox"
"""The name of the database's signal that wakes the relay."""

MOST_BYTES: Final = 1024 * 1024 - 4096
"""The largest payload of an event: what every bus takes. Kafka's 1 MiB is for the key and the headers, too."""

MOST_KEY_BYTES: Final = 1024
"""The longest key. PostgreSQL's indexes take no row above 2,704 bytes: a longer key could not be marked as refused by
the bus, and would keep all others from being marked with it."""

_INSERT: Final = PreparedInsert(
    sa.insert(outbox).values(created_at=database_now()),
    ("id", "aggregatetype", "aggregateid", "type", "payload", "headers", "shard"),
)


def install(database: Database, source: str) -> None:
    """Lets ``tx.publish`` write into the outbox, in the name of the service ``source``."""
    database.outbox_writer = partial(write, source=source)
    database.share(SIGNAL)


async def write(tx: Transaction, published: Sequence[Published], *, source: str) -> None:
    """Inserts the events, in their order, in one statement, each with the trace that it was published in.

    It runs last in the transaction. Transactions that change the same row are serialized by its lock, so the numbers
    that their events get here are in the order of their commits: that is what makes order per key hold.

    Raises:
        ValueError: an event is larger than 1 MiB less 4 KiB, or its key longer than 1,024 bytes.
    """
    await tx.insert(_INSERT, [_row(event.to_message(source, trace=trace)) for event, trace in published])
    tx.wake(SIGNAL)


def shard_of(key: str) -> int:
    """The shard of a key. Never change it: a row written before would be in another shard than the next of its key."""
    return crc32(key.encode("utf-8", "surrogatepass")) % SHARDS


def _row(message: Message) -> dict[str, Any]:
    if len(message.value) > MOST_BYTES:
        raise ValueError(
            f"{message.type} is {len(message.value)} bytes long; an event carries at most {MOST_BYTES}. "
            "Put large content where consumers can fetch it, and publish its address"
        )
    if len(message.key) > MOST_KEY_BYTES // 4 and len(message.key.encode()) > MOST_KEY_BYTES:
        raise ValueError(
            f"the key of {message.type} is longer than {MOST_KEY_BYTES} bytes; it says which events belong together: "
            "take an identifier"
        )
    return {
        "id": message.id,
        "aggregatetype": message.topic,
        "aggregateid": message.key,
        "type": message.type,
        "payload": message.value,
        "headers": dict(message.headers),
        "shard": shard_of(message.key),
    }
