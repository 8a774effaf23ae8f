"""Counts attempts a minute in the database, so that all instances count together and a restart forgets nothing.

An attempt is on record before it is made, as pending: a hundred guesses sent at once are five, not a hundred. When it
has failed it counts as a failure; when it was right it no longer counts. As long as pending ones alone stand in the
way, the next waits for what becomes of them: right passwords are let in however many come at once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, case, delete, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from microkit.db import Database, Transaction
from microkit.errors import MicrokitError
from reference.billpay.user.tables import AttemptRow

WINDOW: Final = timedelta(minutes=1)

LONGEST_QUEUE: Final = 5.0
"""Seconds that an attempt waits for what becomes of those of other instances."""

_PAUSE: Final = 0.1


class TooMany(MicrokitError):
    """The attempts of this minute are used up. ``wait`` is how many seconds are left of it; ``pending`` says that some
    are under way and may be given back."""

    def __init__(self, wait: float, *, pending: bool) -> None:
        super().__init__(f"try again in {wait:.0f} s")
        self.wait = wait
        self.pending = pending


@dataclass(frozen=True, slots=True)
class Limit:
    """How many attempts a minute there are in ``scope``."""

    scope: str
    most: int


@dataclass(frozen=True, slots=True)
class Taken:
    """A pending attempt of the minute that began at ``started_at``."""

    scope: str
    started_at: datetime

    @property
    def row(self) -> ColumnElement[bool]:
        """Its row, unless another minute has begun there."""
        return and_(AttemptRow.scope == self.scope, AttemptRow.started_at == self.started_at)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One log-in under way. One that ends in neither way, as its process has died, stays pending for its minute."""

    database: Database
    account: Taken
    address: Taken | None

    @property
    def _all(self) -> list[Taken]:
        return [self.account] if self.address is None else [self.account, self.address]

    async def failed(self) -> None:
        """Counts it as a failure."""
        values = {"pending": AttemptRow.pending - 1, "failures": AttemptRow.failures + 1}

        async def write(tx: Transaction) -> None:
            for taken in self._all:
                await tx.execute(update(AttemptRow).where(taken.row).values(values))

        await self.database.run(write)

    async def succeeded(self, tx: Transaction) -> None:
        """Uncounts it, and forgets the failures of the account, whose owner has come. Those of the address stay: others
        may have made them."""
        given_back = {"pending": AttemptRow.pending - 1}
        await tx.execute(update(AttemptRow).where(self.account.row).values({**given_back, "failures": 0}))
        if self.address is not None:
            await tx.execute(update(AttemptRow).where(self.address.row).values(given_back))
        for taken in self._all:
            await tx.execute(delete(AttemptRow).where(taken.row, AttemptRow.pending == 0, AttemptRow.failures == 0))


@dataclass(slots=True)
class _Lane:
    """Those of this process that want an attempt in one scope. As many as are allowed a minute go at once."""

    places: asyncio.Semaphore
    users: int = field(default=0)


class Attempts:
    """Hands out attempts. Those of one process queue in the order they came; between processes the database judges."""

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane] = {}

    async def count(self, database: Database, limit: Limit) -> None:
        """Counts one, whatever becomes of it.

        Raises:
            TooMany: it may not be made.
        """
        now = datetime.now(UTC)
        await database.run(lambda tx: _take(tx, limit, now))

    @asynccontextmanager
    async def one(self, database: Database, account: Limit, address: Limit | None = None) -> AsyncIterator[Attempt]:
        """One log-in, or whatever else proves that one knows the password.

        Raises:
            TooMany: it may not be made.
        """
        async with AsyncExitStack() as queue:
            for limit in (account, address):
                if limit is not None:
                    await queue.enter_async_context(self._lane(limit))
            yield await _patiently(database, account, address)

    @asynccontextmanager
    async def _lane(self, limit: Limit) -> AsyncIterator[None]:
        lane = self._lanes.setdefault(limit.scope, _Lane(asyncio.Semaphore(limit.most)))
        lane.users += 1
        try:
            async with lane.places:
                yield
        finally:
            lane.users -= 1
            if not lane.users:
                del self._lanes[limit.scope]

    async def prune(self, database: Database) -> None:
        """Removes what no longer counts."""
        over = AttemptRow.started_at <= datetime.now(UTC) - WINDOW

        async def write(tx: Transaction) -> None:
            await tx.execute(delete(AttemptRow).where(over))

        await database.run(write)


async def _patiently(database: Database, account: Limit, address: Limit | None) -> Attempt:
    """An attempt; waits for it while it is only those of other instances under way that stand before it."""
    give_up = asyncio.get_running_loop().time() + LONGEST_QUEUE
    while True:
        now = datetime.now(UTC)

        async def both(tx: Transaction, now: datetime = now) -> Attempt:
            by_account = await _take(tx, account, now)
            return Attempt(database, by_account, None if address is None else await _take(tx, address, now))

        try:
            return await database.run(both)
        except TooMany as error:
            if not error.pending or asyncio.get_running_loop().time() > give_up:
                raise
        await asyncio.sleep(random.uniform(_PAUSE / 2, _PAUSE))  # noqa: S311  jitter, no secret


async def _take(tx: Transaction, limit: Limit, now: datetime) -> Taken:
    """Puts one on record as pending, in one statement: of any number at once no more get through than there are.

    Raises:
        TooMany: there is none left, and the transaction must be rolled back.
    """
    insert: Any = postgresql.insert if tx.dialect == "postgresql" else sqlite.insert
    over = AttemptRow.started_at <= now - WINDOW
    taken = await tx.execute(
        insert(AttemptRow)
        .values(scope=limit.scope, failures=0, pending=1, started_at=now)
        .on_conflict_do_update(
            index_elements=[AttemptRow.scope],
            set_={
                "failures": case((over, 0), else_=AttemptRow.failures),
                "pending": case((over, 1), else_=AttemptRow.pending + 1),
                "started_at": case((over, now), else_=AttemptRow.started_at),
            },
            where=or_(over, AttemptRow.failures + AttemptRow.pending < limit.most),
        )
        .returning(AttemptRow.started_at)
    )
    started_at = taken.scalar()
    if started_at is not None:
        return Taken(limit.scope, started_at)
    row = (
        await tx.execute(select(AttemptRow.failures, AttemptRow.started_at).where(AttemptRow.scope == limit.scope))
    ).one_or_none()
    if row is None:  # given back in this moment
        raise TooMany(1.0, pending=True)
    ends_at: datetime = row[1] + WINDOW
    raise TooMany(max(1.0, (ends_at - now).total_seconds()), pending=row[0] < limit.most)
