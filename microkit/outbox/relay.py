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
from collections.abc import Sequence
from typing import Final

from microkit.bus.port import Bus, PublishFailed
from microkit.db.database import Database
from microkit.db.transaction import Transaction
from microkit.outbox import inbox, queue
from microkit.outbox.lease import ShardLeases, lost
from microkit.outbox.metrics import RelayMetrics
from microkit.outbox.options import RelayHealth, RelayOptions
from microkit.outbox.queue import Backlog, Queue, Refusal, Row
from microkit.outbox.settling import Unsettled
from microkit.outbox.tables import SHARDS, outbox
from microkit.outbox.writer import SIGNAL
from microkit.telemetry import Telemetry

LONGEST_PAUSE: Final = 5.0
PRUNE_EVERY: Final = 60.0
PRUNE_AGAIN: Final = 0.2
HEARING_POLL: Final = 5.0
GRACE: Final = 5.0


class _NotNowError(Exception):
    """Nothing can be published now, for reasons that are not the events'."""


class Relay:
    """Publishes the outbox of one service's database. Several may run on one table; they share the shards of its keys.

    ``source`` is the service in whose name events are written (see :func:`microkit.outbox.writer.install`). ``batch``
    stands for ``RelayOptions(batch=…)``.

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
        batch: int = 1000,
        options: RelayOptions | None = None,
    ) -> None:
        self.options = options or RelayOptions(batch=batch)
        self._database = database
        self._bus = bus
        self._source = source
        self._logger = telemetry.logger
        self._metrics = RelayMetrics(telemetry.metrics)
        # Half of a batch is marked while the other half is published, so that no more than one is in flight.
        self._half = max(1, self.options.batch // 2)
        self._queue = Queue(database.dialect, self._half)
        self._ahead: asyncio.Task[list[Row]] | None = None
        self._marking: asyncio.Task[None] | None = None
        self._marked: Sequence[Row] = ()
        self._leases = ShardLeases(database, self.options.lease)
        self._signal = database.signal(SIGNAL)
        self._unsettled = Unsettled(bus, source, self.options.unsettled, self._signal.set)
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._failures = 0
        self._trouble: str | None = None
        self._backlog = Backlog()
        self._some_fail = False
        self._beat = time.monotonic()
        self._pruned_to = 0
        self._held_at = self._pruned_at = float("-inf")

    async def start(self) -> None:
        """Begins to publish. All groups that are to see the events must be declared on the bus before.

        Raises:
            DatabaseUnavailable: the database cannot be reached.
        """
        await self._leases.seed()
        self._unsettled.listen()
        self._database.listen(SIGNAL)
        self._stopping = False
        self._beat = time.monotonic()
        self._task = asyncio.create_task(self._run(), name=f"relay {self._source}")

    async def stop(self, flush_timeout: float) -> None:
        """Publishes what is committed, for at most ``flush_timeout`` seconds, then gives the leases back.

        What a bus that keeps nothing has not settled by then is published again at the next start.
        """
        task, self._task = self._task, None
        if task is None:
            return
        self._stopping = True
        self._signal.alone = False
        self._signal.set()
        await asyncio.wait({task}, timeout=flush_timeout)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self._unsettled.deafen()
        # The database may be away; then rows stay pending and are published again, and the leases run out.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(GRACE):
                await self._drain()
                await self._write_settled()
                await self._leases.release()
        self._unsettled.leave(self._unsettled.shards)

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
            last = self._stopping  # what is committed meanwhile is for one more pass
            try:
                await self._keep_house()
                more = await self._pass()
            except Exception as error:  # noqa: BLE001  database or bus are away: the loop outlives that
                with contextlib.suppress(Exception):
                    await self._drain()
                self._troubled(error)
                await asyncio.sleep(_pause(self._failures))
                continue
            self._recovered()
            if more:
                continue
            if last:
                return
            if not self._stopping:
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
        """Seconds until the next look at the table, should nobody wake us."""
        if self._some_fail:
            return min(self.options.poll, self.options.backoff)
        if self._database.hears and not self._leases.hungry:
            # Whoever commits says so; a notice that was lost costs no more than this.
            return min(max(self.options.poll, HEARING_POLL), self._leases.heartbeat)
        return min(self.options.poll, self._leases.heartbeat)

    # Leases, backlog, pruning.

    async def _keep_house(self) -> None:
        now = time.monotonic()
        heartbeat = min(self._leases.heartbeat, self.options.poll) if self._leases.hungry else self._leases.heartbeat
        if now - self._held_at >= heartbeat or self._leases.left < 0:
            await self._drain()
            before = self._leases.epochs
            await self._leases.hold(busy=self._unsettled.shards)
            self._held_at = now
            self._signal.alone = len(self._leases.epochs) == SHARDS
            self._unsettled.leave(lost(before, self._leases.epochs))
            self._backlog = await self._database.run(queue.backlog, read_only=True)
            self._some_fail = self._backlog.failing > 0
            self._metrics.show(self._backlog, len(self._leases.epochs))
        if now - self._pruned_at >= PRUNE_EVERY:
            await self._prune()

    async def _prune(self) -> None:
        async def unit(tx: Transaction) -> int | None:
            return await queue.prune(tx, self.options.keep, self._pruned_to)

        # In small transactions, and one of each a turn while there is something to publish: SQLite has one writer.
        reached = await self._database.run(unit)
        gone = await inbox.prune(self._database, older_than=self.options.keep_inbox)
        self._pruned_to = reached or 0
        more = reached is not None or gone
        self._pruned_at = time.monotonic() - (PRUNE_EVERY - PRUNE_AGAIN if more else 0)

    # One pass: a batch is published while the one before it is marked and the next one is claimed.

    async def _pass(self) -> bool:
        """Publishes one batch; whether there may be another at once."""
        was_full = self._unsettled.full
        await self._write_settled()
        rows = await self._claimed()
        if not rows:
            await self._all_marked()
            return was_full and not self._unsettled.full
        if len(rows) >= self._half and not self._some_fail:
            under_way = [row.seq for batch in (self._marked, rows) for row in batch]
            self._ahead = asyncio.create_task(self._claim(under_way))
        failed = await self._publish(rows)
        await self._all_marked()
        if failed or self._some_fail:
            await self._drop_ahead()  # it may hold later rows of a key that failed
            await self._mark(rows, failed)
        else:
            self._marked = rows
            self._marking = asyncio.create_task(self._mark(rows, failed))
        return True

    async def _claimed(self) -> list[Row]:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            return await ahead
        return await self._claim([row.seq for row in self._marked])

    async def _claim(self, under_way: Sequence[int] = ()) -> list[Row]:
        """The oldest rows to publish, without those ``under_way``."""
        shards = self._leases.epochs
        if not shards or self._unsettled.full:
            return []
        held = [*under_way, *self._unsettled.seqs]

        async def unit(tx: Transaction) -> list[Row]:
            due = await self._queue.due(tx, shards) if self._some_fail else []
            return due + await self._queue.pending(tx, shards, held)

        return await self._database.run(unit, read_only=True)

    async def _all_marked(self) -> None:
        """Waits until what was published before is marked."""
        marking, self._marking = self._marking, None
        try:
            if marking is not None:
                await marking
        finally:
            self._marked = ()

    async def _drop_ahead(self) -> None:
        """Forgets what was claimed and not yet published; it is claimed again."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.cancel()
            await asyncio.wait({ahead})

    async def _drain(self) -> None:
        """Ends what goes on beside the loop."""
        await self._drop_ahead()
        await self._all_marked()

    async def _publish(self, rows: Sequence[Row]) -> dict[int, Exception]:
        """Publishes the rows; those that failed, by their index.

        Raises:
            _NotNowError: there was no time left on the lease.
            Exception: the bus is away; any part of the batch may have been published.
        """
        left = self._leases.left - self._leases.heartbeat
        if left <= 0:
            raise _NotNowError("the lease ran out before the batch was published")
        self._unsettled.add(rows)
        begun = time.perf_counter()
        failed: dict[int, Exception] = {}
        try:
            async with asyncio.timeout(left):
                await self._bus.publish([row.message for row in rows])
        except PublishFailed as error:
            failed = error.failed
            self._unsettled.remove(rows[index] for index in failed)
        except BaseException:
            self._unsettled.remove(rows)
            raise
        confirmed = Counter(row.message.topic for index, row in enumerate(rows) if index not in failed)
        self._metrics.published(time.perf_counter() - begun, confirmed)
        return failed

    async def _mark(self, rows: Sequence[Row], failed: dict[int, Exception]) -> None:
        done = [row.seq for index, row in enumerate(rows) if index not in failed] if self._unsettled.keeps else []
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
            raise _NotNowError(f"{len(failed)} of {len(rows)} events were not confirmed")

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
        self._some_fail = True
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

    async def _write_settled(self) -> None:
        """Marks what every group has acknowledged."""
        batch = self._unsettled.settled()
        if not batch:
            return
        fence = self._leases.fence(outbox.c.shard)

        async def unit(tx: Transaction) -> int:
            return await self._queue.published(tx, [row.seq for row in batch], fence)

        await self._database.run(unit)
        self._unsettled.remove(batch)


def _is_transport(cause: Exception) -> bool:
    """Whether it was the way to the bus that failed, and not the message."""
    return isinstance(cause, OSError | TimeoutError)


def _pause(failures: int) -> float:
    return random.uniform(0.05, min(LONGEST_PAUSE, 0.1 * 2 ** min(failures, 10)))  # noqa: S311  spreads load
