"""INSERTs of many transactions, each of which does nothing else, as one statement.

A transaction that inserts one row needs a place in the pool, a trip and a flush to the disk. While one statement is on
its way the rows of others gather, and go together with the next: nobody waits for company. If such a statement fails,
none of its rows stands, and each is sent alone by who it belongs to, who then hears what was wrong with it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Final

from microkit.context import deadline_within
from microkit.db import jsontext
from microkit.db.failure import CommitUnknown
from microkit.db.prepared import PreparedInsert, PreparedSelect

MOST: Final = 64
"""Rows in one statement."""

# Seconds that such a statement may take. After that each row is sent alone, in its own time.
_LONGEST: Final = 5.0

Row = Mapping[str, Any]
Send = Callable[[PreparedSelect, Mapping[str, Any]], Awaitable[object]]


@dataclass(frozen=True, slots=True, eq=False)
class GatheredInsert:
    """One statement in two forms: ``one`` row, and ``many``, whose parameters are arrays of what ``one`` takes; of the
    columns in ``json`` they are arrays of texts.

    Nothing else may depend on whether a row is inserted at once or when its transaction ends.
    """

    one: PreparedInsert
    many: PreparedSelect
    columns: tuple[str, ...]
    json: frozenset[str] = frozenset()

    def arrays(self, rows: Sequence[Row]) -> dict[str, list[Any]]:
        """The parameters of ``many``."""
        found = {name: [row[name] for row in rows] for name in self.columns}
        return found | {name: [jsontext.dumps(value) for value in found[name]] for name in self.json}


class Gatherer:
    """Sends the rows of one :class:`GatheredInsert`. It needs no task of its own while there is nothing to send."""

    def __init__(self, insert: GatheredInsert, send: Send) -> None:
        self._insert = insert
        self._send = send
        self._waiting: deque[tuple[Row, asyncio.Future[bool | CommitUnknown]]] = deque()
        self._lane: asyncio.Task[None] | None = None

    async def write(self, row: Row) -> bool:
        """Whether the row is inserted, for good. If not, it is to be sent alone.

        Raises:
            CommitUnknown: the connection was lost meanwhile.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[bool | CommitUnknown] = loop.create_future()
        self._waiting.append((row, done))
        if self._lane is None:  # in a context of its own: neither the span nor the deadline of who happens to be first
            self._lane = loop.create_task(self._write_on(), context=Context())
        result = await done
        if isinstance(result, CommitUnknown):
            raise result
        return result

    async def _write_on(self) -> None:
        batch: list[tuple[Row, asyncio.Future[bool | CommitUnknown]]] = []
        try:
            while batch := self._next():
                result = await self._write([row for row, _ in batch])
                for _, done in batch:
                    if not done.done():
                        done.set_result(CommitUnknown() if result is None else result)
        finally:  # at once, so that what comes now does not count on it
            self._lane = None
            for _, done in (*batch, *self._waiting):  # cut off, as when the loop ends
                done.cancel()

    def _next(self) -> list[tuple[Row, asyncio.Future[bool | CommitUnknown]]]:
        batch: list[tuple[Row, asyncio.Future[bool | CommitUnknown]]] = []
        while self._waiting and len(batch) < MOST:
            row, done = self._waiting.popleft()
            if not done.done():  # whoever waited for it may have been cancelled
                batch.append((row, done))
        return batch

    async def _write(self, rows: Sequence[Row]) -> bool | None:
        """Whether they are inserted; ``None`` where nobody knows."""
        try:
            with deadline_within(_LONGEST):
                await self._send(self._insert.many, self._insert.arrays(rows))
        except CommitUnknown:
            return None
        except Exception:  # noqa: BLE001  alone, each of them hears it
            return False
        return True
