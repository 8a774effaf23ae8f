"""``kafka://``: a bus on a Kafka cluster."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from microkit.bus.dead_letter import SUFFIX
from microkit.bus.kafka.consumer import KafkaConsumer
from microkit.bus.kafka.inspection import Reading, mark_of, topics_of
from microkit.bus.kafka.options import KafkaOptions
from microkit.bus.kafka.producer import KafkaProducer
from microkit.bus.kafka.refusal import too_old, why_away
from microkit.bus.port import Lag, Promises, PublishFailed, Stored, Topic
from microkit.errors import ConfigurationError
from microkit.message import Message

T = TypeVar("T")

_ASK_SECONDS: Final = 5.0
_OTHERS: Final = re.compile(r"property \S+ is a (consumer|producer) property and will be ignored")
_LARGEST: Final = 16 * 1024 * 1024
"""Of a record; the broker's and the topic's limits are lower, and say so. A dead letter may be as large as this."""

_REFUSALS: Final = frozenset({KafkaError._AUTHENTICATION, KafkaError._SSL, KafkaError.SASL_AUTHENTICATION_FAILED})  # noqa: SLF001  its own names

_CLIENT: Final = {
    "socket.keepalive.enable": True,
    "socket.connection.setup.timeout.ms": 10_000,
    "reconnect.backoff.max.ms": 2_000,
    "topic.metadata.refresh.interval.ms": 30_000,
    "log.connection.close": False,
}
_PRODUCER: Final = {
    "acks": "all",
    "message.timeout.ms": 0,  # one alone never gives up: the others of its key would go on without it
    "partitioner": "murmur2_random",
    "message.max.bytes": _LARGEST,
    "linger.ms": 1,
    "queue.buffering.max.kbytes": 64 * 1024,
}
_IDEMPOTENT: Final = {"enable.idempotence": True}
_ONE_BY_ONE: Final = {"enable.idempotence": False, "max.in.flight.requests.per.connection": 1}
_CONSUMER: Final = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "earliest",
    "fetch.wait.max.ms": 100,
    # What is fetched ahead is memory; and when there is room again, the next fetch is to come at once, not after 1 s.
    "queued.min.messages": 5_000,
    "queued.max.messages.kbytes": 16 * 1024,
    "fetch.queue.backoff.ms": 20,
}


class KafkaBus:
    """A bus on a Kafka cluster. Implements :class:`~microkit.bus.port.Bus` and :class:`~microkit.bus.port.ShowsLag`.

    Order holds within a topic and key as long as the number of the topic's partitions does not change.

    Kafka counts no deliveries. ``attempt`` counts those of one member; and a message at which its predecessors ended
    without a word is known by a note beside the committed offset, so that one that kills its consumer is given up too.
    """

    def __init__(self, options: KafkaOptions) -> None:
        self.promises = Promises(persistent=True, ordered=True, groups=True, redelivers=True, history=True)
        self.options = options
        self._logger = logging.getLogger("microkit.bus.kafka")
        self._logger.addFilter(_not_of_others)
        self._client = {**_CLIENT, **options.client, "bootstrap.servers": options.servers}
        self._producer: KafkaProducer | None = None
        self._admin: AdminClient | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._consumers: list[KafkaConsumer] = []
        self._declared: set[str] = set()
        self._known: set[str] = set()
        self._making = asyncio.Lock()
        self._refusal: str | None = None

    async def start(self) -> None:
        """See :meth:`microkit.bus.port.Bus.start`.

        Raises:
            ConfigurationError: librdkafka does not understand a property, or the cluster is too old.
        """
        if self._threads is not None:
            return
        try:
            config: dict[str, Any] = {**self._client, "error_cb": self._heard}
            self._admin = AdminClient(config, logger=self._logger)
        except (KafkaException, ValueError, TypeError) as error:
            raise ConfigurationError(f"bus_url: {error}") from None
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="kafka")
        once = _IDEMPOTENT if self.options.idempotence else _ONE_BY_ONE
        self._producer = KafkaProducer(
            {**_PRODUCER, **once, **self._client}, self.options.delivery_timeout, self._logger
        )
        try:
            await self._look(self._threads)
            await self._make(self._declared)
        except BaseException:
            await self.close()
            raise

    async def _look(self, threads: ThreadPoolExecutor) -> None:
        """That the cluster is there, and is one that we can use."""
        made = self.options.create_topics
        try:
            await self.ping()
            old = await self._ask(lambda admin: too_old(admin, self._client, controlled=made))
        except ConnectionError as error:
            why = await asyncio.get_running_loop().run_in_executor(threads, why_away, self._client)
            raise ConnectionError(f"kafka: {why}" if why else str(error)) from error
        if old:
            raise ConfigurationError(
                "bus_url: the broker is older than Kafka 0.11, whose messages have no headers: upgrade it, or name "
                "another"
            )

    async def publish(self, messages: Sequence[Message]) -> None:
        """See :meth:`microkit.bus.port.Bus.publish`.

        A message larger than the broker allows, or to a topic that it does not let us write to, is refused with
        :class:`~microkit.bus.kafka.wire.BrokerRefused`.
        """
        if self._producer is None:
            raise ConnectionError("the Kafka bus is closed")
        if messages:
            topics = {message.topic for message in messages}
            await self._make(topics)
            try:
                await self._producer.publish(messages)
            except (PublishFailed, ConnectionError):
                self._known -= topics  # should one have been deleted, it is made anew
                raise

    def declare(self, group: str, topics: Sequence[str]) -> None:
        """Notes the topics, which are made when the bus starts. A new group begins with what is there."""
        self._declared.update(topics)

    async def subscribe(self, group: str, topics: Sequence[str]) -> KafkaConsumer:
        """See :meth:`microkit.bus.port.Bus.subscribe`. The cluster takes a moment to give the member its share."""
        if self._threads is None:
            raise ConnectionError("the Kafka bus is closed")
        self.declare(group, topics)
        await self._make(set(topics))
        config: dict[str, Any] = {"partition.assignment.strategy": "cooperative-sticky"}
        if self._client.get("group.protocol", "classic") != "classic":
            config = {}  # the broker assigns
        consumer = KafkaConsumer(
            group, topics, {**_CONSUMER, **config, **self._client}, self.options.drain_timeout, self._logger
        )
        try:
            await consumer.start()
        except (KafkaException, ValueError, TypeError) as error:
            raise ConfigurationError(f"bus_url: {error}") from None
        self._consumers.append(consumer)
        return consumer

    async def ping(self) -> None:
        """See :meth:`microkit.bus.port.Bus.ping`."""
        topic = next(iter(self._known), None)
        await self._ask(lambda admin: admin.list_topics(topic, timeout=_ASK_SECONDS))

    async def lag(self, group: str, topics: Sequence[str]) -> Sequence[Lag]:
        """See :meth:`microkit.bus.port.ShowsLag.lag`. Offsets of aborted transactions and of what compaction removed
        count as messages, as in Kafka's own tools."""
        return await self._ask(lambda _admin: self._lag(group, topics))

    async def topics(self) -> Sequence[Topic]:
        """See :meth:`microkit.bus.port.Inspects.topics`."""
        return await self._ask(topics_of)

    async def read(self, topic: str, *, last: int | None = None, follow: bool = False) -> AsyncGenerator[Stored, None]:
        """See :meth:`microkit.bus.port.Inspects.read`."""
        reading = Reading({**_CONSUMER, **self._client}, topic, last, self._logger)
        alone = ThreadPoolExecutor(1, thread_name_prefix="kafka-reading")  # no two calls of one client at once
        try:
            there = await self._ask(lambda _admin: reading.start(), alone)
            parts = reading.rest() if there else iter(())
            while (part := await self._ask(lambda _admin: next(parts, None), alone)) is not None:
                for stored in part:
                    yield stored
            while follow and there:
                for stored in await self._ask(lambda _admin: reading.more(), alone):
                    yield stored
        finally:
            reading.stop()
            alone.submit(reading.close)
            alone.shutdown(wait=False)

    async def remove(self, stored: Sequence[Stored]) -> None:
        """See :meth:`microkit.bus.port.Removes.remove`. A record stays until its topic's retention takes it; it is
        noted in the topic ``<topic>.removed``, which :meth:`read` heeds, and other readers may."""
        await self.publish([mark_of(each) for each in stored])

    async def close(self) -> None:
        """See :meth:`microkit.bus.port.Bus.close`."""
        threads, self._threads = self._threads, None
        producer, self._producer = self._producer, None
        consumers, self._consumers = self._consumers, []
        self._admin = None
        await asyncio.gather(*(consumer.close() for consumer in consumers))
        if producer is not None:
            await producer.close()
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)

    async def _make(self, topics: set[str]) -> None:
        """Makes the topics that are missing, where the cluster lets us; else they must be there, or it makes them."""
        if topics <= self._known:
            return
        async with self._making:
            missing = sorted(topics - self._known)
            if missing and self.options.create_topics:
                await self._ask(lambda admin: self._create(admin, missing))
            self._known.update(missing)

    def _create(self, admin: AdminClient, topics: Sequence[str]) -> None:
        """A dead letter is larger than its message by what it says about it, so its topic takes larger ones: else the
        largest messages that can come could never be given up. A cluster that will not have that makes a plain one."""
        letters = [each for each in topics if each.endswith(SUFFIX)]
        refused = self._create_with(admin, letters, {"max.message.bytes": str(_LARGEST)}) if letters else {}
        plain = [each for each in topics if each in refused or each not in letters]
        for topic, why in self._create_with(admin, plain, {}).items() if plain else ():
            self._logger.warning("topic %s was not made: %s", topic, why)

    def _create_with(self, admin: AdminClient, topics: Sequence[str], config: dict[str, str]) -> dict[str, str]:
        """Makes those that are missing; which were refused, and why."""
        wanted = [NewTopic(each, self.options.partitions, self.options.replication, config=config) for each in topics]
        refused: dict[str, str] = {}
        for topic, made in admin.create_topics(wanted, request_timeout=_ASK_SECONDS).items():
            try:
                made.result(_ASK_SECONDS * 2)
            except KafkaException as error:
                cause = error.args[0]
                if cause.code() == KafkaError._UNSUPPORTED_FEATURE:  # noqa: SLF001
                    raise ConfigurationError(
                        f"bus_url: the broker is too old to make topics with ({cause.str()}): upgrade it, say "
                        "partitions=12&replication=3, or make them yourself and say create_topics=false"
                    ) from None
                if cause.code() == KafkaError._TIMED_OUT or cause.retriable():  # noqa: SLF001  librdkafka's own code
                    raise
                if cause.code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    refused[topic] = cause.str()
        return refused

    def _lag(self, group: str, topics: Sequence[str]) -> list[Lag]:
        lags = []
        client = Consumer({**_CONSUMER, **self._client, "group.id": group}, logger=self._logger)  # joins nothing
        try:
            for topic in topics:
                numbers = client.list_topics(topic, timeout=_ASK_SECONDS).topics[topic].partitions
                partitions = [TopicPartition(topic, number) for number in sorted(numbers)]
                for each in client.committed(partitions, timeout=_ASK_SECONDS) if partitions else ():
                    low, high = client.get_watermark_offsets(each, timeout=_ASK_SECONDS)
                    lags.append(Lag(group, topic, each.partition, max(0, high - max(each.offset, low))))
        finally:
            client.close()
        return lags

    async def _ask(self, question: Callable[[AdminClient], T], threads: ThreadPoolExecutor | None = None) -> T:
        admin, threads = self._admin, threads or self._threads
        if admin is None or threads is None:
            raise ConnectionError("the Kafka bus is closed")
        try:
            answer = await asyncio.get_running_loop().run_in_executor(threads, question, admin)
        except (KafkaException, TimeoutError) as error:
            admin.poll(0)  # calls _heard, should there be something
            refusal, self._refusal = self._refusal, None
            raise ConnectionError(refusal or _said(error)) from None
        return answer

    def _heard(self, error: KafkaError) -> None:
        """What the client says besides. Where the cluster will not have us, the question itself is told no more than
        that there was no answer."""
        if error.code() in _REFUSALS:
            self._refusal = f"{error.str()}; see the user, the password and the certificates in bus_url"


def _said(error: Exception) -> str:
    cause = error.args[0] if error.args else error
    return f"kafka: {cause.name()}: {cause.str()}" if isinstance(cause, KafkaError) else f"kafka: {error}"


def _not_of_others(record: logging.LogRecord) -> bool:
    """Properties of producers and consumers stand in one place, as it is meant."""
    return _OTHERS.search(record.getMessage()) is None
