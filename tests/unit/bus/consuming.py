"""One group of one topic, and a handler that writes down what it did."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from microkit.bus import ConsumerRuntime, Delivery
from microkit.message import Event, Message
from microkit.testing.bus_suite import until

TOPIC = "billing.bills"
QUICKLY: dict[str, Any] = {"backoff": 0.01, "longest_backoff": 0.02}
Handle = Callable[[Delivery], Awaitable[None]]
Run = Callable[..., Awaitable[ConsumerRuntime]]
Start = Callable[..., Awaitable[ConsumerRuntime]]


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


class BillPaid(Event, topic=TOPIC, key="bill"):
    bill: str
    amount: int


def envelope(value: bytes = b'{"bill":"1","amount":5}', **headers: str) -> Message:
    return Message(TOPIC, "1", value, {"ce_id": "7", "ce_type": BillPaid.event_type, **headers})
