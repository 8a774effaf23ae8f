"""What becomes of a message whose handler raises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from microkit.bus import ConsumerRuntime, Delivery, MemoryBus, Subscription
from microkit.errors import DeadLetter, DefinitionError, UndecodableMessage
from microkit.telemetry import Telemetry
from microkit.testing.bus_suite import numbered, until

pytestmark = pytest.mark.anyio

TOPIC = "billing.bills"


class InvalidBill(Exception): ...


class AlreadyPaid(InvalidBill): ...


class BankAway(Exception): ...


async def test_errors_are_retried_ignored_dead_lettered_or_waited_out_by_their_nearest_class(
    bus: MemoryBus, telemetry: Telemetry
) -> None:
    tried: list[str] = []
    raises = {
        "0": AlreadyPaid(),
        "1": InvalidBill("no amount"),
        "2": DeadLetter("no-payee", "who?"),
        "3": ValueError("x"),
    }

    async def handle(delivery: Delivery) -> None:
        one = delivery.message.id
        tried.append(one)
        if one == "4" and tried.count("4") < 8:
            raise BankAway
        if one in raises:
            raise raises[one]

    graves = await bus.subscribe("undertaker", [f"{TOPIC}.dead-letter"])
    runtime = ConsumerRuntime(bus, telemetry)
    runtime.add(
        Subscription(
            "ledger",
            (TOPIC,),
            handle,
            attempts=3,
            backoff=0.01,
            longest_backoff=0.02,
            dead_letter=(InvalidBill,),
            ignore=(AlreadyPaid,),
            outages=(BankAway,),
        )
    )
    await runtime.start()
    await bus.publish(numbered(TOPIC, 6, keys=6))
    await until(lambda: runtime.progress()[0].in_flight == 0 and len(tried) >= 6, lambda: f"tried: {tried}")
    letters: dict[str, Mapping[str, str]] = {}
    while len(letters) < 3:
        for delivery in await graves.fetch(10, 30):
            letters[delivery.message.id] = delivery.message.headers
    assert {one: tried.count(one) for one in "012345"} == {"0": 1, "1": 1, "2": 1, "3": 3, "4": 8, "5": 1}
    assert {one: found["mk_dlq_reason"] for one, found in letters.items()} == {
        "1": "invalid-bill",
        "2": "no-payee",
        "3": "attempts-exhausted",
    }
    assert [letters[one]["mk_dlq_error"] for one in "123"] == ["InvalidBill: no amount", "who?", "ValueError: x"]
    labels = {"messaging_destination_name": TOPIC, "messaging_consumer_group_name": "ledger"}
    read = telemetry.registry.get_sample_value
    assert read("microkit_consumer_retries_total", {**labels, "error_type": "ValueError"}) == 2
    assert read("messaging_client_consumed_messages_total", {**labels, "error_type": "AlreadyPaid"}) == 1
    assert read("microkit_consumer_in_flight", {"messaging_consumer_group_name": "ledger"}) == 0
    await runtime.stop(1)


async def test_an_error_cannot_be_meant_in_two_ways() -> None:
    async def handle(_: Delivery) -> None: ...

    with pytest.raises(DefinitionError, match="InvalidBill as dead-letter and as ignore"):
        Subscription("ledger", (TOPIC,), handle, dead_letter=(InvalidBill,), ignore=(InvalidBill,))
    assert issubclass(UndecodableMessage, DeadLetter)


async def test_the_lag_of_a_group_is_a_metric_whatever_a_look_at_it_has_failed_with(
    bus: MemoryBus, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def handle(_: Delivery) -> None:
        raise ValueError("never")

    bus.declare("ledger", [TOPIC])
    await bus.publish(numbered(TOPIC, 7))
    real, faults = bus.lag, [ValueError("what is this?"), ConnectionError("away")]

    async def lag(*arguments: Any) -> Any:
        if faults:
            raise faults.pop()
        return await real(*arguments)

    monkeypatch.setattr(bus, "lag", lag)
    runtime = ConsumerRuntime(bus, telemetry, lag_every=0.01)
    runtime.add(Subscription("ledger", (TOPIC,), handle, backoff=3600.0, longest_backoff=3600.0))
    await runtime.start()
    labels = {"messaging_destination_name": TOPIC, "messaging_consumer_group_name": "ledger"}
    read = telemetry.registry.get_sample_value
    await until(lambda: read("microkit_consumer_lag", labels) == 7, lambda: "no lag")
    await runtime.stop(1)
