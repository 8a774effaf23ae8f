"""One attempt at one message: its checks, its span, its deadline, and what came of it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

from opentelemetry.trace import Link, SpanKind, StatusCode, get_current_span

from microkit import context
from microkit.bus.letter import is_for
from microkit.bus.port import Delivery
from microkit.bus.subscription import Subscription
from microkit.context import WorkContext
from microkit.errors import UndecodableMessage
from microkit.message import Message
from microkit.telemetry import Telemetry
from microkit.telemetry.propagation import extract


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed. ``hopeless``: no retry will help."""

    reason: str
    error: str
    hopeless: bool = False


GIVEN_UP: Final = "attempts-exhausted"


class Handling:
    """Carries out attempts for one subscription. It raises nothing but cancellation."""

    def __init__(self, subscription: Subscription, telemetry: Telemetry) -> None:
        self._subscription = subscription
        self._telemetry = telemetry
        metrics = telemetry.metrics
        labels = ("messaging_destination_name", "messaging_consumer_group_name", "error_type")
        self._consumed = metrics.counter(
            "messaging_client_consumed_messages_total", "Messages delivered to handlers.", labels
        )
        self._duration = metrics.histogram(
            "messaging_process_duration_seconds", "Duration of processing a message.", labels
        )

    async def attempt(self, delivery: Delivery, attempt: int) -> Failure | None:
        """Handles the delivery; ``None`` when it is done. ``attempt`` counts from 1 over all deliveries of it."""
        if not is_for(delivery.message, delivery.group):
            return None  # redriven, for another group: this one has had it
        begun = time.perf_counter()
        failure = await self._attempt(delivery, attempt)
        labels = (delivery.message.topic, delivery.group, failure.reason if failure else "")
        self._consumed(*labels).inc()
        self._duration(*labels).observe(time.perf_counter() - begun)
        return failure

    async def _attempt(self, delivery: Delivery, attempt: int) -> Failure | None:
        message = delivery.message
        if attempt > self._subscription.attempts:
            # It was delivered again and again without ever failing: whoever handled it did not live to say so.
            return Failure("redelivered-too-often", f"delivered {delivery.attempt} times, never finished", True)
        if refusal := self._refuse(message):
            return refusal
        parent = extract(message.headers.get("traceparent"), message.headers.get("tracestate"))
        producer = get_current_span(parent).get_span_context()
        links = (Link(producer),) if producer.is_valid else ()
        with self._telemetry.span(
            f"process {message.topic}",
            kind=SpanKind.CONSUMER,
            attributes={
                "messaging.system": "microkit",
                "messaging.operation.type": "process",
                "messaging.destination.name": message.topic,
                "messaging.consumer.group.name": delivery.group,
                "messaging.message.id": message.id,
                "messaging.message.type": message.type,
                "messaging.delivery.attempt": attempt,
            },
            parent=parent,
            links=links,
        ) as span:
            failure = await self._call(delivery)
            if failure is not None:
                span.set_attribute("error.type", failure.reason)
                span.set_status(StatusCode.ERROR, failure.error)
        return failure

    def _refuse(self, message: Message) -> Failure | None:
        if len(message.value) > self._subscription.max_bytes:
            size, most = len(message.value), self._subscription.max_bytes
            return Failure("too-large", f"{size} bytes; this group takes {most}", True)
        text = "".join(message.headers.values())
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:  # adapters decode with surrogateescape
                return Failure("bad-header", "a header is not UTF-8", True)
        return None

    async def _call(self, delivery: Delivery) -> Failure | None:
        timeout = self._subscription.timeout
        token = context.enter(WorkContext(request_id=delivery.message.id, deadline=time.monotonic() + timeout))
        try:
            async with asyncio.timeout(timeout):
                await self._subscription.handle(delivery)
        except UndecodableMessage as error:
            return Failure(error.reason, error.detail, True)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return Failure("CancelledError", "the handler awaited something that was cancelled")
        except Exception as error:  # noqa: BLE001  whatever a handler raises is a failed attempt
            return Failure(type(error).__name__, f"{type(error).__name__}: {error}")
        finally:
            context.leave(token)
        return None
