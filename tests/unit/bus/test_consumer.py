"""The consumer runtime: order, retries, dead letters, drain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from microkit import context
from microkit.bus import ConsumerRuntime, Delivery, MemoryBus, Subscription
from microkit.bus.consumer import Limits
from microkit.errors import DefinitionError, UndecodableMessage
from microkit.message import Event, Message
from microkit.telemetry import Telemetry
from microkit.testing.bus_suite import numbered, until

pytestmark = pytest.mark.anyio

TOPIC = "billing.bills"
Handle = Callable[[Delivery], Awaitable[None]]
Run = Callable[..., Awaitable[ConsumerRuntime]]


@pytest.fixture
async def run(bus: MemoryBus, telemetry: Telemetry) -> AsyncIterator[Run]:
    """Starts a runtime with one group, whose retries come quickly."""
    started: list[ConsumerRuntime] = []

    async def start(handle: Handle, *, max_in_flight: int = 256, bury: Any = None, **changes: Any) -> ConsumerRuntime:
        runtime = ConsumerRuntime(bus, telemetry, limits=Limits(in_flight=max_in_flight), bury=bury)
        subscription = Subscription("ledger", (TOPIC,), handle, backoff=0.01, longest_backoff=0.02)
        runtime.add(replace(subscription, **changes))
        await runtime.start()
        started.append(runtime)
        return runtime

    yield start
    for runtime in started:
        await runtime.stop(1)


@pytest.fixture
async def buried(bus: MemoryBus) -> Callable[[int], Awaitable[list[Message]]]:
    """Waits for that many dead letters on the topic's dead-letter topic."""
    consumer = await bus.subscribe("undertaker", [f"{TOPIC}.dead-letter"])
    got: list[Message] = []

    async def wait(number: int) -> list[Message]:
        async with asyncio.timeout(60):
            while len(got) < number:
                got.extend(delivery.message for delivery in await consumer.fetch(10, 1))
        return got

    return wait


class Recorder:
    """A handler that writes down what it did; ``fails`` decides what raises instead."""

    def __init__(self, fails: Callable[[Delivery], Exception | None] = lambda _: None, *, seconds: float = 0) -> None:
        self.fails = fails
        self.seconds = seconds
        self.done: list[int] = []
        self.tried: list[int] = []
        self.at_once = 0
        self.most_at_once = 0
        self.keys_at_once: set[str] = set()
        self.collisions = 0

    async def __call__(self, delivery: Delivery) -> None:
        number, key = int(delivery.message.id), delivery.message.key
        self.tried.append(number)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.collisions += key in self.keys_at_once
        self.keys_at_once.add(key)
        try:
            await asyncio.sleep(self.seconds)
            if error := self.fails(delivery):
                raise error
            self.done.append(number)
        finally:
            self.at_once -= 1
            self.keys_at_once.discard(key)

    async def has_done(self, number: int) -> None:
        await until(lambda: len(self.done) >= number, lambda: f"{len(self.done)} of {number} were handled")


def lanes(numbers: list[int], keys: int) -> list[list[int]]:
    return [[number for number in numbers if number % keys == key] for key in range(keys)]


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


async def test_after_its_attempts_a_message_is_a_dead_letter_with_all_it_had(
    bus: MemoryBus, run: Run, buried: Callable[[int], Awaitable[list[Message]]]
) -> None:
    handler = Recorder(lambda delivery: ValueError("out of paper") if delivery.message.id == "0" else None)
    await run(handler, attempts=3)
    original = Message(TOPIC, "0", b"\x00\xff", {"ce_id": "0", "ce_source": "billing", "ce_type": "x", "mine": "☂"})
    await bus.publish([original, *numbered(TOPIC, 1, start=1)])
    (letter,) = await buried(1)
    await handler.has_done(1)
    assert (letter.topic, letter.key, letter.value) == (f"{TOPIC}.dead-letter", "0", b"\x00\xff")
    assert letter.headers.items() >= original.headers.items()
    added = {name: value for name, value in letter.headers.items() if name not in original.headers}
    assert added.pop("mk_dlq_time")
    assert added == {
        "mk_dlq_reason": "attempts-exhausted",
        "mk_dlq_error": "ValueError: out of paper",
        "mk_dlq_group": "ledger",
        "mk_dlq_topic": TOPIC,
        "mk_dlq_partition": "0",
        "mk_dlq_offset": "0",
        "mk_dlq_attempts": "3",
    }
    assert handler.tried == [0, 0, 0, 1]


async def test_a_message_that_no_retry_helps_is_a_dead_letter_at_once(
    bus: MemoryBus, run: Run, buried: Callable[[int], Awaitable[list[Message]]]
) -> None:
    handler = Recorder(lambda delivery: UndecodableMessage("unknown-type", "what is this?"))
    await run(handler)
    await bus.publish(numbered(TOPIC, 1))
    (letter,) = await buried(1)
    assert (letter.headers["mk_dlq_reason"], letter.headers["mk_dlq_attempts"]) == ("unknown-type", "1")
    assert handler.tried == [0]


class BillPaid(Event, topic=TOPIC, key="bill"):
    bill: str
    amount: int


def envelope(value: bytes = b'{"bill":"1","amount":5}', **headers: str) -> Message:
    return Message(TOPIC, "1", value, {"ce_id": "7", "ce_type": BillPaid.event_type, **headers})


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (Message(TOPIC, "1", b"{}", {"ce_type": BillPaid.event_type}), "no-id"),
        (envelope(ce_schemaversion="2"), "newer-version"),
        (envelope(ce_schemaversion="two"), "bad-version"),
        (envelope(ce_schemaversion="9" * 5000), "newer-version"),
        (envelope(b"{"), "not-json"),
        (envelope(b"\xff\xfe"), "not-json"),
        (envelope(b""), "not-json"),
        (envelope(b"[" * 200_000), "not-json"),
        (envelope(b'{"bill":"1","amount":"much"}'), "invalid-payload"),
        (envelope(b" " * (10 * 1024 * 1024)), "too-large"),
        (envelope(note=b"\xff\xfe".decode("utf-8", "surrogateescape")), "bad-header"),
    ],
)
async def test_bad_events_are_dead_letters_with_their_reason_and_the_next_one_is_handled(
    bus: MemoryBus,
    run: Run,
    buried: Callable[[int], Awaitable[list[Message]]],
    message: Message,
    reason: str,
) -> None:
    handled: list[BillPaid] = []

    async def handle(delivery: Delivery) -> None:
        handled.append(BillPaid.from_message(delivery.message))

    await run(handle)
    await bus.publish([message, envelope()])
    (letter,) = await buried(1)
    assert letter.headers["mk_dlq_reason"] == reason
    assert letter.value == message.value
    await until(lambda: len(handled) == 1, lambda: "the next event was not handled")


async def test_a_message_delivered_again_and_again_without_ever_failing_is_given_up(
    bus: MemoryBus, run: Run, buried: Callable[[int], Awaitable[list[Message]]]
) -> None:
    bus.declare("ledger", [TOPIC])
    await bus.publish(numbered(TOPIC, 1))
    for _ in range(3):  # whoever had it died without a word
        killed = await bus.subscribe("ledger", [TOPIC])
        assert await killed.fetch(1, 1)
        await killed.close()
    handler = Recorder()
    await run(handler, attempts=3)
    (letter,) = await buried(1)
    assert letter.headers["mk_dlq_reason"] == "redelivered-too-often"
    assert handler.tried == []


async def test_of_many_that_were_fetched_again_and_again_only_those_that_were_in_hands_are_given_up(
    bus: MemoryBus, run: Run, buried: Callable[[int], Awaitable[list[Message]]]
) -> None:
    """One that kills its process must not take all with it that were fetched together with it."""
    bus.declare("ledger", [TOPIC])
    await bus.publish(numbered(TOPIC, 50, keys=50))
    for _ in range(3):
        killed = await bus.subscribe("ledger", [TOPIC])
        assert len(await killed.fetch(50, 1)) == 50
        await killed.close()
    handler = Recorder()
    await run(handler, attempts=3, concurrency=4)
    letters = await buried(4)
    await until(lambda: len(handler.tried) == 46, lambda: f"{len(handler.tried)} were tried")
    assert {letter.headers["mk_dlq_reason"] for letter in letters} == {"redelivered-too-often"}


async def test_a_message_is_not_let_go_until_its_dead_letter_is_kept(bus: MemoryBus, run: Run) -> None:
    kept: list[Message] = []
    refusals = 3

    async def bury(message: Message) -> None:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise ConnectionError("nowhere to put it")
        kept.append(message)

    handler = Recorder(lambda delivery: UndecodableMessage("bad", "x") if delivery.message.id == "0" else None)
    runtime = await run(handler, bury=bury)
    await bus.publish(numbered(TOPIC, 2))
    await handler.has_done(1)
    assert [message.id for message in kept] == ["0"]
    assert handler.tried == [0, 1]  # keeping it was tried again, not handling it
    assert runtime.progress()[0].in_flight == 0


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


async def test_stopping_lets_running_handlers_finish_and_gives_the_rest_back(bus: MemoryBus, run: Run) -> None:
    handler = Recorder(seconds=0.05)
    first = await run(handler, concurrency=2)
    await bus.publish(numbered(TOPIC, 40, keys=4))
    await until(lambda: handler.at_once == 2, lambda: "nothing runs")
    await first.stop(5)
    done = list(handler.done)
    assert handler.at_once == 0
    assert sorted(handler.tried) == sorted(done)
    assert len(done) < 40
    handler.seconds = 0
    await run(handler)
    await handler.has_done(40)
    assert sorted(handler.done) == list(range(40))  # what was done before the stop was acknowledged
    assert lanes(handler.done, 4) == lanes(list(range(40)), 4)


async def test_a_handler_that_outlasts_the_drain_is_cancelled_and_its_message_comes_again(
    bus: MemoryBus, run: Run
) -> None:
    ended: list[str] = []

    async def stubborn(delivery: Delivery) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    first = await run(stubborn)
    await bus.publish(numbered(TOPIC, 1))
    await until(lambda: first.progress()[0].in_flight == 1, lambda: "nothing runs")
    await asyncio.sleep(0.01)
    await first.stop(0.05)
    assert ended == ["cancelled"]
    handler = Recorder()
    await run(handler)
    await handler.has_done(1)


async def test_stopping_does_not_wait_for_a_key_that_is_to_be_retried_later(bus: MemoryBus, run: Run) -> None:
    handler = Recorder(lambda _: ValueError("no"))
    runtime = await run(handler, backoff=3600.0, longest_backoff=3600.0)
    await bus.publish(numbered(TOPIC, 1))
    await until(lambda: runtime.progress()[0].retrying == 1, lambda: "it is not retried")
    async with asyncio.timeout(30):
        await runtime.stop(60)
    again = Recorder()
    await run(again)
    await again.has_done(1)


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
