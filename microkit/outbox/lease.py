"""Leases on the outbox's shards: at most one relay publishes the events of a key at a time.

Granted and judged on the database's clock. Each grant raises the shard's epoch, and every write of a relay names the
epochs that it believes in, so that one that slept through its lease changes nothing when it wakes.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from microkit.db.clock import database_now
from microkit.db.database import Database
from microkit.db.transaction import Transaction
from microkit.errors import ConfigurationError
from microkit.outbox.owner import is_gone, new_owner
from microkit.outbox.tables import SHARDS, relay_presence, shard_lease

HEARTBEATS: Final = 3
"""A lease is renewed so many times before it would run out."""

_SEEDS: Final = {
    "postgresql": postgresql.insert(shard_lease).on_conflict_do_nothing(),
    "sqlite": sqlite.insert(shard_lease).on_conflict_do_nothing(),
}


@dataclass(frozen=True, slots=True)
class _Plan:
    keep: dict[int, int]
    take: dict[int, int]
    give: list[int]
    fair: int


class ShardLeases:
    """The shards that one relay holds. ``seconds`` is how long a lease lasts.

    ``epochs`` maps the shards held to their epochs; ``valid_until`` is a reading of ``time.monotonic()``, taken before
    the database was asked and so on the safe side. ``hungry``: others hold shards that are this relay's share, and will
    give them back at their next heartbeat.

    Raises:
        ConfigurationError: a lease too short to be renewed in time.
    """

    def __init__(self, database: Database, seconds: float) -> None:
        if seconds < 0.3:
            raise ConfigurationError(
                f"lease: {seconds} s is shorter than {HEARTBEATS} heartbeats of 0.1 s; an example: 15s"
            )
        self.owner = new_owner()
        self.epochs: dict[int, int] = {}
        self.valid_until = 0.0
        self.hungry = True
        self._database = database
        self._seconds = seconds

    @property
    def heartbeat(self) -> float:
        """Seconds between two renewals."""
        return self._seconds / HEARTBEATS

    @property
    def left(self) -> float:
        """Seconds for which the leases are certainly valid; negative when they may have run out."""
        return self.valid_until - time.monotonic()

    async def seed(self) -> None:
        """Makes the rows of the shards, where they are missing."""

        async def unit(tx: Transaction) -> None:
            await tx.execute(_SEEDS[tx.dialect], [{"shard": shard} for shard in range(SHARDS)])

        await self._database.run(unit)

    async def hold(self, busy: Collection[int] = ()) -> None:
        """Renews the leases held, takes free shards up to a fair share, and gives back what is beyond it.

        ``busy`` shards are not given back now. When it raises, what was held may be lost, and is not held any more
        once ``left`` is negative.
        """
        asked = time.monotonic()

        async def unit(tx: Transaction) -> _Plan:
            return await self._hold(tx, busy)

        plan = await self._database.run(unit)
        self.epochs = {**plan.keep, **plan.take}
        self.valid_until = asked + self._seconds
        self.hungry = len(self.epochs) < plan.fair

    async def release(self) -> None:
        """Gives everything back, so that another relay need not wait for the leases to run out."""
        epochs, self.epochs, self.valid_until = self.epochs, {}, 0.0

        async def unit(tx: Transaction) -> None:
            await tx.execute(sa.delete(relay_presence).where(relay_presence.c.owner == self.owner))
            if epochs:
                await tx.execute(_give(list(epochs)).where(shard_lease.c.owner == self.owner))

        await self._database.run(unit)

    def fence(self, shard: sa.ColumnElement[int]) -> sa.ColumnElement[bool]:
        """True in SQL while ``shard`` is still held under the epoch of this relay's last grant."""
        held = sa.tuple_(shard_lease.c.shard, shard_lease.c.epoch).in_(list(self.epochs.items()))
        return sa.exists().where(shard_lease.c.shard == shard, held)

    async def _hold(self, tx: Transaction, busy: Collection[int]) -> _Plan:
        seen = {"owner": self.owner, "seen_until": database_now(plus=self._seconds)}
        await tx.execute(sa.delete(relay_presence).where(relay_presence.c.owner == self.owner))
        await tx.execute(sa.insert(relay_presence).values(seen))
        await tx.execute(sa.delete(relay_presence).where(relay_presence.c.seen_until < database_now()))
        live = shard_lease.c.lease_until > database_now()
        # The lock makes the relays' heartbeats take turns.
        rows = (
            await tx.execute(
                sa.select(shard_lease.c.shard, shard_lease.c.owner, shard_lease.c.epoch, live.label("live"))
                .order_by(shard_lease.c.shard)
                .with_for_update()
            )
        ).all()
        owners = await tx.scalars(sa.select(relay_presence.c.owner))
        plan = self._plan(rows, sum(not is_gone(owner) for owner in owners), busy)
        if plan.keep:
            await tx.execute(_renew(list(plan.keep), self._seconds))
        if plan.take:
            await tx.execute(
                _renew(list(plan.take), self._seconds).values(owner=self.owner, epoch=shard_lease.c.epoch + 1)
            )
        if plan.give:
            await tx.execute(_give(plan.give))
        return plan

    def _plan(self, rows: Collection[Any], relays: int, busy: Collection[int]) -> _Plan:
        fair = -(-SHARDS // max(relays, 1))
        mine = {row.shard: row.epoch for row in rows if self._is_mine(row)}
        give = [shard for shard in mine if shard not in busy][: max(0, len(mine) - fair)]
        keep = {shard: epoch for shard, epoch in mine.items() if shard not in give}
        free = {row.shard: row.epoch + 1 for row in rows if row.shard not in mine and self._is_free(row)}
        take = dict(list(free.items())[: max(0, fair - len(keep))])
        return _Plan(keep, take, give, fair)

    def _is_mine(self, row: Any) -> bool:
        return bool(row.owner == self.owner and row.epoch == self.epochs.get(row.shard))

    def _is_free(self, row: Any) -> bool:
        # One's own under another epoch: a grant whose COMMIT was never confirmed.
        return row.owner in (None, self.owner) or not row.live or is_gone(row.owner)


def _renew(shards: list[int], seconds: float) -> sa.Update:
    return sa.update(shard_lease).where(shard_lease.c.shard.in_(shards)).values(lease_until=database_now(plus=seconds))


def _give(shards: list[int]) -> sa.Update:
    return sa.update(shard_lease).where(shard_lease.c.shard.in_(shards)).values(owner=None, lease_until=None)


def lost(before: Mapping[int, int], after: Mapping[int, int]) -> set[int]:
    """The shards that are no longer held, or held anew under another epoch."""
    return {shard for shard, epoch in before.items() if after.get(shard) != epoch}
