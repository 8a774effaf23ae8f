"""Several messages in one call: order, falling apart, waiting, size, spans."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from microkit import context
from microkit.bus import Batching, ConsumerRuntime, Delivery, MemoryBus, Subscription
from microkit.bus.pace import Pace
from microkit.bus.subscription import Within
from microkit.errors import DefinitionError, UndecodableMessage
from microkit.message import Message
from microkit.telemetry import Telemetry
from microkit.testing.bus_suite import numbered, until
from tests.unit.bus.consuming import QUICKLY, TOPIC, Run, Start

pytestmark = pytest.mark.anyio


class Handler:
    """Handles batches and single messages; ``bad`` ids raise, wherever they are."""

    def __init__(self, *bad: str, leaves: Sequence[str] = ()) -> None:
        self.bad = set(bad)
        self.leaves = set(leaves)
        self.calls: list[list[str]] = []
        self.done: list[str] = []
        self.tried_alone: list[str] = []

    async def together(self, deliveries: Sequence[Delivery], _: Within) -> Sequence[Delivery]:
        ids = [delivery.message.id for delivery in deliveries]
        self.calls.append(ids)
        await asyncio.sleep(0)
        if self.bad & set(ids):
            raise ValueError("one of them")
        left = [delivery for delivery in deliveries if delivery.message.id in self.leaves]
        self.done += [one for one in ids if one not in self.leaves]
        return left

    async def alone(self, delivery: Delivery) -> None:
        one = delivery.message.id
        self.tried_alone.append(one)
        await asyncio.sleep(0)
        if one in self.bad:
            raise UndecodableMessage("bad", one)
        self.done.append(one)


@pytest.fixture
def run(start: Start) -> Run:
    async def run(handler: Handler, batching: dict[str, Any] | None = None, **changes: Any) -> ConsumerRuntime:
        together = Batching(handler.together, **(batching or {}))
        return await start(Subscription("ledger", (TOPIC,), handler.alone, together, **{**QUICKLY, **changes}))

    return run


def in_order(done: Sequence[str], keys: int) -> bool:
    lanes = [[int(one) for one in done if int(one) % keys == key] for key in range(keys)]
    return all(lane == sorted(lane) for lane in lanes)


async def all_done(handler: Handler, number: int) -> None:
    await until(lambda: len(handler.done) >= number, lambda: f"{len(handler.done)} of {number} were handled")


async def test_messages_that_wait_are_handled_together_in_the_order_of_their_keys(bus: MemoryBus, run: Run) -> None:
    handler = Handler()
    await bus.publish([])
    bus.declare("ledger", [TOPIC])
    await bus.publish(numbered(TOPIC, 300, keys=7))
    await run(handler, {"most": 50})
    await all_done(handler, 300)
    assert sorted(map(int, handler.done)) == list(range(300))
    assert in_order(handler.done, 7)
    assert max(map(len, handler.calls)) == 50
    assert not handler.tried_alone or len(handler.tried_alone) < 20


async def test_a_batch_with_a_bad_message_falls_apart_and_holds_up_nobody(
    bus: MemoryBus, run: Run, telemetry: Telemetry
) -> None:
    handler = Handler("13")
    bus.declare("ledger", [TOPIC])
    graves = await bus.subscribe("undertaker", [f"{TOPIC}.dead-letter"])
    await bus.publish(numbered(TOPIC, 60, keys=6))
    await run(handler, {"most": 60}, concurrency=2)
    await all_done(handler, 59)
    assert sorted(map(int, handler.done)) == [number for number in range(60) if number != 13]
    assert in_order(handler.done, 6)
    (letter,) = await graves.fetch(5, 60)
    assert (letter.message.id, letter.message.headers["mk_dlq_attempts"]) == ("13", "1")
    assert handler.tried_alone.count("13") == 1
    read = telemetry.registry.get_sample_value
    labels = {"messaging_consumer_group_name": "ledger"}
    assert read("microkit_consumer_batches_total", {**labels, "outcome": "split"}) == 1


async def test_a_message_that_fails_for_a_while_parks_its_key_only_and_is_tried_alone(bus: MemoryBus, run: Run) -> None:
    handler = Handler()
    failures = 3
    alone = handler.alone

    async def failing(delivery: Delivery) -> None:
        nonlocal failures
        if delivery.message.id == "4" and failures:
            failures -= 1
            raise ValueError("not yet")
        handler.bad.clear()
        await alone(delivery)

    handler.bad.add("4")
    handler.alone = failing  # type: ignore[method-assign]
    bus.declare("ledger", [TOPIC])
    await bus.publish(numbered(TOPIC, 40, keys=4))
    await run(handler, {"most": 40})
    await all_done(handler, 40)
    assert in_order(handler.done, 4)
    assert failures == 0


async def test_what_a_batch_leaves_is_handled_alone_and_the_rest_once(bus: MemoryBus, run: Run) -> None:
    handler = Handler(leaves=["2", "5"])  # of two keys the last
    bus.declare("ledger", [TOPIC])
    await bus.publish(numbered(TOPIC, 6, keys=3))
    await run(handler, {"most": 6})
    await all_done(handler, 6)
    assert handler.calls == [["0", "3", "1", "4", "2", "5"]]
    assert handler.tried_alone == ["2", "5"]
    assert sorted(handler.done) == ["0", "1", "2", "3", "4", "5"]


async def test_a_batch_that_is_not_full_waits_for_more(bus: MemoryBus, run: Run) -> None:
    handler = Handler()
    await run(handler, {"most": 4, "wait": 20.0})
    for number in range(4):
        await bus.publish(numbered(TOPIC, 1, start=number))
        await asyncio.sleep(0.02)
    await all_done(handler, 4)  # long before the wait is over: it is full
    assert handler.calls == [["0", "1", "2", "3"]]


async def test_a_batch_does_not_wait_longer_than_it_may(bus: MemoryBus, run: Run) -> None:
    handler = Handler()
    await run(handler, {"most": 100, "wait": 0.05})
    await bus.publish(numbered(TOPIC, 3, keys=3))
    await all_done(handler, 3)
    assert [sorted(call) for call in handler.calls] == [["0", "1", "2"]]


async def test_what_was_delivered_before_is_never_in_company(bus: MemoryBus, run: Run) -> None:
    bus.declare("ledger", [TOPIC])
    await bus.publish(numbered(TOPIC, 10, keys=10))
    killed = await bus.subscribe("ledger", [TOPIC])
    seen = {delivery.message.id for delivery in await killed.fetch(3, 1)}
    await killed.close()
    handler = Handler()
    await run(handler)
    await all_done(handler, 10)
    assert set(handler.tried_alone) >= seen
    assert not any(seen & set(call) for call in handler.calls)


async def test_a_batch_that_takes_too_long_is_ended_and_falls_apart(bus: MemoryBus, run: Run) -> None:
    handler = Handler()
    deadlines: list[float | None] = []

    async def slow(deliveries: Sequence[Delivery], _: Within) -> Sequence[Delivery]:
        deadlines.append(context.remaining())
        await asyncio.sleep(60)
        return ()

    handler.together = slow  # type: ignore[method-assign]
    bus.declare("ledger", [TOPIC])
    await bus.publish(numbered(TOPIC, 4, keys=4))
    await run(handler, timeout=0.05)
    await all_done(handler, 4)
    assert all(left is not None and left <= 0.05 for left in deadlines)
    assert sorted(handler.tried_alone) == ["0", "1", "2", "3"]


async def test_in_an_outage_nothing_is_given_up_however_long_it_lasts(bus: MemoryBus, run: Run) -> None:
    handler = Handler()
    away = True
    together, tries = handler.together, 0

    async def needing(deliveries: Sequence[Delivery], within: Within) -> Sequence[Delivery]:
        nonlocal tries
        tries += 1
        if away:
            raise BlockingIOError("the database is away")
        return await together(deliveries, within)

    async def alone(delivery: Delivery) -> None:
        await needing([delivery], lambda _: None)  # type: ignore[arg-type, return-value]

    handler.together, handler.alone = needing, alone  # type: ignore[assignment, method-assign]
    bus.declare("ledger", [TOPIC])
    await bus.publish(numbered(TOPIC, 20, keys=5))
    runtime = await run(handler, attempts=1, outages=(BlockingIOError,))
    await until(lambda: tries > 12, lambda: f"tried {tries} times")
    trouble = runtime.progress()[0].trouble
    assert trouble is not None
    assert "the database is away" in trouble
    away = False
    await all_done(handler, 20)
    assert in_order(handler.done, 5)
    await until(lambda: runtime.progress()[0].trouble is None, lambda: "the trouble is not over")


async def test_the_span_of_a_batch_is_linked_to_all_its_producers(
    bus: MemoryBus, run: Run, telemetry: Telemetry
) -> None:
    handler = Handler()
    bus.declare("ledger", [TOPIC])
    traces = [f"{number:032x}" for number in range(1, 4)]
    await bus.publish(
        [
            Message(
                TOPIC, f"{number}", b"{}", {"ce_id": f"{number}", "traceparent": f"00-{trace}-{number + 1:016x}-01"}
            )
            for number, trace in enumerate(traces)
        ]
    )
    await run(handler)
    await all_done(handler, 3)
    assert telemetry.ring is not None
    await until(lambda: bool(telemetry.ring and telemetry.ring.recent(1)), lambda: "no span")
    (span,) = telemetry.ring.recent(10)
    assert sorted(link.trace_id for link in span.links) == traces
    assert span.attributes["messaging.batch.message_count"] == 3


async def test_transactions_grow_while_handlers_are_fast_and_shrink_to_one_when_they_are_not() -> None:
    async def never(*_: Any) -> Sequence[Delivery]:
        return ()

    pace = Pace(Batching(never, 100, target=0.1))
    for _ in range(5):
        pace.worked(pace.limit, 0.001)
    assert pace.limit == 100
    pace.worked(100, 0.06)
    assert pace.limit == 100
    for _ in range(8):
        pace.worked(pace.limit, 0.5)
    assert pace.limit == 1
    pace.worked(1, 0.0)
    assert pace.limit == 1  # for a while
    fixed = Pace(Batching(never, 100))
    fixed.failed()
    assert fixed.limit == 100


async def test_batches_that_make_no_sense_are_refused() -> None:
    handler = Handler()
    for wrong in (
        Batching(handler.together, 0),
        Batching(handler.together, wait=-1),
        Batching(handler.together, wait=60),
    ):
        with pytest.raises(DefinitionError, match="batches"):
            Subscription("ledger", (TOPIC,), handler.alone, wrong)
