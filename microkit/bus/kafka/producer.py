"""The sending side: idempotent, confirmed by all in-sync replicas, bounded in time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer

from microkit.bus.kafka.wire import encode, headers_of, is_over, reason_of
from microkit.bus.port import PublishFailed
from microkit.message import Message

_CHUNK: Final = 250
"""Messages handed to the client before the event loop has its turn."""
_FULL_PAUSE: Final = 0.005
_GRACE: Final = 5.0


class _Batch:
    """One call of ``publish``. Reports come in the line's thread; ``expected`` is known when all was handed over."""

    __slots__ = ("_loop", "expected", "failed", "future", "handed", "reported")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.future: asyncio.Future[None] = loop.create_future()
        self.failed: dict[int, KafkaError] = {}
        self.handed = 0
        self.expected = -1
        self.reported = 0
        self._loop = loop

    def report(self, index: int, error: KafkaError | None, _record: object) -> None:
        if error is not None:
            self.failed[index] = error
        self.reported += 1
        if self.reported == self.expected:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
                self._loop.call_soon_threadsafe(self.finish)

    def all_handed(self) -> None:
        self.expected = self.handed
        if self.reported == self.expected:  # the last report may have come before the number was known
            self.finish()

    def finish(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class _Line:
    """One client of librdkafka and the thread that serves its reports.

    It is retired as a whole: when a batch is not confirmed in time, or the client says that it will send nothing more,
    everything on the line fails, so that no later message of a key overtakes one that was given up. The next batch gets
    a new line. ``reason`` says why it was retired.
    """

    def __init__(self, config: Mapping[str, Any], logger: logging.Logger) -> None:
        self.client = Producer(dict(config), logger=logger)
        self.retired = False
        self.reason = ""
        self.ended = threading.Event()
        self._sending = threading.Lock()
        threading.Thread(target=self._serve, name="kafka-producer", daemon=True).start()

    def send(self, message: Message, report: Callable[[KafkaError | None, object], None]) -> None:
        """Hands a message over. What was handed over is reported: the line's thread ends when nothing is left.

        Raises:
            ConnectionError: the line is retired.
            BufferError: as much is under way as is allowed.
            KafkaException: the client refuses it.
            TypeError, ValueError: it cannot be written as a record.
        """
        key, headers = encode(message.key), headers_of(message)
        with self._sending:
            if self.retired:
                raise ConnectionError(self.reason)
            self.client.produce(message.topic, message.value, key, on_delivery=report, headers=headers)

    def retire(self, reason: str) -> None:
        """Fails what is not confirmed, for that reason unless there was one before. Does not block."""
        with self._sending:
            if not self.retired:
                self.retired, self.reason = True, reason
                self.client.purge(in_queue=True, in_flight=True, blocking=False)

    def _serve(self) -> None:
        while not (self.retired and not len(self.client)):
            try:
                self.client.poll(0.2)
            except KafkaException as error:  # fatal: a broker that was killed may have forgotten the client's sequence
                self.retire(str(reason_of(error.args[0])))
        del self.client  # its end takes a moment, which is this thread's
        self.ended.set()


class KafkaProducer:
    """Publishes batches. ``config`` is librdkafka's; in ``timeout`` seconds a batch is confirmed or has failed."""

    def __init__(self, config: Mapping[str, Any], timeout: float, logger: logging.Logger) -> None:
        self._config = config
        self._timeout = timeout
        self._logger = logger
        self._current: _Line | None = None
        self._pending: set[_Batch] = set()

    async def publish(self, messages: Sequence[Message]) -> None:
        """See :meth:`microkit.bus.port.Bus.publish`."""
        loop = asyncio.get_running_loop()
        line, batch = self._line(), _Batch(loop)
        # Once handed over, a batch is out of its caller's hands. The bound holds for a cancelled call too: what it left
        # behind must not arrive after what is sent in its place.
        timer = loop.call_later(self._timeout, line.retire, f"not confirmed within {self._timeout:g} s")
        self._pending.add(batch)
        batch.future.add_done_callback(lambda _done: self._over(batch, timer))
        refused: dict[int, Exception] = {}
        try:
            await self._hand_over(line, batch, messages, refused)
        finally:
            batch.all_handed()
        await asyncio.shield(batch.future)
        if refused or batch.failed:
            self._fail(line, batch, messages, refused)

    async def close(self) -> None:
        """Waits a little for what is under way, gives up the rest, and ends."""
        if self._pending:
            await asyncio.wait([batch.future for batch in self._pending], timeout=_GRACE)
        line, self._current = self._current, None
        if line is not None:
            line.retire("the bus was closed")
            await asyncio.to_thread(line.ended.wait, _GRACE)

    def _over(self, batch: _Batch, timer: asyncio.TimerHandle) -> None:
        timer.cancel()
        self._pending.discard(batch)

    def _line(self) -> _Line:
        if self._current is None or self._current.retired:
            self._current = _Line(self._config, self._logger)
        return self._current

    async def _hand_over(
        self, line: _Line, batch: _Batch, messages: Sequence[Message], refused: dict[int, Exception]
    ) -> None:
        stuck: dict[tuple[str, str], Exception] = {}
        for index, message in enumerate(messages):
            if index % _CHUNK == _CHUNK - 1:
                await asyncio.sleep(0)
            cause = stuck.get((message.topic, message.key)) if stuck else None
            while cause is None:
                try:
                    line.send(message, partial(batch.report, index))
                    batch.handed += 1
                    break
                except BufferError:  # as much is under way as is allowed
                    await asyncio.sleep(_FULL_PAUSE)
                except KafkaException as error:
                    cause = reason_of(error.args[0])
                except (ConnectionError, TypeError, ValueError) as error:
                    cause = error
            if cause is not None:
                refused[index] = stuck[message.topic, message.key] = cause

    def _fail(self, line: _Line, batch: _Batch, messages: Sequence[Message], refused: Mapping[int, Exception]) -> None:
        over = next((error for error in batch.failed.values() if is_over(error)), None)
        if over is not None:
            line.retire(str(reason_of(over)))
        failed = {**refused, **{index: self._cause(line, error) for index, error in batch.failed.items()}}
        lanes: dict[tuple[str, str], Exception] = {}
        for index, message in enumerate(messages):
            name = (message.topic, message.key)
            if cause := failed.get(index):
                lanes.setdefault(name, cause)
            elif name in lanes:  # it may have arrived; published again behind the others it is in order
                failed[index] = lanes[name]
        if len(failed) == len(messages) and all(isinstance(cause, ConnectionError) for cause in failed.values()):
            raise ConnectionError(f"none of {len(messages)} messages was confirmed: {failed[0]}")
        raise PublishFailed(dict(sorted(failed.items())))

    def _cause(self, line: _Line, error: KafkaError) -> Exception:
        purged = error.code() in (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT)  # noqa: SLF001  its own name
        return ConnectionError(line.reason) if purged else reason_of(error)
