"""The thread that owns one consumer of librdkafka. All calls of the client are made here, none on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from microkit.bus.kafka.wire import ConsumerEnded, away
from microkit.bus.port import MessagesLost

_SLICE: Final = 0.05
"""Longest stay in the client: what waits meanwhile is a commit."""
_PATIENCE: Final = 1.0
"""Seconds that a full buffer is waited for; then the partitions are paused, and the client is polled all the same."""
_PROBE_SECONDS: Final = 1.0
_ASK_SECONDS: Final = 5.0
_GRACE: Final = 5.0
_NOTE: Final = "microkit-attempts="

Key = tuple[str, int]
"""Topic and number of a partition."""


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a group is in a partition. ``note``: how often the message there was handed out without an end."""

    topic: str
    number: int
    position: int | None
    note: int


class Owner(Protocol):
    """Who the poller works for. All is called on the event loop."""

    def room(self) -> int:
        """How many records it takes. Called in the thread."""
        ...

    def assigned(self, marks: Sequence[Mark]) -> None: ...
    def arrived(self, records: Sequence[Any]) -> None: ...
    def lost(self, keys: Sequence[Key]) -> None: ...
    def missed(self, loss: MessagesLost) -> None: ...
    def troubled(self, trouble: Exception | None) -> None: ...
    async def revoked(self, keys: Sequence[Key]) -> Sequence[Mark]:
        """Waits, for a bounded time, until what was handed out of these is done; where the group stands then."""
        ...


class Poller:
    """Runs the client until it is stopped. ``commit`` and ``stop`` are called on the event loop."""

    def __init__(self, owner: Owner, config: Mapping[str, Any], topics: Sequence[str], logger: logging.Logger) -> None:
        self._owner = owner
        self._config = {**config, "error_cb": self._on_error}
        self._group = str(config["group.id"])
        self._topics = list(topics)
        self._logger = logger
        self._loop = asyncio.get_running_loop()
        self._commands: deque[tuple[Sequence[Mark], Future[None]]] = deque()
        self._wake = threading.Event()
        self._last: Sequence[Mark] | None = None
        self._stopping = False
        self._paused = False
        self._newcomers = False
        self._full_since: float | None = None
        self._trouble: Exception | None = None
        self._fatal: KafkaError | None = None
        self._probe_at = 0.0
        self._next: dict[Key, int] = {}
        self.passed = 0
        """Records given to the owner, ever. Written in the thread."""
        self.passed_bytes = 0
        """Bytes of their values."""
        self.ready: Future[None] = Future()
        self.ended: Future[None] = Future()
        for answer in (self.ready, self.ended):
            answer.set_running_or_notify_cancel()  # whoever waits may be cancelled, and these are kept

    def start(self) -> None:
        threading.Thread(target=self._run, name="kafka-consumer", daemon=True).start()

    def commit(self, marks: Sequence[Mark]) -> Future[None]:
        """Commits; the future fails with ``ConnectionError`` when the broker did not take it."""
        answer: Future[None] = Future()
        self._commands.append((marks, answer))
        self._wake.set()
        if self.ended.done():
            self._obey(None)
        return answer

    def stop(self, marks: Sequence[Mark]) -> None:
        """Commits for the last time and leaves the group; ``ended`` tells when."""
        self._last = marks
        self._stopping = True
        self._wake.set()

    def awake(self) -> None:
        """There is room again."""
        self._wake.set()

    # In the thread.

    def _run(self) -> None:
        try:
            client = Consumer(self._config, logger=self._logger)
            client.subscribe(self._topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost)
        except Exception as error:  # noqa: BLE001  whoever subscribes is told
            self.ready.set_exception(error)
            self.ended.set_result(None)
            return
        self.ready.set_result(None)
        try:
            while not self._stopping:
                try:
                    self._turn(client)
                except KafkaException as error:
                    self._tell(ConnectionError(str(error)))
                    time.sleep(_SLICE)
        except Exception as error:
            self._logger.exception("the Kafka consumer of %s ended", self._group)
            self._tell(ConsumerEnded(f"the Kafka consumer of {self._group} ended: {error!r}"))
        finally:
            self._leave(client)

    def _leave(self, client: Consumer) -> None:
        self._stopping = True
        with contextlib.suppress(KafkaException, RuntimeError):
            self._obey(client)
            if self._last:
                self._commit(client, self._last)
        with contextlib.suppress(KafkaException, RuntimeError):
            client.close()
        self.ended.set_result(None)
        self._obey(None)  # what comes from here on is answered where it is asked

    def _turn(self, client: Consumer) -> None:
        if self._fatal is not None:
            raise ConsumerEnded(f"{self._fatal.name()}: {self._fatal.str()}")
        self._obey(client)
        room = self._owner.room()
        if room <= 0:
            self._hold(client)
            return
        self._full_since = None
        if self._paused:
            client.resume(client.assignment())
            self._paused = False
        first = client.poll(_SLICE)
        if first is not None:
            self._pass_on(client, [first, *(client.consume(room - 1, 0) if room > 1 else ())])
        elif self._trouble is not None and time.monotonic() >= self._probe_at:
            client.list_topics(self._topics[0], timeout=_PROBE_SECONDS)  # raises while the broker is away
            self._tell(None)

    def _hold(self, client: Consumer) -> None:
        """The caller has enough for now. Whoever does not poll falls out of the group, so in the end it is polled."""
        now = time.monotonic()
        if self._full_since is None:
            self._full_since = now
        if now - self._full_since < _PATIENCE:
            self._wake.wait(_SLICE)
        else:
            if not self._paused or self._newcomers:
                client.pause(client.assignment())  # drops what was fetched ahead, so not at every chance
                self._paused, self._newcomers = True, False
            record = client.poll(_SLICE)
            if record is not None:
                self._pass_on(client, [record])
        self._wake.clear()

    def _pass_on(self, client: Consumer, records: list[Any]) -> None:
        good, after = [], self._next
        for record in records:
            error = record.error()
            if error is None:
                key, offset = (record.topic(), record.partition()), record.offset()
                expected = after.get(key, offset)
                if offset > expected:
                    self._look_for_loss(client, key, offset)
                elif offset < expected:
                    what = f"{key[0]}/{key[1]} began anew at offset {offset}; {self._group} was at {expected}"
                    self._call(self._owner.missed, MessagesLost(what, None))
                after[key] = offset + 1
                good.append(record)
            else:
                self._logger.warning("group %s: %s", self._group, error.str())
        if good:
            if self._trouble is not None:
                self._tell(None)
            self.passed += len(good)
            self.passed_bytes += sum(map(len, good))
            self._call(self._owner.arrived, good)

    def _look_for_loss(self, client: Consumer, key: Key, offset: int) -> None:
        """Offsets were passed over. Transactions and compaction do that too; retention took those below the lowest."""
        expected = self._next[key]
        with contextlib.suppress(KafkaException):
            low, _ = client.get_watermark_offsets(TopicPartition(*key), timeout=_ASK_SECONDS)
            if (lost := min(low, offset) - expected) > 0:
                where = f"{key[0]}/{key[1]}"
                what = f"{where} no longer had {lost} offsets from {expected} on that {self._group} had not done"
                self._call(self._owner.missed, MessagesLost(what, lost))

    def _obey(self, client: Consumer | None) -> None:
        while True:
            try:
                marks, answer = self._commands.popleft()
            except IndexError:
                return
            if not answer.set_running_or_notify_cancel():
                continue  # what it was to commit, the next one will
            try:
                if client is not None:
                    self._commit(client, marks)
                answer.set_result(None)
            except Exception as error:  # noqa: BLE001  whoever acknowledges is told
                answer.set_exception(away(error) if isinstance(error, KafkaException) else error)

    def _commit(self, client: Consumer, marks: Sequence[Mark]) -> None:
        offsets = [
            TopicPartition(mark.topic, mark.number, mark.position, metadata=f"{_NOTE}{mark.note}")
            for mark in marks
            if mark.position is not None
        ]
        if not offsets:
            return
        for done in client.commit(offsets=offsets, asynchronous=False):
            if done.error is not None:
                raise KafkaException(done.error)

    # Callbacks of the client, called out of poll() and close().

    def _on_assign(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        self._newcomers = True  # those from before stay paused, if they are
        marks = self._marks(client, partitions)
        for mark in marks:
            self._next.pop((mark.topic, mark.number), None)
            if mark.position is not None:
                self._next[mark.topic, mark.number] = mark.position
        self._call(self._owner.assigned, marks)

    def _on_revoke(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        if self._stopping:
            return
        drained = self._ask(self._owner.revoked(_keys(partitions)))
        if drained is None:
            return
        while not drained.done() and not self._stopping:
            self._obey(client)  # what is finished meanwhile is committed meanwhile
            self._wake.wait(_SLICE / 5)
            self._wake.clear()
        self._obey(client)  # before the last commit, which they must not undo
        try:
            self._commit(client, drained.result(_GRACE))
        except (KafkaException, TimeoutError) as error:
            self._logger.warning("group %s: some messages will come twice: %s", self._group, error)

    def _on_lost(self, _client: Consumer, partitions: list[TopicPartition]) -> None:
        self._logger.warning("group %s lost %d partitions", self._group, len(partitions))
        self._obey(None)
        self._call(self._owner.lost, _keys(partitions))

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._fatal = error
        elif error.code() in (KafkaError._ALL_BROKERS_DOWN, KafkaError._AUTHENTICATION):  # noqa: SLF001
            self._tell(ConnectionError(f"{error.name()}: {error.str()}"))

    def _marks(self, client: Consumer, partitions: list[TopicPartition]) -> list[Mark]:
        """Where the group stands in new partitions; notes that the message there is being handed out once more."""
        try:
            known = client.committed(partitions, timeout=_ASK_SECONDS)
        except KafkaException as error:
            self._logger.warning("group %s: attempts are not counted: %s", self._group, error)
            return [Mark(each.topic, each.partition, None, 0) for each in partitions]
        marks = [
            Mark(each.topic, each.partition, each.offset if each.offset >= 0 else None, _noted(each.metadata))
            for each in known
        ]
        with contextlib.suppress(KafkaException):  # another rebalance has begun: nothing of this will be handed out
            self._commit(client, [replace(mark, note=mark.note + 1) for mark in marks])
        return marks

    # To the event loop.

    def _tell(self, trouble: Exception | None) -> None:
        self._probe_at = time.monotonic() + _PROBE_SECONDS
        self._trouble = trouble
        self._call(self._owner.troubled, trouble)

    def _call(self, function: Callable[[Any], None], argument: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, argument)
        except RuntimeError:  # the loop has ended without closing us
            self._stopping = True

    def _ask(self, answer: Awaitable[Sequence[Mark]]) -> Future[Sequence[Mark]] | None:
        try:
            return asyncio.run_coroutine_threadsafe(answer, self._loop)  # type: ignore[arg-type]  # it is a coroutine
        except RuntimeError:
            self._stopping = True
            return None


def _keys(partitions: Sequence[TopicPartition]) -> list[Key]:
    return [(each.topic, each.partition) for each in partitions]


def _noted(metadata: str | None) -> int:
    count = (metadata or "").removeprefix(_NOTE)
    return int(count) if metadata and count != metadata and count.isascii() and count.isdigit() else 0
