"""One group of one service: fetches, has its workers work, acknowledges, and begins anew when any of it crashes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from microkit.bus.alarm import Watch
from microkit.bus.dead_letter import Bury
from microkit.bus.handling import Handling
from microkit.bus.lanes import Lanes
from microkit.bus.metrics import ConsumerMetrics
from microkit.bus.pause import LONGEST_PAUSE, pause
from microkit.bus.port import Bus, Consumer, Delivery, MessagesLost, Revokes
from microkit.bus.subscription import Subscription
from microkit.bus.workers import Workers
from microkit.telemetry import Telemetry

_log = logging.getLogger(__name__)

FETCH_SECONDS: Final = 1.0
ACK_PAUSE: Final = 0.003
"""Seconds in which acknowledgements are gathered: each costs a broker outside a round trip."""
LONGEST_END: Final = 12.0
"""Seconds that a cancelled task may take to end: more than a transaction takes to be rolled back."""
STALLED_AFTER: Final = 15.0
"""Seconds beyond the time-out of a handler in which something must have moved."""


@dataclass(frozen=True, slots=True)
class Limits:
    """``in_flight`` keys may be worked on or ready, and ``bytes`` be held, at once. ``crashes`` within ``window``
    seconds are survived, one more is not."""

    in_flight: int = 256
    bytes: int = 64 * 1024 * 1024
    crashes: int = 5
    window: float = 60.0


class GroupRunner:
    """Runs one subscription with a fixed set of tasks: one that fetches, one that acknowledges, the workers, and one
    that looks after them."""

    def __init__(
        self,
        subscription: Subscription,
        bus: Bus,
        telemetry: Telemetry,
        limits: Limits,
        bury: Bury,
        fatal: Callable[[str, BaseException], None],
    ) -> None:
        self.restarts = 0
        self.metrics = ConsumerMetrics(telemetry, subscription.group)
        self._subscription = subscription
        self._bus = bus
        self._logger = telemetry.logger
        self._limits = limits
        self._bury = bury
        self._fatal = fatal
        self._telemetry = telemetry
        self._trouble: str | None = None
        self._over = False
        self._crashes: deque[float] = deque()
        self._beat = time.monotonic()
        self._consumer: Consumer | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._loops: list[asyncio.Task[None]] = []
        self._prepare()
        self.metrics.watch(lambda: self.held, lambda: self.retrying)

    def _prepare(self) -> None:
        """All that belongs to one membership."""
        batching = self._subscription.batching
        most = self._limits.in_flight
        if batching is not None:
            most = max(most, 4 * batching.most)  # so that some can be full while others are being handled
        self._least = max(1, min(most // 4, most - self._subscription.concurrency))
        self._lanes = Lanes(most, self._limits.bytes)
        self._watch = Watch(self._subscription.timeout)
        handling = Handling(self._subscription, self._telemetry, self.metrics, self._watch)
        self._workers = Workers(
            self._subscription, self._lanes, self, handling, self._watch, self.metrics, self._logger, self._bury
        )
        self._done: list[Delivery] = []
        self._finished = asyncio.Event()
        self._room = asyncio.Event()

    # What health asks.

    @property
    def held(self) -> int:
        return self._lanes.held

    @property
    def retrying(self) -> int:
        return len(self._lanes.parked)

    @property
    def trouble(self) -> str | None:
        return self._trouble or self._workers.outage

    @property
    def quiet_for(self) -> float:
        return time.monotonic() - self._beat

    @property
    def stalled(self) -> bool:
        return self._over or (
            self._supervisor is not None and self.quiet_for > self._subscription.timeout + STALLED_AFTER
        )

    # Start and stop.

    async def start(self) -> None:
        self._over = False
        await self._join()
        self._supervisor = asyncio.create_task(self._supervise(), name=f"supervise {self._subscription.group}")

    async def _join(self) -> None:
        self._consumer = consumer = await self._bus.subscribe(self._subscription.group, self._subscription.topics)
        self._prepare()
        if isinstance(consumer, Revokes):
            consumer.on_revoke(self._let_go)
        self._beat = time.monotonic()
        group = self._subscription.group
        self._workers.start()
        self._loops = [
            asyncio.create_task(self._fetch(consumer), name=f"fetch {group}"),
            asyncio.create_task(self._acknowledge(consumer), name=f"ack {group}"),
        ]

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109  how long to drain, not a failure
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            await _end(supervisor)
        await self._leave(timeout)

    async def _leave(self, timeout: float) -> None:  # noqa: ASYNC109  as above
        consumer = self._consumer
        if consumer is None:
            return
        fetching, acknowledging = self._loops
        await _end(fetching)
        self._lanes.parked.clear()
        self._workers.finish()  # an idle worker sees that it is over; a busy one finishes its message first
        if timeout > 0:
            await asyncio.wait(self._workers.tasks, timeout=timeout)
        await _end(*self._workers.tasks, acknowledging)
        self._watch.stop()
        with contextlib.suppress(Exception):  # the broker is away: what is not acknowledged comes again anyway
            async with asyncio.timeout(LONGEST_PAUSE):
                if self._done:
                    await consumer.ack(self._done)
                if rest := self._lanes.rest():
                    await consumer.release(rest)
        with contextlib.suppress(Exception):
            async with asyncio.timeout(LONGEST_PAUSE):
                await consumer.close()
        self._consumer = None
        self._prepare()

    # Looking after the loops.

    async def _supervise(self) -> None:
        while True:
            ended, _ = await asyncio.wait([*self._loops, *self._workers.tasks], return_when=asyncio.FIRST_COMPLETED)
            error = next((error for task in ended if not task.cancelled() and (error := task.exception())), None)
            while error is not None or ended:
                over = self._crashed(error)
                await self._leave(0)
                if over:
                    self._over = True
                    self._fatal(self._subscription.group, error or asyncio.CancelledError())
                    return
                await asyncio.sleep(pause(len(self._crashes)))
                ended, error = set(), await self._join_again()

    def _crashed(self, error: BaseException | None) -> bool:
        """Notes a crash; whether it was one too many."""
        now = time.monotonic()
        self._crashes.append(now)
        while self._crashes[0] < now - self._limits.window:
            self._crashes.popleft()
        self.restarts += 1
        self.metrics.crashed()
        self._trouble = repr(error)
        over = len(self._crashes) > self._limits.crashes
        group = self._subscription.group
        self._logger.error("group %s crashed%s", group, ", for good" if over else "", exc_info=error)
        return over

    async def _join_again(self) -> Exception | None:
        """Joins, however long the broker is away; what else it failed with, which is a crash like any other."""
        failures = 0
        while True:
            self._beat = time.monotonic()
            try:
                await self._join()
            except OSError as error:
                failures += 1
                self._troubled(error)
                await asyncio.sleep(pause(failures))
            except Exception as error:  # noqa: BLE001  the supervisor must not end without a word
                return error
            else:
                return None

    # Fetching.

    async def _fetch(self, consumer: Consumer) -> None:
        failures = 0
        while True:
            room = self._lanes.room(self._least)
            if room <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            try:
                deliveries = await consumer.fetch(room, FETCH_SECONDS)
            except MessagesLost as error:
                self._logger.error("group %s: %s", self._subscription.group, error)  # noqa: TRY400  it is all in there
                self.metrics.lost(error.lost or 1)
                continue
            except OSError as error:  # anything else is no outage but a fault, and the supervisor's
                failures += 1
                self._beat = time.monotonic()
                self._troubled(error)
                await asyncio.sleep(pause(failures))
                continue
            failures = 0
            self._beat = time.monotonic()
            if self._trouble is not None:
                self._logger.info("group %s fetches again", self._subscription.group)
                self._trouble = None
            if deliveries:
                self._lanes.accept(deliveries)
                self._workers.arrived()

    def _troubled(self, error: Exception) -> None:
        if self._trouble is None:  # once, not at every attempt
            self._logger.warning("group %s cannot fetch: %r", self._subscription.group, error)
        self._trouble = repr(error)

    def _let_go(self, goes: Callable[[Delivery], bool]) -> Sequence[Delivery]:
        """See :class:`~microkit.bus.port.Revokes`."""
        gone = self._lanes.let_go(goes)
        self._room.set()
        return gone

    # What the workers bring: see :class:`~microkit.bus.workers.Desk`.

    def done(self, deliveries: Sequence[Delivery]) -> None:
        self._done += deliveries
        self._finished.set()

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        if self._consumer is not None:
            with contextlib.suppress(OSError):  # the broker is away, and gives them to the next member anyway
                await self._consumer.release(deliveries)

    def moved(self) -> None:
        self._beat = time.monotonic()
        self._room.set()

    # Acknowledging.

    async def _acknowledge(self, consumer: Consumer) -> None:
        failures = 0
        while True:
            await self._finished.wait()
            await asyncio.sleep(ACK_PAUSE)
            self._finished.clear()
            batch, self._done = self._done, []
            try:
                await consumer.ack(batch)
                failures = 0
            except asyncio.CancelledError:
                self._done = batch + self._done  # a second acknowledgement does nothing
                raise
            except OSError as error:
                self._done = batch + self._done
                failures += 1
                self._logger.warning("group %s cannot acknowledge: %r", self._subscription.group, error)
                self._finished.set()
                await asyncio.sleep(pause(failures))


async def _end(*tasks: asyncio.Task[None]) -> None:
    """Cancels them. A handler that swallows its cancellation is left to itself: it must not keep the process from
    ending."""
    for task in tasks:
        task.cancel()
    ended, left = await asyncio.wait(tasks, timeout=LONGEST_END)
    for task in ended:
        if not task.cancelled():
            task.exception()  # seen
    for task in left:
        _log.error("%s does not end though it was cancelled, and is left behind", task.get_name())
