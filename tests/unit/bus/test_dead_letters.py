"""Messages that are given up: when, with what, and not before their dead letter is kept."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from microkit.bus import Delivery, MemoryBus
from microkit.errors import UndecodableMessage
from microkit.message import Message
from microkit.testing.bus_suite import numbered, until
from tests.unit.bus.consuming import TOPIC, BillPaid, Recorder, Run, envelope

pytestmark = pytest.mark.anyio


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
