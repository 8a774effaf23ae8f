"""What arrived on a bus, by the numbers in the events. Delivery is at least once: copies count once."""

from __future__ import annotations

import json
from collections.abc import Sequence

from microkit.message import Message
from microkit.testing.bus_suite import until
from microkit.testing.faulty_bus import FaultyBus


def numbers(messages: Sequence[Message]) -> list[int]:
    """In the order of arrival, copies included."""
    return [json.loads(message.value)["number"] for message in messages]


def first_comings(found: Sequence[int]) -> list[int]:
    """Without the copies."""
    return list(dict.fromkeys(found))


async def published(broker: FaultyBus, number: int) -> None:
    """Waits until so many different numbers arrived."""

    def arrived() -> int:
        return len(set(numbers(broker.published)))

    await until(lambda: arrived() >= number, lambda: f"{arrived()} of {number} were published")
