"""One attempt at one message, or at several: checks, span, deadline, and what came of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextvars import Token
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, get_current_span, set_span_in_context

from microkit import context
from microkit.bus.alarm import Alarm, Watch
from microkit.bus.letter import is_for
from microkit.bus.metrics import ConsumerMetrics
from microkit.bus.port import Delivery
from microkit.bus.subscription import Batching, Fate, Subscription
from microkit.context import WorkContext, off_the_clock
from microkit.errors import DeadLetter, DeadlineExceeded, slug
from microkit.message import DEADLINE, IN_REPLY_TO, REPLY_TO, Message
from microkit.redaction import said
from microkit.telemetry import Telemetry
from microkit.telemetry.propagation import extract

GIVEN_UP: Final = "attempts-exhausted"
TOO_LATE: Final = "deadline-passed"
_MOST_LINKS: Final = 128
_TRIED_AGAIN: Final = (Fate.RETRY, Fate.OUTAGE)
_LONGEST_INSTANT: Final = 16  # digits


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed, and what is to become of the message. ``reason`` is a slug or the name of a class."""

    reason: str
    error: str
    fate: Fate = Fate.RETRY
    cause: Exception | None = None


class Handling:
    """Carries out attempts for one subscription. It raises nothing but cancellation."""

    def __init__(
        self, subscription: Subscription, telemetry: Telemetry, metrics: ConsumerMetrics, watch: Watch
    ) -> None:
        self._subscription = subscription
        self._handle = subscription.handle
        self._tracer = telemetry.tracer
        self._metrics = metrics
        self._watch = watch
        self._fates = subscription.fates()
        self._suspects = subscription.concurrency
        self._attributes = {
            topic: {
                "messaging.system": "microkit",
                "messaging.operation.type": "process",
                "messaging.destination.name": topic,
                "messaging.consumer.group.name": subscription.group,
            }
            for topic in subscription.topics
        }
        self._names = {topic: f"process {topic}" for topic in subscription.topics}

    def is_plain(self, delivery: Delivery) -> bool:
        """Whether a message may be one of a batch: for this group, readable, and delivered for the first time. One that
        came before may be what killed the process then."""
        message = delivery.message
        return delivery.attempt == 1 and is_for(message, delivery.group) and self._refuse(message) is None

    async def attempt(self, delivery: Delivery, attempt: int, alarm: Alarm) -> Failure | None:
        """Handles the delivery; ``None`` when it is done. ``attempt`` counts from 1 over all deliveries of it."""
        message = delivery.message
        if not is_for(message, delivery.group):
            return None  # redriven, for another group: this one has had it
        begun = time.perf_counter()
        deadline = _deadline(message) if self._subscription.deadline else None
        if attempt > self._subscription.attempts and self._suspects > 0:
            # It was delivered again and again without ever failing: whoever handled it did not live to say so. Or
            # whoever had fetched it did not come to it, because of another one: no more were in hands at once than
            # this, so the rest has its attempt, for thousands may have been fetched with the one that kills.
            self._suspects -= 1
            failure: Failure | None = Failure(
                "redelivered-too-often", f"delivered {delivery.attempt} times, never finished", Fate.DEAD_LETTER
            )
        else:
            failure = self._refuse(message)
        if failure is None and deadline is not None:
            failure = self._too_late(deadline)
        if failure is None:
            scope = Scope(self, delivery, attempt, self._watch.begin(alarm, deadline))
            with scope:
                failure = await self._call(delivery, alarm)
                if failure is not None:
                    if deadline is not None and failure.fate in _TRIED_AGAIN:
                        how = "the handler was stopped" if failure.cause is None else failure.error
                        failure = self._too_late(deadline, how) or failure
                    scope.failed(failure)
        seconds = time.perf_counter() - begun
        if failure is None:
            self._metrics.handled(message.topic, seconds)
        else:
            self._metrics.failed(message.topic, failure.reason, seconds)
        return failure

    async def _call(self, delivery: Delivery, alarm: Alarm) -> Failure | None:
        try:
            await self._handle(delivery)
        except asyncio.CancelledError:
            return self._cancelled(alarm)
        except Exception as error:  # noqa: BLE001  whatever a handler raises is a failed attempt
            alarm.over()
            return self._judge(error)
        alarm.over()
        return None

    async def attempt_batch(
        self, batching: Batching, deliveries: Sequence[Delivery], alarm: Alarm
    ) -> tuple[Sequence[Delivery], Failure | None, float]:
        """Handles several at once; what was left undone, why if that is all of them, and the seconds that the handlers
        of single messages took."""
        begun = time.perf_counter()
        scopes: list[Scope] = []
        number = len(deliveries)
        until = self._watch.begin(alarm)
        token = context.enter(WorkContext(deadline=until))
        span, attached = (None, None) if batching.each else self._batch_span(deliveries)
        failure: Failure | None = None
        left: Sequence[Delivery] = deliveries

        def within(delivery: Delivery) -> Scope:
            scopes.append(scope := Scope(self, delivery, 1, until, number))
            return scope

        try:
            left = await batching.handle(deliveries, within)
            alarm.over()
        except asyncio.CancelledError:
            failure = self._cancelled(alarm)
        except Exception as error:  # noqa: BLE001  as above
            alarm.over()
            failure = self._judge(error)
        finally:
            context.leave(token)
            if span is not None and attached is not None:
                if failure is not None:
                    _describe(span, failure)
                detach(attached)
                span.end()
        if done := number - len(left):
            self._metrics.handled(deliveries[0].message.topic, time.perf_counter() - begun, done)
        self._metrics.batch("split" if failure is not None or left else "done")
        return left, failure, sum(scope.seconds for scope in scopes)

    def _cancelled(self, alarm: Alarm) -> Failure:
        task = asyncio.current_task()
        late = alarm.over()
        if task is None or task.cancelling():
            raise asyncio.CancelledError
        if late:
            return Failure("TimeoutError", f"TimeoutError: it took longer than {self._subscription.timeout:g} s")
        return Failure("CancelledError", "the handler awaited something that was cancelled")

    def _judge(self, error: Exception) -> Failure:
        kind = type(error)
        fate = next((self._fates[each] for each in kind.__mro__ if each in self._fates), Fate.RETRY)
        if isinstance(error, DeadLetter):
            return Failure(error.reason, said(error.detail or error.reason), fate)
        reason = slug(kind.__name__) if fate is Fate.DEAD_LETTER else kind.__name__
        return Failure(reason, f"{kind.__name__}: {said(error)}", fate, error)

    def _too_late(self, deadline: float, after: str = "nothing was begun") -> Failure | None:
        """What becomes of a message once the time is over that its publisher had."""
        late = time.monotonic() - deadline
        if late < 0:
            return None
        fate = self._judge(DeadlineExceeded()).fate
        error = f"the deadline of the work that published it passed {late:.3f} s ago; {after}"
        return Failure(TOO_LATE, error, Fate.IGNORE if fate is Fate.IGNORE else Fate.DEAD_LETTER)

    def _refuse(self, message: Message) -> Failure | None:
        if len(message.value) > self._subscription.max_bytes:
            size, most = len(message.value), self._subscription.max_bytes
            return Failure("too-large", f"{size} bytes; this group takes {most}", Fate.DEAD_LETTER)
        text = "".join(message.headers.values())
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:  # adapters decode with surrogateescape
                return Failure("bad-header", "a header is not UTF-8", Fate.DEAD_LETTER)
        return None

    # Spans.

    def start_span(self, delivery: Delivery, attempt: int, together: int) -> Span:
        """The span of one message: a child of its producer's, and linked to it."""
        message = delivery.message
        headers = message.headers
        parent = extract(headers.get("traceparent"), headers.get("tracestate"))
        producer = get_current_span(parent).get_span_context()
        attributes: dict[str, str | int] = {
            **self._attributes[message.topic],
            "messaging.message.id": message.id,
            "messaging.message.type": message.type,
            "messaging.delivery.attempt": attempt,
        }
        if together > 1:
            attributes["messaging.batch.message_count"] = together
        return self._tracer.start_span(
            self._names[message.topic],
            parent,
            SpanKind.CONSUMER,
            attributes,
            (Link(producer),) if producer.is_valid else (),
        )

    def _batch_span(self, deliveries: Sequence[Delivery]) -> tuple[Span, Token[Context]]:
        """One span for all of them, in a trace of its own, linked to every producer, as OpenTelemetry's conventions for
        messaging have it."""
        topic = deliveries[0].message.topic
        links = []
        for delivery in deliveries[:_MOST_LINKS]:
            headers = delivery.message.headers
            parent = extract(headers.get("traceparent"), headers.get("tracestate"))
            producer = get_current_span(parent).get_span_context()
            if producer.is_valid:
                links.append(Link(producer))
        attributes: dict[str, str | int] = {**self._attributes[topic], "messaging.batch.message_count": len(deliveries)}
        span = self._tracer.start_span(self._names[topic], Context(), SpanKind.CONSUMER, attributes, links)
        return span, attach(set_span_in_context(span))


class Scope:
    """One message while it is handled: its span, and its context with the deadline, are current inside the block."""

    __slots__ = ("_attached", "_attempt", "_delivery", "_handling", "_span", "_together", "_token", "_until", "seconds")

    def __init__(self, handling: Handling, delivery: Delivery, attempt: int, until: float, together: int = 1) -> None:
        self._handling = handling
        self._delivery = delivery
        self._attempt = attempt
        self._until = until
        self._together = together
        self.seconds = 0.0

    def __enter__(self) -> None:
        delivery = self._delivery
        self.seconds = -time.perf_counter()
        self._span = span = self._handling.start_span(delivery, self._attempt, self._together)
        self._attached = attach(set_span_in_context(span))
        asked = delivery.message.headers.get(REPLY_TO)
        answers = {IN_REPLY_TO: asked} if asked else None  # what is published now is the reply
        work = WorkContext(request_id=delivery.message.id, deadline=self._until, event_headers=answers)
        self._token = context.enter(work)

    def failed(self, failure: Failure) -> None:
        """Writes into the span what the attempt came to."""
        _describe(self._span, failure)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.seconds += time.perf_counter()
        context.leave(self._token)
        detach(self._attached)
        if isinstance(error, Exception):
            _describe(self._span, Failure(type(error).__name__, said(error), cause=error))
        self._span.end()


def _deadline(message: Message) -> float | None:
    """When the time of the work ends that published it; ``None`` where it does not say, or says nothing that one can
    read: such a message is handled in the handler's own time, and not lost."""
    text = message.headers.get(DEADLINE, "")
    return off_the_clock(int(text)) if text.isascii() and text.isdigit() and len(text) < _LONGEST_INSTANT else None


def _describe(span: Span, failure: Failure) -> None:
    span.set_attribute("error.type", failure.reason)
    if failure.fate is Fate.IGNORE:
        return
    if failure.cause is not None:
        span.record_exception(failure.cause)
    span.set_status(StatusCode.ERROR, failure.error)
