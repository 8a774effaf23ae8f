"""Where the dead letters of a service's consumers are kept."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from typing import Any, Final
from uuid import uuid4

import sqlalchemy as sa

from microkit.bus.dead_letter import SUFFIX, Bury
from microkit.bus.letter import REDRIVE_OUTBOX, Letter
from microkit.bus.port import Bus, Settles
from microkit.db.clock import database_now
from microkit.db.database import Database
from microkit.db.transaction import Transaction
from microkit.message import Message
from microkit.outbox.tables import DEAD, PENDING, outbox
from microkit.outbox.writer import SIGNAL, shard_of

_AT_ONCE: Final = 200


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


class OutboxLetters:
    """The dead letters in the outbox of ``service``. A :class:`microkit.bus.redrive.LetterBox`.

    To send one back is to make its row an event that waits for the relay: it happens in one transaction, and whoever
    runs the relay next publishes it.
    """

    def __init__(self, database: Database, service: str) -> None:
        self._database = database
        self._service = service

    async def letters(self, topics: Collection[str] | None) -> AsyncGenerator[Letter, None]:
        last = 0
        # Snapshot: what dies while these are redriven is for the next time.
        end = await self._database.run(_newest, read_only=True)
        while rows := await self._some(topics, last, end):
            for row in rows:
                message = Message(row.aggregatetype, row.aggregateid, bytes(row.payload), row.headers)
                yield Letter(f"{self._service or 'outbox'}/{row.seq}", message, (row.seq, row.id))
            last = rows[-1].seq

    async def _some(self, topics: Collection[str] | None, after: int, end: int) -> Sequence[sa.Row[Any]]:
        chosen = sa.select(outbox).where(
            sa.text("outbox.state > 2"), outbox.c.state == DEAD, outbox.c.seq > after, outbox.c.seq <= end
        )
        if topics is not None:
            chosen = chosen.where(outbox.c.aggregatetype.in_([topic + SUFFIX for topic in topics]))

        async def unit(tx: Transaction) -> Sequence[sa.Row[Any]]:
            return (await tx.execute(chosen.order_by(outbox.c.seq).limit(_AT_ONCE))).all()

        return await self._database.run(unit, read_only=True)

    async def send_back(self, letters: Sequence[tuple[Letter, str]]) -> None:
        async def unit(tx: Transaction) -> None:
            for letter, group in letters:
                seq, row = letter.place
                message = letter.redriven(group, {REDRIVE_OUTBOX: f"{self._service}/{row}"})
                await tx.execute(
                    sa.update(outbox)
                    .where(outbox.c.seq == seq, outbox.c.state == DEAD)
                    .values(
                        state=PENDING,
                        aggregatetype=message.topic,
                        headers=dict(message.headers),
                        attempts=0,
                        created_at=database_now(),
                        done_at=None,
                        error=None,
                    )
                )
            tx.wake(SIGNAL)

        await self._database.run(unit)


async def _newest(tx: Transaction) -> int:
    return int(await tx.scalar(sa.select(sa.func.max(outbox.c.seq))) or 0)


def _text(text: str) -> str:
    """A dead letter may hold what no text column takes: bytes that are not UTF-8, decoded by surrogates, and NULs."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
