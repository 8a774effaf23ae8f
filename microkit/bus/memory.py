"""``memory://``: the bus of services that share one process.

It keeps nothing: a message is in memory from ``publish`` until every group has acknowledged it, and where no group
listens it is gone. What makes events survive a crash is the outbox row, which stays until the message is settled.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count

from microkit.bus.letter import settlement_of
from microkit.bus.port import Delivery, Lag, Promises, Stored, Topic
from microkit.message import Message

Settled = Callable[[Sequence[str]], None]
_BEHIND = 10_000
"""Messages that who follows a topic may be behind before the oldest are forgotten."""


@dataclass(slots=True, eq=False)
class _Copy:
    """One message on its way to one group."""

    message: Message
    offset: int
    lane: _Lane
    time: datetime
    attempt: int = 0


@dataclass(slots=True, eq=False)
class _Lane:
    """The messages of one topic and key within a group.

    ``owner`` is the member that has some of them in flight: until those are done, the next ones go to nobody else.
    """

    name: tuple[str, str]
    waiting: deque[_Copy] = field(default_factory=deque)
    owner: MemoryConsumer | None = None
    in_flight: int = 0
    queued: bool = False


class _Group:
    def __init__(self) -> None:
        self.lanes: dict[tuple[str, str], _Lane] = {}
        self.ready: deque[_Lane] = deque()
        self.members: set[MemoryConsumer] = set()

    def copies(self, topic: str) -> Iterator[_Copy]:
        """What of a topic is not acknowledged."""
        for lane in self.lanes.values():
            if lane.name[0] == topic:
                yield from lane.waiting
        for member in self.members:
            yield from member.holds(topic)

    def add(self, message: Message, offset: int, time: datetime) -> None:
        name = (message.topic, message.key)
        lane = self.lanes.get(name)
        if lane is None:
            lane = self.lanes[name] = _Lane(name)
        lane.waiting.append(_Copy(message, offset, lane, time))
        self.offer(lane)

    def offer(self, lane: _Lane) -> None:
        """Puts a lane where the next fetch finds it, or forgets it when it is empty."""
        if lane.queued:
            return
        if not lane.waiting:
            if not lane.in_flight:
                self.lanes.pop(lane.name, None)
            return
        lane.queued = True
        if lane.owner is None:
            self.ready.append(lane)
            for member in self.members:
                member.wake()
        else:
            lane.owner.own.append(lane)
            lane.owner.wake()


class MemoryConsumer:
    """A member of a group of a :class:`MemoryBus`."""

    def __init__(self, name: str, group: _Group, acknowledged: Callable[[Message], None]) -> None:
        self.own: deque[_Lane] = deque()
        self._name = name
        self._group = group
        self._acknowledged = acknowledged
        self._in_flight: dict[int, _Copy] = {}
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False
        group.members.add(self)

    def holds(self, topic: str) -> list[_Copy]:
        """What of a topic is in flight here."""
        return [copy for copy in self._in_flight.values() if copy.message.topic == topic]

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def fetch(self, most: int, wait: float) -> Sequence[Delivery]:
        """See :meth:`microkit.bus.port.Consumer.fetch`.

        Raises:
            ConnectionError: the consumer or its bus was closed.
        """
        await asyncio.sleep(0)  # a consumer that is always busy leaves the loop to others too
        loop = asyncio.get_running_loop()
        until = loop.time() + wait
        while not (taken := self._take(most)):
            left = until - loop.time()
            if left <= 0:
                break
            self._waiter = loop.create_future()
            timer = loop.call_later(left, self.wake)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        return taken  # nothing is awaited between the taking and here, so a cancellation loses nothing

    def _take(self, most: int) -> list[Delivery]:
        if self._closed:
            raise ConnectionError(f"the consumer of {self._name!r} is closed")
        taken: list[Delivery] = []
        for lanes in (self.own, self._group.ready):
            while lanes and len(taken) < most:
                lane = lanes.popleft()
                lane.queued = False
                lane.owner = self
                while lane.waiting and len(taken) < most:
                    copy = lane.waiting.popleft()
                    copy.attempt += 1
                    lane.in_flight += 1
                    self._in_flight[id(copy)] = copy
                    taken.append(Delivery(copy.message, self._name, 0, copy.offset, copy.attempt, copy))
                self._group.offer(lane)
        return taken

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """See :meth:`microkit.bus.port.Consumer.ack`."""
        for copy in self._put_down(deliveries):
            self._acknowledged(copy.message)

    async def release(self, deliveries: Sequence[Delivery]) -> None:
        """See :meth:`microkit.bus.port.Consumer.release`."""
        self._put_down(deliveries, again=True)

    async def close(self) -> None:
        """See :meth:`microkit.bus.port.Consumer.close`."""
        self.end()

    def end(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._group.members.discard(self)
        self._give_back(list(self._in_flight.values()))
        self._in_flight.clear()
        self.wake()

    def _put_down(self, deliveries: Sequence[Delivery], *, again: bool = False) -> list[_Copy]:
        copies = [
            copy for delivery in deliveries if (copy := self._in_flight.pop(id(delivery.position), None)) is not None
        ]
        if again:
            self._give_back(copies)
        else:
            for copy in copies:
                self._leave(copy.lane)
        return copies

    def _give_back(self, copies: list[_Copy]) -> None:
        for copy in sorted(copies, key=lambda copy: copy.offset, reverse=True):
            waiting = copy.lane.waiting
            if waiting and waiting[0].offset < copy.offset:  # given back piece by piece
                copy.lane.waiting = deque(sorted([copy, *waiting], key=lambda each: each.offset))
            else:
                waiting.appendleft(copy)
        for copy in copies:
            self._leave(copy.lane)

    def _leave(self, lane: _Lane) -> None:
        lane.in_flight -= 1
        if lane.in_flight:
            self._group.offer(lane)
            return
        lane.owner = None
        if lane.queued:  # it stood in this member's own queue; now anyone may have it
            self.own.remove(lane)
            lane.queued = False
        self._group.offer(lane)


@dataclass(slots=True, eq=False)
class _Follower:
    """Who reads a topic on and on."""

    stored: deque[Stored] = field(default_factory=lambda: deque(maxlen=_BEHIND))
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, stored: Stored) -> None:
        self.stored.append(stored)
        self.news.set()


class MemoryBus:
    """A bus in memory. Implements :class:`~microkit.bus.port.Bus`, :class:`~microkit.bus.port.Settles`,
    :class:`~microkit.bus.port.ShowsLag` and :class:`~microkit.bus.port.Inspects`.

    Order holds within a topic and key: while a member has messages of a key in flight, the next ones of that key are
    delivered to that member only. There are no partitions (``partition`` is 0) and no limit on what waits: the outbox
    relay bounds it by the number of messages that it leaves unsettled.
    """

    def __init__(self) -> None:
        self.promises = Promises(persistent=False, ordered=True, groups=True, redelivers=True, history=False)
        self._groups: dict[str, _Group] = {}
        self._listening: dict[str, dict[str, _Group]] = {}
        self._offsets: dict[str, count[int]] = {}
        self._callbacks: dict[str, list[Settled]] = {}
        self._outstanding: dict[tuple[str, str], int] = {}
        self._settled: dict[str, list[str]] = {}
        self._followers: dict[str, list[_Follower]] = {}
        self._closed = False

    async def start(self) -> None:
        """Nothing to connect to; a closed bus opens again, empty."""
        self._closed = False

    async def ping(self) -> None:
        self._check_open()

    def declare(self, group: str, topics: Sequence[str]) -> None:
        found = self._groups.setdefault(group, _Group())
        for topic in topics:
            self._listening.setdefault(topic, {})[group] = found

    async def subscribe(self, group: str, topics: Sequence[str]) -> MemoryConsumer:
        self._check_open()
        self.declare(group, topics)
        return MemoryConsumer(group, self._groups[group], self._count_down)

    async def publish(self, messages: Sequence[Message]) -> None:
        self._check_open()
        now = datetime.now(UTC)
        for message in messages:
            groups = self._listening.get(message.topic, {})
            offset = next(self._offsets.setdefault(message.topic, count()))
            self._count_up(message, len(groups))
            for group in groups.values():
                group.add(message, offset, now)
            for follower in self._followers.get(message.topic, ()):
                follower.add(Stored(message, 0, offset, now))
        await asyncio.sleep(0)  # the consumers' turn

    async def close(self) -> None:
        self._closed = True
        for group in self._groups.values():
            for member in list(group.members):
                member.end()
        for forgotten in (self._groups, self._listening, self._outstanding, self._settled):
            forgotten.clear()
        for followers in self._followers.values():
            for follower in followers:
                follower.news.set()

    async def lag(self, group: str, topics: Sequence[str]) -> Sequence[Lag]:
        """See :meth:`microkit.bus.port.ShowsLag.lag`."""
        self._check_open()
        found = self._groups.get(group)
        return [Lag(group, topic, 0, sum(1 for _ in found.copies(topic)) if found else 0) for topic in topics]

    async def topics(self) -> Sequence[Topic]:
        """See :meth:`microkit.bus.port.Inspects.topics`. What every group has acknowledged is not kept."""
        self._check_open()
        return [
            Topic(topic, 1, len(self._waiting(topic)), tuple(sorted(self._listening.get(topic, ()))))
            for topic in sorted({*self._listening, *self._offsets})
        ]

    async def read(self, topic: str, *, last: int | None = None, follow: bool = False) -> AsyncGenerator[Stored, None]:
        """See :meth:`microkit.bus.port.Inspects.read`. What every group has acknowledged is not kept."""
        self._check_open()
        follower = _Follower()
        if follow:
            self._followers.setdefault(topic, []).append(follower)
        try:
            waiting = self._waiting(topic)
            for stored in waiting if last is None else waiting[max(0, len(waiting) - last) :]:
                yield stored
            while follow:
                self._check_open()
                while follower.stored:
                    yield follower.stored.popleft()
                follower.news.clear()
                await follower.news.wait()
        finally:
            if follow:
                self._followers[topic].remove(follower)

    def _waiting(self, topic: str) -> list[Stored]:
        """What some group has not acknowledged, once each, in order."""
        copies = {copy.offset: copy for group in self._groups.values() for copy in group.copies(topic)}
        return [Stored(copies[offset].message, 0, offset, copies[offset].time) for offset in sorted(copies)]

    def on_settled(self, source: str, settled: Settled) -> Callable[[], None]:
        """See :meth:`microkit.bus.port.Settles.on_settled`. Call what it returns to hear no more.

        A message that was published several times under one id is settled when all its copies are.
        """
        callbacks = self._callbacks.setdefault(source, [])
        callbacks.append(settled)

        def forget() -> None:
            if settled in callbacks:
                callbacks.remove(settled)

        return forget

    def _check_open(self) -> None:
        if self._closed:
            raise ConnectionError("the memory bus is closed")

    def _count_up(self, message: Message, groups: int) -> None:
        name = source, _ = settlement_of(message)
        if not self._callbacks.get(source):
            return
        outstanding = self._outstanding.get(name, 0) + groups
        if outstanding:
            self._outstanding[name] = outstanding
        else:
            self._settle(*name)

    def _count_down(self, message: Message) -> None:
        name = settlement_of(message)
        outstanding = self._outstanding.get(name)
        if outstanding is None:
            return
        if outstanding > 1:
            self._outstanding[name] = outstanding - 1
        else:
            del self._outstanding[name]
            self._settle(*name)

    def _settle(self, source: str, message_id: str) -> None:
        batch = self._settled.setdefault(source, [])
        if not batch:
            asyncio.get_running_loop().call_soon(self._tell, source)
        batch.append(message_id)

    def _tell(self, source: str) -> None:
        batch = self._settled.pop(source, [])
        for settled in tuple(self._callbacks.get(source, ())):
            settled(batch)
