"""Where the dead letters of a service's consumers are kept."""

from __future__ import annotations

from uuid import uuid4

import sqlalchemy as sa

from microkit.bus.dead_letter import Bury
from microkit.bus.port import Bus, Settles
from microkit.db.clock import database_now
from microkit.db.database import Database
from microkit.db.transaction import Transaction
from microkit.message import Message
from microkit.outbox.tables import DEAD, outbox
from microkit.outbox.writer import shard_of


def burial(database: Database, bus: Bus) -> Bury:
    """What :class:`~microkit.bus.consumer.ConsumerRuntime` does with dead letters.

    They are published to their dead-letter topic. A bus that keeps nothing would lose them there, since nobody listens:
    then they become rows of the service's own outbox, in the state ``DEAD``, which no relay publishes.
    """
    if not isinstance(bus, Settles):

        async def publish(message: Message) -> None:
            await bus.publish([message])

        return publish

    async def keep(message: Message) -> None:
        row = {
            "id": str(uuid4()),  # the message's own is in its headers; it may be anything, and dead more than once
            "aggregatetype": _text(message.topic),
            "aggregateid": _text(message.key),
            "type": _text(message.type),
            "payload": message.value,
            "headers": {_text(name): _text(value) for name, value in message.headers.items()},
            "shard": shard_of(message.key),
            "state": DEAD,
            "error": _text(message.headers.get("mk_dlq_error", "")),
        }

        async def unit(tx: Transaction) -> None:
            await tx.execute(sa.insert(outbox).values(created_at=database_now(), done_at=database_now(), **row))

        await database.run(unit)

    return keep


def _text(text: str) -> str:
    """A dead letter may hold what no text column takes: bytes that are not UTF-8, decoded by surrogates, and NULs."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
