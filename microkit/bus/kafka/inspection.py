"""Looking into a cluster: its topics, who reads them, and what lies in them. Runs in a thread, joins no group."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from confluent_kafka import (
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._listoffsets import OffsetSpec  # where mypy sees it

from microkit.bus.kafka.wire import message_of
from microkit.bus.port import Stored, Topic
from microkit.message import Message

REMOVED: Final = ".removed"
"""Kafka deletes no single record. What was removed of a topic is noted in another one with this at its end: a message
``partition:offset`` for each, which outlives the record it speaks of where both have the same retention."""
_ASK_SECONDS: Final = 5.0
_AT_ONCE: Final = 500
SILENCE: Final = 15.0
"""Seconds without a record or the end of a partition, after which the broker is asked whether there is more."""

Place = tuple[int, int]
"""Partition and offset."""


def removed_topic(topic: str) -> str:
    return topic + REMOVED


def mark_of(stored: Stored) -> Message:
    """The note that a record was removed."""
    place = f"{stored.partition}:{stored.offset}"
    return Message(removed_topic(stored.message.topic), place, b"", {"ce_id": stored.message.id})


def topics_of(admin: AdminClient) -> list[Topic]:
    """All topics but Kafka's own and the notes."""
    found = {name: sorted(each.partitions) for name, each in admin.list_topics(timeout=_ASK_SECONDS).topics.items()}
    partitions = [TopicPartition(name, number) for name, numbers in found.items() for number in numbers]
    counts = dict.fromkeys(found, 0)
    first = _offsets(admin, partitions, OffsetSpec.earliest())  # type: ignore[no-untyped-call]
    end = _offsets(admin, partitions, OffsetSpec.latest())  # type: ignore[no-untyped-call]
    for each in partitions:
        counts[each.topic] += end[each.topic, each.partition] - first[each.topic, each.partition]
    groups = _readers(admin)
    return [
        Topic(name, len(found[name]), max(0, counts[name] - counts.get(removed_topic(name), 0)), groups.get(name, ()))
        for name in sorted(found)
        if not name.startswith("__") and not name.endswith(REMOVED)
    ]


def _offsets(admin: AdminClient, partitions: Sequence[TopicPartition], which: OffsetSpec) -> dict[tuple[str, int], int]:
    if not partitions:
        return {}
    asked = admin.list_offsets(dict.fromkeys(partitions, which), request_timeout=_ASK_SECONDS)
    return {(each.topic, each.partition): answer.result(_ASK_SECONDS * 2).offset for each, answer in asked.items()}


def _readers(admin: AdminClient) -> Mapping[str, tuple[str, ...]]:
    """The groups that have committed in a topic; none where this user, or the broker, does not tell."""
    readers: dict[str, set[str]] = {}
    with contextlib.suppress(KafkaException):
        listed = admin.list_consumer_groups(request_timeout=_ASK_SECONDS).result(_ASK_SECONDS * 2)
        for group in [each.group_id for each in listed.valid]:
            asked = admin.list_consumer_group_offsets(
                [ConsumerGroupTopicPartitions(group)], request_timeout=_ASK_SECONDS
            )
            for each in asked[group].result(_ASK_SECONDS * 2).topic_partitions or ():
                readers.setdefault(each.topic, set()).add(group)
    return {topic: tuple(sorted(groups)) for topic, groups in readers.items()}


class Reading:
    """One walk over a topic, from its beginning or its last messages to where it ended, and on if it is asked again.

    Its methods block. ``close`` it.
    """

    def __init__(self, config: Mapping[str, Any], topic: str, last: int | None, logger: logging.Logger) -> None:
        self._config = {**config, "group.id": "microkit.inspection", "enable.partition.eof": True}
        self._logger = logger
        self._opened: Consumer | None = None
        self._topic = topic
        self._last = last
        self._open: set[int] = set()
        self._removed: set[Place] = set()
        self._stopped = threading.Event()
        self._moved_at = time.monotonic()

    @property
    def _client(self) -> Consumer:
        if self._opened is None:
            self._opened = Consumer(self._config, logger=self._logger)
        return self._opened

    def start(self) -> bool:
        """Finds the partitions; ``False`` where there is no such topic. Asking for one by name might make it."""
        topics = self._client.list_topics(timeout=_ASK_SECONDS).topics
        if self._topic not in topics:
            return False
        if removed_topic(self._topic) in topics:
            notes = self._assign(removed_topic(self._topic), sorted(topics[removed_topic(self._topic)].partitions))
            self._removed = {place for note in notes if (place := _place(note)) is not None}
        self._seek(self._topic, sorted(topics[self._topic].partitions))
        return True

    def rest(self) -> Iterator[list[Stored]]:
        """What is there now, in steps; some are empty."""
        newest: deque[Stored] | None = None if self._last is None else deque(maxlen=self._last)
        while self._goes_on(self._topic):
            part = self.more()
            if newest is None:
                yield part
            else:  # the newest of each partition are read, and of these the newest are given
                newest = deque(sorted([*newest, *part], key=_when), maxlen=self._last)
        yield list(newest or ())

    def more(self) -> list[Stored]:
        """What comes within a moment."""
        return [
            stored
            for record in self._records()
            if ((stored := _stored(record)).partition, stored.offset) not in self._removed
        ]

    def stop(self) -> None:
        """Ends what another thread is reading, soon."""
        self._stopped.set()

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()

    def _goes_on(self, topic: str) -> bool:
        """Whether there is more to come of what was there.

        A broker that was killed may have announced a place for messages that it then did not keep, and confirmed to
        nobody. Nothing comes of that place, not even the end, until there is a message behind it.

        Raises:
            KafkaException: the broker does not answer.
        """
        if self._stopped.is_set():
            return False
        if self._open and time.monotonic() - self._moved_at > SILENCE:
            for number in sorted(self._open):
                _, high = self._client.get_watermark_offsets(TopicPartition(topic, number), timeout=_ASK_SECONDS)
                self._logger.warning(
                    "partition %d of %s is said to reach to %d, and gives nothing more: that is taken for its end",
                    number, topic, high,
                )  # fmt: skip
            self._open.clear()
        return bool(self._open)

    def _assign(self, topic: str, numbers: Sequence[int]) -> Iterator[Any]:
        self._client.assign([TopicPartition(topic, number, 0) for number in numbers])
        self._open, self._moved_at = set(numbers), time.monotonic()
        while self._goes_on(topic):
            yield from self._records()

    def _seek(self, topic: str, numbers: Sequence[int]) -> None:
        partitions = []
        for number in numbers:
            low, high = self._client.get_watermark_offsets(TopicPartition(topic, number), timeout=_ASK_SECONDS)
            partitions.append(TopicPartition(topic, number, low if self._last is None else max(low, high - self._last)))
        self._client.assign(partitions)
        self._open, self._moved_at = set(numbers), time.monotonic()

    def _records(self) -> Iterator[Any]:
        for record in self._client.consume(_AT_ONCE, 0.2):
            self._moved_at = time.monotonic()
            error = record.error()
            if error is None:
                yield record
            elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001  librdkafka's own codes begin so
                self._open.discard(record.partition())
            else:
                raise KafkaException(error)


def _stored(record: Any) -> Stored:
    kind, milliseconds = record.timestamp()
    time = None if kind == TIMESTAMP_NOT_AVAILABLE else datetime.fromtimestamp(milliseconds / 1000, UTC)
    return Stored(message_of(record), record.partition(), record.offset(), time)


def _when(stored: Stored) -> tuple[float, int, int]:
    return (stored.time.timestamp() if stored.time else 0.0, stored.partition, stored.offset)


def _place(note: Any) -> Place | None:
    partition, _, offset = (note.key() or b"").partition(b":")
    return (int(partition), int(offset)) if partition.isdigit() and offset.isdigit() else None
