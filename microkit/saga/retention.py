"""Sagas that ended are kept for a while, for people to look at, and then deleted with their history."""

from __future__ import annotations

import asyncio
import random
from typing import Final

import sqlalchemy as sa

from microkit.db import Database, Transaction, database_now
from microkit.saga.tables import Status, saga, saga_mail, saga_rate
from microkit.telemetry import Telemetry

PRUNE_EVERY: Final = 60.0
"""Seconds between two looks for what is old."""

_MOST: Final = 200
# While there is more, the next look comes soon, and still leaves the database to the work.
_SOON: Final = 1.0

_NOW = sa.select(database_now()).scalar_subquery()
_LONG_AGO = sa.select(database_now(-sa.bindparam("keep", type_=sa.Float))).scalar_subquery()
# A saga that ended long ago began before that: its beginning has an index, and what stands before the oldest that is
# kept is deleted or stuck, so little is read in vain. Several services' processes skip what another is deleting.
_OLD = (
    sa.select(saga.c.id)
    .where(
        saga.c.created_at < _LONG_AGO,
        saga.c.updated_at < _LONG_AGO,
        saga.c.status.in_([Status.COMPLETED, Status.COMPENSATED]),
    )
    .order_by(saga.c.created_at, saga.c.id)
    .limit(sa.bindparam("most", type_=sa.Integer))
    .with_for_update(skip_locked=True)
    .cte("old")
)
_DELETE = sa.delete(saga).where(saga.c.id.in_(sa.select(_OLD.c.id))).returning(saga.c.id)
# Events that no saga came to wait for, and buckets that are full, which is what a bucket that is not there is.
_UNREAD = sa.delete(saga_mail).where(saga_mail.c.keep_until <= _NOW)
_FULL = sa.delete(saga_rate).where(saga_rate.c.full_at <= _NOW)


async def prune(tx: Transaction, *, keep: float, most: int = _MOST) -> int:
    """Deletes up to ``most`` sagas that ended more than ``keep`` seconds ago, the oldest first; how many there were.

    A saga that is under way or stuck is kept, however old it is.
    """
    await tx.execute(_UNREAD)
    await tx.execute(_FULL)
    return len((await tx.execute(_DELETE, {"keep": keep, "most": most})).all())


class SagaRetention:
    """Deletes the sagas of one service that ended ``keep`` seconds ago, in the background and in small transactions."""

    def __init__(self, database: Database, telemetry: Telemetry, *, keep: float) -> None:
        self._database = database
        self._keep = keep
        self._log = telemetry.logger.getChild("saga")
        self._pruning: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins, with a look at once."""
        self._pruning = asyncio.create_task(self._prune_forever(), name="saga retention")

    async def stop(self, timeout: float = 20.0) -> None:  # noqa: ASYNC109  a worker's; nothing here is waited for
        """Ends it. A portion under way is rolled back."""
        if self._pruning is not None:
            self._pruning.cancel()
            await asyncio.gather(self._pruning, return_exceptions=True)
            self._pruning = None

    async def _prune_forever(self) -> None:
        while True:
            wait = PRUNE_EVERY
            try:
                if await self._database.run(lambda tx: prune(tx, keep=self._keep)) == _MOST:
                    wait = _SOON
            except Exception:  # noqa: BLE001  the database is away: it is asked again
                self._log.warning("old sagas could not be deleted", exc_info=True)
            await asyncio.sleep(random.uniform(wait / 2, wait))  # noqa: S311  instances that started together spread out
