"""The receiving side: one member of a group, as the event loop sees it."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

from microkit.bus.kafka.partition import Partition
from microkit.bus.kafka.poller import Key, Mark, Poller
from microkit.bus.kafka.wire import Rebalancing, message_of
from microkit.bus.port import Delivery, LetGo, MessagesLost
from microkit.message import Message

_AHEAD: Final = 2000
"""Records taken from the client before they are asked for,"""
_BYTES_AHEAD: Final = 16 * 1024 * 1024
"""and bytes: beyond them none are taken."""
_GRACE: Final = 10.0
_REBALANCING_PAUSE: Final = 0.1

_Again = tuple[int, int, str, int, Partition, Message]
"""Offset, partition, topic, attempt: sorted as they are to come again."""


class KafkaConsumer:
    """A member of a group. Made by :meth:`KafkaBus.subscribe`.

    Messages that are released are kept here and handed out again: seeking back to the first of them would deliver again
    all that came after it.
    """

    def __init__(
        self,
        group: str,
        topics: Sequence[str],
        config: Mapping[str, Any],
        drain_timeout: float,
        logger: logging.Logger,
    ) -> None:
        self._group = group
        self._drain_timeout = drain_timeout
        self._poller = Poller(self, {**config, "group.id": group}, topics, logger)
        self._partitions: dict[Key, Partition] = {}
        self._ready: deque[tuple[Partition, Any]] = deque()
        self._again: list[_Again] = []
        self._taken = 0
        self._taken_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._moved = asyncio.Event()
        self._committing = asyncio.Lock()
        self._trouble: Exception | None = None
        self._losses: list[MessagesLost] = []
        self._let_go: LetGo | None = None
        self._closed = False
        self.assignment: frozenset[Key] = frozenset()
        """The partitions that it has, for those who look."""

    async def start(self) -> None:
        """Joins the group; which partitions it gets is known later."""
        self._poller.start()
        await asyncio.wrap_future(self._poller.ready)

    def on_revoke(self, let_go: LetGo) -> None:
        """See :meth:`microkit.bus.port.Revokes.on_revoke`."""
        self._let_go = let_go

    async def fetch(self, most: int, wait: float) -> Sequence[Delivery]:
        """See :meth:`microkit.bus.port.Consumer.fetch`.

        Raises:
            ConsumerEnded: the client gave up for good.
        """
        await asyncio.sleep(0)  # a consumer that is always busy leaves the loop to others too
        loop = asyncio.get_running_loop()
        until = loop.time() + wait
        while not (taken := self._take(most)):
            if self._trouble is not None:
                raise self._trouble
            left = until - loop.time()
            if left <= 0:
                break
            self._waiter = loop.create_future()
            timer = loop.call_later(left, self._wake)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        return taken  # nothing is awaited between the taking and here, so a cancellation loses nothing

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """See :meth:`microkit.bus.port.Consumer.ack`. Returns when the broker has what can be committed of it."""
        for delivery in deliveries:
            partition: Partition = delivery.position
            partition.done(delivery.offset)
        self._moved.set()
        if not self._dirty():
            return
        async with self._committing:  # acknowledgements that wait here are committed together
            while dirty := self._dirty():
                try:
                    await self._commit(dirty)
                    break
                except Rebalancing:  # it passes, and these partitions stay; or they go, and are no longer ours
                    await asyncio.sleep(_REBALANCING_PAUSE)

    async def release(self, deliveries: Sequence[Delivery]) -> None:
        """See :meth:`microkit.bus.port.Consumer.release`."""
        self._give_back(deliveries)

    async def close(self) -> None:
        """See :meth:`microkit.bus.port.Consumer.close`. Should the broker be away, it is left to time out alone."""
        if not self._closed:
            self._closed = True
            marks = self._surrender(list(self._partitions))
            self._poller.stop(marks)
            self._wake()
        await asyncio.wait([asyncio.wrap_future(self._poller.ended)], timeout=_GRACE)

    # Handing out.

    def _take(self, most: int) -> list[Delivery]:
        if self._closed:
            raise ConnectionError(f"the consumer of {self._group!r} is closed")
        if self._losses:
            raise self._losses.pop(0)
        taken: list[Delivery] = []
        while self._again and len(taken) < most:
            offset, number, _, attempt, partition, message = heapq.heappop(self._again)
            if partition.live and not partition.leaving:
                partition.hand_out_again(offset, attempt)
                taken.append(Delivery(message, self._group, number, offset, attempt, partition))
        ready, group = self._ready, self._group
        popped = 0
        while ready and len(taken) < most:
            partition, record = ready.popleft()
            popped += 1
            self._taken_bytes += len(record)
            if partition.live and not partition.leaving:
                offset = record.offset()
                attempt = partition.hand_out(offset)
                taken.append(Delivery(message_of(record), group, partition.number, offset, attempt, partition))
        if popped:
            self._taken += popped
            self._poller.awake()
        return taken

    def _give_back(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            partition: Partition = delivery.position
            attempt = partition.take_back(delivery.offset)
            if attempt is not None and partition.live and not partition.leaving:
                message = delivery.message
                entry = (delivery.offset, delivery.partition, message.topic, attempt + 1, partition, message)
                heapq.heappush(self._again, entry)
        self._moved.set()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # Committing.

    def _dirty(self) -> list[Partition]:
        return [partition for partition in self._partitions.values() if partition.dirty]

    async def _commit(self, dirty: Sequence[Partition]) -> None:
        marks = [_mark(partition, leaving=False) for partition in dirty]
        await asyncio.wrap_future(self._poller.commit(marks))
        for partition, mark in zip(dirty, marks, strict=True):
            partition.committed = mark.position

    def _surrender(self, keys: Sequence[Key]) -> list[Mark]:
        """Lets go of partitions: from now on their deliveries are nobody's. Where the group stands in them."""
        gone = [partition for key in keys if (partition := self._partitions.pop(key, None)) is not None]
        for partition in gone:
            partition.live = False
            partition.out.clear()
        self.assignment = frozenset(self._partitions)
        self._again = [entry for entry in self._again if entry[4].live]
        heapq.heapify(self._again)
        self._moved.set()
        return [_mark(partition, leaving=True) for partition in gone]

    # What the poller says.

    def room(self) -> int:
        """See :class:`~microkit.bus.kafka.poller.Owner`. Numbers are read that only ever grow."""
        if self._poller.passed_bytes - self._taken_bytes > _BYTES_AHEAD:
            return 0
        return _AHEAD - (self._poller.passed - self._taken)

    def assigned(self, marks: Sequence[Mark]) -> None:
        for mark in marks:
            key = (mark.topic, mark.number)
            if key in self._partitions:
                self._surrender([key])
            self._partitions[key] = Partition(mark.topic, mark.number, mark.position, mark.note)
        self.assignment = frozenset(self._partitions)

    def arrived(self, records: Sequence[Any]) -> None:
        for record in records:
            # One that was fetched before its partition went away finds none, or one that begins where the group stands.
            partition = self._partitions.get((record.topic(), record.partition()))
            self._ready.append((partition or _NOBODY, record))
        self._wake()

    async def revoked(self, keys: Sequence[Key]) -> Sequence[Mark]:
        going = {partition for key in keys if (partition := self._partitions.get(key)) is not None}
        for partition in going:
            partition.leaving = True
        if self._let_go is not None:
            self._give_back(self._let_go(lambda delivery: delivery.position in going))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_timeout):
                while any(partition.out for partition in going):
                    self._moved.clear()
                    await self._moved.wait()
        return self._surrender(keys)

    def lost(self, keys: Sequence[Key]) -> None:
        self._surrender(keys)

    def missed(self, loss: MessagesLost) -> None:
        self._losses.append(loss)
        self._wake()

    def troubled(self, trouble: Exception | None) -> None:
        self._trouble = trouble
        if trouble is not None:
            self._wake()


def _mark(partition: Partition, *, leaving: bool) -> Mark:
    return Mark(partition.topic, partition.number, partition.position, partition.note(leaving=leaving))


_NOBODY: Final = Partition("", -1)
_NOBODY.live = False
