"""The tasks that work a group's lanes off."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Container, Sequence
from itertools import islice
from typing import Final, Protocol

from microkit.bus.alarm import Alarm, Watch
from microkit.bus.dead_letter import Bury, dead_letter
from microkit.bus.handling import GIVEN_UP, Failure, Handling
from microkit.bus.lanes import Lane, Lanes
from microkit.bus.metrics import ConsumerMetrics
from microkit.bus.pace import Pace
from microkit.bus.pause import pause
from microkit.bus.port import Delivery
from microkit.bus.subscription import Batching, Fate, Subscription

TURN: Final = 0.0005
"""Seconds for which handlers that wait for nothing may keep the event loop from everybody else."""


class Desk(Protocol):
    """Where workers bring what they have done with."""

    def done(self, deliveries: Sequence[Delivery]) -> None:
        """They are to be acknowledged."""
        ...

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        """They go back to the broker, unfinished."""
        ...

    def moved(self) -> None:
        """There is room for more, and things go on."""
        ...


class Workers:
    """``concurrency`` tasks, each of which has one lane, or one batch out of several, at a time.

    No task is made for a message: where handlers wait for nothing, one worker does everything, in a plain loop.
    """

    def __init__(
        self,
        subscription: Subscription,
        lanes: Lanes,
        desk: Desk,
        handling: Handling,
        watch: Watch,
        metrics: ConsumerMetrics,
        logger: logging.Logger,
        bury: Bury,
    ) -> None:
        self._subscription = subscription
        self._lanes = lanes
        self._desk = desk
        self._handling = handling
        self._watch = watch
        self._metrics = metrics
        self._logger = logger
        self._bury = bury
        self._batching = subscription.batching
        self._pace = Pace(self._batching) if self._batching is not None else None
        self._stopping = False
        self._idle: deque[asyncio.Future[None]] = deque()
        self._ripe = self._batching is None or not self._batching.wait
        self._ripening: asyncio.TimerHandle | None = None
        self._turn = 0.0
        self.outage: str | None = None
        self.tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        group = self._subscription.group
        self.tasks = [
            asyncio.create_task(self._worker(), name=f"consume {group} {number}")
            for number in range(self._subscription.concurrency)
        ]

    def finish(self) -> None:
        """Every worker ends after what it is at."""
        self._stopping = True
        if self._ripening is not None:
            self._ripening.cancel()
        while self._idle:
            self._wake()

    def arrived(self) -> None:
        """There are lanes to work off."""
        self._check_ripe()
        self._wake()

    def _wake(self) -> None:
        while self._idle:
            waiting = self._idle.popleft()
            if not waiting.done():
                waiting.set_result(None)
                return

    async def _worker(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  workers are tasks
        alarm = self._watch.alarm(task)
        lanes = self._lanes
        while not self._stopping:
            if not lanes.single and not (lanes.ready and self._ripe):
                waiting = asyncio.get_running_loop().create_future()
                self._idle.append(waiting)
                await waiting
                continue
            await self._next(alarm)
            if time.monotonic() > self._turn:
                await asyncio.sleep(0)
                self._turn = time.monotonic() + TURN

    async def _next(self, alarm: Alarm) -> None:
        lanes = self._lanes
        if lanes.single:
            lane = lanes.single.popleft()
        elif self._batching is not None and self._pace is not None and self._pace.limit > 1:
            await self._work_off_together(self._batching, self._pace, alarm)
            return
        else:
            lane = lanes.ready.popleft()
        if lanes.ready or lanes.single:
            self._wake()  # should this one have to wait, another goes on
        await self._work_off(lane, alarm)

    # One by one.

    async def _work_off(self, lane: Lane, alarm: Alarm) -> None:
        while lane.queue:
            delivery = lane.queue[0]
            lane.begun = 1
            delay = await self._try(lane, delivery, alarm)
            if delay is not None and not lane.going:
                self._park(lane, delay)
                return
            self._lanes.done(lane)
            if delay is None:
                self._desk.done((delivery,))
            else:  # whoever has the key next tries again
                await self._desk.give_back((delivery,))
            self._desk.moved()
            if self._stopping or time.monotonic() > self._turn or (self._pace is not None and not lane.alone):
                break
        self._lanes.hand_back(lane)

    async def _try(self, lane: Lane, delivery: Delivery, alarm: Alarm) -> float | None:
        """``None`` when the delivery is done with, else the seconds until the next attempt."""
        attempt = delivery.attempt + lane.failures
        failure = lane.verdict
        if failure is None:
            failure = await self._handling.attempt(delivery, attempt, alarm)
            if failure is None:
                if self._pace is not None:
                    self._pace.worked(1, 0.0)
                if self.outage is not None:
                    self._recovered()
                return None
            if failure.fate is Fate.IGNORE:
                return None
            if failure.fate is Fate.OUTAGE:
                return self._wait_out(lane, failure)
            if failure.fate is Fate.RETRY and attempt < self._subscription.attempts:
                return self._again(lane, delivery, failure, attempt)
            lane.verdict = failure
        return await self._give_up(lane, delivery, failure, attempt)

    def _again(self, lane: Lane, delivery: Delivery, failure: Failure, attempt: int) -> float:
        lane.failures += 1
        self._metrics.retried(delivery.message.topic, failure.reason)
        self._logger.warning(
            "group %s: attempt %d at %s %s failed: %s",
            delivery.group,
            attempt,
            delivery.message.type,
            delivery.message.id,
            failure.error,
        )
        return self._subscription.delay(attempt)

    def _wait_out(self, lane: Lane, failure: Failure) -> float:
        lane.outages += 1
        if self.outage is None:  # once, not for every key
            self._logger.warning("group %s waits: %s", self._subscription.group, failure.error)
        self.outage = failure.error
        return pause(lane.outages)

    def _recovered(self) -> None:
        self._logger.info("group %s goes on", self._subscription.group)
        self.outage = None

    async def _give_up(self, lane: Lane, delivery: Delivery, failure: Failure, attempts: int) -> float | None:
        reason = failure.reason if failure.fate is Fate.DEAD_LETTER else GIVEN_UP
        try:
            await self._bury(dead_letter(delivery, reason, failure.error, attempts))
        except Exception as error:  # noqa: BLE001  until it lasts somewhere, the message is not let go
            lane.failures += 1
            self._logger.warning("group %s cannot keep a dead letter: %r", delivery.group, error)
            return pause(lane.failures)
        self._metrics.buried(delivery.message.topic, reason)
        self._logger.error(
            "group %s gave up %s %s (%s) after %d attempts: %s",
            delivery.group,
            delivery.message.type,
            delivery.message.id,
            reason,
            attempts,
            failure.error,
            exc_info=failure.cause,
        )
        return None

    def _park(self, lane: Lane, delay: float) -> None:
        lane.begun = 0
        self._lanes.parked.add(lane)
        self._desk.moved()
        asyncio.get_running_loop().call_later(delay, self._unpark, lane)

    def _unpark(self, lane: Lane) -> None:
        if lane in self._lanes.parked:  # else its key has gone to another member
            self._lanes.parked.discard(lane)
            self._lanes.single.append(lane)
            self._wake()

    # Several together.

    def _check_ripe(self) -> None:
        """Whether a batch may be taken: it is full, or its time to wait is over."""
        batching = self._batching
        if batching is None or not batching.wait:
            return
        if self._lanes.waiting() >= batching.most:
            self._ripen()
        elif self._lanes.ready and self._ripening is None and not self._ripe:
            self._ripening = asyncio.get_running_loop().call_later(batching.wait, self._ripen)

    def _ripen(self) -> None:
        if self._ripening is not None:
            self._ripening.cancel()
            self._ripening = None
        self._ripe = True
        self._wake()

    def _gather(self, most: int) -> list[Lane]:
        """Takes the first messages of the lanes that are ready, at most so many, and all of one lane only if they are
        fit for company."""
        batch: list[Lane] = []
        ready = self._lanes.ready
        while ready and most > 0:
            lane = ready.popleft()
            for delivery in islice(lane.queue, most):
                if not self._handling.is_plain(delivery):
                    break
                lane.begun += 1
            if lane.begun:
                most -= lane.begun
                batch.append(lane)
            else:
                lane.alone = 1
                self._lanes.single.append(lane)
        if self._batching is not None and self._batching.wait:
            self._ripe = False
            self._check_ripe()
        return batch

    async def _work_off_together(self, batching: Batching, pace: Pace, alarm: Alarm) -> None:
        batch = self._gather(pace.limit)
        if self._lanes.single or self._lanes.ready:
            self._wake()
        if not batch:
            return
        if len(batch) == 1 and batch[0].begun == 1:
            await self._work_off(batch[0], alarm)
            return
        deliveries = [delivery for lane in batch for delivery in islice(lane.queue, lane.begun)]
        left, failure, busy = await self._handling.attempt_batch(batching, deliveries, alarm)
        if failure is None:
            pace.worked(len(deliveries), busy)
            if self.outage is not None:
                self._recovered()
        elif failure.fate is not Fate.OUTAGE:
            pace.failed()
            self._logger.warning(
                "group %s: %d messages together failed and are handled one by one: %s",
                self._subscription.group,
                len(deliveries),
                failure.error,
            )
        await self._bring(batch, {id(delivery) for delivery in left}, failure)

    async def _bring(self, batch: Sequence[Lane], left: Container[int], failure: Failure | None) -> None:
        """Sorts out what was done of a batch, and what was not."""
        done: list[Delivery] = []
        undone: list[Delivery] = []
        for lane in batch:
            while lane.begun and id(lane.queue[0]) not in left:
                done.append(self._lanes.done(lane))
            if lane.begun and lane.going:  # whoever has the key next tries again
                undone += [self._lanes.done(lane) for _ in range(lane.begun)]
            if lane.begun and failure is not None and failure.fate is Fate.OUTAGE:
                self._park(lane, self._wait_out(lane, failure))
                continue
            lane.alone = lane.begun
            self._lanes.hand_back(lane)
        self._desk.done(done)
        if undone:
            await self._desk.give_back(undone)
        self._desk.moved()
