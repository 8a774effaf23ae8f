"""Looks after the processes of a service: counts them, says when some are stuck, and deletes the old."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa

from microkit.choreography.metrics import ProcessMetrics
from microkit.choreography.process import Process
from microkit.choreography.tables import process, process_event
from microkit.db import Database, Transaction, database_now
from microkit.telemetry import Telemetry

SURVEY: Final = 30.0
"""Seconds between two looks at how many there are, and for what is old."""

_MOST: Final = 200
_SOON: Final = 1.0

# A volatile function cannot be compared with an index; asked for once, as a subquery, it can.
_NOW = sa.select(database_now()).scalar_subquery()
_LONG_AGO = sa.select(database_now(-sa.bindparam("keep", type_=sa.Float))).scalar_subquery()

_OPEN = (
    sa.select(
        process.c.name,
        sa.func.count(),
        sa.func.sum(sa.case((process.c.stuck_at <= _NOW, 1), else_=0)),
        sa.func.min(process.c.began_at),
        database_now(),
    )
    .where(process.c.ended_at.is_(None))
    .group_by(process.c.name)
)
_OLD = (
    sa.select(process.c.name, process.c.id, process.c.ended_at)
    .where(
        process.c.heard_at < _LONG_AGO,
        # One that may be silent for longer than that is kept, and people have had as long to see that it is stuck.
        sa.or_(process.c.ended_at.is_not(None), process.c.stuck_at.is_(None), process.c.stuck_at < _LONG_AGO),
    )
    .order_by(process.c.heard_at)
    .limit(sa.bindparam("most", type_=sa.Integer))
    .with_for_update(skip_locked=True)
)


async def prune(tx: Transaction, *, keep: float, most: int = _MOST) -> tuple[int, Counter[str]]:
    """Deletes up to ``most`` processes of which nothing was heard for ``keep`` seconds, the longest silent first. One
    that has not ended, and counts as stuck some day, has been stuck for as long as that.

    Returns how many there were, and how many of those of each name had not ended: no event will come to end them.
    """
    old = (await tx.execute(_OLD, {"keep": keep, "most": most})).all()
    if old:
        keys = [(name, id_) for name, id_, _ in old]
        events = sa.tuple_(process_event.c.name, process_event.c.process_id)
        await tx.execute(sa.delete(process_event).where(events.in_(keys)))
        await tx.execute(sa.delete(process).where(sa.tuple_(process.c.name, process.c.id).in_(keys)))
    return len(old), Counter(name for name, _, ended_at in old if ended_at is None)


async def survey(tx: Transaction) -> list[tuple[str, int, int, float]]:
    """Of each name: how many have not ended, how many of them are stuck, and the age of the oldest in seconds."""
    rows = await tx.execute(_OPEN)
    return [(name, count, int(stuck), (now - began).total_seconds()) for name, count, stuck, began, now in rows]


class ProcessKeeper:
    """Works in the background, for one service. ``keep`` is how many seconds a silent process is kept."""

    def __init__(
        self,
        database: Database,
        telemetry: Telemetry,
        processes: Sequence[Process],
        metrics: ProcessMetrics,
        *,
        keep: float,
        every: float = SURVEY,
    ) -> None:
        self._database = database
        self._names = [each.name for each in processes]
        self._metrics = metrics
        self._keep = keep
        self._every = every
        self._log = telemetry.logger.getChild("process")
        self._task: asyncio.Task[None] | None = None
        self._stuck: dict[str, int] = {}

    async def start(self) -> None:
        """Begins, with a look at once."""
        self._metrics.open(self._names, ())
        self._task = asyncio.create_task(self._look_forever(), name="process keeper")

    async def stop(self, timeout: float = 20.0) -> None:  # noqa: ASYNC109  a worker's; nothing here is waited for
        """Ends it. A portion under way is rolled back."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _look_forever(self) -> None:
        while True:
            wait = self._every
            try:
                await self._survey()
                gone, unended = await self._database.run(lambda tx: prune(tx, keep=self._keep))
                for name, count in unended.items():
                    self._metrics.forgotten(name, count)
                    self._log.warning("%s: %d processes were forgotten that nobody ended", name, count)
                if gone == _MOST:
                    wait = min(_SOON, wait)
            except Exception:  # noqa: BLE001  the database is away: it is asked again
                self._log.warning("processes could not be looked after", exc_info=True)
            await asyncio.sleep(random.uniform(wait / 2, wait))  # noqa: S311  instances that started together spread out

    async def _survey(self) -> None:
        found = await self._database.run(survey, read_only=True)
        self._metrics.open(self._names, found)
        stuck = {name: count for name, _, count, _ in found if count}
        for name, count in stuck.items():
            if count > self._stuck.get(name, 0):
                self._log.warning("%s: %d processes are stuck, without an event for longer than they may", name, count)
        self._stuck = stuck
