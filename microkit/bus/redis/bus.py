"""The bus of ``redis://``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final

from redis.asyncio import Redis

from microkit.bus.port import Lag, Promises, PublishFailed, Stored, Topic
from microkit.bus.redis import inspection
from microkit.bus.redis.consumer import RedisConsumer
from microkit.bus.redis.options import RedisOptions
from microkit.bus.redis.scripts import CREATE, LAG, PUBLISH
from microkit.bus.redis.server import Server, client_of, is_away
from microkit.bus.redis.wire import headers_of, key_of, partition_of
from microkit.errors import MicrokitError
from microkit.message import Message

AT_ONCE: Final = 1_000
"""Messages in one script: what others of the server's clients have to wait for."""
BYTES_AT_ONCE: Final = 4 * 1024 * 1024
LARGEST: Final = 64 * 1024 * 1024
"""Bytes of one message. The server's own bound (proto-max-bulk-len, 512 MB) ends the connection of who exceeds it."""


class MessageRefused(MicrokitError):
    """The server, or this adapter before it, will not have the message."""


class RedisBus:
    """Redis and Valkey Streams. Implements :class:`~microkit.bus.port.Bus` and :class:`~microkit.bus.port.ShowsLag`.

    ``server`` is a URL with :class:`RedisOptions` in its query, or a ``redis.asyncio.Redis`` with its own settings
    (TLS, credentials, Sentinel; it is closed with the bus): give that one ``retry=Retry(NoBackoff(), 0)``,
    ``socket_timeout=None`` and connections enough, three for each group.

    A topic is a fixed number of streams, and a key belongs to one of them. Within a group one member at a time reads a
    stream, so messages of one key arrive in order. What survives the end of the server is its configuration's affair
    (``appendonly``, ``appendfsync``), and a failover forgets what the replica had not yet got.

    Raises:
        ConfigurationError: the URL cannot be understood.
    """

    def __init__(self, server: str | Redis, options: RedisOptions | None = None) -> None:
        self.promises = Promises(persistent=True, ordered=True, groups=True, redelivers=True, history=True)
        if isinstance(server, str):
            of_url, rest = RedisOptions.of(server)
            self._server = Server(client_of(rest), options or of_url)
        else:
            self._server = Server(server, options or RedisOptions())
        self._declared: dict[str, set[str]] = {}
        self._consumers: set[RedisConsumer] = set()

    async def start(self) -> None:
        """See :meth:`microkit.bus.port.Bus.start`.

        Raises:
            ConnectionError: the server cannot be reached.
            ConfigurationError: it is older than Redis 7.
        """
        await self._server.start()
        for group, topics in self._declared.items():
            for topic in topics:
                await self._create(group, topic)

    async def ping(self) -> None:
        """See :meth:`microkit.bus.port.Bus.ping`."""
        await self._server.command("PING")

    def declare(self, group: str, topics: Sequence[str]) -> None:
        """See :meth:`microkit.bus.port.Bus.declare`. A new group begins with the oldest message that is kept, so
        there is nothing to be done before it joins."""
        self._declared.setdefault(group, set()).update(topics)

    async def subscribe(self, group: str, topics: Sequence[str]) -> RedisConsumer:
        """See :meth:`microkit.bus.port.Bus.subscribe`."""
        self._server.check_open()
        self.declare(group, topics)
        consumer = RedisConsumer(self._server, group, tuple(dict.fromkeys(topics)), self._create, self._left)
        self._consumers.add(consumer)
        try:
            await consumer.join()
        except BaseException:
            await consumer.close()
            raise
        return consumer

    async def close(self) -> None:
        """See :meth:`microkit.bus.port.Bus.close`."""
        await asyncio.gather(*(consumer.close() for consumer in tuple(self._consumers)))
        await self._server.close()

    async def lag(self, group: str, topics: Sequence[str]) -> Sequence[Lag]:
        """See :meth:`microkit.bus.port.ShowsLag.lag`."""
        found: list[Lag] = []
        used = await self._server.topics()
        for topic in topics:
            counts = await self._server.run(LAG, used.get(topic, []), [group])
            found.extend(Lag(group, topic, partition, count) for partition, count in enumerate(counts))
        return found

    async def topics(self) -> Sequence[Topic]:
        """See :meth:`microkit.bus.port.Inspects.topics`."""
        return await inspection.topics_of(self._server)

    async def read(self, topic: str, *, last: int | None = None, follow: bool = False) -> AsyncGenerator[Stored, None]:
        """See :meth:`microkit.bus.port.Inspects.read`. The streams keep no time of arrival."""
        async for stored in inspection.read(self._server, topic, last, follow):
            yield stored

    async def remove(self, stored: Sequence[Stored]) -> None:
        """See :meth:`microkit.bus.port.Removes.remove`."""
        await inspection.remove(self._server, stored)

    async def publish(self, messages: Sequence[Message]) -> None:
        """See :meth:`microkit.bus.port.Bus.publish`."""
        self._server.check_open()
        batches = _Batches()
        topic, streams = "", list[str]()
        for index, message in enumerate(messages):
            if message.topic != topic:
                topic, streams = message.topic, await self._server.streams(message.topic)
            batches.add(index, message, streams)
        failed = batches.failed
        for number, batch in enumerate(batches.made):
            try:
                await self._send(batch, messages, failed)
            except ConnectionError as error:
                if number == 0 and not failed:
                    raise
                failed.update((index, error) for rest in batches.made[number:] for index in rest.indexes)
                break
        if failed:
            raise PublishFailed(failed)

    async def _send(self, batch: _Batch, messages: Sequence[Message], failed: dict[int, Exception]) -> None:
        if failed:
            batch = batch.without_followers(messages, failed)
        if not batch.indexes:
            return
        reply = await self._server.run(PUBLISH, list(batch.streams), batch.arguments)
        for at, error in zip(reply[::2], reply[1::2], strict=True):
            text = error.decode(errors="replace")
            failed[batch.indexes[at]] = ConnectionError(f"redis: {text}") if is_away(text) else MessageRefused(text)

    async def _create(self, group: str, topic: str) -> list[int]:
        """Makes the group on all partitions of a topic; those on which it had been made before and was gone."""
        again: list[int] = await self._server.run(
            CREATE, [self._server.owners(topic, group), *await self._server.streams(topic)], [group]
        )
        return again

    def _left(self, consumer: RedisConsumer) -> None:
        self._consumers.discard(consumer)


class _Batch:
    """The arguments of one run of the script."""

    def __init__(self) -> None:
        self.streams: dict[str, bytes] = {}
        self.arguments: list[Any] = []
        self.indexes: list[int] = []
        self.bytes = 0

    def add(self, index: int, stream: str, words: tuple[bytes, bytes, bytes]) -> None:
        number = self.streams.get(stream)
        if number is None:
            number = self.streams[stream] = b"%d" % (len(self.streams) + 1)
        self.arguments += (number, *words)
        self.indexes.append(index)
        self.bytes += len(words[1])

    def without_followers(self, messages: Sequence[Message], failed: dict[int, Exception]) -> _Batch:
        """The same without what follows a failed message of its key, which fails for the same cause."""
        causes: dict[tuple[str, str], tuple[int, Exception]] = {}
        for index, cause in sorted(failed.items(), key=lambda item: item[0]):
            causes.setdefault((messages[index].topic, messages[index].key), (index, cause))
        rest = _Batch()
        names = list(self.streams)
        for at, index in enumerate(self.indexes):
            number, key, value, headers = self.arguments[4 * at : 4 * at + 4]
            first = causes.get((messages[index].topic, messages[index].key))
            if first is not None and first[0] < index:
                failed[index] = first[1]
            else:
                rest.add(index, names[int(number) - 1], (key, value, headers))
        return rest


class _Batches:
    """Sorts messages into batches, in their order, and refuses what cannot be sent."""

    def __init__(self) -> None:
        self.made: list[_Batch] = []
        self.failed: dict[int, Exception] = {}

    def add(self, index: int, message: Message, streams: Sequence[str]) -> None:
        try:
            key, headers = key_of(message), headers_of(message)
        except (UnicodeEncodeError, TypeError) as error:
            self.failed[index] = error
            return
        if len(message.value) > LARGEST:
            self.failed[index] = MessageRefused(f"{len(message.value)} bytes; a message has at most {LARGEST}")
            return
        batch = self.made[-1] if self.made else None
        if batch is None or len(batch.indexes) == AT_ONCE or batch.bytes + len(message.value) > BYTES_AT_ONCE:
            batch = _Batch()
            self.made.append(batch)
        batch.add(index, streams[partition_of(key, len(streams))], (key, message.value, headers))
