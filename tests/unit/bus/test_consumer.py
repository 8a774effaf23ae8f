"""The consumer runtime: order, retries, what is told of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from microkit import context
from microkit.bus import ConsumerRuntime, Delivery, MemoryBus, Subscription
from microkit.errors import DefinitionError, UndecodableMessage
from microkit.message import Message
from microkit.telemetry import Telemetry
from microkit.testing.bus_suite import numbered, until
from tests.unit.bus.consuming import TOPIC, Recorder, Run, envelope, lanes

pytestmark = pytest.mark.anyio


async def test_messages_of_a_key_are_handled_one_after_the_other_and_keys_side_by_side(
    bus: MemoryBus, run: Run
) -> None:
    handler = Recorder(seconds=0.001)
    await run(handler, concurrency=4)
    await bus.publish(numbered(TOPIC, 200, keys=10))
    await handler.has_done(200)
    assert lanes(handler.done, 10) == lanes(list(range(200)), 10)
    assert handler.collisions == 0
    assert handler.most_at_once == 4


async def test_a_failing_key_waits_for_its_retry_while_other_keys_flow(bus: MemoryBus, run: Run) -> None:
    failing = True

    def fails(delivery: Delivery) -> Exception | None:
        return ValueError("not yet") if failing and delivery.message.id == "3" else None

    handler = Recorder(fails)
    runtime = await run(handler, attempts=10_000)
    await bus.publish(numbered(TOPIC, 100, keys=10))
    await handler.has_done(90)
    assert sorted(handler.done) == [number for number in range(100) if number % 10 != 3]
    await until(lambda: runtime.progress()[0].retrying == 1, lambda: "the key is not parked")
    failing = False
    await handler.has_done(100)
    assert lanes(handler.done, 10) == lanes(list(range(100)), 10)


async def test_a_key_that_fails_for_long_does_not_use_up_what_may_be_in_flight(bus: MemoryBus, run: Run) -> None:
    handler = Recorder(lambda delivery: ValueError("no") if delivery.message.key == "stuck" else None)
    await run(handler, attempts=10_000, max_in_flight=8, concurrency=2)
    stuck = [replace(message, key="stuck") for message in numbered(TOPIC, 100, start=1000)]
    await bus.publish([*stuck, *numbered(TOPIC, 50, keys=50)])
    await handler.has_done(50)
    assert sorted(handler.done) == list(range(50))


async def test_an_attempt_that_takes_too_long_is_ended_and_tried_again(bus: MemoryBus, run: Run) -> None:
    seen: list[float | None] = []

    async def handle(delivery: Delivery) -> None:
        seen.append(context.remaining())
        if len(seen) == 1:
            await asyncio.sleep(60)

    await run(handle, timeout=0.05)
    await bus.publish(numbered(TOPIC, 1))
    await until(lambda: len(seen) == 2, lambda: "it was not tried again")
    assert all(left is not None and 0 < left <= 0.05 for left in seen)
    assert context.current().deadline is None


async def test_a_handler_that_awaited_something_cancelled_has_failed_and_the_worker_lives(
    bus: MemoryBus, run: Run
) -> None:
    async def cancelled() -> None:
        task = asyncio.create_task(asyncio.sleep(60))
        await asyncio.sleep(0)
        task.cancel()
        await task

    tried: list[str] = []

    async def handle(delivery: Delivery) -> None:
        tried.append(delivery.message.id)
        if len(tried) == 1:
            await cancelled()

    await run(handle, concurrency=1)
    await bus.publish(numbered(TOPIC, 2))
    await until(lambda: tried == ["0", "0", "1"], lambda: f"tried: {tried}")


async def test_the_span_of_a_message_is_a_child_of_its_publisher_and_linked_to_it(
    bus: MemoryBus, run: Run, telemetry: Telemetry
) -> None:
    handler = Recorder()
    await run(handler)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await bus.publish([envelope(traceparent=parent), envelope(ce_id="8", traceparent="nonsense")])
    await handler.has_done(2)
    ring = telemetry.ring
    assert ring is not None
    await until(lambda: len(ring.recent(10)) >= 2, lambda: "no spans")
    (span,) = ring.trace("0af7651916cd43dd8448eb211c80319c")
    assert span.name == f"process {TOPIC}"
    assert span.kind == "consumer"
    assert span.parent_id == "b7ad6b7169203331"
    assert [(link.trace_id, link.span_id) for link in span.links] == [(span.trace_id, span.parent_id)]
    assert span.attributes["messaging.consumer.group.name"] == "ledger"


async def test_metrics_count_what_was_consumed_and_what_was_given_up(
    bus: MemoryBus, run: Run, telemetry: Telemetry, buried: Callable[[int], Awaitable[list[Message]]]
) -> None:
    handler = Recorder(lambda delivery: UndecodableMessage("unknown-type", "?") if delivery.message.id == "0" else None)
    await run(handler)
    await bus.publish(numbered(TOPIC, 3))
    await buried(1)
    await handler.has_done(2)
    labels = {"messaging_destination_name": TOPIC, "messaging_consumer_group_name": "ledger"}
    read = telemetry.registry.get_sample_value
    assert read("messaging_client_consumed_messages_total", {**labels, "error_type": ""}) == 2
    assert read("messaging_client_consumed_messages_total", {**labels, "error_type": "unknown-type"}) == 1
    assert read("messaging_process_duration_seconds_count", {**labels, "error_type": ""}) == 2
    assert read("microkit_dead_letters_total", {**labels, "reason": "unknown-type"}) == 1


async def test_a_bus_that_goes_away_and_comes_back_is_reported_once_and_fetched_from_again(
    telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    bus = MemoryBus()
    away = True

    class Unsteady:
        def __init__(self, consumer: Any) -> None:
            self.consumer = consumer
            self.ack, self.release, self.close = consumer.ack, consumer.release, consumer.close

        async def fetch(self, most: int, wait: float) -> Any:
            if away:
                raise ConnectionError("the broker is away")
            return await self.consumer.fetch(most, wait)

    async def subscribe(group: str, topics: Any) -> Any:
        return Unsteady(await MemoryBus.subscribe(bus, group, topics))

    bus.subscribe = subscribe  # type: ignore[method-assign]
    handler = Recorder()
    runtime = ConsumerRuntime(bus, telemetry)
    runtime.add(Subscription("ledger", (TOPIC,), handler))
    await runtime.start()
    await bus.publish(numbered(TOPIC, 1))
    await until(lambda: runtime.progress()[0].trouble is not None, lambda: "no trouble is told of")
    await asyncio.sleep(0.3)
    away = False
    await handler.has_done(1)
    assert runtime.progress()[0].trouble is None
    assert not runtime.progress()[0].stalled
    await runtime.stop(1)
    await bus.close()


async def test_a_loop_that_does_not_turn_is_stalled(bus: MemoryBus, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = await run(Recorder(), timeout=1.0)
    assert not runtime.progress()[0].stalled
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + 60)
    assert runtime.progress()[0].stalled


async def test_a_group_cannot_be_subscribed_twice(bus: MemoryBus, telemetry: Telemetry) -> None:
    runtime = ConsumerRuntime(bus, telemetry)
    runtime.add(Subscription("ledger", (TOPIC,), Recorder()))
    with pytest.raises(DefinitionError, match="twice"):
        runtime.add(Subscription("ledger", ("other",), Recorder()))
    with pytest.raises(DefinitionError, match="no topic"):
        Subscription("ledger", (), Recorder())
    with pytest.raises(DefinitionError, match="attempts"):
        Subscription("ledger", (TOPIC,), Recorder(), attempts=0)


async def test_the_delays_between_attempts_grow_to_a_limit_and_differ() -> None:
    subscription = Subscription("ledger", (TOPIC,), Recorder(), backoff=0.1, longest_backoff=2.0)
    for attempt, ceiling in ((1, 0.1), (2, 0.2), (3, 0.4), (6, 2.0), (5000, 2.0)):
        delays = [subscription.delay(attempt) for _ in range(200)]
        assert max(delays) <= ceiling
        assert max(delays) > ceiling * 0.8
        assert min(delays) < ceiling * 0.2
