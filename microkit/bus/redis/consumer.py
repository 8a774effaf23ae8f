"""A member of a group: what it fetches and acknowledges. Which partitions it has is :mod:`.house`'s affair."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import repeat
from typing import Any, Final

from microkit.bus.port import Delivery, LetGo, MessagesLost
from microkit.bus.redis.house import House
from microkit.bus.redis.scripts import ACK, PENDING
from microkit.bus.redis.server import Server
from microkit.bus.redis.tenure import Tenure
from microkit.bus.redis.wire import message_of, number_of

BLOCK: Final = 1.0
"""Seconds that the server holds a waiting command; it is below the time in which an answer must come."""

AHEAD: Final = 256
"""Messages that one read asks for at least: those of them that a fetch has no room for are there for the next."""

BYTES_AHEAD: Final = 16 * 1024 * 1024
"""What a read may bring, as far as one can know: messages are taken to be as large as those of the last read, and the
first ones 1 MiB."""


class RedisConsumer:
    """A member of a group. Implements :class:`~microkit.bus.port.Consumer` and :class:`~microkit.bus.port.Revokes`.

    Reading is a task of its own, so a cancelled fetch leaves what it read to the next one. Waiting is a plain XREAD
    beside it, which only says that there is something: a blocked XREADGROUP would be served by the server long after
    its member had lost the partition.
    """

    def __init__(
        self,
        server: Server,
        group: str,
        topics: Sequence[str],
        create: Callable[[str, str], Awaitable[list[int]]],
        left: Callable[[RedisConsumer], None],
    ) -> None:
        self._server = server
        self._group = group
        self._left = left
        self._closed = False
        self._giving = 8
        self._typical = 1024.0 * 1024.0
        self._buffer: deque[Delivery] = deque()
        self._reading: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[Sequence[tuple[Tenure, int]]] | None = None
        self._wake = asyncio.Event()
        self._let_go: LetGo | None = None
        self._house = House(server, group, topics, create, self._wake, self._revoke)

    async def join(self) -> None:
        """Becomes a member, with what is free of its share.

        Raises:
            ConnectionError: the server is away.
        """
        await self._house.join()

    async def fetch(self, most: int, wait: float) -> Sequence[Delivery]:
        """See :meth:`microkit.bus.port.Consumer.fetch`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + wait
        news: Sequence[tuple[Tenure, int]] = ()
        while True:
            self._check()
            self._wake.clear()
            if not (taken := self._take(most)):
                await self._read(most)
                self._check()  # a loss is told before what comes after it
                taken = self._take(most)
            if taken or (left := until - loop.time()) <= 0:
                return taken
            for tenure, seen in news:
                if tenure.read == seen:  # the server has more and did not give it: somebody else read it
                    tenure.behind = True
            news = await self._news(left)

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """See :meth:`microkit.bus.port.Consumer.ack`.

        Raises:
            ConnectionError: the server is away; nothing is known to be acknowledged.
        """
        parts: dict[Tenure, list[int]] = {}
        for delivery in deliveries:
            tenure: Tenure = delivery.position
            if tenure.alive and delivery.offset in tenure.held:
                parts.setdefault(tenure, []).append(delivery.offset)
        if not parts:
            return
        keys: list[str] = []
        arguments: list[Any] = [self._group]
        for tenure, numbers in parts.items():
            keys += (tenure.owners, tenure.stream)
            arguments += (tenure.partition, tenure.token, len(numbers), *[f"0-{number}" for number in numbers])
        reply = await self._server.run(ACK, keys, arguments)
        for (tenure, numbers), valid in zip(parts.items(), reply, strict=True):
            tenure.held.difference_update(numbers)
            if not valid:
                self._house.drop(tenure, "it was taken over before the acknowledgement")
            elif tenure.draining_since is not None:
                self._house.look()

    async def release(self, deliveries: Sequence[Delivery]) -> None:
        """See :meth:`microkit.bus.port.Consumer.release`."""
        for delivery in deliveries:
            tenure: Tenure = delivery.position
            if not tenure.alive or delivery.offset not in tenure.held:
                continue
            tenure.held.discard(delivery.offset)
            if tenure.draining_since is None:  # else it is the next owner's
                tenure.again.append(
                    Delivery(
                        delivery.message,
                        delivery.group,
                        delivery.partition,
                        delivery.offset,
                        delivery.attempt + 1,
                        tenure,
                    )
                )
        self._house.look()
        self._wake.set()

    def on_revoke(self, let_go: LetGo) -> None:
        """See :meth:`microkit.bus.port.Revokes.on_revoke`."""
        self._let_go = let_go

    def _revoke(self, tenure: Tenure) -> bool:
        """Leaves to the next owner what nobody has begun with here; whether it could be asked for."""
        if self._let_go is None:
            return False
        gone = self._let_go(lambda delivery: delivery.position is tenure)
        tenure.held.difference_update([delivery.offset for delivery in gone])
        tenure.again.clear()
        self._buffer = deque(delivery for delivery in self._buffer if delivery.position is not tenure)
        tenure.buffered = 0
        return True

    async def close(self) -> None:
        """See :meth:`microkit.bus.port.Consumer.close`."""
        if self._closed:
            return
        self._closed = True
        self._left(self)
        self._wake.set()
        tasks = [task for task in (self._reading, self._watching) if task is not None]
        for task in tasks:
            task.cancel()
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:  # who closes may be cancelled, and nobody else would give the partitions up
            await self._house.leave()
            self._buffer.clear()

    def _check(self) -> None:
        if self._closed:
            raise ConnectionError(f"the consumer of {self._group!r} is closed")
        if self._house.losses:
            whats, counts = zip(*self._house.losses, strict=True)
            self._house.losses.clear()
            lost = None if None in counts else sum(counts)
            raise MessagesLost(f"group {self._group}: {'; '.join(whats)}", lost)

    # What is there.

    def _take(self, most: int) -> list[Delivery]:
        taken: list[Delivery] = []
        for tenure in self._house.tenures:
            if tenure.again and len(taken) < most:
                tenure.again.sort(key=lambda delivery: delivery.offset)
                part = tenure.again[: most - len(taken)]
                del tenure.again[: len(part)]
                tenure.held.update([delivery.offset for delivery in part])
                taken += part
        while self._buffer and len(taken) < most:
            delivery = self._buffer.popleft()
            tenure = delivery.position
            if tenure.alive:
                tenure.buffered -= 1
                tenure.held.add(delivery.offset)
                taken.append(delivery)
        return taken

    # Reading.

    async def _read(self, most: int) -> None:
        if self._reading is None:
            number = max(1, min(max(most, AHEAD), int(BYTES_AHEAD / self._typical)))
            self._reading = asyncio.create_task(self._read_into_buffer(number), name=f"read {self._group}")
        await asyncio.wait({self._reading})  # cancelled here, the reading goes on
        reading, self._reading = self._reading, None
        if not reading.cancelled():
            reading.result()

    async def _read_into_buffer(self, most: int) -> None:
        tenures = [tenure for tenure in self._house.tenures if tenure.draining_since is None]
        behind = [tenure for tenure in tenures if tenure.behind]
        reading = behind or tenures
        if not reading:
            return
        for tenure in reading:
            tenure.reading = True
        try:
            await (self._read_pending(behind, most) if behind else self._read_new(tenures, most))
        except BaseException:
            for tenure in reading:
                tenure.behind = True  # the reply may have been on its way
            raise
        finally:
            for tenure in reading:
                tenure.reading = False

    async def _read_new(self, tenures: Sequence[Tenure], most: int) -> None:
        """Reads from all partitions at once, and compares the tokens in the same transaction.

        Not in a script, whose copies of the messages would double the server's work. Where the token is no longer
        ours, what was read is left alone: the owner finds it, because its next message does not follow its last.
        """
        owners: dict[str, list[Tenure]] = {}
        for tenure in tenures:
            owners.setdefault(tenure.owners, []).append(tenure)
        streams = {tenure.stream.encode(): tenure for tenure in tenures}
        *tokens, reply = await self._server.together(
            *[("HMGET", name, *[tenure.partition for tenure in part]) for name, part in owners.items()],
            ("XREADGROUP", "GROUP", self._group, "microkit", "COUNT", -(-most // self._giving), "STREAMS",
             *streams, *[">"] * len(streams)),
        )  # fmt: skip
        for part, found in zip(owners.values(), tokens, strict=True):
            for tenure, token in zip(part, found, strict=True):
                if token != tenure.token.encode():
                    self._house.drop(tenure, "it was taken over")
        if isinstance(reply, Exception):  # the group is missing on one of them
            await self._read_pending([tenure for tenure in tenures if tenure.alive], most)
            return
        parts = dict(reply).items() if reply else ()
        self._giving = max(len(parts), len(tenures) // 2, 1)
        for stream, entries in parts:
            tenure = streams[stream]
            numbers = [number_of(entry[0]) for entry in entries]
            if not tenure.alive:
                continue
            if numbers[0] <= tenure.read:
                self._house.gone(tenure, "began anew")
            elif numbers[-1] - tenure.read > len(numbers):
                tenure.behind = True  # somebody read what is missing, or it is gone: these are pending now, too
            else:
                tenure.read = numbers[-1]
                self._receive(tenure, entries, numbers)

    async def _read_pending(self, tenures: Sequence[Tenure], most: int) -> None:
        keys: list[str] = []
        arguments: list[Any] = [self._group, most]
        for tenure in tenures:
            keys += (tenure.owners, tenure.stream)
            arguments += (tenure.partition, tenure.token, tenure.read)
        for index, found, *rest in await self._server.run(PENDING, keys, arguments):
            tenure = tenures[index - 1]
            if isinstance(found, bytes):
                self._refused(tenure, found.decode(errors="replace"))
                continue
            counts, gone, last = rest
            numbers = [number_of(entry[0]) for entry in found]
            lost = tenure.inherit(numbers, gone, number_of(last) if last else None)
            if lost > 0:
                self._house.lose(f"{lost} messages of partition {tenure.partition} of {tenure.topic} are gone", lost)
            self._receive(tenure, found, numbers, counts)

    def _receive(
        self, tenure: Tenure, entries: Sequence[Any], numbers: Sequence[int], counts: Sequence[int] | None = None
    ) -> None:
        # A reading that began before a partition went: the next owner finds this pending, in its place.
        if not tenure.alive or tenure.revoked:
            return
        group, topic, partition = self._group, tenure.topic, tenure.partition
        tenure.buffered += len(numbers)
        deliveries = [
            Delivery(message_of(topic, entry[1]), group, partition, number, attempt, tenure)
            for entry, number, attempt in zip(entries, numbers, counts or repeat(1, len(numbers)), strict=True)
        ]
        self._buffer.extend(deliveries)
        if deliveries:
            size = sum([len(delivery.message.value) for delivery in deliveries]) / len(deliveries)
            self._typical = max(size, self._typical / 4, 512.0)

    def _refused(self, tenure: Tenure, problem: str) -> None:
        if problem == "TAKEN":
            self._house.drop(tenure, "it was taken over")
        elif problem.startswith("NOGROUP"):
            self._house.gone(tenure, "was deleted")
        else:
            raise ConnectionError(f"redis: {tenure.stream}: {problem}")

    # Waiting.

    async def _news(self, left: float) -> Sequence[tuple[Tenure, int]]:
        """Waits until there may be something to read, at most ``left`` seconds. Gives the partitions of which the
        server said so, each with the last number seen when it was asked."""
        if self._watching is None:
            tenures = [tenure for tenure in self._house.tenures if tenure.draining_since is None]
            if tenures:
                self._watching = asyncio.create_task(self._watch(tenures), name=f"watch {self._group}")
                self._watching.add_done_callback(lambda _: self._wake.set())
        if self._watching is None or not self._watching.done():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._wake.wait()
        if self._watching is None or not self._watching.done():
            return ()
        watching, self._watching = self._watching, None
        return () if watching.cancelled() else watching.result()

    async def _watch(self, tenures: Sequence[Tenure]) -> Sequence[tuple[Tenure, int]]:
        asked = {tenure.stream.encode(): (tenure, tenure.read) for tenure in tenures}
        reply = await self._server.command(
            "XREAD", "COUNT", 1, "BLOCK", int(BLOCK * 1000), "STREAMS",
            *asked, *[f"0-{seen}" for _, seen in asked.values()],
        )  # fmt: skip
        return [asked[stream] for stream in dict(reply)] if reply else ()
