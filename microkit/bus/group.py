"""One group of one service: fetches, sorts into lanes, works them off, acknowledges."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from microkit.bus.dead_letter import Bury, dead_letter
from microkit.bus.handling import GIVEN_UP, Failure, Handling
from microkit.bus.port import Bus, Consumer, Delivery, Revokes
from microkit.bus.subscription import Subscription
from microkit.telemetry import Telemetry

FETCH_SECONDS: Final = 1.0
WAITING_BEHIND: Final = 16
ACK_PAUSE: Final = 0.003
"""Seconds in which acknowledgements are gathered: each costs a broker outside a round trip."""
TURN: Final = 64
"""Messages of one key worked off before the next key has its turn."""
LONGEST_PAUSE: Final = 5.0
STALLED_AFTER: Final = 15.0
"""Seconds beyond the time-out of a handler in which something must have moved."""


@dataclass(slots=True, eq=False)
class _Lane:
    """The fetched messages of one topic and key, worked off one after the other."""

    name: tuple[str, str]
    queue: deque[Delivery] = field(default_factory=deque)
    failures: int = 0
    verdict: Failure | None = None
    timer: asyncio.TimerHandle | None = None
    busy: bool = False
    going: bool = False
    """Its key goes to another member, and only what is begun with is left."""


class GroupRunner:
    """Runs one subscription with a fixed set of tasks: one that fetches, one that acknowledges, and the workers."""

    def __init__(
        self, subscription: Subscription, bus: Bus, telemetry: Telemetry, max_in_flight: int, bury: Bury
    ) -> None:
        self.held = 0
        self.trouble: str | None = None
        self._subscription = subscription
        self._bus = bus
        self._logger = telemetry.logger
        self._handling = Handling(subscription, telemetry)
        self._dead = telemetry.metrics.counter(
            "microkit_dead_letters_total",
            "Messages given up and kept as dead letters.",
            ("messaging_destination_name", "messaging_consumer_group_name", "reason"),
        )
        self._max_in_flight = max_in_flight
        self._bury = bury
        self._lanes: dict[tuple[str, str], _Lane] = {}
        self._ready: deque[_Lane] = deque()
        self._parked: set[_Lane] = set()
        self._done: list[Delivery] = []
        self._work = asyncio.Semaphore(0)
        self._room = asyncio.Event()
        self._finished = asyncio.Event()
        self._stopping = False
        self._beat = time.monotonic()
        self._consumer: Consumer | None = None
        self._fetcher: asyncio.Task[None] | None = None
        self._acker: asyncio.Task[None] | None = None
        self._workers: list[asyncio.Task[None]] = []

    # What health asks.

    @property
    def retrying(self) -> int:
        return len(self._parked)

    @property
    def quiet_for(self) -> float:
        return time.monotonic() - self._beat

    @property
    def stalled(self) -> bool:
        return (
            self._fetcher is not None
            and not self._stopping
            and (self._fetcher.done() or self.quiet_for > self._subscription.timeout + STALLED_AFTER)
        )

    # Start and stop.

    async def start(self) -> None:
        self._consumer = await self._bus.subscribe(self._subscription.group, self._subscription.topics)
        if isinstance(self._consumer, Revokes):
            self._consumer.on_revoke(self._let_go)
        self._stopping = False
        self._beat = time.monotonic()
        name = self._subscription.group
        self._fetcher = asyncio.create_task(self._fetch(self._consumer), name=f"fetch {name}")
        self._acker = asyncio.create_task(self._acknowledge(self._consumer), name=f"ack {name}")
        self._workers = [
            asyncio.create_task(self._worker(), name=f"consume {name} {number}")
            for number in range(self._subscription.concurrency)
        ]

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109  how long to drain, not a failure
        consumer, self._consumer = self._consumer, None
        if consumer is None or self._fetcher is None or self._acker is None:
            return
        self._stopping = True
        await _end(self._fetcher)
        for lane in self._parked:
            if lane.timer is not None:
                lane.timer.cancel()
        for _ in self._workers:
            self._work.release()  # an idle worker sees that it is over; a busy one finishes its message first
        if timeout > 0:
            await asyncio.wait(self._workers, timeout=timeout)
        await _end(*self._workers, self._acker)
        rest = [delivery for lane in self._lanes.values() for delivery in lane.queue]
        with contextlib.suppress(Exception):  # the broker is away: what is not acknowledged comes again anyway
            async with asyncio.timeout(LONGEST_PAUSE):
                if self._done:
                    await consumer.ack(self._done)
                if rest:
                    await consumer.release(rest)
        with contextlib.suppress(Exception):
            async with asyncio.timeout(LONGEST_PAUSE):
                await consumer.close()
        self._forget()

    def _forget(self) -> None:
        self._lanes.clear()
        self._ready.clear()
        self._parked.clear()
        self._done = []
        self._work = asyncio.Semaphore(0)
        self.held = 0

    # Fetching.

    async def _fetch(self, consumer: Consumer) -> None:
        failures = 0
        while True:
            room = min(
                self._max_in_flight - (len(self._lanes) - len(self._parked)),
                self._max_in_flight * WAITING_BEHIND - self.held,
            )
            if room <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            try:
                deliveries = await consumer.fetch(room, FETCH_SECONDS)
            except Exception as error:  # noqa: BLE001  whatever the broker's client raises, it is asked again
                failures += 1
                self._troubled(error)
                await asyncio.sleep(_pause(failures))
                continue
            failures = 0
            self._beat = time.monotonic()
            if self.trouble is not None:
                self._logger.info("group %s fetches again", self._subscription.group)
                self.trouble = None
            self._accept(deliveries)

    def _troubled(self, error: Exception) -> None:
        if self.trouble is None:  # once, not at every attempt
            self._logger.warning("group %s cannot fetch: %r", self._subscription.group, error)
        self.trouble = repr(error)

    def _accept(self, deliveries: Sequence[Delivery]) -> None:
        self.held += len(deliveries)
        for delivery in deliveries:
            name = (delivery.message.topic, delivery.message.key)
            lane = self._lanes.get(name)
            if lane is None:
                lane = self._lanes[name] = _Lane(name)
                self._offer(lane)
            lane.queue.append(delivery)

    def _offer(self, lane: _Lane) -> None:
        self._ready.append(lane)
        self._work.release()

    def _let_go(self, goes: Callable[[Delivery], bool]) -> Sequence[Delivery]:
        """Forgets what is not begun of the keys that go to another member. See :class:`~microkit.bus.port.Revokes`."""
        gone: list[Delivery] = []
        for lane in [lane for lane in self._lanes.values() if goes(lane.queue[0])]:
            lane.going = lane.busy
            kept = [lane.queue.popleft()] if lane.busy else []
            gone += lane.queue
            lane.queue = deque(kept)
            if not kept:  # where it stands ready, a worker finds it empty
                self._parked.discard(lane)
                if lane.timer is not None:
                    lane.timer.cancel()
                del self._lanes[lane.name]
        self.held -= len(gone)
        self._room.set()
        return gone

    # Working off.

    async def _worker(self) -> None:
        while True:
            await self._work.acquire()
            if self._stopping:
                return
            await self._work_off(self._ready.popleft())
            await asyncio.sleep(0)  # handlers that wait for nothing leave the loop to others too

    async def _work_off(self, lane: _Lane) -> None:
        for _ in range(TURN):
            if not lane.queue:  # it was let go
                return
            delivery = lane.queue[0]
            lane.busy = True
            delay = await self._try(lane, delivery)
            lane.busy = False
            self._beat = time.monotonic()
            if delay is not None and not (lane.going and self._consumer is not None):
                self._park(lane, delay)
                return
            lane.queue.popleft()
            lane.failures, lane.verdict, lane.going = 0, None, False
            self.held -= 1
            if delay is None:
                self._done.append(delivery)
                self._finished.set()
            elif self._consumer is not None:  # whoever has the key next tries again
                await self._consumer.release([delivery])
            self._room.set()
            if not lane.queue:
                del self._lanes[lane.name]
                return
            if self._stopping:
                return
        self._offer(lane)

    async def _try(self, lane: _Lane, delivery: Delivery) -> float | None:
        """``None`` when the delivery is done with, else the seconds until the next attempt."""
        attempt = delivery.attempt + lane.failures
        if lane.verdict is None:
            failure = await self._handling.attempt(delivery, attempt)
            if failure is None:
                return None
            if not failure.hopeless and attempt < self._subscription.attempts:
                lane.failures += 1
                self._logger.warning(
                    "group %s: attempt %d at %s %s failed: %s",
                    delivery.group,
                    attempt,
                    delivery.message.type,
                    delivery.message.id,
                    failure.error,
                )
                return self._subscription.delay(attempt)
            lane.verdict = failure
        return await self._give_up(lane, delivery, lane.verdict, attempt)

    async def _give_up(self, lane: _Lane, delivery: Delivery, failure: Failure, attempts: int) -> float | None:
        reason = failure.reason if failure.hopeless else GIVEN_UP
        try:
            await self._bury(dead_letter(delivery, reason, failure.error, attempts))
        except Exception as error:  # noqa: BLE001  until it lasts somewhere, the message is not let go
            lane.failures += 1
            self._logger.warning("group %s cannot keep a dead letter: %r", delivery.group, error)
            return _pause(lane.failures)
        self._dead(delivery.message.topic, delivery.group, reason).inc()
        self._logger.error(
            "group %s gave up %s %s (%s) after %d attempts: %s",
            delivery.group,
            delivery.message.type,
            delivery.message.id,
            reason,
            attempts,
            failure.error,
        )
        return None

    def _park(self, lane: _Lane, delay: float) -> None:
        self._parked.add(lane)
        self._room.set()
        lane.timer = asyncio.get_running_loop().call_later(delay, self._unpark, lane)

    def _unpark(self, lane: _Lane) -> None:
        self._parked.discard(lane)
        lane.timer = None
        self._offer(lane)

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
            except Exception as error:  # noqa: BLE001  whatever the broker's client raises, it is asked again
                self._done = batch + self._done
                failures += 1
                self._logger.warning("group %s cannot acknowledge: %r", self._subscription.group, error)
                self._finished.set()
                await asyncio.sleep(_pause(failures))


def _pause(failures: int) -> float:
    return random.uniform(0.05, min(LONGEST_PAUSE, 0.1 * 2 ** min(failures, 10)))  # noqa: S311  spreads load


async def _end(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
