"""The relay: takes committed events out of the outbox and gives them to the bus.

It claims rows by their state, never by a high-water mark: numbers are given at the insert and become visible at the
commit, so a mark would skip the row of a slow transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from microkit.bus.port import Bus, PublishFailed, Settles
from microkit.db.database import Database
from microkit.db.transaction import Transaction
from microkit.outbox import inbox, queue
from microkit.outbox.lease import ShardLeases, lost
from microkit.outbox.metrics import RelayMetrics
from microkit.outbox.queue import Backlog, Queue, Refusal, Row
from microkit.outbox.tables import outbox
from microkit.outbox.writer import SIGNAL
from microkit.telemetry import Telemetry

LONGEST_PAUSE: Final = 5.0
SETTLE_PAUSE: Final = 0.05
"""Seconds in which acknowledgements are gathered before they are written; nothing waits for them."""
PRUNE_EVERY: Final = 60.0
GRACE: Final = 5.0


@dataclass(frozen=True, slots=True)
class RelayHealth:
    """How the relay is. ``trouble`` says what database or bus last failed with, if they have not recovered; ``stalled``
    that the loop has not turned for longer than a lease."""

    backlog: Backlog
    shards: int
    stalled: bool
    trouble: str | None

    @property
    def ok(self) -> bool:
        return not self.stalled and self.trouble is None


@dataclass(frozen=True, slots=True)
class RelayOptions:
    """How a relay works.

    ``lease`` seconds after its last sign of life its shards go to another relay. ``poll`` is the most seconds between
    two looks at the table when nobody wakes it. A row that the bus refuses ``attempts`` times is parked; between them
    lie random times up to ``backoff`` seconds, doubled each time up to ``longest_backoff``. Published rows are kept
    ``keep`` seconds, inbox rows ``keep_inbox``. With a bus that settles, at most ``unsettled`` rows are on their way.
    """

    batch: int = 500
    lease: float = 15.0
    poll: float = 1.0
    attempts: int = 10
    backoff: float = 0.2
    longest_backoff: float = 30.0
    keep: float = 3600.0
    keep_inbox: float = 7 * 24 * 3600.0
    unsettled: int = 2000

    def delay(self, attempts: int) -> float | None:
        """Seconds until the next attempt of a row that was refused so many times, ``None`` when it is parked."""
        if attempts >= self.attempts:
            return None
        ceiling = min(self.longest_backoff, self.backoff * 2 ** min(attempts - 1, 30))
        return random.uniform(0, ceiling)  # noqa: S311  spreads load


class _BusAwayError(Exception):
    """Nothing can be published now, for reasons that are not the events'."""


class Relay:
    """Publishes the outbox of one service's database. Several may run on one table; they share the shards of its keys.

    ``source`` is the service in whose name events are written (see :func:`microkit.outbox.writer.install`).

    Raises:
        ConfigurationError: the lease is shorter than three heartbeats.
    """

    def __init__(
        self,
        database: Database,
        bus: Bus,
        telemetry: Telemetry,
        *,
        source: str,
        batch: int = 500,
        options: RelayOptions | None = None,
    ) -> None:
        self.options = options or RelayOptions(batch=batch)
        self._database = database
        self._bus = bus
        self._source = source
        self._logger = telemetry.logger
        self._metrics = RelayMetrics(telemetry.metrics)
        self._queue = Queue(database.dialect, self.options.batch)
        self._leases = ShardLeases(database, self.options.lease)
        self._signal = database.signal(SIGNAL)
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._failures = 0
        self._trouble: str | None = None
        self._backlog = Backlog()
        self._beat = time.monotonic()
        self._held_at = self._pruned_at = float("-inf")
        self._failing_in_table = False
        # With a bus that settles: what it has and not every group has acknowledged, by message id.
        self._settles = isinstance(bus, Settles)
        self._unsettled: dict[str, Row] = {}
        self._settled: list[Row] = []
        self._forget: Callable[[], None] | None = None

    async def start(self) -> None:
        """Begins to publish. All groups that are to see the events must be declared on the bus before.

        Raises:
            DatabaseUnavailable: the database cannot be reached.
        """
        await self._leases.seed()
        if isinstance(self._bus, Settles):
            self._forget = self._bus.on_settled(self._source, self._hear)
        self._stopping = False
        self._beat = time.monotonic()
        self._task = asyncio.create_task(self._run(), name=f"relay {self._source}")

    async def stop(self, flush_timeout: float) -> None:
        """Publishes what is committed, for at most ``flush_timeout`` seconds, then gives the leases back."""
        task, self._task = self._task, None
        if task is None:
            return
        self._stopping = True
        self._signal.set()
        await asyncio.wait({task}, timeout=flush_timeout)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if self._forget is not None:
            self._forget()
        # The database may be away; what is not marked is published again, and the leases run out by themselves.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(GRACE):
                await self._write_settled()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(GRACE):
                await self._leases.release()
        self._unsettled.clear()
        self._settled.clear()

    def health(self) -> RelayHealth:
        """How the relay is; the backlog is as of the last heartbeat."""
        quiet = time.monotonic() - self._beat
        dead = self._task is not None and self._task.done()
        return RelayHealth(
            backlog=self._backlog,
            shards=len(self._leases.epochs),
            stalled=dead or (self._task is not None and quiet > self.options.lease + self.options.poll),
            trouble=self._trouble,
        )

    async def _run(self) -> None:
        while True:
            self._beat = time.monotonic()
            try:
                await self._keep_house()
                found = await self._pass()
            except Exception as error:  # noqa: BLE001  database or bus are away: the loop outlives that
                self._troubled(error)
                await asyncio.sleep(_pause(self._failures))
                continue
            self._recovered()
            if found:
                continue
            if self._stopping:
                return
            await self._signal.wait(self._patience())

    def _troubled(self, error: Exception) -> None:
        self._failures += 1
        if self._trouble is None:  # once, not at every attempt
            self._logger.warning("outbox: cannot publish: %r", error)
        self._trouble = repr(error)
        self._metrics.failures().inc()

    def _recovered(self) -> None:
        self._failures = 0
        if self._trouble is not None:
            self._logger.info("outbox: publishes again")
            self._trouble = None

    def _patience(self) -> float:
        if self._failing_in_table:
            return min(self.options.poll, self.options.backoff)
        return min(self.options.poll, self._leases.heartbeat)

    # Leases, backlog, pruning.

    async def _keep_house(self) -> None:
        now = time.monotonic()
        if now - self._held_at >= self._leases.heartbeat or self._leases.left < 0:
            before = self._leases.epochs
            await self._leases.hold(busy={row.shard for row in self._unsettled.values()})
            self._held_at = now
            self._drop(lost(before, self._leases.epochs))
            self._backlog = await self._database.run(queue.backlog, read_only=True)
            self._failing_in_table = self._backlog.failing > 0
            self._metrics.show(self._backlog, len(self._leases.epochs))
        if now - self._pruned_at >= PRUNE_EVERY:
            await self._prune()

    async def _prune(self) -> None:
        async def unit(tx: Transaction) -> int:
            return await queue.prune(tx, self.options.keep)

        # In small transactions, and one of each a turn while there is something to publish: SQLite has one writer.
        more = await self._database.run(unit) + await inbox.prune(self._database, older_than=self.options.keep_inbox)
        self._pruned_at = time.monotonic() - (PRUNE_EVERY - 1 if more else 0)

    def _drop(self, shards: set[int]) -> None:
        """Another relay has these shards, or had them: whatever was under way there is its business."""
        if shards:
            self._unsettled = {name: row for name, row in self._unsettled.items() if row.shard not in shards}
            self._settled = [row for row in self._settled if row.shard not in shards]

    # One pass.

    async def _pass(self) -> bool:
        """Publishes one batch; whether there was anything to do."""
        wrote = await self._write_settled()
        rows = await self._claim()
        if not rows:
            return wrote
        refused = await self._publish(rows)
        await self._mark(rows, refused)
        return True

    async def _claim(self) -> list[Row]:
        shards = self._leases.epochs
        if not shards or len(self._unsettled) >= self.options.unsettled:
            return []
        held = [row.seq for row in self._unsettled.values()]

        async def unit(tx: Transaction) -> list[Row]:
            due = await self._queue.due(tx, shards) if self._failing_in_table else []
            return due + await self._queue.pending(tx, shards, held)

        return await self._database.run(unit, read_only=True)

    async def _publish(self, rows: Sequence[Row]) -> dict[int, Exception]:
        """Publishes the rows; those refused, by their index.

        Raises:
            _BusAwayError: there was no time left on the lease.
            Exception: the bus is away; any part of the batch may have been published.
        """
        left = self._leases.left - self._leases.heartbeat
        if left <= 0:
            raise _BusAwayError("the lease ran out before the batch was published")
        if self._settles:  # before it is published, because it may be settled before publish returns
            self._unsettled.update((row.message.id, row) for row in rows)
        begun = time.perf_counter()
        try:
            async with asyncio.timeout(left):
                await self._bus.publish([row.message for row in rows])
        except PublishFailed as error:
            self._take_back(rows[index] for index in error.failed)
            return error.failed
        except BaseException:
            self._take_back(rows)
            raise
        finally:
            self._metrics.published(time.perf_counter() - begun, Counter(row.message.topic for row in rows))
        return {}

    async def _mark(self, rows: Sequence[Row], failed: dict[int, Exception]) -> None:
        done = [] if self._settles else [row.seq for index, row in enumerate(rows) if index not in failed]
        refusals = self._refusals(rows, failed)
        if done or refusals:
            fence = self._leases.fence(outbox.c.shard)

            async def unit(tx: Transaction) -> int:
                await self._queue.refused(tx, refusals, fence)
                return await self._queue.published(tx, done, fence)

            marked = await self._database.run(unit)
            if marked < len(done):
                self._fenced(len(done) - marked)
        for refusal in refusals:
            self._tell(refusal)
        if any(_is_transport(cause) for cause in failed.values()):
            raise _BusAwayError(f"{len(failed)} of {len(rows)} events were not confirmed")

    def _refusals(self, rows: Sequence[Row], failed: dict[int, Exception]) -> list[Refusal]:
        """The first refused row of each key: the later ones failed because of it, and wait behind it."""
        refusals: dict[tuple[str, str], Refusal] = {}
        for index, cause in sorted(failed.items()):
            row = rows[index]
            name = (row.message.topic, row.message.key)
            if not _is_transport(cause) and name not in refusals:
                refusals[name] = Refusal(row, repr(cause), self.options.delay(row.attempts + 1))
        return list(refusals.values())

    def _tell(self, refusal: Refusal) -> None:
        message, parked = refusal.row.message, refusal.delay is None
        self._failing_in_table = True
        self._metrics.refused(message.topic, parked=parked)
        self._logger.log(
            logging.ERROR if parked else logging.WARNING,
            "outbox: the bus refused %s %s at attempt %d%s: %s",
            message.type,
            message.id,
            refusal.row.attempts + 1,
            "; it is parked" if parked else "",
            refusal.error,
        )

    def _fenced(self, rows: int) -> None:
        self._logger.warning("outbox: %d events were published by two relays, because a lease ran out meanwhile", rows)
        self._held_at = float("-inf")  # look at the leases before anything else is published

    # A bus that settles.

    def _hear(self, ids: Sequence[str]) -> None:
        waiting = not self._settled
        self._settled.extend(row for name in ids if (row := self._unsettled.get(name)) is not None)
        if waiting and self._settled:
            asyncio.get_running_loop().call_later(SETTLE_PAUSE, self._signal.set)

    async def _write_settled(self) -> bool:
        """Marks what every group has acknowledged; whether that made room for more."""
        batch = list(self._settled)
        if not batch:
            return False
        full = len(self._unsettled) >= self.options.unsettled
        fence = self._leases.fence(outbox.c.shard)

        async def unit(tx: Transaction) -> int:
            return await self._queue.published(tx, [row.seq for row in batch], fence)

        await self._database.run(unit)
        self._settled = self._settled[len(batch) :]
        self._take_back(batch)
        return full

    def _take_back(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._unsettled.pop(row.message.id, None)


def _is_transport(cause: Exception) -> bool:
    """Whether it was the way to the bus that failed, and not the message."""
    return isinstance(cause, OSError | TimeoutError)


def _pause(failures: int) -> float:
    return random.uniform(0.05, min(LONGEST_PAUSE, 0.1 * 2 ** min(failures, 10)))  # noqa: S311  spreads load
